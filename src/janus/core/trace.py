"""A trace: which experts the router chose for sampled tokens, and the file that it travels in.

The file is a safetensors file (https://huggingface.co/docs/safetensors), so that any tool of the field reads it:
``expert_ids`` U16 [L, S, K] and ``weights`` F64 [S], with what they belong to in the metadata (docs/trace.md).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import TraceError

FORMAT = "janus-trace"
VERSION = "1"
#: Far above what any model needs; what is beyond is no trace of ours.
_MAX_HEADER_BYTES = 1 << 20
#: Of each tensor, in words of safetensors and of numpy.
_DTYPES = {"expert_ids": ("U16", "<u2"), "weights": ("F64", "<f8")}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """S tokens, each through all L MoE layers, K experts of E in each.

    Raises:
        TraceError: sizes, ids or weights that cannot be; see ``problem_of``.
    """

    #: ``Checkpoint.fingerprint`` of the model whose router chose.
    fingerprint: str
    num_experts: int
    #: uint16[L, S, K]: logical expert ids, oldest token first.
    expert_ids: npt.NDArray[np.uint16]
    #: float64[S]: how many routed tokens each of these stands for.
    weights: npt.NDArray[np.float64]
    #: When the last token was added, in seconds since 1970.
    saved_at: float

    def __post_init__(self) -> None:
        problem = problem_of(self.expert_ids, self.weights, self.num_experts)
        if problem:
            raise TraceError(problem)
        if not math.isfinite(self.saved_at):
            raise TraceError("the date is not a finite number of seconds")

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.expert_ids.shape[0])

    @property
    def tokens(self) -> int:
        """Sampled tokens."""
        return int(self.expert_ids.shape[1])

    @property
    def top_k(self) -> int:
        """Experts per token and layer."""
        return int(self.expert_ids.shape[2])

    def counts(self) -> npt.NDArray[np.float64]:
        """Return float64[L, E]: how often each expert was chosen, by the tokens' weights."""
        return counts_of(self.expert_ids, self.weights, self.num_experts)

    def check_model(self, *, fingerprint: str, num_layers: int, num_experts: int, top_k: int) -> None:
        """Return if this is a trace of that model.

        Raises:
            TraceError: it is another model's; says what differs.
        """
        own, wanted = (self.num_layers, self.num_experts, self.top_k), (num_layers, num_experts, top_k)
        if own != wanted:
            raise TraceError(f"it is of a model with {_shape(own)}; the cluster's model has {_shape(wanted)}")
        if self.fingerprint != fingerprint:
            raise TraceError(
                f"it is of another model with the same shape (fingerprint {self.fingerprint[:12]}); "
                f"the cluster serves {fingerprint[:12]}"
            )

    def to_bytes(self) -> bytes:
        """Return the file."""
        ids = np.ascontiguousarray(self.expert_ids, dtype="<u2").tobytes()
        weights = np.ascontiguousarray(self.weights, dtype="<f8").tobytes()
        # The wider type first: then both begin where their type wants them to.
        header = {
            "__metadata__": {
                "format": FORMAT,
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "layers": str(self.num_layers),
                "experts": str(self.num_experts),
                "top_k": str(self.top_k),
                "tokens": str(self.tokens),
                "saved_at": repr(self.saved_at),
                "sha256": hashlib.sha256(weights + ids).hexdigest(),
            },
            "weights": {"dtype": "F64", "shape": [self.tokens], "data_offsets": [0, len(weights)]},
            "expert_ids": {
                "dtype": "U16",
                "shape": list(self.expert_ids.shape),
                "data_offsets": [len(weights), len(weights) + len(ids)],
            },
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + weights + ids

    @classmethod
    def from_bytes(cls, data: bytes) -> Trace:
        """Return the trace in a file's bytes.

        Raises:
            TraceError: they are no trace, of another version, damaged, or contradict themselves.
        """
        header, body = _split(data)
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise TraceError("it is a safetensors file, but no trace of janus trace export")
        if metadata.get("version") != VERSION:
            raise TraceError(f"it is of version {metadata.get('version')!r}, this Janus reads version {VERSION}")
        if hashlib.sha256(body).hexdigest() != metadata.get("sha256"):
            raise TraceError("its checksum is wrong: it is damaged or incomplete")
        try:
            sizes = {key: int(metadata[key]) for key in ("layers", "experts", "top_k", "tokens")}
            fingerprint, saved_at = str(metadata["fingerprint"]), float(metadata["saved_at"])
        except (KeyError, ValueError, TypeError) as error:
            raise TraceError(f"its metadata is incomplete: {error}") from error
        shape = (sizes["layers"], sizes["tokens"], sizes["top_k"])
        return cls(
            fingerprint=fingerprint,
            num_experts=sizes["experts"],
            expert_ids=_tensor(header, body, "expert_ids", shape).astype(np.uint16),
            weights=_tensor(header, body, "weights", (sizes["tokens"],)).astype(np.float64),
            saved_at=saved_at,
        )


def problem_of(expert_ids: npt.NDArray[np.uint16], weights: npt.NDArray[np.float64], num_experts: int) -> str:
    """Return why ids [L, S, K] and weights [S] are no trace of a model with ``num_experts``; empty if they are one."""
    if expert_ids.ndim != 3 or weights.shape != expert_ids.shape[1:2]:
        return (
            f"expert ids of shape {list(expert_ids.shape)} and weights of {list(weights.shape)} do not belong together"
        )
    layers, tokens, top_k = expert_ids.shape
    if layers < 1 or not 1 <= top_k <= num_experts <= 1 << 16:
        return f"{layers} layers, {num_experts} experts and {top_k} per token are no MoE model"
    if not tokens:
        return ""
    if int(expert_ids.max()) >= num_experts:
        return f"it names expert {int(expert_ids.max())}; the model's are 0..{num_experts - 1}"
    ordered = np.sort(expert_ids, axis=2)
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        return "a token has the same expert twice in one layer"
    if not bool((np.isfinite(weights) & (weights > 0)).all()):
        return "a token's weight is not a positive finite number"
    return ""


def counts_of(
    expert_ids: npt.NDArray[np.uint16], weights: npt.NDArray[np.float64], num_experts: int
) -> npt.NDArray[np.float64]:
    """Return float64[L, E]: the summed weights of the tokens that chose each expert."""
    layers, _, top_k = expert_ids.shape
    spread = np.repeat(weights, top_k)
    counts = np.zeros((layers, num_experts))
    for layer, ids in enumerate(expert_ids):
        counts[layer] = np.bincount(ids.ravel(), spread, num_experts)
    return counts


def _shape(sizes: tuple[int, int, int]) -> str:
    return f"{sizes[0]} MoE layers of {sizes[1]} experts, {sizes[2]} per token"


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else -1
    if not 0 < length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise TraceError("it is no safetensors file, or only the beginning of one")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise TraceError("it is no safetensors file: its header is no JSON") from error
    if not isinstance(header, dict):
        raise TraceError("it is no safetensors file: its header is no JSON object")
    return header, data[8 + length :]


def _tensor(header: dict[str, Any], body: bytes, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype, layout = _DTYPES[name]
    entry = header.get(name)
    nbytes = math.prod(shape) * np.dtype(layout).itemsize if min(shape) >= 0 else -1
    if (
        not isinstance(entry, dict)
        or entry.get("dtype") != dtype
        or entry.get("shape") != list(shape)
        or not isinstance(offsets := entry.get("data_offsets"), list)
        or len(offsets) != 2
        or not all(isinstance(offset, int) for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1] <= len(body)
        or offsets[1] - offsets[0] != nbytes
    ):
        raise TraceError(f"its tensor {name!r} is not {dtype} {list(shape)}, as its metadata says")
    return np.frombuffer(body, layout, math.prod(shape), offsets[0]).reshape(shape)
