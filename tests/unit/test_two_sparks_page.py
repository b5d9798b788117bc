"""The page on two DGX Sparks agrees with the engines' own files, the gateway and the arithmetic."""

import re
import subprocess

import pytest
from two_sparks_page import HEAD, LINK, PAGE, WORKER, arguments_after, bash_blocks, commands

from utils.engines.launch import profile_fields, served_name
from utils.engines.registry import get_spec
from utils.engines.spec import ServeOptions
from utils.gateway.settings import load_settings
from utils.model_sizes import QWEN3, decoder_parameters
from utils.profiles import PROFILES
from utils.roofline.published import DGX_SPARK, LLAMA_3_1_8B

MODEL = PROFILES["spark"].models["vllm"]
PLANS = [("vllm", 5), ("sglang", 2), ("tensorrt_llm", 1)]  # engine, commands that serve


def engine_arguments(engine, host):
    """Arguments with which the profile `spark` starts an engine on `host`, command included."""
    spec = get_spec(engine)
    options = ServeOptions(
        model=MODEL,
        served_name=served_name(MODEL),
        host=host,
        port=spec.container.port,
        device="cuda",
        **profile_fields(PROFILES["spark"]),
    )
    return [*spec.container.command, *spec.arguments(options)]


@pytest.mark.parametrize("block", bash_blocks())
def test_bash_accepts_block(block):
    checked = subprocess.run(
        ["bash", "-n"], input=block, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(("engine", "count"), PLANS)
def test_engines_start_as_on_one_spark(engine, count):
    command = engine_arguments(engine, HEAD)
    start = command[: 3 if command[0] == "python3" else 2 if engine == "vllm" else 1]
    found = [[*start, *rest] for rest in arguments_after(*start)]
    assert len(found) == count
    for words in found:
        host = words[words.index("--host") + 1]
        assert host in (HEAD, WORKER)
        assert words[: len(command)] == engine_arguments(engine, host)


def test_containers_get_what_the_engines_files_ask_for():
    runs = [words for words in commands() if words[:2] == ("docker", "run")]
    containers = {e: get_spec(e).container for e, _ in PLANS}
    for words in runs:
        (container,) = [c for c in containers.values() if c.image in words]
        wanted = ["--gpus all", "--network host", "--ulimit memlock=-1", f"--ipc {container.ipc}"]
        wanted += [f"--ulimit {name}={value}" for name, value in dict(container.ulimits).items()]
        wanted += ["-e HF_TOKEN"]
        wanted += ["-e VLLM_NO_USAGE_STATS=1", "-e TRTLLM_NO_USAGE_STATS=1"]
        options = " ".join(words)
        assert [option for option in wanted if option not in options] == []
    assert len(runs) == 10


def test_halves_know_the_link_and_their_own_address():
    halves = [words for words in commands() if "--name" in words and "replica" not in str(words)]
    for words in halves:
        name = words[words.index("--name") + 1]
        own = HEAD if name.endswith("-0") else WORKER
        assert f"VLLM_HOST_IP={own}" in words
        assert f"MASTER_ADDR={HEAD}" in words
        assert f"GLOO_SOCKET_IFNAME={LINK}" in words


def test_gateway_loads_settings(tmp_path):
    (block,) = [b for b in bash_blocks() if b.startswith("cat > two-sparks.yaml")]
    variables = f"HEAD={HEAD}; WORKER={WORKER}; NAME={served_name(MODEL)}\n"
    subprocess.run(["bash", "-eu", "-c", variables + block], cwd=tmp_path, check=True)
    settings = load_settings(tmp_path / "two-sparks.yaml")
    assert [b.url for b in settings.models[0].backends] == [
        f"http://{HEAD}:8000",
        f"http://{WORKER}:8000",
    ]
    assert settings.models[0].name == served_name(MODEL)


@pytest.mark.parametrize(
    ("name", "config"), [("Qwen3-8B", QWEN3["8B"]), ("Llama-3.1-8B", LLAMA_3_1_8B)]
)
def test_table_follows_from_weights_and_bandwidth(name, config):
    weights, layers = 2 * decoder_parameters(config), config["num_hidden_layers"]
    step_s = weights / DGX_SPARK.bandwidth
    even_s = step_s / 2 / (2 * layers)
    cells = (
        name,
        f"{weights / 1e9:.1f} GB",
        f"{1e3 * step_s:.0f} ms",
        2 * layers,
        f"{1e6 * even_s:.0f} µs",
    )
    assert f"| {' | '.join(map(str, cells))} |" in PAGE.read_text()


def test_room_for_weights_follows_from_memory():
    kilobytes = int(re.search(r"(\d+) kB", PAGE.read_text())[1])
    room = kilobytes * 1024 * PROFILES["spark"].gpu_memory_utilization / 1e9
    assert f"| {room:.0f} to {2 * room:.0f} GB |" in PAGE.read_text()
