"""The engines that all other tests share end here, which spares a start of each: this file runs last."""

import psutil
import pytest

pytestmark = pytest.mark.engine


def test_nothing_is_left_of_vllm(vllm, stops_without_a_trace, before_any_engine):
    stops_without_a_trace(vllm, "VLLM", before_any_engine)


def test_nothing_is_left_of_sglang_when_its_server_is_killed_from_outside(sglang):
    family = psutil.Process(int(sglang.identity)).children(recursive=True)
    family[0].kill()
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []
    assert not sglang.running()
    sglang.stop()
