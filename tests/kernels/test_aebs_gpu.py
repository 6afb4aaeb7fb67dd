"""AEBS through CuPy: what can be checked without a GPU, and equality with the oracle on one."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from janus.model.kernels import aebs_gpu
from tests.kernels import cases, oracle


def tables(case: oracle.Case, device: str) -> aebs_gpu.GpuTables:
    """Return the tables of a case as tensors."""
    return aebs_gpu.GpuTables(
        order=torch.from_numpy(case.order).to(device),
        hosts=torch.from_numpy(case.hosts.view(np.int64)).to(device),
        phys_of=torch.from_numpy(case.phys_of).to(device),
    )


def test_the_source_is_found(code: str) -> None:
    assert aebs_gpu.source() == code


def test_a_tensor_in_the_wrong_place_is_named() -> None:
    with pytest.raises(ValueError, match="phys_of is on cpu; all tensors must be on one CUDA device"):
        tables(cases.draw("random", 1), "cpu")


def test_too_many_experts_are_refused() -> None:
    case = oracle.Case(name="many", ids=np.zeros(1, np.int32), replicas=((0,),) * 513, instances=1)
    with pytest.raises(ValueError, match=r"phys_of is 513 x 1; 1\.\.512 experts"):
        tables(case, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy")
@pytest.mark.parametrize("kind", cases.KINDS)
def test_the_gpu_says_what_the_oracle_says(kind: str) -> None:
    for seed in range(40):
        case = cases.draw(kind, seed)
        load0 = None if case.load0 is None else torch.from_numpy(case.load0).cuda()
        ids = torch.from_numpy(case.ids).cuda()
        got = aebs_gpu.schedule(ids, tables(case, "cuda:0"), load0, in_place=seed % 2 == 1)
        outputs = [tensor.cpu().numpy() for tensor in (got.phys, got.load, got.active, got.stats)]
        assert not oracle.Result(*outputs).differs(oracle.schedule(case))
