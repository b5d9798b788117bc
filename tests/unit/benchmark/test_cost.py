"""Power of the GPUs, joules per token and the price of tokens."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from utils.benchmark.cost import PowerMeter, costs, mean_watts


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_power_is_the_sum_of_all_gpus(tmp_path, monkeypatch):
    done = tmp_path / "done"
    smi(
        tmp_path,
        monkeypatch,
        f"echo 100.0; echo 60.0; case $* in *loop*) : > {done}; exec sleep 60;; esac",
    )
    with PowerMeter() as meter:
        while not done.exists():
            time.sleep(0.01)
    assert meter.watts == pytest.approx(160)


@pytest.mark.parametrize("script", ["echo '[N/A]'", "exit 9", "echo"])
def test_no_power_where_nvidia_smi_does_not_tell(tmp_path, monkeypatch, script):
    smi(tmp_path, monkeypatch, script)
    with PowerMeter() as meter:
        pass
    assert meter.watts is None


def test_no_power_without_nvidia_smi(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with PowerMeter() as meter:
        pass
    assert meter.watts is None


def test_costs():
    found = costs({"output_throughput": 100.0}, watts=50.0, price_per_hour=3.6)
    assert found["joules_per_output_token"] == pytest.approx(0.5)
    assert found["price_per_million_output_tokens"] == pytest.approx(10.0)
    assert costs({"output_throughput": math.nan}, 50.0, 3.6) == {"watts": 50.0}
    assert costs({"output_throughput": 100.0}) == {}
    assert mean_watts("10\n20\n") == 15
    assert mean_watts("10\n[N/A]\n") is None
