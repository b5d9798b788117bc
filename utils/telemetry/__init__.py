"""An engine's account of itself: its Prometheus metrics in one schema, sampled through a run."""

from utils.telemetry.histogram import Histogram
from utils.telemetry.sampler import Sampler, Series
from utils.telemetry.snapshot import ScrapeError, Snapshot, scrape

__all__ = ["Histogram", "Sampler", "ScrapeError", "Series", "Snapshot", "scrape"]
