"""Bugs that are planted in the kernel are caught: by the oracle or a broken rule of CUDA, or by a sanitizer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.kernels import cases, oracle
from tests.kernels.launch import aebs
from tests.kernels.shim import Build, KernelError, RawModule, Runtime


@dataclass(frozen=True, slots=True)
class Mutant:
    """``old`` of the kernel's text, of which there is one, becomes ``new``; ``caught_by`` is a build that must see it.

    ``alone``: the oracle sees nothing in the plain build, which is why the sanitizer is there.
    """

    name: str
    old: str
    new: str
    caught_by: Build = "plain"
    alone: bool = False
    slow: bool = False


MUTANTS = [
    # Wrong results, or rules of CUDA broken.
    Mutant("flags are not cleared", "    s.active[i] = 0;\n", ""),
    Mutant("expected shares are not cleared", "    s.share[g] = 0;\n", ""),
    Mutant("ties go to the highest host", "(at_low & (0u - at_low)) == 1u << lane", "at_low >> lane == 1u"),
    Mutant("high hosts win ties", "at_low == 0 && (at_high", "(at_high", slow=True),
    Mutant("a share stays in the potential", "potential.high -= high ? part : 0;", "", slow=True),
    Mutant(
        "the target is the last of equals",
        "  return first(ballot(low && total",
        "  return 63 - __clzll(ballot(low && total",
    ),
    Mutant(
        "repairs stop one early",
        "Set emptier = ballot(total.low <= most - 2, ",
        "Set emptier = ballot(total.low <= most - 3, ",
    ),
    Mutant(
        "the last expert becomes the parent",
        "if (!low && has(hosts, lane)) {",
        "if (!has(visited, lane) && has(hosts, lane)) {",
        slow=True,
    ),
    Mutant("load counts what was queued", "load[lane] = total.low - before.low", "load[lane] = total.low", slow=True),
    Mutant("half a warp votes", "__ballot_sync(kAll, low) |", "__ballot_sync(0xffffu, low) |"),
    Mutant(
        "one warp has a barrier of its own",
        "if (warp == 0) decide(s, count_choosing, G, load0, load, stats);\n  __syncthreads();",
        "if (warp == 0) {\n    decide(s, count_choosing, G, load0, load, stats);\n    __syncthreads();\n  }",
    ),
    Mutant(
        "no barrier after the marks",
        "    read(ids, count, last, id);\n  }\n  __syncthreads();\n",
        "    read(ids, count, last, id);\n  }\n",
    ),
    # Memory and arithmetic.
    Mutant("reads one id too many", "id[j] = i < count ?", "id[j] = i <= count ?", "address"),
    Mutant("marks one expert too many", "if (id[j] >= 0 && id[j] < E) *", "if (id[j] >= 0 && id[j] <= E) *"),
    Mutant(
        "reads load0 to 64",
        "s.total[g] = load0 != nullptr && g < G ?",
        "s.total[g] = load0 != nullptr ?",
        "address",
        alone=True,
    ),
    Mutant(
        "clears one instance too many",
        "g < kMaxInstances; g += threads",
        "g <= kMaxInstances; g += threads",
        "address",
        slow=True,
    ),
    Mutant("shifts by 64", "G < kMaxInstances ? (1ull << G) - 1 : ~0ull", "(1ull << G) - 1", "address", slow=True),
    Mutant(
        "a sum leaves its type",
        "((1u << lane) - 1)",
        "static_cast<unsigned>((1 << lane) - 1)",
        "address",
        alone=True,
        slow=True,
    ),
    Mutant(
        "rows of 64 instances",
        "phys_of[e * G + first(mine)]",
        "phys_of[e * kMaxInstances + first(mine)]",
        "address",
        slow=True,
    ),
    # Races.
    Mutant(
        "marks with plain stores",
        "*const_cast<volatile int*>(&s.active[id[j]]) = 1",
        "s.active[id[j]] = 1",
        "thread",
        alone=True,
    ),
    Mutant(
        "no order after the choices",
        "  __syncwarp();  // `at` is read by other lanes from here on\n",
        "",
        "thread",
        alone=True,
    ),
    Mutant("no order before a move", "      __syncwarp();  // every lane has read it\n", "", "thread", slow=True),
    Mutant(
        "no order after a path",
        "      g = from;\n    }\n    __syncwarp();\n",
        "      g = from;\n    }\n",
        "thread",
        slow=True,
    ),
    Mutant(
        "every lane stores the votes",
        "    if (lane == 0) {\n      s.chunk[chunk]",
        "    {\n      if (lane != 0) s.chunk[chunk] = choosing;\n    }\n    if (lane == 0) {\n      s.chunk[chunk]",
        "thread",
        alone=True,
        slow=True,
    ),
    Mutant("counts without atomics", "atomicAdd(&s.total[first(mine)], 1)", "s.total[first(mine)] += 1", "thread"),
    Mutant(
        "no barrier after the tables",
        "  if (thread == 0) s.activated = 0;\n  __syncthreads();\n",
        "  if (thread == 0) s.activated = 0;\n",
        "thread",
        slow=True,
    ),
    Mutant(
        "no barrier before the decision", "share.high);\n  __syncthreads();\n", "share.high);\n", "thread", slow=True
    ),
    Mutant("no barrier before the rewriting", "s.at[i]];\n  __syncthreads();\n", "s.at[i]];\n", "thread", slow=True),
]


def at_the_limits(seed: int) -> oracle.Case:
    """512 experts on 64 instances, all activated, and the padding id 512."""
    case = cases.largest(seed)
    ids = np.random.default_rng(seed).permutation(np.repeat(np.arange(513, dtype=np.int32), 2))
    return replace(case, ids=ids, load0=np.arange(64, dtype=np.int32) % 5)


def trouble(module: RawModule, seeds: int) -> str:
    """Launch a battery of cases; return what is wrong with the first that goes wrong, or an empty string."""
    battery = [cases.draw(kind, seed) for seed in range(seeds) for kind in cases.KINDS]
    battery.insert(3, at_the_limits(2))  # whose order does not begin with expert 1, what an overrun would write
    for i, case in enumerate(battery):
        module.order, module.seed = ("ascending", "descending", "random")[i % 3], i  # type: ignore[assignment]
        try:
            result = aebs(module.get_function("aebs"), case, (64, 128, 32)[i % 3], in_place=i % 2 == 1)
        except KernelError as error:
            return str(error)
        if difference := result.differs(oracle.schedule(case)):
            return difference
    return ""


def planted(code: str, mutant: Mutant) -> str:
    """Return the kernel with the bug in it."""
    assert code.count(mutant.old) == 1, f"{mutant.name}: not one place in kernels/aebs.cu"
    return code.replace(mutant.old, mutant.new)


EXPECTED = {"plain": "", "address": "ERROR: AddressSanitizer|runtime error:", "thread": "data race"}


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, marks=[pytest.mark.slow] if m.slow else [], id=m.name) for m in MUTANTS]
)
def test_is_caught(runtime: Runtime, code: str, mutant: Mutant) -> None:
    with RawModule(code=planted(code, mutant), runtime=runtime, build=mutant.caught_by) as module:
        said = trouble(module, seeds=4)
    assert said, "not caught"
    assert any(words in said for words in EXPECTED[mutant.caught_by].split("|")), said


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [pytest.param(m, id=m.name) for m in MUTANTS if m.alone])
def test_is_seen_by_a_sanitizer_alone(runtime: Runtime, code: str, mutant: Mutant) -> None:
    with RawModule(code=planted(code, mutant), runtime=runtime) as module:
        assert not trouble(module, seeds=4)


@pytest.mark.parametrize("build", ["plain", "address", "thread"])
def test_the_kernel_itself_passes(request: pytest.FixtureRequest, build: Build) -> None:
    assert not trouble(request.getfixturevalue(build), seeds=4)
