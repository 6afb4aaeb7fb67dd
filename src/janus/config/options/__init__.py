"""The options of the four services. Field names carry the unit; the help of each is the documentation."""

from janus.config.options.attention import MAX_DEFAULT_KV_CACHE_BYTES, AttentionOptions
from janus.config.options.common import CommonOptions, ServiceOptions, split_address
from janus.config.options.controller import ControllerOptions
from janus.config.options.expert import ExpertOptions, LoadSource
from janus.config.options.gateway import GatewayOptions
from janus.config.options.shared import (
    ComputeOptions,
    Device,
    DispatchOptions,
    DType,
    ExchangeName,
    GateSide,
    LogFormat,
    LogLevel,
    MicroBatches,
    PlacementName,
    PlacementOptions,
    ProcessOptions,
    SchedulerName,
    Transport,
)

__all__ = [
    "MAX_DEFAULT_KV_CACHE_BYTES",
    "AttentionOptions",
    "CommonOptions",
    "ComputeOptions",
    "ControllerOptions",
    "DType",
    "Device",
    "DispatchOptions",
    "ExchangeName",
    "ExpertOptions",
    "GateSide",
    "GatewayOptions",
    "LoadSource",
    "LogFormat",
    "LogLevel",
    "MicroBatches",
    "PlacementName",
    "PlacementOptions",
    "ProcessOptions",
    "SchedulerName",
    "ServiceOptions",
    "Transport",
    "split_address",
]
