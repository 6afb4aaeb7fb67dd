"""The environment that child processes run in."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from janus.config.fields import option_fields
from janus.config.sources import SERVICES, env_name, is_common
from janus.messages.control import Role


def child_environment(role: Role, threads: int, *, secret: str, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an instance: ``base``, the cluster secret, and how its threads behave.

    Threads of several processes that spin while they wait for each other slow each other down many times over when
    they share cores, so waiting threads sleep (``PASSIVE``). Whoever sets one of these variables keeps his value.
    """
    compute = role in ("attention", "expert")
    count = str(threads if compute else 1)
    defaults = {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        # One oneDNN kernel is built per new row count; keep them all.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    return {**defaults, **base, "JANUS_SECRET": secret}


def fixed_options(environ: Mapping[str, str], tables: Mapping[str, Mapping[str, object]]) -> dict[str, Collection[str]]:
    """Return, per role, the option keys that the environment or the configuration file already sets."""
    return {
        service: {
            item.key
            for item in option_fields(cls)
            if environ.get(env_name(service, item))
            or item.key in tables.get(service, {})
            or (is_common(item) and item.key in tables.get("common", {}))
        }
        for service, cls in SERVICES.items()
    }


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0))
