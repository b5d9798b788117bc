"""The first command of the quick start: one question to the first engine that runs here."""

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace

import matplotlib.image
import pytest
from fake_openai import FakeServer

from utils.benchmark import RequestTrace, first_request
from utils.engines import EngineError, NotRunHere


def engine_at(url):
    return SimpleNamespace(
        base_url=url,
        model="tiny",
        spec=SimpleNamespace(title="Fake", no_thinking={}),
        version="1.0",
        quantisation="BF16",
        start_seconds=2.4,
        log_path="fake.log",
    )


def asked(mode):
    async def one():
        async with FakeServer(mode) as server:
            engine = engine_at(server.url)
            return engine, await first_request.ask(engine, "Why?")

    return asyncio.run(one())


def test_an_answer_is_shown_with_what_it_took():
    engine, trace = asked("ok")
    text = first_request.described(engine, trace)
    assert trace.error is None
    assert text.startswith(trace.text.strip())
    assert "Fake 1.0, BF16: ready after 2 s; first token after " in text
    assert f"{trace.completion_tokens} tokens in all" in text


def test_the_stream_is_drawn_beside_the_records(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path / "new"))
    _, trace = asked("ok")
    path = first_request.write_picture(trace)
    assert path == tmp_path / "new" / "hello.png"
    rows, columns, _ = matplotlib.image.imread(path).shape
    assert columns > 1000
    assert rows > 200


def test_an_answer_without_text_is_no_failure_and_has_no_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path))

    async def ask(engine, question):
        return RequestTrace(0, 0.0, 0.0, 0.1, completion_tokens=0)

    monkeypatch.setattr(first_request, "start", lambda names, profile: nullcontext(engine_at("")))
    monkeypatch.setattr(first_request, "ask", ask)
    assert first_request.main([]) == 0
    assert "0 tokens in all" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_failure_names_the_log():
    engine, trace = asked("http_500")
    assert trace.error is not None
    assert "It did not answer: " in first_request.described(engine, trace)
    assert "Its log: fake.log" in first_request.described(engine, trace)


def test_the_first_engine_that_runs_here_is_taken(monkeypatch):
    tried = []

    def launch(name, profile):
        tried.append(name)
        if name == "vllm":
            raise NotRunHere("vLLM", "it is not set up")
        return name

    monkeypatch.setattr(first_request, "launch", launch)
    assert first_request.start(first_request.ORDER, None) == "llama_cpp"
    assert tried == [
        "vllm",
        "llama_cpp",
    ]


def test_first_request_reports_every_reason(monkeypatch, capsys):
    def launch(name, profile):
        raise NotRunHere(name, f"no {name} here")

    monkeypatch.setattr(first_request, "launch", launch)
    assert first_request.main([]) == 1
    text = capsys.readouterr().err
    assert all(f"no {name} here" in text for name in first_request.ORDER)


def test_an_engine_that_does_not_start_is_no_reason_to_try_another(monkeypatch, capsys):
    def launch(name, profile):
        raise EngineError(f"{name} did not start")

    monkeypatch.setattr(first_request, "launch", launch)
    assert first_request.main([]) == 1
    assert "vllm did not start" in capsys.readouterr().err


def test_an_engine_is_named_by_its_name():
    with pytest.raises(SystemExit):
        first_request.main(["vlm"])
