"""Benchmark of OpenAI-compatible engines: client, load, statistics, records, report, roofline."""

from utils.benchmark.arrivals import ClosedLoop, OpenLoop, arrival_times
from utils.benchmark.client import Client
from utils.benchmark.intervals import Interval, bootstrap_interval, repeat_interval
from utils.benchmark.load import EngineDied, LoadResult, run, run_async
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
from utils.benchmark.workload import Request, WorkloadError, fixed, random_prompts, shared_prefix

__all__ = [
    "METRIC_DEFINITIONS",
    "Cited",
    "Client",
    "ClosedLoop",
    "EngineDied",
    "Interval",
    "LoadResult",
    "OpenLoop",
    "Record",
    "RecordError",
    "Request",
    "RequestTrace",
    "Slo",
    "Summary",
    "WorkloadError",
    "arrival_times",
    "bootstrap_interval",
    "fixed",
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
