"""Inference engines: one file describes each, and `launch` runs one."""

from utils.engines.engine_errors import (
    EngineError,
    EngineStartError,
    ModelMissing,
    NotRunHere,
    PortTaken,
    UnknownEngine,
    UnsupportedOption,
    skip_on_failure,
)
from utils.engines.launch import RunningEngine, launch, launch_first, stop_all
from utils.engines.registry import ENGINES, get_spec
from utils.engines.spec import EngineSpec, MetricNames, ServeOptions

__all__ = [
    "ENGINES",
    "EngineError",
    "EngineSpec",
    "EngineStartError",
    "MetricNames",
    "ModelMissing",
    "NotRunHere",
    "PortTaken",
    "RunningEngine",
    "ServeOptions",
    "UnknownEngine",
    "UnsupportedOption",
    "get_spec",
    "launch",
    "launch_first",
    "skip_on_failure",
    "stop_all",
]
