"""The runtime that executes CUDA text on the CPU notices what a GPU would only do wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.kernels.shim import KernelError, RawModule, Runtime

KERNELS = r"""
extern "C" __global__ void __launch_bounds__(1024, 1) indices(int* out) {
  const int i = (blockIdx.x * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[i] = i;
}
extern "C" __global__ void warp(unsigned* ballot, int* shuffled, int* least, int* sum) {
  const int lane = threadIdx.x;
  ballot[lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  shuffled[lane] = __shfl_xor_sync(0xffffffffu, lane, 1);
  if (lane < 7) least[lane] = __reduce_min_sync(0x7fu, 100 - lane);
  sum[lane] = __reduce_add_sync(0xffffffffu, lane);
}
extern "C" __global__ void total(const int* values, int n, int* out) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&sum, values[i]);
  __syncthreads();
  if (threadIdx.x == 0) *out = sum;
}
extern "C" __global__ void unwritten(int* out) {
  __shared__ int s[32];
  out[threadIdx.x] = s[threadIdx.x];
  s[threadIdx.x] = 1;
}
extern "C" __global__ void not_in_mask(int* out) { out[threadIdx.x] = __ballot_sync(0xfffffffeu, 1); }
extern "C" __global__ void two_masks(int* out) {
  out[threadIdx.x] = __ballot_sync(threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u, 1);
}
extern "C" __global__ void two_functions(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
  else out[threadIdx.x] = __reduce_add_sync(0xffffffffu, 1);
}
extern "C" __global__ void exited_lane(int* out) {
  if (threadIdx.x == 31) return;
  out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
}
extern "C" __global__ void outside_lane(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xffu, 1, 9);
}
extern "C" __global__ void exit_at_barrier(int* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
extern "C" __global__ void two_barriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}
extern "C" __global__ void deadlock(int* out) {
  if (threadIdx.x == 32) __syncwarp(3u);
  __syncthreads();
  out[threadIdx.x] = 1;
}
extern "C" __global__ void forever(volatile int* out) {
  while (*out == 0) {}
}
extern "C" __global__ void past_the_end(int* out, int n) { out[threadIdx.x % n + 1] = 1; }
__device__ __noinline__ void put(int* place) { *place = 1; }
extern "C" __global__ void past_shared(int* out, int i) {
  __shared__ int s[8];
  put(s + threadIdx.x + i);
  out[0] = 1;
}
extern "C" __global__ void shift(int* out, int by) { out[0] = 1 << by; }
extern "C" __global__ void neighbours(int* out, int barrier) {
  __shared__ int s[64];
  s[threadIdx.x] = threadIdx.x;
  if (barrier) __syncthreads();
  out[threadIdx.x] = s[(threadIdx.x + 1) % 64];
}
// A fast thread passes the next barrier's arrival before a slow one has left this one: that orders nothing for it.
extern "C" __global__ void after_the_barrier(int* out) {
  __shared__ int s;
  __syncthreads();
  if (threadIdx.x == 0) s = 1;
  if (threadIdx.x == 63) out[0] = s;
  __syncthreads();
}
extern "C" __global__ void same_value(int* out, int strong) {
  __shared__ int flag;
  if (strong) *const_cast<volatile int*>(&flag) = 1;
  else flag = 1;
  __syncthreads();
  out[threadIdx.x] = flag;
}
extern "C" __global__ void lanes_without_order(int* out, int ordered) {
  __shared__ int s[32];
  s[threadIdx.x] = threadIdx.x;
  if (ordered) __syncwarp();
  else __ballot_sync(0xffffffffu, 1);
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}
"""


@pytest.fixture(scope="module")
def plain(runtime: Runtime) -> Iterator[RawModule]:
    with RawModule(code=KERNELS, runtime=runtime) as module:
        yield module


@pytest.fixture(scope="module")
def address(runtime: Runtime) -> Iterator[RawModule]:
    with RawModule(code=KERNELS, runtime=runtime, build="address") as module:
        yield module


@pytest.fixture(scope="module")
def thread(runtime: Runtime) -> Iterator[RawModule]:
    with RawModule(code=KERNELS, runtime=runtime, build="thread") as module:
        yield module


def zeros(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.zeros(count, dtype=np.int32)


def test_threads_and_blocks_have_their_indices(plain: RawModule) -> None:
    out = zeros(3 * 4 * 8)
    plain.get_function("indices")((3,), (8, 4), (out,))
    assert out.tolist() == list(range(96))


def test_warp_functions(plain: RawModule) -> None:
    ballot, shuffled, least, total = zeros(32).view(np.uint32), zeros(32), zeros(7), zeros(32)
    plain.get_function("warp")((1,), (32,), (ballot, shuffled, least, total))
    assert set(ballot.tolist()) == {sum(1 << lane for lane in range(0, 32, 3))}
    assert shuffled.tolist() == [lane ^ 1 for lane in range(32)]
    assert set(least.tolist()) == {94}
    assert set(total.tolist()) == {sum(range(32))}


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("build", ["plain", "address", "thread"])
def test_a_sound_kernel_is_let_be(request: pytest.FixtureRequest, build: str, order: str) -> None:
    module = request.getfixturevalue(build)
    module.order = order
    values, out = np.arange(1000, dtype=np.int32), zeros(1)
    module.get_function("total")((2,), (96,), (values, np.int32(1000), out))
    assert out[0] == 499500


def test_unwritten_shared_memory_is_not_zero(plain: RawModule) -> None:
    for _ in range(2):
        out = zeros(32)
        plain.get_function("unwritten")((1,), (32,), (out,))
        assert len({0, 1, *out.tolist()}) == 34


@pytest.mark.parametrize(
    ("kernel", "threads", "complaint"),
    [
        ("not_in_mask", 32, "is not in its own mask 0xfffffffe"),
        ("two_masks", 32, "deadlock(.|\n)*waits in __ballot_sync for mask 0xffffffff|names lane 16, which has exited"),
        ("two_functions", 32, "__reduce_add_sync with mask 0xffffffff meets lane|meets lane .* in __reduce_add_sync"),
        ("exited_lane", 32, "names lane 31, which has exited|deadlock"),
        ("exited_lane", 16, "names lane 16, which does not exist"),
        ("outside_lane", 32, "reads lane 9, which is not in mask 0x000000ff"),
        ("exit_at_barrier", 64, "thread 5 exits while others wait|after 1 threads have exited"),
        ("two_barriers", 64, "divergent barrier: \\d+ threads wait at line"),
        ("deadlock", 64, "deadlock(.|\n)*thread 32 waits in __syncwarp for mask 0x00000003"),
    ],
)
@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_rules_of_cuda(plain: RawModule, order: str, kernel: str, threads: int, complaint: str) -> None:
    plain.order = order  # type: ignore[assignment]
    with pytest.raises(KernelError, match=complaint) as caught:
        plain.get_function(kernel)((1,), (threads,), (zeros(64),))
    line = next(i for i, text in enumerate(KERNELS.splitlines(), 1) if f" {kernel}(" in text)
    named = [int(part.split(":")[0]) for part in str(caught.value).split("kernel:")[1:] if part[0].isdigit()]
    assert all(line <= n < line + 10 for n in named)
    assert named


def test_a_launch_that_never_ends_is_ended(plain: RawModule) -> None:
    with pytest.raises(KernelError, match=r"did not end within 0\.5 s"):
        plain.get_function("forever")((1,), (1,), (zeros(1),), timeout_s=0.5)
    test_threads_and_blocks_have_their_indices(plain)


def test_memory_past_the_end(address: RawModule) -> None:
    address.order = "ascending"
    with pytest.raises(KernelError, match="heap-buffer-overflow"):
        address.get_function("past_the_end")((1,), (32,), (zeros(32), np.int32(32)))
    with pytest.raises(KernelError, match="global-buffer-overflow"):
        address.get_function("past_shared")((1,), (8,), (zeros(1), np.int32(1)))
    address.get_function("past_shared")((1,), (8,), (zeros(1), np.int32(0)))


def test_undefined_arithmetic(address: RawModule) -> None:
    with pytest.raises(KernelError, match="shift exponent 32 is too large"):
        address.get_function("shift")((1,), (1,), (zeros(1), np.int32(32)))


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_races(thread: RawModule, order: str) -> None:
    thread.order = order  # type: ignore[assignment]
    for kernel, sound, racy in [
        ("neighbours", (np.int32(1),), (np.int32(0),)),
        ("same_value", (np.int32(1),), (np.int32(0),)),
        ("after_the_barrier", None, ()),
    ]:
        if sound is not None:
            thread.get_function(kernel)((1,), (64,), (zeros(64), *sound))
        with pytest.raises(KernelError, match="data race"):
            thread.get_function(kernel)((1,), (64,), (zeros(64), *racy))
    thread.get_function("lanes_without_order")((1,), (32,), (zeros(32), np.int32(1)))
    with pytest.raises(KernelError, match="data race"):
        thread.get_function("lanes_without_order")((1,), (32,), (zeros(32), np.int32(0)))


def test_arguments_are_checked(plain: RawModule) -> None:
    kernel = plain.get_function("total")
    values, out = zeros(4), zeros(1)
    for arguments, complaint in [
        ((values, np.int32(4)), "takes 3 arguments, got 2"),
        ((values, 4, out), "argument 1 of total is 4, wanted a numpy scalar of 4 bytes"),
        ((values, np.int64(4), out), "argument 1 of total .* wanted a numpy scalar of 4 bytes"),
        ((values, values, out), "argument 1 of total is an array"),
        ((np.uint64(8), np.int32(0), out), "argument 0 of total .* wanted an array or"),
        ((zeros(8)[::2], np.int32(4), out), "argument 0 of total is not contiguous"),
        ((values, np.int32(4), values[1:]), "argument 2 of total overlaps another"),
    ]:
        with pytest.raises(TypeError, match=complaint):
            kernel((1,), (32,), arguments)
    constant = zeros(1)
    constant.flags.writeable = False
    with pytest.raises(KernelError, match="total wrote to an array that is read-only"):
        kernel((1,), (32,), (np.ones(4, dtype=np.int32), np.int32(4), constant))
    with pytest.raises(TypeError, match="1025 threads"):
        kernel((1,), (1025,), (values, np.int32(4), out))
    with pytest.raises(TypeError, match="declare it static"):
        kernel((1,), (32,), (values, np.int32(4), out), shared_mem=64)
    with pytest.raises(KeyError, match="no kernel 'sum'; the module has"):
        plain.get_function("sum")


def test_what_cannot_be_compiled_says_why(runtime: Runtime) -> None:
    with pytest.raises(KernelError, match=r"kernel:1:.*error: .nonsense. was not declared"):
        RawModule(code='extern "C" __global__ void f(int* p) { *p = nonsense; }', runtime=runtime)
