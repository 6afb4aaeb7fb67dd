"""How result files are written."""

from __future__ import annotations

import json
from typing import Any


def as_json(result: dict[str, Any]) -> str:
    """Return JSON with one case per line, so that two results can be compared line by line."""
    fields = []
    for key, value in result.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(each, separators=(",", ":")) for each in value)
            fields.append(f'"{key}": [\n  {lines}\n ]')
        else:
            fields.append(f'"{key}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(fields) + "\n}\n"
