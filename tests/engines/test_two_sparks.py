"""The engines' own parsers take the commands of docs/two-sparks.md, and two vLLM join into one engine."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from two_sparks_page import HEAD, LINK, WORKER, arguments_after

from utils.engines import sglang, vllm
from utils.engines.process import ProcessHandle
from utils.engines.runtime import new_log, tail
from utils.engines.spec import ServeOptions
from utils.tinymodel.hub import TINY

# Each prints what its parser made of the lists of arguments that it reads.
VLLM = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
def main():
    parser = make_arg_parser(FlexibleArgumentParser())
    for words in json.load(sys.stdin):
        found = parser.parse_args(words)
        fields = ("nnodes", "node_rank", "master_addr", "headless", "tensor_parallel_size",
                  "distributed_executor_backend")
        print(json.dumps({name: getattr(found, name) for name in fields}))
main()
"""
SGLANG = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
for words in json.load(sys.stdin):
    found = parser.parse_args(words)
    fields = ("nnodes", "node_rank", "dist_init_addr", "tp_size")
    print(json.dumps({name: getattr(found, name) for name in fields}))
"""


def parsed(spec, program, lists):
    if not spec.local or not spec.local.needs.exists():
        pytest.skip(f"{spec.title} is not set up here: its own parser was not asked")
    command = [str(spec.local.needs), "-W", "ignore", "-c", program]
    answer = subprocess.run(
        command, input=json.dumps(lists), capture_output=True, text=True, timeout=240, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


@pytest.mark.engine
def test_vllm_parser_takes_page():
    *alone, second, first, ray = parsed(vllm.SPEC, VLLM, arguments_after("vllm", "serve"))
    assert (first["node_rank"], second["node_rank"]) == (0, 1)
    assert (first["headless"], second["headless"]) == (False, True)
    assert first["nnodes"] == first["tensor_parallel_size"] == 2
    assert first["master_addr"] == second["master_addr"] == HEAD
    assert (ray["distributed_executor_backend"], ray["nnodes"]) == ("ray", 1)
    assert [one["tensor_parallel_size"] for one in alone] == [1, 1]


@pytest.mark.engine
def test_sglang_parser_takes_page():
    lists = arguments_after("python3", "-m", "sglang.launch_server")
    second, first = parsed(sglang.SPEC, SGLANG, lists)
    assert (first["node_rank"], second["node_rank"]) == (0, 1)
    assert first["dist_init_addr"] == second["dist_init_addr"] == f"{HEAD}:25000"
    assert first["nnodes"] == first["tp_size"] == 2


HEADLESS = """
from vllm.entrypoints.cli.serve import run_headless
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
found = make_arg_parser(FlexibleArgumentParser()).parse_args()
found.api_server_count = found.api_server_count or 0  # as `vllm serve --headless` sets it
run_headless(found)
"""
ASK = """
import sys, urllib.request as web
asked = web.Request(sys.argv[1], sys.argv[2].encode() or None, {"Content-Type": "application/json"})
print(web.urlopen(asked, timeout=60).read().decode())
"""


@pytest.fixture
def hosts():
    """Two namespaces, joined by a cable whose ends have the names and addresses of a Spark's."""
    if os.environ.get("COURSE_LOAD") != "full":
        pytest.skip(
            "two vLLM over two namespaces take more than a minute to start: COURSE_LOAD=full"
        )
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("namespaces need root and iproute2: two vLLM were not joined")
    names = [f"spark-{os.getpid()}-{node}" for node in (0, 1)]
    ends = [f"c{os.getpid() % 100000}{node}" for node in "ab"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        cable = ["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]
        if subprocess.run(cable, capture_output=True, check=False).returncode != 0:
            pytest.skip("this kernel has no veth pairs: two vLLM were not joined")
        for name, end, address in zip(names, ends, (HEAD, WORKER), strict=True):
            subprocess.run(["ip", "link", "set", end, "netns", name, "name", LINK], check=True)
            within = ["ip", "-n", name]
            subprocess.run([*within, "addr", "add", f"{address}/24", "dev", LINK], check=True)
            for link in ("lo", LINK):
                subprocess.run([*within, "link", "set", link, "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ask(host, url, body=""):
    command = ["ip", "netns", "exec", host, sys.executable, "-c", ASK, url, body]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False).stdout


def sent_bytes(host):
    command = ["ip", "-n", host, "-j", "-s", "link", "show", LINK]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(answer)[0]["stats64"]["tx"]["bytes"]


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_two_vllm_in_two_namespaces_serve_as_one(hosts):
    if not vllm.SPEC.local.needs.exists():
        pytest.skip("vLLM is not set up here: two of them were not joined")
    options = ServeOptions(
        model=str(TINY),
        served_name="tiny",
        host=HEAD,
        port=8000,
        device="cpu",
        dtype="float32",
        context_length=512,
        max_sequences=8,
        kv_cache_gib=1.0,
    )
    programs = (list(vllm.SPEC.local.command), [str(vllm.SPEC.local.needs), "-c", HEADLESS])
    pages = [words for words in arguments_after("vllm", "serve") if "--node-rank" in words]
    joined = [words[words.index("--tensor-parallel-size") :] for words in reversed(pages)]
    halves = []
    try:
        for node, host in enumerate(hosts):
            settings = {
                **vllm.SPEC.local.environment(options),
                "GLOO_SOCKET_IFNAME": LINK,
                "VLLM_HOST_IP": (HEAD, WORKER)[node],
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": "1",
            }
            command = [*programs[node], *vllm.arguments(options), *joined[node]]
            halves.append(
                ProcessHandle(
                    ["ip", "netns", "exec", host, *command], settings, new_log("two-sparks")
                )
            )
        deadline = time.monotonic() + 300
        while not ask(hosts[1], f"http://{HEAD}:8000/version"):
            for half in halves:
                assert half.exit_code() is None, tail(half.log_path, 30)
            assert time.monotonic() < deadline, tail(halves[0].log_path, 30)
            time.sleep(1)
        before = sent_bytes(hosts[0])
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "What is a KV cache?"}],
            "max_tokens": 16,
            "temperature": 0,
        }
        answer = json.loads(
            ask(hosts[1], f"http://{HEAD}:8000/v1/chat/completions", json.dumps(body))
        )
        text = answer["choices"][0]["message"]["content"]
        assert text.startswith("The KV cache holds the keys and values"), text
        # Each layer's sums cross the cable twice, as 4-byte numbers, for each token of prompt and answer.
        config = json.loads((TINY / "config.json").read_text())
        tokens = answer["usage"]["total_tokens"] - 1
        least = 2 * config["num_hidden_layers"] * config["hidden_size"] * 4 * tokens / 2
        assert sent_bytes(hosts[0]) - before > least
    finally:
        for half in halves:
            half.stop()
