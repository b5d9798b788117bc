"""Every method of the labs on 100 held-out prompts: the answers are plain decoding's, token for token."""

import pytest
import torch

from utils.labs.lab_3_3_5.experiments import drafters
from utils.speculative.comparison import in_batches, same_share
from utils.speculative.compiled_step import use_compiled_step
from utils.speculative.dataset import prompts_of, tokenizer_of
from utils.speculative.drafters import PlainDrafter
from utils.speculative.pretrained import load_shipped
from utils.speculative.target import load_target
from utils.tinymodel import hub

COUNT, LIMIT = 100, 32


@pytest.fixture(scope="module")
def target():
    torch.set_num_threads(1)
    loaded = load_target(str(hub.TINY))
    message = use_compiled_step(loaded)
    if not loaded.compiled:
        pytest.skip(message)
    return loaded


@pytest.fixture(scope="module")
def prompts(target):
    found = prompts_of(tokenizer_of(target), COUNT // 4, seed=20)
    assert len(found) == COUNT
    return found


@pytest.fixture(scope="module")
def plain(target, prompts):
    return in_batches(target, PlainDrafter(), prompts, LIMIT)


def test_compiled_and_readable_loop_write_the_same(target, prompts, plain):
    readable = load_target(target.path)
    assert same_share(in_batches(readable, PlainDrafter(), prompts, LIMIT), plain) == 1.0


def test_every_method_writes_the_same(target, prompts, plain):
    for name, drafter in drafters(load_shipped(target)).items():
        assert same_share(plain, in_batches(target, drafter, prompts, LIMIT)) == 1.0, name


def test_batches_change_no_answer(target, prompts, plain):
    alone = in_batches(target, PlainDrafter(), prompts[::10], LIMIT, batch=1)
    assert same_share(plain[::10], alone) == 1.0
