"""Settings of TensorRT-LLM, the remarks on them, and refusals before a container starts."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from utils.engines import NotRunHere, ServeOptions, UnsupportedOption, get_spec, launch, runtime
from utils.engines import tensorrt_llm_checks as checks
from utils.engines.container import run_arguments
from utils.engines.tensorrt_llm import SPEC, VERSION
from utils.engines.tensorrt_llm_schema import FORMER, KEYS, config_schema, schema_faults
from utils.engines.tensorrt_llm_settings import (
    REMOVED,
    Effect,
    read_settings,
    refusals,
    settings_notes,
    write_settings,
)
from utils.profiles import ROOT
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
FP8_CACHE = {"kv_cache_config": {"dtype": "fp8"}}


def notes_of(text, context_length=0):
    return settings_notes(yaml.safe_load(text), context_length)


@pytest.mark.parametrize(
    "text",
    [
        # keys of TorchLlmArgs that an older copy of ours refused in the engine's name
        "telemetry_config: {disabled: true}",
        "sleep_config: {}",
        "encode_only: true",
        "multimodal_config: {}",
        "moe_config: {backend: CUTLASS}",
        "max_seq_len: 4096",
        "tensor_parallel_size: 2",
        "kv_cache_config: {tokens_per_block: 64, host_cache_size: 1000000000}",
        "cuda_graph_config: null",
        "cuda_graph_config: {batch_sizes: [8, 1], max_batch_size: 8, enable_padding: true}",
        "scheduler_config: {capacity_scheduler_policy: MAX_UTILIZATION}",
        "speculative_config: {decoding_type: MTP, max_draft_len: 3}",
        "speculative_config: {decoding_type: DFlash, max_draft_len: 7, speculative_model: x}",
        "speculative_config: {decoding_type: Draft_Target, max_draft_len: 4, speculative_model: x}",
        "speculative_config: {decoding_type: SA, max_draft_len: 4, enable_global_pool: true}",
        "speculative_config: {decoding_type: AUTO}",
        "speculative_config: {decoding_type: Eagle3, max_draft_len: 3, speculative_model: x,"
        " use_dynamic_tree: true, dynamic_tree_max_topK: 4, max_total_draft_tokens: 12}",
        "speculative_config: {decoding_type: Eagle3, max_draft_len: 4, speculative_model: x,"
        " draft_len_schedule: {4: 4, 8: 2, 32: 1}, acceptance_rate_threshold: 0.3}",
    ],
)
def test_file_that_engine_accepts_has_no_remarks(text):
    assert notes_of(text) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_batch_sise: 8", "Did you mean max_batch_size"),
        ("kv_cache_config: {dtypes: fp8}", "kv_cache_config.dtypes"),
        ("speculative_config: {decoding_type: NGram, use_dynamic_tree: true}", "use_dynamic_tree"),
        ("backend: tensorrt", "trtllm-serve"),
        ("build_config: {max_batch_size: 8}", "builds no engines"),
        ("max_batch_size: many", "Write a whole number"),
        ("max_batch_size: true", "Write a whole number"),
        ("enable_chunked_prefill: 1", "Write true or false"),
        ("cuda_graph_config: {batch_sizes: [1, a]}", "Write a whole number"),
        ("kv_cache_config: {free_gpu_memory_fraction: 70}", "free_gpu_memory_fraction is 70"),
        ("kv_cache_config: {tokens_per_block: 48}", "a power of two"),
        ("guided_decoding_backend: outlines", "xgrammar, llguidance"),
        ("speculative_config: {decoding_type: Medusa}", "removed backend"),
        ("speculative_config: {max_draft_len: 3}", "lacks decoding_type"),
        ("speculative_config: {decoding_type: Eagle3, max_draft_len: 3}", "no draft model"),
        (
            "speculative_config: {decoding_type: MTP, use_dynamic_tree: true}",
            "dynamic_tree_max_topK",
        ),
        ("cuda_graph_config: {batch_sizes: [1, 8], max_batch_size: 16}", "Leave out one"),
    ],
)
def test_file_that_engine_refuses_is_refused_with_a_proposal(text, says, tmp_path):
    (note,) = notes_of(text)
    assert note.effect is Effect.REFUSES
    assert says in note.text
    assert note.source
    with pytest.raises(UnsupportedOption, match="would not start"):
        write_settings(yaml.safe_load(text), tmp_path / "x.yml")
    assert not (tmp_path / "x.yml").exists()


@pytest.mark.parametrize(
    ("schedule", "more", "says"),
    [
        ({4: 3, 8: 2}, {}, "smallest batch size"),
        ({4: 4, 8: 5}, {}, "more than max_draft_len"),
        ({0: 4}, {}, "from 1 on"),
        ({4: -1}, {}, "from 1 on"),
        ({"a": 4}, {}, "from 1 on"),
        ({4: 4}, {"max_concurrency": 8}, "exclude each other"),
    ],
)
def test_draft_schedule_follows_the_engines_rules(schedule, more, says):
    method = {"decoding_type": "Eagle3", "speculative_model": "x", "max_draft_len": 4}
    values = {"speculative_config": {**method, "draft_len_schedule": schedule, **more}}
    (fault,) = refusals(values)
    assert says in fault


@pytest.mark.parametrize(
    ("text", "effect", "says"),
    [
        (
            "speculative_config: {decoding_type: NGram, max_draft_len: 3}",
            Effect.SWITCHES_OFF,
            "overlap scheduler",
        ),
        (
            "{max_batch_size: 161, cuda_graph_config: {batch_sizes: [1, 128, 256, 384]}}",
            Effect.IGNORES,
            "256, 384, but at most 161",
        ),
        (
            "{max_batch_size: 64, max_num_tokens: 128, cuda_graph_config: {batch_sizes: [64]},"
            " speculative_config: {decoding_type: MTP, max_draft_len: 3}}",
            Effect.IGNORES,
            "64, but at most 32",
        ),
        ("enable_iter_req_stats: true", Effect.IGNORES, "enable_iter_perf_stats"),
        ("kv_cache_config: {dtype: int8}", Effect.WARNS, "nvfp4"),
        (
            "speculative_config: {decoding_type: MTP, num_nextn_predict_layers: 1}",
            Effect.WARNS,
            "Write max_draft_len",
        ),
        (
            "speculative_config: {decoding_type: Eagle, max_draft_len: 4, speculative_model: x}",
            Effect.WARNS,
            "Write Eagle3",
        ),
        ("max_num_tokens: 1024", Effect.REJECTS, "enable_chunked_prefill"),
    ],
)
def test_setting_that_engine_only_changes_is_written_with_a_remark(
    text, effect, says, tmp_path, capsys
):
    (note,) = notes_of(text, context_length=4096 if effect is Effect.REJECTS else 0)
    assert note.effect is effect
    assert says in note.text
    file = write_settings(yaml.safe_load(text), tmp_path / "x.yml", 4096)
    assert read_settings(file.read_text()) == yaml.safe_load(text)
    assert says in capsys.readouterr().out


def test_overlap_scheduler_that_is_off_needs_no_remark():
    text = "{speculative_config: {decoding_type: NGram}, disable_overlap_scheduler: true}"
    assert notes_of(text) == []


@pytest.mark.parametrize("key", FORMER)
def test_key_of_an_old_recipe_is_refused_with_its_replacement(key):
    (fault,) = schema_faults({key: 1})
    assert fault.startswith(f"{key} is a key of older recipes.")
    assert key not in config_schema()["properties"]
    assert set(re.findall(r"\w+", fault)) & {*config_schema()["properties"], "level"}


@pytest.mark.parametrize(("text", "says"), [("dtype: [", "valid YAML"), ("words", "no keys")])
def test_text_without_settings_is_refused(text, says):
    with pytest.raises(UnsupportedOption, match=says):
        read_settings(text)


def test_versions_of_image_keys_and_history_agree():
    assert SPEC.container.image.endswith(f":{VERSION}")
    candidate = int(VERSION.rpartition("rc")[2])
    last_with_engines = 15  # `tensorrt-llm` 1.3.0rc15 requires `tensorrt`, 1.3.0rc22 doesn't
    assert candidate >= 22 > last_with_engines
    assert "1.3.0rc22 at the latest" in REMOVED
    assert "1.4.0rc0" in KEYS.read_text()


@pytest.mark.parametrize(
    "page",
    [
        "QUICK_REFERENCE.md",
        "TROUBLESHOOTING.md",
        "solutions/lab-3.3.6-tensorrt-llm-optimization.py",
    ],
)
def test_text_that_calls_engine_builds_removed_names_the_version(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    paragraphs = [p for p in re.split(r"\n(?:# *)?\n", text) if "trtllm-build" in p]
    assert paragraphs
    assert all("1.3.0rc22" in paragraph for paragraph in paragraphs)


def test_impossible_setting_is_reported_with_change():
    assert checks.device_faults(FP8_CACHE, GB10) == []
    (fault,) = checks.device_faults(FP8_CACHE, A100)
    assert "8.9" in fault
    assert "Write auto" in fault
    old = dataclasses.replace(A100, capability=7.5)
    (fault,) = checks.device_faults({"dtype": "bfloat16"}, old)
    assert "Write float16" in fault
    (fault,) = checks.device_faults({}, None)
    assert "no NVIDIA GPU" in fault


def test_checkpoint_tells_quantisation_and_prediction_layers(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    quantised = {"quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantised))
    assert checks.model_faults({}, str(tmp_path), GB10) == []
    (fault,) = checks.model_faults({}, str(tmp_path), A100)
    assert "NVFP4" in fault
    mtp = {"speculative_config": {"decoding_type": "MTP"}}
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
    write_settings({"dtype": "bfloat16"}, file)
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
