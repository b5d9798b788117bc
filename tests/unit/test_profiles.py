import pytest

from utils import profiles
from utils.profiles import PROFILES, ProfileError, detect, load_profile


@pytest.mark.parametrize(
    ("gpu", "machine", "docker", "expected"),
    [
        ("NVIDIA GB10", "aarch64", True, "spark"),
        ("NVIDIA H100 80GB HBM3", "x86_64", True, "cuda"),
        ("NVIDIA GH200 480GB", "aarch64", True, "cuda"),
        ("NVIDIA GB10", "aarch64", False, "cpu"),
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
    with pytest.raises(ProfileError, match=r"'tpu'.*cpu, cuda, spark"):
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


def test_every_profile_is_bfloat16_and_has_a_model_for_vllm_and_llama_cpp():
    for profile in PROFILES.values():
        assert profile.dtype == "bfloat16"
        assert {"vllm", "llama_cpp", "llama_cpp_quantised", "transformers"} <= set(profile.models)
