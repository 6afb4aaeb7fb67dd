"""How often each expert was activated, from a file: what replica counts follow."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from janus.errors import ConfigError

_FIELD = "--activations"
_REMEDY = 'give {"activations": [[count per expert] per MoE layer]}'


class _File(msgspec.Struct):
    activations: list[list[float]]


def read_activations(path: str, num_layers: int, num_experts: int) -> npt.NDArray[np.float64]:
    """Return float[L, E], the counts in a JSON file.

    Raises:
        ConfigError: it cannot be read, is no such file, or does not fit the model.
    """
    try:
        layers = msgspec.json.decode(Path(path).expanduser().read_bytes(), type=_File).activations
    except OSError as error:
        raise ConfigError(_FIELD, f"{path}: {error.strerror}", "name a readable file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(_FIELD, f"{path}: {error}", _REMEDY) from error
    if len(layers) != num_layers or any(len(layer) != num_experts for layer in layers):
        sizes = sorted({len(layer) for layer in layers})
        raise ConfigError(
            _FIELD,
            f"{path}: {len(layers)} layers of {sizes} experts; the model has {num_layers} of {num_experts}",
            _REMEDY,
        )
    counts = np.array(layers, dtype=np.float64).reshape(num_layers, num_experts)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ConfigError(_FIELD, f"{path}: a count is negative or not finite", _REMEDY)
    return counts
