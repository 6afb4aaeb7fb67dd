// The C interface that src/janus/model/kernels/library.py binds. Matrices are row-major; dtype 0 is f32, 1 is bf16.
#pragma once

#include <cstdint>

#define JANUS_API extern "C" __attribute__((visibility("default")))

namespace janus {

enum Dtype : int64_t { kFloat32 = 0, kBfloat16 = 1 };

}  // namespace janus
