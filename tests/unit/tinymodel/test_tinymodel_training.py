"""Training and export on a model of a few thousand weights, and what the shipped model can do."""

import dataclasses
import json
import shutil
import subprocess
import sys

import gguf
import pytest
import torch

from tools.tinymodel import model_card
from tools.tinymodel.recipes import RECIPES, Recipe, Stage
from tools.tinymodel.train import Trainer, run
from utils.profiles import ROOT
from utils.tinymodel import corpus, evaluate, export, hub, tasks
from utils.tinymodel import tokenizer as tok
from utils.tinymodel.model import ModelShape, TinyQwen3, grow

MICRO = Recipe(
    "micro",
    ModelShape(layers=3, hidden=32, ffn=64, heads=2, head_dim=32, vocab=512, context=256),
    (Stage(4, 2, 64, (32,), {"copy": 0.5, "task": 0.5}), Stage(4, 3, 64, (32, 64), {"task": 1.0})),
    decay=4,
    workers=1,
    warmup=2,
    accelerate=False,
)


@pytest.fixture(scope="module")
def micro_tokenizer():
    return tok.train(corpus.vocabulary_texts(repeats=2), MICRO.shape.vocab)


@pytest.fixture
def start(tmp_path, micro_tokenizer):
    def folder(name):
        path = tmp_path / name
        path.mkdir()
        tok.save(micro_tokenizer, path, 256)
        return path

    return folder


@pytest.mark.parametrize("interrupted_after", [1, 4, 6])
def test_interrupt_and_resume_gives_the_same_weights(start, interrupted_after):
    whole, parts = start("whole"), start("parts")
    once = Trainer(MICRO, whole)
    run(once)
    first = Trainer(MICRO, parts)
    run(first, stop=lambda: first.step == interrupted_after)
    again = Trainer(MICRO, parts)
    assert again.step == interrupted_after
    run(again)
    assert again.layers == 3
    assert again.tokens == once.tokens
    for (name, a), b in zip(
        once.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert a.equal(b), name


def test_a_failed_save_leaves_the_old_checkpoint(start, monkeypatch):
    folder = start("run")
    trainer = Trainer(MICRO, folder)
    trainer.train_step()
    trainer.save()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError):
        trainer.save()
    assert Trainer(MICRO, folder).step == 1


def test_rates_warm_up_and_decay():
    rates = [MICRO.rate(step) for step in range(MICRO.steps)]
    assert rates == [0.5, 1, 1, 1, 0.5, 0.75, 0.5, 0.25]


def test_growing_changes_nothing_at_first():
    torch.manual_seed(0)
    shape = MICRO.shape
    small = TinyQwen3(dataclasses.replace(shape, layers=2))
    for p in small.parameters():
        torch.nn.init.normal_(p, std=0.3)
    deep = TinyQwen3(dataclasses.replace(shape, layers=5))
    deep.load_state_dict(grow(small.state_dict(), 2, 5))
    ids = torch.randint(0, 512, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(small(ids, ids), deep(ids, ids))
    with pytest.raises(ValueError, match="shrink"):
        grow(deep.state_dict(), 5, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, micro_tokenizer):
    """A trainer at the end of its run, and the folder that its model was exported to."""
    folder = tmp_path_factory.mktemp("run")
    tok.save(micro_tokenizer, folder, 256)
    trainer = Trainer(MICRO, folder)
    run(trainer)
    model = tmp_path_factory.mktemp("exported") / "model"
    export.export(folder, MICRO.shape, model)
    export.copy_tokenizer(folder, model)
    return trainer, model


@pytest.fixture
def exported(trained, tmp_path):
    """The same trainer, and a copy of the folder that a test may write into."""
    trainer, model = trained
    return trainer, shutil.copytree(model, tmp_path / "model")


def load_in_transformers(folder):
    from transformers import AutoModelForCausalLM  # its import takes seconds

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_transformers_computes_the_same(exported):
    trainer, model = exported
    expected = load_in_transformers(model)
    trainer.model.load_state_dict(
        {k: v for k, v in expected.state_dict().items() if k != "lm_head.weight"}
    )
    ids = torch.randint(0, 512, (2, 40))
    with torch.no_grad():
        logits = expected(ids).logits
        want = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        torch.testing.assert_close(trainer.model(ids, ids), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "steps"), [("BF16", None), ("Q8_0", 127), ("Q4_0", 7)])
def test_gguf_holds_the_model_and_its_tokenizer(exported, kind, steps):
    """Off by at most one of the `steps` between zero and the largest weight of a group."""
    _, model = exported
    path = export.write_gguf(model, kind)
    first = path.read_bytes()
    assert export.write_gguf(model, kind).read_bytes() == first
    reader = gguf.GGUFReader(path)

    def value(name):
        return reader.get_field(name).contents()

    assert value("general.architecture") == "qwen3"
    assert value("qwen3.block_count") == 3
    assert value("qwen3.attention.key_length") == 32
    assert value("tokenizer.ggml.pre") == "qwen2"
    assert value("tokenizer.ggml.eos_token_id") == 2
    assert value("tokenizer.chat_template") == tok.CHAT_TEMPLATE
    assert len(value("tokenizer.ggml.tokens")) == 512
    stored = {t.name: t for t in reader.tensors}
    config = load_in_transformers(model).state_dict()
    weight = config["model.layers.2.mlp.down_proj.weight"].numpy()
    read = stored["blk.2.ffn_down.weight"]
    back = gguf.quants.dequantize(read.data, read.tensor_type)
    assert abs(back - weight).max() <= (abs(weight).max() / steps if steps else 0)


def test_unknown_gguf_type_is_refused(exported):
    with pytest.raises(ValueError, match="Q8_0"):
        export.write_gguf(exported[1], "Q3_K")


def test_card_is_written_from_records(exported, start):
    _, model = exported
    for kind in export.SHIPPED_TYPES:
        export.write_gguf(model, kind)
    part = {"n": 2, "right": 1}
    habits = {"stopped": 2, "loops": 0, "repeated_8grams": 0.01, "tokens": 9}
    quality = model_card.record(
        {
            "tasks": {**part, **habits, "reference_repeated_8grams": 0.01,
                      "kinds": {"csv": {**part, "tokens": 4.0}}},
            "questions": {"n": 2, "on_topic": 1, "missed": ["SSE"], **habits},
            "prose": {"files": 1, "loss_512": 2.0, "bits_per_byte_512": 1.0,
                      "loss_by_position": {"0-255": 2.0}},
            "long_context": {"512": part},
        },
        "a command",
    )  # fmt: skip
    (model / model_card.QUALITY).write_text(json.dumps(quality))
    lines = [
        {"step": s, "tokens": 100 * s, "layers": 2, "seconds": s, "loss": {"task": 8 / s}}
        for s in (1, 2)
    ]
    (model / model_card.TRAINING).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (model / "README.md").write_text(model_card.render(model, MICRO, "Weak at rhymes."))
    text = (model / "README.md").read_text()
    assert "1 of 2 (50 %)" in text
    assert "Weak at rhymes." in text
    assert hub.check(model) == []
    assert model_card.loss_curve(lines).startswith("<svg")


def test_command_line_refuses_an_incomplete_model(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.tinymodel", "gguf", "--model", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "config.json: missing" in done.stderr
    assert "Traceback" not in done.stderr


# -- the shipped model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is faster on one
    yield hub.load(hub.TINY)
    torch.set_num_threads(threads)


def test_shipped_files_match_their_card():
    assert hub.check(hub.TINY) == []
    size = sum((hub.TINY / n).stat().st_size for n in (*hub.FILES, *hub.GGUF_FILES))
    assert size <= 50e6


def test_shipped_model_is_right_most_of_the_time_and_stops(shipped):
    asked = tasks.heldout(20, seed=77)
    outputs = evaluate.generate(*shipped, [t.messages for t in asked], batch=20, max_new_tokens=192)
    right = sum(tasks.check(t, o.text) for t, o in zip(asked, outputs, strict=True))
    assert right > 12
    assert sum(o.stopped for o in outputs) >= 18
    assert sum(evaluate.has_loop(o.tokens) for o in outputs) <= 1


def test_shipped_model_answers_on_topic(shipped):
    asked = ["What is continuous batching?", "I want to understand the KV cache.",
             "Please explain what speculative decoding is."]  # fmt: skip
    chats = [[{"role": "user", "content": text}] for text in asked]
    outputs = evaluate.generate(*shipped, chats, max_new_tokens=128)
    assert all(o.stopped for o in outputs)
    found = [evaluate.nearest_topic(o.text) for o in outputs]
    assert found == ["continuous batching", "KV cache", "speculative decoding"]


def test_demo_recipe_is_small():
    demo = RECIPES["demo"]
    assert sum(s.steps * s.tokens for s in demo.stages) * demo.workers <= 2e6
