"""TensorRT-LLM's settings, and what is refused before a container starts."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml

from utils.engines import NotRunHere, ServeOptions, UnsupportedOption, get_spec, launch, runtime
from utils.engines import tensorrt_llm_checks as checks
from utils.engines.container import run_arguments
from utils.engines.tensorrt_llm import SPEC
from utils.engines.tensorrt_llm_settings import (
    MTP,
    CudaGraphs,
    DraftTarget,
    Eagle3,
    KvCache,
    NGram,
    TrtLlmSettings,
)
from utils.tinymodel.hub import TINY

OPTIONS = ServeOptions(
    model="owner/model",
    served_name="model",
    host="0.0.0.0",
    port=8355,
    device="cuda",
    dtype="bfloat16",
    context_length=4096,
    max_sequences=64,
    kv_cache_gib=1.0,
)
GB10 = checks.Gpu("NVIDIA GB10", 12.1, 100e9, unified=True)
A100 = checks.Gpu("NVIDIA A100", 8.0, 80e9)

ALL = TrtLlmSettings(
    kv_cache_config=KvCache("fp8", False, 0.7, 8192),
    cuda_graph_config=CudaGraphs((1, 8, 32), None, True),
    enable_chunked_prefill=True,
    speculative_config=Eagle3(3, "owner/eagle"),
    guided_decoding_backend="xgrammar",
)


@pytest.mark.parametrize(
    "settings",
    [
        TrtLlmSettings(),
        ALL,
        TrtLlmSettings(cuda_graph_config=None),
        TrtLlmSettings(speculative_config=NGram(5, 3), disable_overlap_scheduler=True),
        TrtLlmSettings(speculative_config=DraftTarget(4, "a/b"), disable_overlap_scheduler=True),
        TrtLlmSettings(speculative_config=MTP(2)),
    ],
)
def test_what_is_written_is_read_again_and_has_no_faults(settings):
    assert TrtLlmSettings.read(settings.to_yaml()) == settings
    assert settings.faults() == []


def test_the_file_has_the_engines_own_keys():
    values = yaml.safe_load(ALL.to_yaml())
    assert values["kv_cache_config"] == {
        "dtype": "fp8",
        "enable_block_reuse": False,
        "free_gpu_memory_fraction": 0.7,
        "max_tokens": 8192,
    }
    assert values["speculative_config"] == {
        "decoding_type": "Eagle3",
        "max_draft_len": 3,
        "speculative_model": "owner/eagle",
    }
    assert values["cuda_graph_config"] == {"batch_sizes": [1, 8, 32], "enable_padding": True}
    assert (
        yaml.safe_load(TrtLlmSettings(cuda_graph_config=None).to_yaml())["cuda_graph_config"]
        is None
    )
    draft = TrtLlmSettings(speculative_config=DraftTarget(4, "a/b"))
    assert "decoding_type: Draft_Target" in draft.to_yaml()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_batch_sise: 8", "Did you mean max_batch_size"),
        ("kv_cache_config: {dtypes: fp8}", "kv_cache_config.dtypes"),
        ("kv_cache_dtype: fp8", "kv_cache_config: {dtype: fp8}"),
        ("pytorch_backend_config: {}", "top level"),
        ("build_config: {max_batch_size: 8}", "builds no engines"),
        ("backend: tensorrt", "trtllm-serve"),
        ("moe_config: {}", "file of your own"),
        ("max_batch_size: many", "write int"),
        ("enable_chunked_prefill: 1", "write bool"),
        ("max_batch_size: true", "write int"),
        ("cuda_graph_config: {batch_sizes: [1, a]}", "list of whole numbers"),
        ("speculative_config: {decoding_type: Medusa}", "went with the engine builds"),
        (
            "speculative_config: {decoding_type: NGram, speculative_model: x}",
            "do not write the key",
        ),
        ("dtype: [", "no YAML"),
        ("just words", "holds no keys"),
    ],
)
def test_a_file_that_the_version_would_refuse_is_refused(text, says):
    with pytest.raises(UnsupportedOption, match="(?s).*" + says.replace("{", r"\{")):
        TrtLlmSettings.read(text)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (TrtLlmSettings(dtype="fp8"), "property of the checkpoint"),
        (TrtLlmSettings(kv_cache_config=KvCache("int8")), "auto, fp8, nvfp4"),
        (TrtLlmSettings(kv_cache_config=KvCache(free_gpu_memory_fraction=70)), "a share"),
        (TrtLlmSettings(max_num_tokens=32), "Raise max_num_tokens"),
        (TrtLlmSettings(max_num_tokens=1024), "enable_chunked_prefill"),
        (TrtLlmSettings(max_batch_size=0), "from 1 on"),
        (TrtLlmSettings(cuda_graph_config=CudaGraphs((1, 8), 16)), "leave out one"),
        (TrtLlmSettings(speculative_config=Eagle3()), "speculative_model"),
        (TrtLlmSettings(speculative_config=NGram()), "disable_overlap_scheduler"),
        (TrtLlmSettings(speculative_config=MTP(0)), "num_nextn_predict_layers"),
        (TrtLlmSettings(guided_decoding_backend="outlines"), "xgrammar, llguidance"),
    ],
)
def test_combinations_that_could_not_work_are_named_with_what_to_change(settings, says, tmp_path):
    assert any(says in fault for fault in settings.faults(4096))
    with pytest.raises(UnsupportedOption, match="would not start"):
        settings.write(tmp_path / "x.yml", 4096)
    assert not (tmp_path / "x.yml").exists()


def test_what_a_device_cannot_do_is_named_with_what_to_change():
    fp8 = TrtLlmSettings(kv_cache_config=KvCache("fp8"))
    assert checks.device_faults(fp8, GB10) == []
    (fault,) = checks.device_faults(fp8, A100)
    assert "8.9" in fault
    assert "write auto" in fault
    (fault,) = checks.device_faults(TrtLlmSettings(), dataclasses.replace(A100, capability=7.5))
    assert "write float16" in fault
    (fault,) = checks.device_faults(TrtLlmSettings(), None)
    assert "no NVIDIA GPU" in fault


def test_a_checkpoint_is_asked_for_its_quantisation_and_its_prediction_layers(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    quantised = {"quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantised))
    assert checks.model_faults(TrtLlmSettings(), str(tmp_path), GB10) == []
    (fault,) = checks.model_faults(TrtLlmSettings(), str(tmp_path), A100)
    assert "NVFP4" in fault
    mtp = TrtLlmSettings(speculative_config=MTP(1))
    (fault,) = checks.model_faults(mtp, str(tmp_path), GB10)
    assert "num_nextn_predict_layers" in fault
    assert checks.model_faults(mtp, "owner/model", GB10) == []


def test_asking_for_an_engine_build_explains_its_removal(tmp_path):
    (tmp_path / "rank0.engine").write_bytes(b"")
    for model, extra in (
        (str(tmp_path), ()),
        ("owner/model", ("--backend", "tensorrt")),
        ("owner/model", ("--engine_dir", "/engines")),
    ):
        with pytest.raises(UnsupportedOption, match="builds no engines"):
            launch("tensorrt_llm", "cpu", model=model, extra_arguments=extra, quiet=True)


def test_launch_refuses_a_bad_file_and_says_what_else_is_missing(tmp_path):
    file = tmp_path / "x.yml"
    with pytest.raises(UnsupportedOption, match="no configuration at"):
        launch("tensorrt_llm", "cpu", config=file, quiet=True)
    file.write_text("max_batch: 3")
    with pytest.raises(UnsupportedOption, match="max_batch"):
        launch("tensorrt_llm", "cpu", config=file, quiet=True)
    TrtLlmSettings().write(file)
    with pytest.raises(NotRunHere, match="NVIDIA GPU"):
        launch("tensorrt_llm", "cpu", model=str(TINY), config=file, quiet=True)


def test_the_file_is_mounted_read_only_and_named_in_the_command(tmp_path):
    inside = dataclasses.replace(OPTIONS, config="/course-config/x.yml")
    command = SPEC.arguments(inside)
    assert command[command.index("--config") + 1] == "/course-config/x.yml"
    assert "--config" not in SPEC.arguments(OPTIONS)
    request = run_arguments(SPEC.container, command, 1, None, {}, tmp_path / "x.yml")
    volume = request["volumes"][str(tmp_path / "x.yml")]
    assert volume == {"bind": "/course-config/x.yml", "mode": "ro"}


@pytest.mark.parametrize(
    ("written", "planned", "share"),
    [
        ({"kv_cache_config": {"dtype": "fp8"}}, 0.31, 0.31),
        ({"kv_cache_config": {"free_gpu_memory_fraction": 0.2}}, 0.31, 0.2),
        ({"kv_cache_config": {"free_gpu_memory_fraction": 0.9}}, 0.31, 0.31),
        ({"max_batch_size": 4}, 0.31, 0.31),
    ],
)
def test_command_line_and_file_say_the_same_share(written, planned, share, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "LOGS", tmp_path / "run")
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump(written))
    options = dataclasses.replace(OPTIONS, config=str(file), gpu_memory_utilization=planned)
    settled = get_spec("tensorrt_llm").settle(options)
    command = get_spec("tensorrt_llm").arguments(settled)
    assert command[command.index("--kv_cache_free_gpu_memory_fraction") + 1] == str(share)
    mounted = yaml.safe_load(Path(settled.config).read_text())
    assert mounted.pop("kv_cache_config") == {
        **written.get("kv_cache_config", {}),
        "free_gpu_memory_fraction": share,
    }
    assert mounted == {k: v for k, v in written.items() if k != "kv_cache_config"}
    assert Path(settled.config).parent == tmp_path / "run"  # docker sees this folder
    assert yaml.safe_load(file.read_text()) == written


def test_engine_without_a_file_keeps_its_options():
    for options in (OPTIONS, dataclasses.replace(OPTIONS, config=None)):
        assert get_spec("vllm").settle(options) is options
    plain = dataclasses.replace(OPTIONS, config=None, gpu_memory_utilization=0.5)
    assert get_spec("tensorrt_llm").settle(plain) is plain


def test_container_gets_the_settled_file(tmp_path, monkeypatch):
    starter = sys.modules["utils.engines.launch"]
    requests = []
    monkeypatch.setattr(runtime, "LOGS", tmp_path / "run")
    monkeypatch.setattr(starter, "connect", lambda: None)
    monkeypatch.setattr(starter, "ensure_image", lambda *a: None)
    monkeypatch.setattr(
        starter, "ContainerHandle", lambda client, title, request, *rest: requests.append(request)
    )
    file = tmp_path / "mine.yml"
    file.write_text("kv_cache_config: {dtype: fp8}")
    options = dataclasses.replace(OPTIONS, config=str(file), gpu_memory_utilization=0.25)
    starter.start_container(SPEC, options, 8355, starter.StartProgress("x", True))
    (request,) = requests
    (mounted,) = (source for source in request["volumes"] if source.endswith(".yml"))
    assert yaml.safe_load(Path(mounted).read_text())["kv_cache_config"] == {
        "dtype": "fp8",
        "free_gpu_memory_fraction": 0.25,
    }
    assert f"/course-config/{Path(mounted).name}" in request["command"]
