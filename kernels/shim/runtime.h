// What the driver (serve.cpp) needs of the runtime.
#pragma once

#include <cstdint>

#include "cuda_on_cpu.h"

namespace shim {

enum class Order : uint32_t { ascending, descending, random };

// Runs every block of the grid, one after the other, each thread as a fiber, in an order that `order` and `seed` alone
// determine. Ends the process with a message on stderr when the kernel breaks a rule.
void launch(const Kernel& kernel, uint3 grid, uint3 block, void** arguments, Order order, uint64_t seed);

}  // namespace shim
