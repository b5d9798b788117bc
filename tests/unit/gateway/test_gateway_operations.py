"""Running the gateway: readiness, drains, reloads, names, shortages, logs and traces."""

import asyncio
import errno
import http.client
import json
import logging
import os
import socket
import threading
import time

import httpx
import pytest
import uvloop
from fake_openai import FakeServer
from gateway_case import MODEL, QUICK, case
from misbehaving_engine import DONE, Engine, event
from opentelemetry import trace
from test_gateway_recovery import ROUTE, outcomes
from test_gateway_relay import run

from utils.engines.runtime import free_port
from utils.gateway import local_gateway, logs, server
from utils.gateway.settings import SettingsError, load_settings
from utils.http.names import Names


def described(name, url, **more):
    return {"name": name, "engine": "llama_cpp", "url": url, **more}


def settings_of(c, models, **more):
    known = {"health": QUICK, "allow_anonymous": True, "port": 0}
    return load_settings(models=models, **known, **more)


def names_of(c, model=MODEL):
    return [backend.name for backend in c.gateway.pools[model].backends]


def test_readiness_is_about_gateway_and_not_about_engines():
    async def work():
        async with case(FakeServer("sick")) as c:
            await c.until(lambda: not c.gateway.pools[MODEL].backends[0].up)
            assert (await c.http.get("/health/ready")).status_code == 200
            entry = (await c.http.get("/v1/models")).json()["data"][0]
            assert entry["engines"] == [{"name": "llama_cpp", "up": False}]
            assert c.metric("gateway_backend_up", model=MODEL, backend="b0") == 0

    run(work())


def test_every_answer_closes_its_connection_after_sigterm():
    async def work():
        async with case(drain={"notice_s": 2, "limit_s": 20}) as c:
            assert "connection" not in (await c.ask()).headers
            c.server.handle_exit(15, None)
            for path in ("/health/live", "/health/ready", "/metrics", "/v1/none"):
                assert (await c.http.get(path)).headers["connection"] == "close"
            for stream in (True, False):
                assert (await c.ask(stream=stream)).headers["connection"] == "close"
            assert (await c.ask(temperature=9)).headers["connection"] == "close"

    run(work())


def test_kept_connection_loses_nothing_in_a_drain():
    found = []

    def client(port, leaving):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "a"}]})
        for number in range(4):
            if number == 2:
                leaving.wait(5)
            connection.request("POST", ROUTE, body)
            answer = connection.getresponse()
            answer.read()
            found.append((answer.status, answer.getheader("connection")))
            if answer.getheader("connection") == "close":
                return

    async def work():
        async with case(drain={"notice_s": 1, "limit_s": 20}) as c:
            leaving = threading.Event()
            thread = asyncio.to_thread(client, int(c.url.rpartition(":")[2]), leaving)
            asking = asyncio.create_task(thread)
            await c.until(lambda: len(found) == 2)
            c.server.handle_exit(15, None)
            leaving.set()
            await asking
            assert found == [(200, None), (200, None), (200, "close")]

    run(work())


def test_reload_adds_and_removes_backends_and_models():
    async def work():
        async with case(FakeServer(), FakeServer(), FakeServer()) as c:
            urls = [fake.url for fake in c.fakes]
            first = c.gateway.pools[MODEL].backends[1]
            changed = [
                {"name": MODEL, "backends": [described("b1", urls[1])]},
                {"name": "new", "backends": [described("n0", urls[2])]},
            ]
            c.gateway.load = lambda: settings_of(c, changed)
            c.gateway.reload()
            assert names_of(c) == ["b1"]
            assert c.gateway.pools[MODEL].backends[0] is first, "an unchanged one goes on"
            assert (await c.ask(model="new")).status_code == 200
            assert 'backend="b0"' not in "".join(
                line
                for line in (await c.http.get("/metrics")).text.splitlines()
                if line.startswith("gateway_backend_up")
            )
            c.gateway.configure(settings_of(c, changed[:1]))
            assert (await c.ask(model="new")).status_code == 404

    run(work())


def test_wrong_reload_changes_nothing(caplog):
    async def work():
        async with case() as c:

            def wrong():
                raise SettingsError("models: missing")

            for load in (None, wrong):
                c.gateway.load = load
                c.server.handle_hangup()
                assert (await c.ask()).status_code == 200
            with pytest.raises(SettingsError, match="Restart the gateway to change: host"):
                c.gateway.configure(c.gateway.settings.model_copy(update={"host": "0.0.0.0"}))

    with caplog.at_level(logging.ERROR, logger="gateway"):
        run(work())
    assert [record.message for record in caplog.records] == ["not reloaded"] * 2


def test_key_keeps_what_it_has_used_at_reload():
    async def work():
        from utils.gateway.auth import digest

        keys = [{"name": "k", "sha256": digest("gw-k"), "requests_per_minute": 2}]
        headers = {"authorization": "Bearer gw-k"}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
        async with case(keys=keys) as c:
            asked = [(await c.http.post(ROUTE, json=body, headers=headers)) for _ in range(2)]
            c.gateway.configure(c.gateway.settings)
            asked.append(await c.http.post(ROUTE, json=body, headers=headers))
            assert [answer.status_code for answer in asked] == [200, 200, 429]

    run(work())


def test_private_port_adds_drains_and_removes():
    async def work():
        async with case(FakeServer(), FakeServer(), private={"port": 0}) as c:
            port = c.server.private.servers[0].sockets[0].getsockname()[1]
            base = f"http://127.0.0.1:{port}"
            path = f"/models/{MODEL}/backends"
            async with httpx.AsyncClient(base_url=base, trust_env=False) as private:
                assert b"gateway_requests" in (await private.get("/metrics")).content
                third = described("b2", c.fakes[0].url)
                added = await private.post(path, json=third)
                assert added.status_code == 201
                assert names_of(c) == ["b0", "b1", "b2"]
                assert (await private.post(path, json=third)).status_code == 409
                assert (await private.post(path, json={"name": "x"})).status_code == 422
                await private.patch(f"{path}/b1", json={"draining": True})
                before = len(c.fakes[1].requests)
                for _ in range(6):
                    assert (await c.ask()).status_code == 200
                assert len(c.fakes[1].requests) == before
                await private.patch(f"{path}/b1", json={"draining": False})
                for _ in range(6):
                    await c.ask()
                assert len(c.fakes[1].requests) > before
                for name in ("b0", "b2"):
                    assert (await private.delete(f"{path}/{name}")).status_code == 200
                assert names_of(c) == ["b1"]
                assert (await private.delete(f"{path}/b1")).status_code == 409, "the last one"
                assert (await private.delete(f"{path}/b9")).status_code == 404
                assert (await private.post("/reload")).status_code == 409, "there is no file"
                state = (await private.get("/backends")).json()
                assert state["models"][MODEL][0]["circuit"] == "closed"
            assert (await c.http.get("/backends")).status_code == 404, "not on the public port"

    run(work())


def test_replicas_of_a_dns_name_come_and_go(monkeypatch):
    found = ["127.0.0.1"]

    async def addresses(self, host):
        if host != "replicas.example":
            return [host]
        if not found:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return list(found)

    monkeypatch.setattr(Names, "addresses", addresses)
    monkeypatch.setattr("utils.gateway.pool._DISCOVER_S", 0.02)

    async def work():
        port = free_port()
        replicas = Engine(port=port), Engine(port=port, host="127.0.0.2")
        url, discover = [f"http://replicas.example:{port}"], {"discover": True}
        async with case(*replicas, urls=url, backend=discover) as c:
            await c.until(lambda: names_of(c) == ["b0-127.0.0.1"])
            found.append("127.0.0.2")
            await c.until(lambda: len(names_of(c)) == 2)
            for _ in range(4):
                assert (await c.ask()).status_code == 200
            assert all(replica.requests for replica in replicas)
            found.clear()
            await asyncio.sleep(0.1)
            assert len(names_of(c)) == 2, "a name server that is down removes nobody"
            found.append("127.0.0.2")
            await c.until(lambda: names_of(c) == ["b0-127.0.0.2"])
            assert (await c.ask()).status_code == 200

    run(work())


def test_end_does_not_wait_for_a_name_server(monkeypatch):
    asked, over = threading.Event(), threading.Event()
    known = socket.getaddrinfo

    def hangs(host, *rest, **options):
        if host == "nowhere.example":
            asked.set()
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return known(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)

    async def work():
        async with case(FakeServer(), urls=["http://nowhere.example:1"]) as c:
            await c.until(asked.is_set)
            c.server.handle_exit(15, None)

    asyncio.run(asyncio.wait_for(work(), 10))
    assert not over.is_set()
    over.set()


def test_look_up_gives_up_and_remembers(monkeypatch):
    over = threading.Event()

    def look_up(host, *_, **__):
        if over.wait(0) or host == "slow":
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(2, 1, 6, "", ("10.0.0.1", 0)), (2, 1, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def work():
        names = Names(timeout_s=0.05, fresh_s=0.0)
        with pytest.raises(TimeoutError):
            await names.addresses("slow")
        assert await names.addresses("127.0.0.1") == ["127.0.0.1"]
        assert await names.addresses("::1") == ["::1"]
        assert await names.addresses("host") == ["10.0.0.1"]
        over.set()
        assert await names.addresses("host") == ["10.0.0.1"], "a failing name server is no news"
        with pytest.raises(socket.gaierror):
            await names.addresses("other")

    uvloop.run(asyncio.wait_for(work(), 10))


def test_own_shortage_is_not_the_engines_fault(monkeypatch):
    async def work():
        async with case(FakeServer(), FakeServer()) as c:
            loop = asyncio.get_running_loop()
            pool = c.gateway.pools[MODEL]

            async def no_more(*_, **__):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            known = type(pool.backends[0]._transport)._connect
            monkeypatch.setattr(type(pool.backends[0]._transport), "_connect", no_more)
            for backend in pool.backends:
                await backend._checks.aclose()
            for _ in range(4):
                answer = await c.ask()
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "gateway_overloaded"
            await asyncio.sleep(0.2)  # some health checks
            assert all(backend.up for backend in pool.backends)
            assert all(backend.circuit.failures == 0 for backend in pool.backends)
            assert outcomes(c, "own_shortage", backend="b0") > 0
            monkeypatch.setattr(type(pool.backends[0]._transport), "_connect", known)
            assert (await c.ask()).status_code == 200
            assert loop.is_running()

    run(work())


def test_limit_of_files_is_raised(monkeypatch):
    set_to = []
    monkeypatch.setattr(server.resource, "getrlimit", lambda _: (1024, 50_000))
    monkeypatch.setattr(server.resource, "setrlimit", lambda _, limits: set_to.append(limits))
    server.raise_file_limit()
    assert set_to == [(50_000, 50_000)]


def test_log_that_nobody_reads_blocks_nothing():
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        handler = logs.QueuedLines(stream)
        handler.setFormatter(logs.JsonLines())
        log = logging.Logger("full")
        log.addHandler(handler)
        for number in range(3 * logs._MOST_LINES):
            log.info("x" * 200, extra={"fields": {"number": number}})
        assert handler.dropped >= logs._MOST_LINES
        reader = os.fdopen(read)
        lines = [json.loads(reader.readline()) for _ in range(1000)]
        assert [line["number"] for line in lines] == list(range(1000))
        threading.Thread(target=lambda: [None for _ in reader], daemon=True).start()
        log.info("the end")
        handler.flush()


def test_log_tells_how_many_lines_were_dropped(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as stream:
        handler = logs.QueuedLines(stream)
        handler.setFormatter(logs.JsonLines())
        handler.dropped = 7
        log = logging.Logger("lost")
        log.addHandler(handler)
        log.info("here")
        handler.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["here", "lines dropped"]
    assert lines[1]["count"] == 7


class RecordingSpan(trace.Span):
    """Span that remembers what it is told; no OpenTelemetry SDK is installed here."""

    def __init__(self):
        self.attributes, self.status = {}, None

    def set_attributes(self, attributes):
        self.attributes |= attributes

    def set_attribute(self, key, value):
        self.attributes[key] = value

    def set_status(self, status, description=None):
        self.status = (status, description)

    def is_recording(self):
        return True

    def get_span_context(self):
        return trace.INVALID_SPAN_CONTEXT

    def end(self, end_time=None): ...
    def add_event(self, name, attributes=None, timestamp=None): ...
    def add_link(self, context, attributes=None): ...
    def update_name(self, name): ...
    def record_exception(self, exception, attributes=None, timestamp=None, escaped=False): ...


class Recorder(trace.TracerProvider, trace.Tracer):
    """Provider whose spans are kept."""

    def __init__(self):
        self.spans = []

    def get_tracer(self, *_, **__):
        return self

    def start_span(self, name, context=None, **_):
        self.spans.append(RecordingSpan())
        return self.spans[-1]

    def start_as_current_span(self, name, context=None, **_):
        return trace.use_span(self.start_span(name, context))


def test_span_tells_model_tokens_and_status(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorder)

    async def work():
        async with case() as c:
            await c.stream()
            await c.ask(temperature=9)
            c.fakes[0].mode = "http_500"
            await c.ask()
            c.fakes[0].mode = "cut"
            await c.stream()
            await c.until(lambda: outcomes(c, "broken_stream") == 1)

    run(work())
    good, wrong, failed, broken = recorder.spans
    expected = {
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": MODEL,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "gateway.backend": "b0",
        "gateway.outcome": "ok",
    }
    assert {name: good.attributes[name] for name in expected} == expected
    assert good.status is None
    assert wrong.status is None, "a client's error isn't the server's"
    assert failed.attributes["http.response.status_code"] == 502
    assert failed.status[0] is trace.StatusCode.ERROR
    assert broken.attributes["error.type"] == "broken_stream"
    assert broken.status[0] is trace.StatusCode.ERROR


def test_stream_of_removed_backend_goes_on_until_its_end():
    async def work():
        slow = Engine(parts=[event("w ")] * 20 + [DONE], gap_s=0.02)
        async with case(slow, FakeServer()) as c:
            pool = c.gateway.pools[MODEL]
            backend = pool.backends[0]
            while not slow.running:
                asking = asyncio.create_task(c.stream())
                await c.until(lambda task=asking: slow.running or task.done())
            left = [{"name": MODEL, "backends": [described("b1", c.fakes[1].url)]}]
            c.gateway.configure(settings_of(c, left))
            assert backend.leaving
            assert b"[DONE]" in await asking
            await c.until(lambda: not pool._leaving)

    run(work())


def test_sighup_of_process_reads_file_again():
    with local_gateway.serve([{"name": "a", "backends": [described("b0", "http://x:1")]}]) as one:
        path = one._config
        assert [entry["id"] for entry in one.get("/v1/models")["data"]] == ["a"]
        one.reload(models=[{"name": "b", "backends": [described("b0", "http://x:1")]}])
        deadline = time.monotonic() + 10
        while [entry["id"] for entry in one.get("/v1/models")["data"]] != ["b"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert one.running()
    assert not path.exists()
    assert not one.running()
