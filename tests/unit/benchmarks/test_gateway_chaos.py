"""A small version of `benchmarks/gateway_chaos.py`: misfortunes while requests run."""

from benchmarks.gateway_chaos import chaos


def test_every_request_ends_once_whatever_happens_to_the_backends():
    report = chaos(400, width=16, backends=2, seed=3)
    assert report.wrong == []
    assert report.lost == 0
    assert report.answered + report.failed.total() == 400
    assert report.answered > 100
    assert report.misfortunes.total() >= 1
    assert report.unnamed == []
    assert report.uncounted == 0
    assert report.whole_after_s is not None
