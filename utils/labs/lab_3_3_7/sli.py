"""A learner's service level indicator, tried by promtool on traffic whose right answer is known.

promtool is Prometheus' own tool for tests of rules. It evaluates the query, so nothing of PromQL is imitated.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from utils.benchmark.records import load_all

MISSING = "not run here: promtool is not installed (Debian and Ubuntu: apt install prometheus)"
# Requests a minute by outcome, and the share that is right.
TRAFFIC: dict[str, tuple[dict[str, int], float]] = {
    "all is well": ({"ok": 100}, 1.0),
    "one request in ten breaks off": ({"ok": 90, "idle": 10}, 0.9),
    "half of the requests are wrong themselves": ({"ok": 50, "client_error": 50}, 1.0),
    "a key is over its limit": ({"ok": 50, "rate_limited": 150}, 1.0),
    "one in five comes when all is full": ({"ok": 80, "queue_full": 20}, 0.8),
    "nobody gets an answer": ({"timeout": 100}, 0.0),
}
_MINUTES = 30


def judge_sli(query: str) -> pd.DataFrame | None:
    """Evaluate a query on each kind of traffic and compare it with the right share.

    Args:
        query: PromQL with one value for each `model`: the share of admitted requests that ended well.

    Returns:
        One row per kind of traffic, or None, after a printed line, if promtool isn't installed.
    """
    if shutil.which("promtool") is None:
        print(MISSING)
        return None
    rows = {}
    for kind, (outcomes, share) in TRAFFIC.items():
        got = _evaluated(query, outcomes)
        right = re.fullmatch(r"[-+.\deE]+", got) is not None and abs(float(got) - share) < 0.005
        rows[kind] = {
            "right": f"{share:.0%}",
            "yours": _shown(got),
            "agrees": "yes" if right else "no",
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "traffic (made for this test)"
    return frame


def _shown(got: str) -> str:
    return f"{float(got):.0%}" if re.fullmatch(r"[-+.\deE]+", got) else got


def _evaluated(query: str, outcomes: Mapping[str, int]) -> str:
    """Return the query's value as promtool prints it, or a word for why there is none."""
    series = [
        {
            "series": f'gateway_requests_total{{model="m",backend="b",outcome="{name}"}}',
            "values": f"0+{count}x{_MINUTES}",
        }
        for name, count in outcomes.items()
    ]
    # An expectation that no answer meets makes promtool print the answer.
    impossible = [{"labels": "never{}", "value": -1}]
    asked = {"expr": query, "eval_time": f"{_MINUTES}m", "exp_samples": impossible}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sli.test.yml"
        path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
        command = ["promtool", "test", "rules", str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    text = answer.stdout + answer.stderr
    _, _, got = text.partition("got:")
    if not got:
        error = re.search(r"err: (.*)", text)
        return error[1] if error else text.strip()[-200:]
    values = re.findall(r"(?:\}|\A\s*)\s*([-+.\deE]+|NaN|[-+]?Inf)", got)
    if len(values) > 1:
        return f"{len(values)} series"
    return values[0] if values else "no series"


@dataclass(frozen=True)
class Capacity:
    """Most requests per second that one replica served within its objectives.

    Attributes:
        label: Label of the run.
        per_s: Goodput, requests per second.
        seconds: Mean time from a request to the end of its answer, in that run.
    """

    label: str
    per_s: float
    seconds: float

    @property
    def places(self) -> int:
        """Requests in flight at this rate, by Little's law: rate times time."""
        return max(1, math.ceil(self.per_s * self.seconds))


def measured_capacity() -> Capacity | None:
    """Return the best goodput among the records of this machine, or None if there is none with objectives."""
    found = [
        Capacity(
            record.label, record.summary["request_goodput"], record.summary["mean_e2el_ms"] / 1000
        )
        for record in load_all()
        if record.summary.get("request_goodput")
    ]
    return max(found, key=lambda capacity: capacity.per_s, default=None)
