"""The shipped heads in real vLLM: loaded, accepted as often as by our own verification, output unchanged."""

import pytest
import torch

from utils.engines.fleet import Fleet
from utils.speculative.checkpoints import load_heads
from utils.speculative.comparison import measure_served, speculation
from utils.speculative.dataset import TRAINED, held_out, tokenizer_of
from utils.speculative.drafters import EagleDrafter, MedusaDrafter
from utils.speculative.generate import generate
from utils.speculative.target import load_target

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
LIMIT = 64


@pytest.fixture(scope="module")
def target(profile):
    torch.set_num_threads(1)
    return load_target(profile.models["transformers"])


@pytest.fixture(scope="module")
def prompts(target):
    return [p.ids for k in TRAINED for p in held_out(tokenizer_of(target), k, 4, seed=5)]


@pytest.fixture(scope="module")
def served(profile, prompts, tmp_path_factory):
    """What plain vLLM and vLLM with either kind of heads answer; started side by side."""
    variants = {
        "plain": {},
        "medusa": speculation("medusa", 4, profile.models["medusa_heads"]),
        "eagle3": speculation("eagle3", 3, profile.models["eagle3_heads"]),
    }
    with pytest.MonkeyPatch.context() as patch, Fleet(profile, variants) as fleet:
        patch.setenv("COURSE_RECORDS", str(tmp_path_factory.mktemp("records")))
        found = fleet.each(
            lambda name, engine, turn: measure_served(
                engine, profile, prompts, name, max_tokens=LIMIT
            )
        )
        assert fleet.reasons == {}
    return {name: once[0] for name, once in found.items()}


@pytest.mark.parametrize("method", ["medusa", "eagle3"])
def test_vllm_accepts_what_our_own_verification_accepts(method, profile, target, prompts, served):
    heads = load_heads(profile.models[f"{method}_heads"], target)
    drafter = MedusaDrafter(heads) if method == "medusa" else EagleDrafter(heads, 3)
    own = generate(target, prompts, drafter, max_new_tokens=LIMIT)
    engine = served[method]
    assert engine.accepted > 0
    assert engine.acceptance_length == pytest.approx(own.acceptance_length, rel=0.1)


@pytest.mark.parametrize("method", ["medusa", "eagle3"])
def test_speculation_changes_no_answer(method, profile, served):
    pairs = list(zip(served["plain"].texts, served[method].texts, strict=True))
    same = sum(a == b for a, b in pairs)
    # bfloat16 rounds differently where several tokens are computed at once
    assert same == len(pairs) if profile.dtype == "float32" else same >= 0.8 * len(pairs)
