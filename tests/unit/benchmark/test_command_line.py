"""`python -m utils.benchmark` against endpoints that are no engine of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_adversary import Adversary, Exchange, usage

from utils.benchmark import load_all
from utils.benchmark.__main__ import main
from utils.benchmark.rate_search import highest_rate


async def good(exchange: Exchange) -> None:
    await exchange.answer("a", "b", usage=usage(3, 2))


def call(server: Adversary, out: Path, *words: str) -> int:
    return main([server.base_url, "--model", "m", "--out", str(out), "--no-warmup", *words])


def test_levels_give_records_and_a_report(tmp_path: Path, capsys):
    with Adversary(good) as server:
        code = call(
            server, tmp_path, "--concurrency", "1", "2", "--requests", "4", "--repeats", "2"
        )
        assert len(server.requests) == 16
    assert code == 0
    records = load_all(tmp_path)
    assert [record.load["concurrency"] for record in records].count(2) == 2
    assert {record.origin for record in records} == {"attached"}
    assert records[0].workload["prompt_length"] == "128 to 384 words"
    assert "2 in flight" in capsys.readouterr().out
    assert "attached" in (tmp_path / "report.html").read_text()


def test_rate_and_duration(tmp_path: Path):
    with Adversary(good) as server:
        assert call(server, tmp_path, "--rate", "50", "--duration", "0.4") == 0
    (record,) = load_all(tmp_path)
    assert record.load["pattern"] == "open"
    assert 5 < len(record.traces) < 60
    assert record.duration < 2


def test_key_from_the_environment_reaches_the_server_and_nothing_else(
    tmp_path: Path, monkeypatch, capfd
):
    monkeypatch.setenv("MY_KEY", "S3CRET\n")

    async def refuses(exchange: Exchange) -> None:
        await exchange.json({"error": {"message": "no such model"}}, "404 Not Found")

    with Adversary(refuses) as server:
        url = server.base_url.replace("http://", "http://me:S3CRET@")
        words = ["--model", "m", "--out", str(tmp_path), "--requests", "3", "--key-env", "MY_KEY"]
        assert main([url, *words]) == 1
        assert server.requests[0].headers["authorization"] == "bearer s3cret"
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    shown = capfd.readouterr()
    assert "S3CRET" not in written + shown.out + shown.err
    assert "no such model" in shown.err + written


def test_dead_endpoint_is_an_exit_code_and_no_traceback(tmp_path: Path, capsys):
    with Adversary(good) as server:
        pass
    assert call(server, tmp_path, "--requests", "3") == 1
    assert "nothing answers" in capsys.readouterr().err
    assert call(server, tmp_path, "--dataset", str(tmp_path / "none.jsonl")) == 2
    assert main(["ftp://x", "--model", "m"]) == 2


def test_proxy_of_the_environment_only_when_asked_for(tmp_path: Path, monkeypatch, capsys):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Adversary(good) as server, Adversary(good) as proxy:
        assert call(server, tmp_path, "--requests", "2", "--proxy", "env") == 2
        assert "names no proxy" in capsys.readouterr().err
        monkeypatch.setenv("http_proxy", proxy.base_url)
        assert call(server, tmp_path, "--requests", "2") == 0
        assert not proxy.requests
        assert call(server, tmp_path, "--requests", "2", "--proxy", "env") == 0
        assert len(proxy.requests) == 2


def test_conversations_of_a_file_are_held_turn_by_turn(tmp_path: Path):
    talk = {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "x y z"},
                              {"from": "human", "value": "two"}]}  # fmt: skip
    file = tmp_path / "share.json"
    file.write_text(json.dumps([talk]))
    with Adversary(good) as server:
        words = ["--dataset", str(file), "--turns", "--requests", "2", "--think", "0.001"]
        assert call(server, tmp_path / "out", *words) == 0
        said = [[m["content"] for m in x.body["messages"]] for x in server.requests]
    assert said == [["one"], ["one", "ab", "two"]] * 2
    (record,) = load_all(tmp_path / "out")
    assert record.workload["dataset"] == "share.json"
    assert record.workload["max_tokens"] == [4, 4]


def test_find_rate_needs_an_objective(tmp_path: Path, capsys):
    with Adversary(good) as server:
        assert call(server, tmp_path, "--find-rate") == 2
    assert "--ttft-ms" in capsys.readouterr().err


@pytest.mark.parametrize(("capacity", "start"), [(10.0, 1.0), (10.0, 100.0), (3.0, 3.0)])
def test_search_ends_near_the_highest_good_rate(capacity: float, start: float):
    found = highest_rate(lambda rate: 1.0 if rate <= capacity else 0.98, start, steps=6)
    assert found.best is not None
    assert 0.95 * capacity <= found.best <= capacity


def test_search_without_any_good_rate_and_without_a_limit():
    assert highest_rate(lambda rate: 0.5, 1.0).best is None
    assert highest_rate(lambda rate: 1.0, 1.0, most=64).best == 64
