"""Benchmark of OpenAI-compatible engines: client, load, statistics, records, report, roofline."""

from utils.benchmark.arrivals import ClosedLoop, OpenLoop, StopRule, arrival_times
from utils.benchmark.client import Client
from utils.benchmark.intervals import Interval, bootstrap_interval, repeat_interval
from utils.benchmark.load import (
    EngineDied,
    LoadInterrupted,
    LoadResult,
    LoadWarning,
    run,
    run_async,
)
from utils.benchmark.records import (
    Cited,
    Record,
    RecordError,
    load_all,
    make_record,
    read_record,
    records_dir,
    write_record,
)
from utils.benchmark.stats import Slo, Summary, percentile, summarise
from utils.benchmark.trace import METRIC_DEFINITIONS, RequestTrace
from utils.benchmark.workload import (
    Conversation,
    Request,
    WorkloadError,
    fixed,
    fresh_seed,
    random_prompts,
    shared_prefix,
)

__all__ = [
    "METRIC_DEFINITIONS",
    "Cited",
    "Client",
    "ClosedLoop",
    "Conversation",
    "EngineDied",
    "Interval",
    "LoadInterrupted",
    "LoadResult",
    "LoadWarning",
    "OpenLoop",
    "Record",
    "RecordError",
    "Request",
    "RequestTrace",
    "Slo",
    "StopRule",
    "Summary",
    "WorkloadError",
    "arrival_times",
    "bootstrap_interval",
    "fixed",
    "fresh_seed",
    "load_all",
    "make_record",
    "percentile",
    "random_prompts",
    "read_record",
    "records_dir",
    "repeat_interval",
    "run",
    "run_async",
    "shared_prefix",
    "summarise",
    "write_record",
]
