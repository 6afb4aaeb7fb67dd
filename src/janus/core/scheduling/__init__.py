"""Which replica serves an activated expert: from the gate's logical ids to physical ones, per dispatch.

A scheduler is a function; the attention instance is given one by name. All of them are deterministic functions of the
routing, so that instances which see the same routing decide alike without talking. These are the plain ones, which say
what is decided; ``janus.model.kernels.scheduling`` has the same decisions compiled.
"""

from janus.core.scheduling.aebs import aebs, aebs_greedy
from janus.core.scheduling.contract import Assignment, Scheduler
from janus.core.scheduling.policies import random, static, token_balanced
from janus.core.scheduling.tables import LayerTables, layer_tables

#: Schedulers by the name that the configuration uses.
SCHEDULERS: dict[str, Scheduler] = {
    "aebs": aebs,
    "aebs-greedy": aebs_greedy,
    "random": random,
    "static": static,
    "token-balanced": token_balanced,
}

__all__ = ["SCHEDULERS", "Assignment", "LayerTables", "Scheduler", "layer_tables"]
