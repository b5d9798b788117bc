"""Code in documents and labs parses, and the commands, files and modules that they name exist."""

import ast
import json
import re
import subprocess
import symtable

import pytest
import yaml
from documents import Document, code_blocks, code_spans, read_documents

from tools.lab.labs import order
from tools.setup.setup_steps import COURSE, LLAMA_CPP, SGLANG, VLLM
from utils.profiles import ENVIRONMENT_VARIABLE, LOAD_VARIABLE, PROFILES, ROOT

SHELLS = ("", "bash", "sh", "console")  # an indented block is for the shell
READ_ONLY = ("text", "http", "dockerfile", "promql")
CLONE_ONLY = ("solutions", "tests", "benchmarks", "tools/authoring", "tools/grading")
FOLDERS = "benchmarks|docker|labs|models|requirements|solutions|tests|tools|utils"
PATH = re.compile(rf"(?<![\w./~@-])(?:{FOLDERS})/[\w./*-]*")
GOALS = re.compile(r"(?m)(?:^|[;&|(])\s*(?:[A-Z_]+=\S+\s+)*make\s+([^;&|#)\n]*)")
LABS = {str(order(path)[1]) for path in ROOT.glob("labs/lab-*.ipynb")}
VALUES = {
    ENVIRONMENT_VARIABLE: {*PROFILES},
    LOAD_VARIABLE: {"full", "quick"},
    "LAB": LABS | {f"3.3.{number}" for number in LABS},
    "STEP": {step.name for step in (COURSE, VLLM, SGLANG, LLAMA_CPP)},
}


def make_targets(learner):
    files = ["Makefile"] if learner else ["Makefile", "solutions/instructors.mk"]
    text = "\n".join((ROOT / name).read_text() for name in files)
    return {
        name for line in re.findall(r"(?m)^([a-z][\w -]*?):(?!=)", text) for name in line.split()
    }


def syntax_fault(info, code):
    """Return the reason why a block doesn't parse, or ""."""
    try:
        if info in SHELLS:
            bash = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)
            return bash.stderr
        if info == "python":
            compile(code, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        elif info == "json":
            json.loads(code)
        elif info == "yaml":
            list(yaml.safe_load_all(code))
        elif info not in READ_ONLY:
            return f"{info!r} is an unknown kind of block"
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        return str(error)
    return ""


def shell_faults(code, learner):
    """Yield what a command names and what isn't there."""
    code = re.sub(r"\\\n", " ", code).replace("...", "")
    unquoted = re.sub(r"\"[^\"]*\"|'[^']*'", "x", code)
    for goals in GOALS.findall(unquoted):
        words = [word for word in goals.split() if "=" not in word and not word.startswith("-")]
        yield from (f"make {word}" for word in words if word not in make_targets(learner))
    for name, quoted, word in re.findall(r"\b([A-Z_]+)=(?:\"([^\"]*)\"|([\w.]+))", code):
        if not {*(quoted or word).split()} <= VALUES.get(name, {*(quoted or word).split()}):
            yield f"{name}={quoted or word}"
    yield from module_faults(
        re.findall(r"python[\d.]* -m ((?:utils|tools|benchmarks)[\w.]*)", code)
    )
    yield from path_faults(PATH.findall(code), learner)


def path_faults(names, learner):
    for name in (name.rstrip(".") for name in names):
        if "3_3_N" in name or "3.3.N" in name:
            continue  # it means each lab's file
        if learner and name.startswith(CLONE_ONLY):
            yield f"{name} is not in a release"
        elif not any(ROOT.glob(name)):
            yield name


def module_faults(names):
    """Yield the dotted names that are neither modules nor defined at the top of one."""
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts), 0, -1):
            place = ROOT.joinpath(*parts[:depth])
            files = [f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()]
            if files:
                break
        rest = parts[depth:]
        if (
            rest
            and rest[0] not in symtable.symtable(files[0].read_text(), "", "exec").get_identifiers()
        ):
            yield name


def import_faults(code):
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ImportFrom(module=str() as module) if module.startswith("utils"):
                yield from module_faults(f"{module}.{alias.name}" for alias in node.names)
            case ast.Import():
                yield from module_faults(a.name for a in node.names if a.name.startswith("utils"))


def faults(document):
    """Yield every fault of a document's blocks of code, and of the names in backticks."""
    for info, code in code_blocks(document.text):
        if not info and document.path.suffix == ".py":
            continue  # labs write formulas this way
        if fault := syntax_fault(info, code):
            yield f"{fault}: {code}"
        elif info in SHELLS:
            yield from shell_faults(code, document.learner)
        elif info == "python":
            yield from import_faults(code)
    for span in code_spans(document.text):
        if re.match(r"(?:[A-Z_]+=\S+ )*make [a-z]|(?:\S*/)?python3? -m |[A-Z]+=\w+$", span):
            yield from shell_faults(span, document.learner)
        elif re.fullmatch(r"(?:utils|tools)(?:\.\w+)+(?:\(.*\))?", span):
            yield from module_faults([span.partition("(")[0]])
        elif PATH.fullmatch(span):
            yield from path_faults([span], document.learner)
        elif re.fullmatch(r"[A-Z][A-Z_0-9]*\.md", span) and not (ROOT / span).is_file():
            yield span
    yield from (
        f"lab 3.3.{n}" for n in re.findall(r"\b3\.3\.(\d+)\b", document.text) if n not in LABS
    )


# A changelog also names what is gone.
CURRENT = [document for document in read_documents() if document.path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("document", CURRENT, ids=str)
def test_code_and_names_exist(document):
    assert list(faults(document)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("    make nothing", "make nothing"),
        ("    make test", "make test"),
        ("    make lab LAB=9", "LAB=9"),
        ('    make setup STEP="course vlm"', "STEP=course vlm"),
        ("    COURSE_PROFILE=gpu make lab", "COURSE_PROFILE=gpu"),
        ("    .venv/bin/python -m utils.magic", "utils.magic"),
        ("    echo a && cat utils/magic.py | wc", "utils/magic.py"),
        ("    cat solutions/README.md", "solutions/README.md is not in a release"),
        ("    echo 'unclosed", "unexpected EOF"),
        ("```python\ndef f(:\n```", "invalid syntax"),
        ("```python\nfrom utils.engines import starte\n```", "utils.engines.starte"),
        ("```json\n{'a': 1}\n```", "double quotes"),
        ("```yaml\na: [1\n```", "expected"),
        ("```perl\n1;\n```", "unknown kind"),
        ("Type `make nothing`.", "make nothing"),
        ("See `utils.engines.magic`.", "utils.engines.magic"),
        ("See `utils/engines/magic.py`.", "utils/engines/magic.py"),
        ("See `MAGIC.md`.", "MAGIC.md"),
        ("See lab 3.3.8.", "lab 3.3.8"),
    ],
)
def test_fault_is_found_when_planted(text, fault):
    found = list(faults(Document(ROOT / "PAGE.md", text, ROOT)))
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "    make lab LAB=3  # another lab\n    COURSE_LOAD=quick make lab",
        "    .venv/bin/python -m utils.benchmark.first_request vllm",
        "    docker run -d \\\n      -v ~/.cache:/x image python3 -m sglang.launch_server | cat",
        "    cat labs/*.ipynb",
        "```python\nfrom utils.engines import launch\nawait launch\n```",
        "```text\nmake coffee\n```",
        "`make lab LAB=3`, `utils.engines.launch`, `launch('vllm')`, `labs/`, lab 3.3.7",
        "`utils/checks/lab_3_3_N.py`, `COURSE_LOAD=quick make lab`",
    ],
)
def test_right_text_passes(text):
    assert list(faults(Document(ROOT / "PAGE.md", text, ROOT))) == []


def test_contributors_have_more_commands():
    text = "    make test\n    cat solutions/README.md"
    assert list(faults(Document(ROOT / "PAGE.md", text, ROOT, learner=False))) == []
