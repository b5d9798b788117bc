"""Checks and tables of lab 3.3.6."""

import pytest

from utils.checks import lab_3_3_6 as lab
from utils.engines.tensorrt_llm_settings import settings_notes
from utils.labs.lab_3_3_6 import tables


def lean(requests, context, chunk, fp8, json):
    """Leave out whatever is the engine's default."""
    settings = {"dtype": "bfloat16", "max_batch_size": requests, "max_num_tokens": chunk}
    settings |= {"enable_iter_perf_stats": True}
    settings |= {"enable_chunked_prefill": True} if chunk < context else {}
    settings |= {"kv_cache_config": {"dtype": "fp8"}} if fp8 else {}
    return settings | ({"guided_decoding_backend": "xgrammar"} if json else {})


def full(requests, context, chunk, fp8, json):
    """Add natural keys of the engine."""
    cache = {"dtype": ["auto", "fp8"][fp8], "tokens_per_block": 32, "enable_block_reuse": True}
    return lean(requests, context, chunk, fp8, json) | {
        "max_seq_len": context,
        "tensor_parallel_size": 1,
        "telemetry_config": {"disabled": True},
        "kv_cache_config": cache,
    }


def null(requests, context, chunk, fp8, json):
    """Write null for no backend."""
    settings = dict(guided_decoding_backend="xgrammar" if json else None)
    return {**full(requests, context, chunk, fp8, json), **settings}


@pytest.mark.parametrize("answer", [lean, full, null])
def test_serve_settings_accepts_every_right_file(answer):
    lab.serve_settings(answer)


def test_settings_without_remarks_give_an_empty_table():
    assert tables.notes_table({"fine": {}}, lambda values: []).empty


def test_notes_table_has_a_row_per_remark():
    table = tables.notes_table(
        {"a typo": {"max_batch_sise": 8}, "fine": {"max_batch_size": 8}}, settings_notes
    )
    assert list(table.index) == ["a typo"]
    assert table["TensorRT-LLM"].item() == "refuses to start"
