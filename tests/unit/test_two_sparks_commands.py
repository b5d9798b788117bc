"""Plans for two linked Sparks: the link, the commands, the advice, the health check."""

import re
import shlex
import subprocess
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tools.two_sparks import (
    EXAMPLE,
    MEMORY_BYTES,
    PLANS,
    Interface,
    NoLink,
    Pair,
    Plan,
    advise,
    check,
    choose_link,
    find_link,
    main,
    parse_interfaces,
)
from utils.engines import ENGINES
from utils.gateway.settings import load_settings
from utils.tinymodel.hub import TINY

PAIR = Pair()
# As the playbook connect-two-sparks shows them: one port has a cable, and two interfaces.
SPARK = [
    Interface("lo", "127.0.0.1", False),
    Interface("enP7s7", "10.0.0.5", True),
    Interface("enP2p1s0f0np0", "", False, rdma=True),
    Interface("enP2p1s0f1np1", "192.168.101.10", True, rdma=True),
    Interface("enp1s0f0np0", "", False, rdma=True),
    Interface("enp1s0f1np1", "192.168.100.10", True, rdma=True),
]


def engine_command(step):
    """The engine's own arguments of a step."""
    words = list(step.command)
    for start in ("vllm", "python3"):
        if start in words:
            return words[words.index(start) :]
    return shlex.split(words[-1])


def test_the_link_is_the_port_that_is_up_on_the_first_segment():
    assert choose_link(SPARK).name == "enp1s0f1np1"
    assert choose_link([i for i in SPARK if i.name != "enp1s0f1np1"]).name == "enP2p1s0f1np1"
    without_rdma = [replace(i, rdma=False) for i in SPARK]
    assert choose_link(without_rdma).name == "enp1s0f1np1", "the name alone tells it too"


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda i: not i.rdma, r"no ConnectX-7 interface here \(found: lo, enP7s7\)"),
        (lambda i: not (i.rdma and i.up), "none has a link"),
    ],
)
def test_a_link_that_is_not_there_says_what_to_do(keep, words):
    with pytest.raises(NoLink, match=words):
        choose_link([i for i in SPARK if keep(i)])
    bare = [replace(i, address="") for i in SPARK]
    with pytest.raises(NoLink, match=r"ip addr add 192\.168\.100\.10/24 dev enP2p1s0f1np1"):
        choose_link(bare)


def test_ip_s_own_answer_is_read():
    answer = (  # iproute2 6.1, two namespaces joined by a veth pair
        '[{"ifindex":1,"ifname":"lo","operstate":"UNKNOWN","addr_info":[{"family":"inet","local":"127.0.0.1"}]},'
        '{"ifindex":118,"ifname":"enp1s0f1np1","operstate":"UP","addr_info":['
        '{"family":"inet","local":"192.168.100.10","prefixlen":24},{"family":"inet6","local":"fe80::1"}]}]'
    )
    assert parse_interfaces(answer, ["enp1s0f1np1"]) == [
        Interface("lo", "127.0.0.1", False),
        Interface("enp1s0f1np1", "192.168.100.10", True, rdma=True),
    ]


def test_rdma_devices_are_found_in_sysfs(tmp_path, monkeypatch):
    (tmp_path / "rocep1s0f1/device/net/eth7").mkdir(parents=True)
    answer = (
        '[{"ifname":"eth7","operstate":"UP","addr_info":[{"family":"inet","local":"10.9.8.7"}]}]'
    )
    done = subprocess.CompletedProcess((), 0, answer, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert find_link(tmp_path) == Interface("eth7", "10.9.8.7", True, rdma=True)


@pytest.mark.parametrize("name", PLANS)
def test_every_script_is_one_that_bash_takes_and_both_nodes_agree(name):
    plan = PLANS[name](PAIR)
    for node in (0, 1):
        script = plan.script(node)
        checked = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert "course-" in script
        assert "--network host" in script
    if name != "replicas":
        for node, address in enumerate(EXAMPLE):
            assert f"VLLM_HOST_IP={address}" in plan.script(node)
            assert "GLOO_SOCKET_IFNAME=enp1s0f1np1" in plan.script(node)
    assert all("0.0.0.0" not in step.line() for step in plan.steps), "on the link only"
    assert plan.health
    assert plan.url.startswith("http://")
    images = {spec.container.image for spec in ENGINES.values() if spec.container}
    assert any(image in plan.page() for image in images)


def test_vllm_without_ray_has_one_head_and_one_headless_half():
    first, second = (
        engine_command(next(s for s in PLANS["vllm"](PAIR).steps if s.node == node))
        for node in (0, 1)
    )
    assert "--headless" in second
    assert "--headless" not in first
    for node, command in enumerate((first, second)):
        assert command[command.index("--node-rank") + 1] == str(node)
        assert command[command.index("--master-addr") + 1] == EXAMPLE[0]
    assert [w for w in first if w in second].count("--tensor-parallel-size") == 1


def test_ray_is_joined_before_anything_is_served():
    steps = PLANS["vllm-ray"](PAIR).steps
    assert [step.node for step in steps] == [0, 1, 0, 0]
    assert (
        "ray start --block --node-ip-address=192.168.100.11 --address=192.168.100.10:6379"
        in steps[1].line()
    )
    assert "ray status" in steps[2].line()
    assert "--distributed-executor-backend ray" in steps[3].line()


def test_sglang_s_halves_differ_in_rank_and_address_only():
    first, second = (
        engine_command(next(s for s in PLANS["sglang"](PAIR).steps if s.node == node))
        for node in (0, 1)
    )
    differ = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert differ == [EXAMPLE, ("0", "1")]
    assert "192.168.100.10:25000" in first


def test_mpi_starts_on_the_first_and_reaches_the_second_over_ssh():
    plan = PLANS["tensorrt-llm"](PAIR)
    script = plan.script(0)
    assert "mpirun -x HF_TOKEN trtllm-llmapi-launch trtllm-serve Qwen/Qwen3-8B" in script
    assert "--tp_size 2" in script
    assert "trtllm-serve" not in plan.script(1)
    assert script.index("until ssh 192.168.100.11") < script.index("mpirun -x")
    assert r"192.168.100.10\n192.168.100.11\n" in script


def test_the_gateway_of_the_replicas_takes_its_settings(tmp_path, monkeypatch):
    plan = PLANS["replicas"](PAIR)
    file = tmp_path / "two-sparks.yaml"
    file.write_text(plan.files["two-sparks.yaml"])
    settings = load_settings(file)
    assert [b.url for b in settings.models[0].backends] == [f"http://{a}:8000" for a in EXAMPLE]
    assert settings.host == "127.0.0.1"
    assert settings.models[0].name == "Qwen3-8B"
    served = [engine_command(step) for step in plan.steps[:2]]
    assert all(
        command[command.index("--served-model-name") + 1] == "Qwen3-8B" for command in served
    )


def test_the_advice_follows_from_weights_memory_and_bandwidth():
    text = advise(16.4e9, 36)
    assert text.startswith("Two replicas: 16.4 GB")
    assert "60.1 ms" in text
    even = int(re.search(r"more than (\d+) us", text)[1])
    step = 16.4e9 / 273e9
    assert step / 2 + 72 * even * 1e-6 == pytest.approx(step, rel=0.01)
    assert advise(141e9, 80).startswith("Tensor parallel over both: 141 GB")
    assert "quantise" in advise(2 * MEMORY_BYTES, 126)


def test_health_names_what_does_not_answer():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    plan = Plan("x", "x", (), url, (f"{url}/health", f"{url}/other", "http://127.0.0.1:9/health"))
    try:
        sick, dead = check(plan)
    finally:
        server.shutdown()
        server.server_close()
    assert "HTTP 503" in sick
    assert "no answer" in dead
    assert "docker logs" in dead
    assert check(replace(plan, health=())) == []


def test_the_command_line_prints_a_page_or_a_script(capsys):
    assert (
        main(["sglang", "--interface", "eth9", "--model", "a/b", "--nodes", "10.0.0.1", "10.0.0.2"])
        == 0
    )
    page = capsys.readouterr().out
    assert "== node 1 ==" in page
    assert "NCCL_SOCKET_IFNAME=eth9" in page
    assert "--model-path a/b" in page
    assert main(["vllm", "--node", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("set -e")
    assert "--headless" in said.out
    assert "Written for enp1s0f1np1" in said.err or "enp" in said.out
    assert main(["replicas", "--health", "--nodes", "127.0.0.1", "127.0.0.2"]) == 1
    assert "no answer" in capsys.readouterr().out
    assert main(["advice", "--model", str(TINY)]) == 0
    assert f"{TINY}: Two replicas" in capsys.readouterr().out
    assert main(["advice", "--model", "/nowhere"]) == 1
