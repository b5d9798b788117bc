"""Corpus, tasks, checkers, tokenizer, metrics and model folder: all without training."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import utils.tinymodel as tiny
from tools.tinymodel.data import SOURCES, BatchSampler, chat_pieces
from tools.tinymodel.recipes import RECIPES
from utils.tinymodel import corpus, evaluate, hub, tasks
from utils.tinymodel import tokenizer as tok

FINAL = RECIPES["tiny"].stages[-1].shares


@pytest.fixture(scope="module")
def tokenizer():
    return tok.train(corpus.vocabulary_texts(repeats=50), 1024)


# -- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_reference_answers_are_right_and_others_wrong(kind):
    asked = tasks.heldout(40, kind)
    for task in asked:
        assert tasks.check(task, task.answer)
        assert tasks.check(task, task.answer + "\n")
        assert not tasks.check(task, "")
        assert not tasks.check(task, "I do not know.")
        assert not tasks.check(task, task.answer[: len(task.answer) // 2])
    for task, other in itertools.pairwise(asked):
        if task.answer != other.answer and task.spec != other.spec:
            assert tasks.check(task, other.answer) == (task.kind == "count" == other.answer)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), kind=st.sampled_from(list(tasks.KINDS)))
def test_one_changed_word_makes_an_answer_wrong(seed, kind):
    task = tasks.draw_task(random.Random(seed), kind, heldout=True)
    words = [w for w in ("age", "total", "apple", "river") if w not in task.answer]
    replaced = sorted({str(v) for v in _leaves(task.spec)} & set(task.answer.split()))
    if replaced:
        assert not tasks.check(task, task.answer.replace(replaced[0], words[0] + "xq"))


def _leaves(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _task(kind, spec):
    return tasks.Task(kind, "", "", [], spec)


@pytest.mark.parametrize(
    ("kind", "spec", "text", "right"),
    [
        ("json_object", {"data": {"a": True}}, '{"a": true}', True),
        ("json_object", {"data": {"a": True}}, '{"a": 1}', False),
        ("json_object", {"data": {"a": 1, "b": 2}}, '{"b":2,\n"a":1}', True),
        ("json_object", {"data": {"a": 1}}, '```json\n{"a": 1}\n```', False),
        ("yaml", {"data": {"s": {"a": 1}}}, "s: {a: 1}", True),
        ("yaml", {"data": {"s": {"a": 1}}}, "s:\n  a: '1'", False),
        ("csv", {"columns": ["a", "b"], "rows": [["x", 1]]}, "a, b\nx, 1", True),
        ("csv", {"columns": ["a", "b"], "rows": [["x", 1]]}, "a,b\nx,1\nx,1", False),
        ("markdown", {"columns": ["a"], "rows": [["x"]]}, "| a |\n|:-:|\n| x |", True),
        ("markdown", {"columns": ["a"], "rows": [["x"]]}, "| a |\n| x |", False),
        ("range", {"start": 3, "end": 5, "step": 1}, "3\n4\n5", True),
        ("range", {"start": 5, "end": 3, "step": -1}, "5, 4, 3", True),
        ("range", {"start": 3, "end": 5, "step": 1}, "3, 4, 5, 6", False),
        ("function", {"name": "f", "args": ["a", "b"], "operation": "sum"},
         "def f(a, b):\n    return b + a", True),
        ("function", {"name": "f", "args": ["a", "b"], "operation": "difference"},
         "def f(a, b):\n    return b - a", False),
        ("class", {"name": "A", "fields": ["x"], "methods": []},
         "class A:\n    def __init__(self, x):\n        self.x = x", True),
        ("class", {"name": "A", "fields": ["x"], "methods": ["__repr__"]},
         "class A:\n    def __init__(self, x):\n        self.x = x", False),
        ("class", {"name": "A", "fields": ["x", "y"], "methods": []},
         "class A:\n    def __init__(self, x, y):\n        self.x = x", False),
        ("sql_select", {"table": "t", "columns": ["a"], "where": None, "order": ["a", "ASC"]},
         "select a from t order by a", True),
        ("sql_create", {"table": "ts", "columns": [["a", "TEXT"]]},
         "CREATE TABLE ts (a TEXT)", True),
        ("sql_create", {"table": "ts", "columns": [["a", "TEXT"]]},
         "DROP TABLE ts", False),
        ("dataclass", {"name": "A", "fields": [["x", "int"]]}, "class A:\n    x: int", False),
    ],
)  # fmt: skip
def test_checkers_compare_meaning(kind, spec, text, right):
    assert tasks.check(_task(kind, spec), text) is right


def test_training_never_draws_a_heldout_spec():
    rng = random.Random(3)
    drawn = [tasks.draw_training(rng) for _ in range(4000)]
    assert not any(tasks.is_heldout(t.kind, t.spec) for t in drawn)
    kept = tasks.heldout(400, seed=5)
    assert all(tasks.is_heldout(t.kind, t.spec) for t in kept)
    trained = {t.prompt for t in drawn if t.kind != "count"}
    alone = [t for t in kept if len(t.messages) == 1]
    assert not trained & {t.prompt for t in alone}


def test_heldout_is_seeded_and_different():
    assert tasks.heldout(50, seed=1) == tasks.heldout(50, seed=1)
    assert tasks.heldout(50, seed=1) != tasks.heldout(50, seed=2)
    assert {t.kind for t in tasks.heldout(20)} == set(tasks.KINDS)
    with pytest.raises(ValueError, match="json_object"):
        tasks.heldout(1, "poem")


def test_chats_are_of_varied_lengths_and_share_prefixes():
    chats = tiny.prompts(40, seed=2)
    assert len(chats) == 40
    assert all(chat[-1]["role"] == "user" for chat in chats)
    lengths = [sum(len(m["content"]) for m in chat) for chat in chats]
    assert max(lengths) > 8 * min(lengths)
    shared = tiny.shared_prefix(5)
    assert all(chat[:13] == shared[0][:13] for chat in shared)
    assert len({json.dumps(chat) for chat in shared}) == 5
    assert all(len(t.answer) >= 250 for t in tiny.long_answers(10))


# -- corpus and batches ---------------------------------------------------------------------------


def test_topics_are_complete():
    topics = corpus.topics()
    assert len(topics) >= 60
    for topic in topics:
        assert len(topic.questions) >= 6 and len(topic.answers) >= 2, topic.name
        assert not set(topic.questions) & set(topic.heldout)


def test_heldout_files_are_a_small_fixed_share():
    kept = [d for d in corpus.prose() if corpus.is_heldout(d.source)]
    assert 0.01 < len(kept) / len(corpus.prose()) < 0.12


def test_loss_only_on_what_the_assistant_says(tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    pieces = chat_pieces(chat)
    assert "".join(text for text, _ in pieces) == tok.render(chat) + tok.END_OF_TEXT
    assert [text for text, weight in pieces if weight] == ["Yes<|im_end|>"]


def test_pieces_encode_like_the_whole_chat(tokenizer):
    for task in tasks.heldout(40):
        chat = [*task.messages, {"role": "assistant", "content": task.answer}]
        pieces = [tokenizer.encode(text).ids for text, _ in chat_pieces(chat)]
        assert (
            list(itertools.chain(*pieces))
            == tokenizer.encode(tok.render(chat) + tok.END_OF_TEXT).ids
        )


def test_batches_depend_on_step_and_rank_only(tokenizer):
    def batch(step, rank):
        return BatchSampler(tokenizer, FINAL).batch(1, step, rank, 4, 128)

    assert batch(5, 0).ids.equal(batch(5, 0).ids)
    assert not batch(5, 0).ids.equal(batch(6, 0).ids)
    assert not batch(5, 0).ids.equal(batch(5, 1).ids)
    one = batch(5, 0)
    assert one.ids.shape == one.weights.shape == (4, 128)
    assert one.ids[:, 1:].equal(one.targets[:, :-1])


def test_copied_tokens_occur_before(tokenizer):
    batch = BatchSampler(tokenizer, {"copy": 1.0}).batch(1, 0, 0, 2, 128)
    assert set(batch.source.flatten().tolist()) == {SOURCES.index("copy")}
    for ids, targets, weights in zip(batch.ids, batch.targets, batch.weights, strict=True):
        for i in weights.nonzero().flatten().tolist():
            assert targets[i] in ids[:i]


# -- tokenizer ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_tokenizer_round_trip(tokenizer, text):
    if not any(s in text for s in tok.SPECIAL):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    "text", ["", "  a\t\tb \n\n  c\r\n", "naïve 東京 🙂", "a_b.c(d)[0] = 12345"]
)
def test_tokenizer_keeps_spaces_and_unicode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer):
    word = tokenizer.encode("balance").ids
    for text in ("a balance", "self.balance", "_balance", '"balance"', "(balance", "--balance"):
        ids = tokenizer.encode(text).ids
        assert any(ids[i : i + len(word)] == word for i in range(len(ids))), text


def test_special_tokens_are_single(tokenizer):
    assert [tokenizer.encode(t).ids for t in tok.SPECIAL] == [[0], [1], [2]]
    assert len(tokenizer.encode("2048").ids) == 4


def test_chat_template_is_what_render_does(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tok.save(tokenizer, tmp_path, 2048)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token == tok.IM_END
    for task in tasks.heldout(5):
        text = loaded.apply_chat_template(task.messages, tokenize=False, add_generation_prompt=True)
        assert text == tok.render(task.messages, generate=True)
        ids = loaded.apply_chat_template(
            task.messages, add_generation_prompt=True, return_dict=True
        )
        assert ids["input_ids"] == tokenizer.encode(text).ids


# -- metrics --------------------------------------------------------------------------------------


def test_repeated_share():
    assert evaluate.repeated_share(range(100)) == 0
    assert evaluate.repeated_share([1, 2]) == 0
    assert evaluate.repeated_share([*range(8), *range(8)]) == pytest.approx(1 / 9)
    assert evaluate.repeated_share([7] * 20) == pytest.approx(12 / 13)


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        (list(range(200)), False),
        ([5] * 31, False),
        ([5] * 32, True),
        ([*range(50), *[1, 2, 3] * 11], True),
        ([*range(20)] * 2, False),
        ([*range(20)] * 3, True),
        ([], False),
    ],
)
def test_has_loop(tokens, loops):
    assert evaluate.has_loop(tokens) is loops


def test_nearest_topic():
    for topic in corpus.topics():
        assert all(evaluate.nearest_topic(answer) == topic.name for answer in topic.answers)
    shown = "Requests join and leave the batch at every decode step, so the hardware stays busy."
    assert evaluate.nearest_topic(shown) == "continuous batching"


# -- model folder ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    source = hub.verify(hub.TINY, with_gguf=True)
    for name in (*hub.FILES, *hub.GGUF_FILES):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("tokenizer.json", None, "missing"),
        ("model.safetensors", b"", "empty"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        ("model.safetensors", b"\x08", "cut off"),
        ("config.json", b"{", "not valid JSON"),
        ("tiny-Q8_0.gguf", b"nonsense", "not a GGUF file"),
    ],
)
def test_incomplete_folders_are_refused(folder, name, content, fault):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(hub.ModelIncompleteError) as error:
        hub.verify(folder, with_gguf=True)
    assert f"{name}: " in str(error.value)
    assert fault in str(error.value)
    assert "git checkout" in str(error.value)


def test_cut_off_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(hub.ModelIncompleteError, match="cut off"):
        hub.load(folder)


def test_check_names_the_changed_file_and_the_command(folder):
    lines = [
        f"| `{name}` | 1 MB | `{hub.sha256(folder / name)}` |"
        for name in (*hub.FILES, *hub.GGUF_FILES)
    ]
    (folder / "README.md").write_text("\n".join(lines))
    assert hub.check(folder) == []
    (folder / "config.json").write_text("{}")
    assert ["config.json" in line and "export" in line for line in hub.check(folder)] == [True]
    (folder / "README.md").unlink()
    assert "python -m tools.tinymodel card" in hub.check(folder)[0]
