import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.kvcache.paged_attention import paged_attention, write_pages
from utils.labs.lab_3_3_3.paging import dense_attention, unused_pages
from utils.model_sizes import blocks_for
from utils.profiles import ROOT


def paged(query, keys, values, block_size, seed=0):
    """The same through blocks in a random order, whose unused slots hold nonsense."""
    blocks = blocks_for(len(keys), block_size)
    table = random.Random(seed).sample(range(blocks + 5), blocks)
    pages = [unused_pages(blocks + 5, block_size, like=vectors) for vectors in (keys, values)]
    for memory, vectors in zip(pages, (keys, values), strict=True):
        write_pages(memory, table, vectors)
    return paged_attention(query, *pages, table, len(keys))


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("block_size", [1, 16])
def test_paged_attention_equals_dense_attention(tokens, block_size):
    torch.manual_seed(tokens)
    query, keys, values = torch.randn(8, 32), *torch.randn(2, tokens, 2, 32)
    torch.testing.assert_close(
        paged(query, keys, values, block_size),
        dense_attention(query, keys, values),
        rtol=1e-5,
        atol=1e-5,
    )


def test_large_scores_do_not_overflow():
    query = torch.full((2, 4), 100.0)
    keys = torch.arange(40.0).view(40, 1, 1).expand(40, 1, 4)
    values = torch.randn(40, 1, 4)
    found = paged(query, keys, values, 8)
    torch.testing.assert_close(found, values[-1].expand(2, 4))  # the largest score takes all


def test_paged_attention_equals_dense_attention_on_tiny_model():
    folder = ROOT / "models" / "tiny"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(
        "List three fruits, and say which is red."
    ).input_ids
    with torch.no_grad():
        cache = model(torch.tensor([ids]), use_cache=True).past_key_values
    torch.manual_seed(0)
    for layer in cache.layers:
        keys, values = layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)
        query = torch.randn(model.config.num_attention_heads, keys.shape[-1])
        torch.testing.assert_close(
            paged(query, keys, values, 4),
            dense_attention(query, keys, values),
            rtol=1e-5,
            atol=1e-5,
        )


def test_table_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="9 tokens don't fit into 2 blocks of 4"):
        write_pages(torch.zeros(3, 4, 1, 2), [0, 1], torch.zeros(9, 1, 2))
