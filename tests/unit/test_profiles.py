from dataclasses import replace

import pytest

from utils import profiles
from utils.gpu import Gpu
from utils.profiles import PROFILES, ProfileError, detect, load_profile


@pytest.mark.parametrize(
    ("gpu", "machine", "docker", "expected"),
    [
        ("NVIDIA GB10", "aarch64", True, "spark"),
        ("NVIDIA H100 80GB HBM3", "x86_64", True, "cuda"),
        ("NVIDIA GH200 480GB", "aarch64", True, "cuda"),
        ("NVIDIA GB10", "aarch64", False, "cuda-local"),
        ("Tesla T4", "x86_64", False, "cuda-local"),
        (None, "x86_64", True, "cpu"),
        (None, "aarch64", False, "cpu"),
    ],
)
def test_the_machine_decides(gpu, machine, docker, expected):
    assert detect(gpu, machine, docker) == expected


def test_the_environment_overrides_the_machine(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "spark")
    assert load_profile().name == "spark"
    assert load_profile("cpu").name == "cpu"


def test_a_wrong_name_is_refused_with_the_right_ones(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "tpu")
    with pytest.raises(ProfileError, match=r"'tpu'.*cpu, cuda, cuda-local, spark"):
        load_profile()


def test_a_broken_driver_is_no_gpu(monkeypatch, tmp_path):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert profiles.gpu_name() is None
    script.write_text("#!/bin/sh\necho 'NVIDIA GB10'\n")
    assert profiles.gpu_name() == "NVIDIA GB10"


def test_levels_get_at_least_twice_their_concurrency():
    load = PROFILES["cpu"].load
    assert load.requests_at(max(load.levels)) >= 2 * max(load.levels)
    assert load.requests_at(1) == load.requests_per_level


@pytest.mark.parametrize("name", PROFILES)
def test_a_quick_load_is_a_small_one_that_every_plot_can_show(name, monkeypatch):
    full = PROFILES[name]
    monkeypatch.setenv("COURSE_LOAD", "quick")
    quick = load_profile(name)
    low, middle, top = quick.load.levels
    assert low == 1
    assert middle < top <= max(full.load.levels)
    assert quick.load.output_tokens < full.load.output_tokens
    assert quick.load.requests_at(low) < full.load.requests_at(low)
    assert quick.load.repeats == 2, "an interval needs two"
    assert "quick load" in quick.description
    assert "quick" not in full.description
    assert replace(quick, load=full.load, description=full.description) == full


@pytest.mark.parametrize("value", ["", "full"])
def test_the_full_load_is_what_nobody_has_to_ask_for(value, monkeypatch):
    monkeypatch.setenv("COURSE_LOAD", value)
    assert load_profile("cpu") is PROFILES["cpu"]


def test_a_wrong_load_is_refused_with_the_right_ones(monkeypatch):
    monkeypatch.setenv("COURSE_LOAD", "fast")
    with pytest.raises(ProfileError, match=r"'fast'.*COURSE_LOAD.*full, quick"):
        load_profile()


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "bfloat16"),
        ("flags\t\t: fpu avx512f amx_tile amx_bf16\n", "bfloat16"),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", "bfloat16"),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", "float32"),
        ("Features\t: fp asimd asimddp\n", "float32"),
        ("model name\t: bf16 avx512_bf16\nflags\t\t: fpu avx2\n", "float32"),
        ("flags\t\t: not_avx512_bf16\n", "float32"),
        ("", "float32"),
    ],
)
def test_the_cpus_instructions_decide_the_dtype(cpuinfo, expected, monkeypatch, tmp_path):
    assert profiles.dtype_for(cpuinfo) == expected
    monkeypatch.setattr(profiles, "CPUINFO", tmp_path / "cpuinfo")
    assert profiles.cpu_dtype() == "float32"
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert profiles.cpu_dtype() == expected


def test_a_profile_says_its_dtype_and_knows_its_bytes():
    assert load_profile("cpu").dtype == profiles.cpu_dtype()
    for profile in PROFILES.values():
        assert f"in {profile.dtype}" in profile.description
    assert [load_profile(name).dtype_name for name in ("cuda", "spark")] == ["BF16", "BF16"]
    single = replace(PROFILES["cpu"], dtype="float32")
    assert (single.dtype_name, single.value_bytes) == ("FP32", 4)
    assert PROFILES["cuda"].value_bytes == 2


def test_profile_separates_device_runtime_and_sharing():
    found = {p.name: (p.device, p.runtime, p.shares_gpu) for p in PROFILES.values()}
    assert found == {
        "cpu": ("cpu", "process", False),
        "cuda": ("cuda", "docker", True),
        "cuda-local": ("cuda", "process", True),
        "spark": ("cuda", "docker", True),
    }


def test_gpu_without_docker_gives_llama_cpp_the_tiny_model():
    gpu = Gpu("Tesla T4", 7.5, 16e9, False, 15e9)
    local = profiles.fit(PROFILES["cuda-local"], gpu)
    assert local.dtype == "float16"
    assert local.models["vllm"].startswith("Qwen/Qwen3-")
    assert local.models["llama_cpp"].endswith("tiny-BF16.gguf")
    assert profiles.fit(PROFILES["cuda"], gpu).models["llama_cpp"].startswith("bartowski/")


def test_every_profile_has_a_model_for_vllm_and_llama_cpp():
    for profile in PROFILES.values():
        assert {"vllm", "llama_cpp", "llama_cpp_quantised", "transformers"} <= set(profile.models)
