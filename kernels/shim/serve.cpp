// The driver: reads launches from stdin, answers on stdout, until stdin ends. shim.py is the other side.
//
// First it writes one line of JSON, what the module holds: {"name": [[bytes, is_pointer], ...], ...}. A request is a
// Request, and for each argument an Argument and its bytes; the answer is one int32 (0) and the bytes of each array.
// Everything is in the byte order of the machine.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "runtime.h"

extern const shim::Kernel shim_kernels[];  // ends with a null name

namespace {

struct Request {
  char name[128];
  uint32_t grid[3], block[3];
  shim::Order order;
  uint32_t arguments;
  uint64_t seed;
};

enum class Kind : uint32_t { scalar, array, same };  // `same`: the memory of argument number `bytes`

struct Argument {
  Kind kind;
  uint32_t misalignment;  // of the address, modulo 64
  uint64_t bytes;
};

int answers;  // stdout, before it was turned to stderr: a kernel may print

bool receive(void* to, size_t bytes) {
  for (auto* place = static_cast<char*>(to); bytes != 0;) {
    const ssize_t n = read(0, place, bytes);
    if (n <= 0) return false;
    place += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

void answer(const void* from, size_t bytes) {
  for (auto* place = static_cast<const char*>(from); bytes != 0;) {
    const ssize_t n = write(answers, place, bytes);
    if (n <= 0) _exit(2);
    place += n;
    bytes -= static_cast<size_t>(n);
  }
}

// An argument's value, and the memory that it points to: exactly as long as the caller's, so that AddressSanitizer sees
// the first byte after it.
struct Value {
  Argument head{};
  uint64_t scalar[2] = {};
  char* block = nullptr;
  char* array = nullptr;
};

bool receive(Value& value, std::vector<Value>& before) {
  if (!receive(&value.head, sizeof value.head)) return false;
  if (value.head.kind == Kind::scalar) return receive(value.scalar, value.head.bytes);
  if (value.head.kind == Kind::same) {
    value.array = before[value.head.bytes].array;
    return true;
  }
  void* block = nullptr;
  if (posix_memalign(&block, 64, value.head.misalignment + value.head.bytes) != 0) return false;
  value.block = static_cast<char*>(block);
  value.array = value.block + value.head.misalignment;
  return receive(value.array, value.head.bytes);
}

void describe() {
  FILE* out = fdopen(dup(answers), "w");
  std::fprintf(out, "{");
  for (const shim::Kernel* k = shim_kernels; k->name != nullptr; ++k) {
    std::fprintf(out, "%s\"%s\": [", k == shim_kernels ? "" : ", ", k->name);
    for (size_t i = 0; i < k->count; ++i) {
      std::fprintf(out, "%s[%zu, %d]", i == 0 ? "" : ", ", k->parameters[i].bytes, k->parameters[i].pointer);
    }
    std::fprintf(out, "]");
  }
  std::fprintf(out, "}\n");
  std::fclose(out);
}

}  // namespace

int main() {
  answers = dup(1);
  dup2(2, 1);
  describe();
  for (Request request; receive(&request, sizeof request);) {
    const shim::Kernel* kernel = shim_kernels;
    while (kernel->name != nullptr && std::strcmp(kernel->name, request.name) != 0) ++kernel;
    if (kernel->name == nullptr || kernel->count != request.arguments) return 2;
    std::vector<Value> values(request.arguments);
    for (Value& value : values) {
      if (!receive(value, values)) return 2;
    }
    std::vector<void*> pointers;
    for (Value& value : values) {
      pointers.push_back(value.head.kind == Kind::scalar ? static_cast<void*>(value.scalar) : &value.array);
    }
    const uint32_t *g = request.grid, *b = request.block;
    shim::launch(*kernel, {g[0], g[1], g[2]}, {b[0], b[1], b[2]}, pointers.data(), request.order, request.seed);
    const int32_t done = 0;
    answer(&done, sizeof done);
    for (Value& value : values) {
      if (value.head.kind == Kind::array) answer(value.array, value.head.bytes);
      std::free(value.block);
    }
  }
  return 0;
}
