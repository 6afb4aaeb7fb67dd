// Which replica serves an activated expert: the schedulers of src/janus/core/scheduling.py, with the same results.
#include "api.h"

#include <cstring>
#include <vector>

namespace janus {
namespace {

// load [instances]: distinct physical ids of each instance; rows [instances]: tokens with at least one there.
void count(int64_t tokens, int64_t k, int64_t instances, int64_t slots, const int32_t* phys, int32_t* load,
           int32_t* rows) {
  static thread_local std::vector<uint8_t> seen;
  static thread_local std::vector<int64_t> last;  // the last token that was counted for an instance
  seen.assign(size_t(instances * slots), 0);
  last.assign(size_t(instances), -1);
  std::memset(load, 0, size_t(instances) * sizeof(int32_t));
  std::memset(rows, 0, size_t(instances) * sizeof(int32_t));
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t i = 0; i < k; ++i) {
      const int32_t id = phys[token * k + i];
      const size_t g = size_t(id / slots);
      load[g] += !seen[size_t(id)];
      seen[size_t(id)] = 1;
      rows[g] += last[g] != token;
      last[g] = token;
    }
  }
}

}  // namespace
}  // namespace janus

using namespace janus;

// ids [tokens, k] are logical, first [experts] is the physical id of each expert's first replica. Writes phys
// [tokens, k], load and rows [instances]. Returns 0, or -1 when an id is no expert.
JANUS_API int64_t janus_schedule_static(int64_t tokens, int64_t k, int64_t experts, int64_t instances, int64_t slots,
                                        const int32_t* ids, const int32_t* first, int32_t* phys, int32_t* load,
                                        int32_t* rows) {
  for (int64_t i = 0; i < tokens * k; ++i) {
    if (ids[i] < 0 || ids[i] >= experts) return -1;
    phys[i] = first[ids[i]];
  }
  count(tokens, k, instances, slots, phys, load, rows);
  return 0;
}
