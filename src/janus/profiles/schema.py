"""The tables of a profile file, as they are written."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

#: The version of the format that this code reads and writes.
VERSION = 1


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base: keyword-only, immutable, strict."""


class FigureTable(_Table, frozen=True, kw_only=True):
    """A number with where it comes from: ``low`` and ``high`` of its 95 % interval, or a ``source``, or both."""

    value: float
    low: float | None = None
    high: float | None = None
    source: str = ""


#: As a plain number it says nothing about where it comes from.
Number = float | FigureTable


class DeviceTable(_Table, frozen=True, kw_only=True):
    """``[device.NAME]``: the fields of ``Device``."""

    memory_bytes: Number
    weight_bytes_s: Number
    kv_bytes_s: Number
    flops_s: Number
    attention_layer_s: Number = 0.0
    expert_layer_s: Number = 0.0
    step_s: Number = 0.0
    token_s: Number = 0.0
    attention_row_s: Number = 0.0
    row_s: Number = 0.0
    exposed: Number = 0.0
    load_bytes_s: Number = 1e9
    cost_per_hour: Number = 1.0
    shared_cores: int = 0


class LinkTable(_Table, frozen=True, kw_only=True):
    """``[intra]``, ``[inter]`` and ``[peers]``: the fields of ``LinkCost``."""

    message_s: Number
    latency_s: Number
    byte_s: Number


class HostTable(_Table, frozen=True, kw_only=True):
    """``[host]``: the fields of ``Host``."""

    cores: int
    gateway_request_s: Number = 0.0
    gateway_message_s: Number = 0.0
    gateway_token_s: Number = 0.0
    client_request_s: Number = 0.0
    client_token_s: Number = 0.0
    cache_bytes: Number = 0.0
    cold_layer_s: Number = 0.0


class ProfileTable(_Table, frozen=True, kw_only=True, rename={"version": "janus-profile"}):
    """A whole file."""

    version: int
    name: str
    kind: Literal["measured", "published"]
    about: str = ""
    devices_per_node: int = 8
    links_per_node: int = 1
    #: Each a ``DeviceTable``; converted one by one, so that an error can name the device.
    device: dict[str, dict[str, Any]]
    intra: LinkTable
    inter: LinkTable
    peers: LinkTable | None = None
    host: HostTable | None = None
    measured: dict[str, str] = {}
