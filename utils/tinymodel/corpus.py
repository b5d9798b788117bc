"""The text the model learns from, and its cut into training and held-out parts.

Three sources: Python's standard library documentation as found on this machine, questions and answers
about inference engines written for this course (`qa.txt`), and verifiable tasks (`tasks.py`).
"""

import ast
import hashlib
import inspect
import random
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from utils.tinymodel import vocabulary

QA_FILE = Path(__file__).with_name("qa.txt")
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "__pycache__"}


@dataclass(frozen=True)
class CorpusDocument:
    """A piece of prose: the file it comes from (relative to the library) and its text."""

    source: str
    text: str


def _docstrings(tree: ast.Module) -> list[str]:
    wanted = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, wanted) and (text := ast.get_docstring(node)) and len(text) > 80:
            name = "" if isinstance(node, ast.Module) else f"{node.name}: "
            texts.append(name + inspect.cleandoc(text))
    return texts


@cache
def prose() -> tuple[CorpusDocument, ...]:
    """Docstrings and topics of this Python's standard library, one document per file or topic."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if SKIPPED & set(name.parts) or name.parts[0] == "pydoc_data":
            continue
        try:
            texts = _docstrings(ast.parse(path.read_text("utf-8")))
        except (SyntaxError, UnicodeDecodeError):
            continue
        if texts:
            found.append(CorpusDocument(str(name), "\n\n".join(texts)))
    from pydoc_data import topics

    found += [CorpusDocument(f"topics/{k}", v.strip()) for k, v in sorted(topics.topics.items())]
    return tuple(found)


def is_heldout(name: str, one_in: int = 20) -> bool:
    """Return whether the file or question of this name is kept out of training."""
    return hashlib.blake2b(name.encode(), digest_size=2).digest()[0] % one_in == 0


def vocabulary_texts(repeats: int) -> list[str]:
    """Return the texts to train the tokenizer on: training documents, and the word lists `repeats` times."""
    lists = (
        vocabulary.CLASSES,
        vocabulary.FIELDS,
        vocabulary.NAMES,
        vocabulary.CITIES,
        vocabulary.THINGS,
        vocabulary.TABLES,
    )
    joined = " ".join(word for part in (*lists, vocabulary.CODE, vocabulary.TERMS) for word in part)
    return [d.text for d in prose() if not is_heldout(d.source)] + [joined] * repeats


# Every topic is asked about in these ways, beside its own questions; the last ones are never trained on.
ASKED = (
    "What {is} {name}?",
    "Explain {name}.",
    "Can you explain {name}?",
    "Describe {name} briefly.",
    "What {is} {name} in LLM inference?",
    "Tell me about {name}.",
)
ASKED_HELDOUT = ("Please explain what {name} {is}.", "I want to understand {name}.")


@dataclass(frozen=True)
class Topic:
    """A subject of the course: ways to ask about it, correct answers, and ways never trained on."""

    name: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    heldout: tuple[str, ...]


@cache
def topics() -> tuple[Topic, ...]:
    """Return the topics of qa.txt: `# name`, then lines `? question` and `= answer`."""
    found = []
    for block in QA_FILE.read_text("utf-8").split("# ")[1:]:
        name, *lines = block.strip().splitlines()
        verb = "are" if name.endswith(" (are)") else "is"
        name = name.removesuffix(" (are)")
        own = [line[2:] for line in lines if line.startswith("? ")]
        asked, kept = (
            [form.format(name=name, **{"is": verb}) for form in forms]
            for forms in (ASKED, ASKED_HELDOUT)
        )
        answers = [line[2:] for line in lines if line.startswith("= ")]
        found.append(Topic(name, (*asked, *own), tuple(answers), tuple(kept)))
    return tuple(found)


def question(rng: random.Random) -> list[dict[str, str]]:
    """Return one to three turns of question and answer, in phrasings to train on."""
    chat = []
    for topic in rng.sample(topics(), rng.choice([1, 1, 1, 2, 3])):
        chat.append({"role": "user", "content": rng.choice(topic.questions)})
        chat.append({"role": "assistant", "content": rng.choice(topic.answers)})
    return chat
