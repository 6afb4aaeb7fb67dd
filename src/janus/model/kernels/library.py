"""ctypes binding of the CPU kernels (``kernels/cpu``). Calls release the GIL."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from ctypes import c_double, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
import torch

from janus.errors import ConfigError
from janus.model.kernels.build import KernelBuildError, build
from janus.model.memory import Arena

_log = structlog.get_logger(__name__)

DTYPES = {torch.float32: 0, torch.bfloat16: 1}

#: Rows of a weight matrix that are packed together: ``janus::kPanel``.
PANEL = 32

#: How long an idle worker spins before it sleeps: long enough to bridge the Python between two kernels of one step,
#: short enough not to hold a core that another server of the machine needs.
DEFAULT_SPIN_US = 50

#: What ``JANUS_CPU_KERNELS`` may say.
_ON, _OFF = frozenset({"on", "1", "true"}), frozenset({"off", "0", "false"})


class AttentionShape(ctypes.Structure):
    """``janus::AttentionShape``."""

    _fields_ = (
        ("dtype", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
        ("rotary", c_int64),
        ("whole_norm", c_int64),
        ("eps", c_double),
        ("clip", c_double),
    )


class AttentionLayer(ctypes.Structure):
    """``janus::AttentionLayer``: addresses, null where a family has no such tensor."""

    _fields_ = (
        *(
            (name, c_void_p)
            for name in (
                "input_norm",
                "post_norm",
                "qkv",
                "qkv_bias",
                "q_norm",
                "k_norm",
                "o",
                "o_bias",
                "sinks",
                "keys",
                "values",
            )
        ),
        ("window", c_int64),
    )


class LatentShape(ctypes.Structure):
    """``janus::LatentShape``."""

    _fields_ = (
        *(
            (name, c_int64)
            for name in ("dtype", "hidden", "heads", "block_size", "q_rank", "rank", "nope", "rope", "value")
        ),
        ("eps", c_double),
        ("latent_eps", c_double),
        ("scale", c_double),
    )


class LatentLayer(ctypes.Structure):
    """``janus::LatentLayer``: addresses, null where a model has no such tensor."""

    _fields_ = tuple(
        (name, c_void_p)
        for name in (
            "input_norm",
            "post_norm",
            "a",
            "a_bias",
            "q_norm",
            "q_b",
            "kv_norm",
            "k_up",
            "v_up",
            "o",
            "o_bias",
            "latents",
        )
    )


class AttentionStep(ctypes.Structure):
    """``janus::AttentionStep``."""

    _fields_ = (
        ("tokens", c_int64),
        ("sequences", c_int64),
        ("max_blocks", c_int64),
        ("cos_sin", c_void_p),
        ("slot_mapping", c_void_p),
        ("query_start", c_void_p),
        ("context_len", c_void_p),
        ("block_tables", c_void_p),
    )


class ExpertShape(ctypes.Structure):
    """``janus::ExpertShape``."""

    _fields_ = (
        ("dtype", c_int64),
        ("hidden", c_int64),
        ("width", c_int64),
        ("bias", c_int64),
        ("clamped", c_int64),
        ("alpha", c_double),
        ("limit", c_double),
    )


class GateShape(ctypes.Structure):
    """``janus::GateShape``."""

    _fields_ = (
        ("dtype", c_int64),
        ("hidden", c_int64),
        ("experts", c_int64),
        ("k", c_int64),
        ("sigmoid", c_int64),
        ("normalise", c_int64),
        ("groups", c_int64),
        ("top_groups", c_int64),
        ("group_best", c_int64),
        ("scaling", c_double),
    )


#: ``janus::Draw``.
DRAW_DTYPE = np.dtype(
    [("temperature", "f8"), ("top_p", "f8"), ("min_p", "f8"), ("uniform", "f8"), ("top_k", "i8")], align=True
)

_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "janus_configure": (None, (c_int64, c_int64)),
    "janus_threads": (c_int64, ()),
    "janus_prime": (None, ()),
    "janus_expert_bytes": (c_int64, (c_void_p,)),
    "janus_pack_expert": (None, (c_void_p,) * 6),
    "janus_experts": (c_int64, (c_void_p,) * 2 + (c_int64,) * 3 + (c_void_p,) * 4),
    "janus_experts_joint": (c_int64, (c_void_p,) * 2 + (c_int64,) * 3 + (c_void_p,) * 5),
    "janus_schedule": (None, (c_int64,) * 4 + (c_void_p,) * 7),
    "janus_count_rows": (c_int64, (c_int64,) * 3 + (c_void_p,) * 2),
    "janus_pack_dispatch": (None, (c_int64,) * 4 + (c_void_p,) * 8),
    "janus_scan_slots": (c_int64, (c_int64,) * 5 + (c_void_p,) * 3),
    "janus_distinct_slots": (c_int64, (c_int64,) * 2 + (c_void_p,) * 2),
    "janus_take_share": (c_int64, (c_int64,) * 5 + (c_void_p,) * 4),
    "janus_combine": (None, (c_int64,) * 4 + (c_void_p,) * 6),
    "janus_packed_bytes": (c_int64, (c_int64,) * 3),
    "janus_pack": (None, (c_int64,) * 3 + (c_void_p,) * 2),
    "janus_attention": (None, (c_void_p,) * 6),
    "janus_latent_attention": (None, (c_void_p,) * 6),
    "janus_route": (None, (c_void_p, c_int64) + (c_void_p,) * 6),
    "janus_dense_mlp": (None, (c_int64,) * 4 + (c_void_p,) * 4),
    "janus_argmax": (None, (c_int64,) * 2 + (c_void_p,) * 2),
    "janus_draw": (None, (c_int64,) * 2 + (c_void_p,) * 4),
    "janus_head": (None, (c_int64,) * 4 + (c_double,) + (c_void_p,) * 5),
}


class Library:
    """The loaded kernels. Attributes named like the C functions are callables; addresses are passed as integers."""

    def __init__(self, path: str) -> None:
        self._dll = ctypes.CDLL(path)
        #: Names sources, compiler flags and CPU: with the same name, weights are packed alike.
        self.name = Path(path).stem
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._dll, name)
            function.restype = result
            function.argtypes = arguments
        self.configure = self._dll.janus_configure
        self.prime = self._dll.janus_prime
        self.expert_bytes = self._dll.janus_expert_bytes
        self.pack_expert = self._dll.janus_pack_expert
        self.experts = self._dll.janus_experts
        self.experts_joint = self._dll.janus_experts_joint
        self.attention = self._dll.janus_attention
        self.latent_attention = self._dll.janus_latent_attention
        self.route = self._dll.janus_route
        self.dense_mlp = self._dll.janus_dense_mlp
        self.head = self._dll.janus_head
        self.schedule = self._dll.janus_schedule
        self.count_rows = self._dll.janus_count_rows
        self.pack_dispatch = self._dll.janus_pack_dispatch
        self.scan_slots = self._dll.janus_scan_slots
        self.distinct_slots = self._dll.janus_distinct_slots
        self.take_share = self._dll.janus_take_share
        self.combine = self._dll.janus_combine

    def argmax(self, logits_RV: torch.Tensor) -> torch.Tensor:
        """Return int64 [R]: the first of the largest of each row of contiguous f32 logits."""
        rows, vocab = logits_RV.shape
        ids = torch.empty(rows, dtype=torch.int64)
        self._dll.janus_argmax(rows, vocab, logits_RV.data_ptr(), ids.data_ptr())
        return ids

    def draw(
        self, logits_RV: torch.Tensor, lines: npt.NDArray[np.int64], draws: npt.NDArray[np.void]
    ) -> npt.NDArray[np.int64]:
        """Draw one id for each of ``lines`` (rows of contiguous f32 logits); ``draws`` are of ``DRAW_DTYPE``."""
        ids = np.empty(len(lines), dtype=np.int64)
        vocab = logits_RV.shape[1]
        self._dll.janus_draw(
            len(lines), vocab, logits_RV.data_ptr(), lines.ctypes.data, draws.ctypes.data, ids.ctypes.data
        )
        return ids

    def threads(self) -> int:
        """How many threads work on a call, the caller included."""
        return int(self._dll.janus_threads())

    def pack(self, weight_NK: torch.Tensor, memory: Arena) -> torch.Tensor:
        """Return ``weight`` [N, K] in the kernels' layout, as bytes in ``memory``."""
        return self.pack_stack(weight_NK[None], memory)

    def pack_stack(self, weights_GNK: torch.Tensor, memory: Arena) -> torch.Tensor:
        """Return ``weights`` [G, N, K] in the kernels' layout, one after the other, as bytes in ``memory``."""
        count, rows, columns = weights_GNK.shape
        dtype = DTYPES[weights_GNK.dtype]
        each = int(self._dll.janus_packed_bytes(dtype, rows, columns))
        packed = memory.take(count * each)
        for index, weight in enumerate(weights_GNK.contiguous()):
            self._dll.janus_pack(dtype, rows, columns, weight.data_ptr(), packed.data_ptr() + index * each)
        return packed

    def pack_blocks(
        self, blocks_RK: Iterable[torch.Tensor], rows: int, columns: int, dtype: torch.dtype, memory: Arena
    ) -> torch.Tensor:
        """As ``pack`` of [rows, columns] that comes in blocks, each but the last of a multiple of ``PANEL`` rows."""
        code, first = DTYPES[dtype], 0
        packed = memory.take(int(self._dll.janus_packed_bytes(code, rows, columns)))
        for block in blocks_RK:
            to = packed.data_ptr() + int(self._dll.janus_packed_bytes(code, first, columns))
            self._dll.janus_pack(code, len(block), columns, block.contiguous().data_ptr(), to)
            first += len(block)
        assert first == rows
        return packed


@cache
def load_library() -> Library | None:
    """Return the kernels, compiled if need be, or None (logged once) where that is impossible.

    ``JANUS_CPU_KERNELS=off`` turns them off.

    Raises:
        ConfigError: the variable is neither on nor off.
    """
    if not _wanted(os.environ.get("JANUS_CPU_KERNELS", "on")):
        _log.info("kernels_off", reason="JANUS_CPU_KERNELS")
        return None
    try:
        library = Library(str(build()))
    except (KernelBuildError, OSError) as error:
        _log.warning(
            "kernels_unavailable", problem=str(error), effect="torch computes everything, several times slower"
        )
        return None
    library.configure(default_threads(), DEFAULT_SPIN_US)
    return library


def _wanted(text: str) -> bool:
    word = text.strip().lower()
    if word not in _ON | _OFF:
        raise ConfigError("JANUS_CPU_KERNELS", f"{text!r} is neither on nor off", "use on or off")
    return word in _ON


def default_threads() -> int:
    """``OMP_NUM_THREADS`` where set, else the cores that this process may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",", maxsplit=1)[0]
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))


def configure_threads(threads: int, spin_us: int = DEFAULT_SPIN_US) -> None:
    """Set how many threads this process computes with.

    With kernels, torch is left one thread: it only does small things between them, and its own idle threads would
    spin on the cores that the kernels, or other processes, use.
    """
    library = load_library()
    if library is None:
        torch.set_num_threads(threads)
        return
    library.configure(threads, spin_us)
    torch.set_num_threads(1)
