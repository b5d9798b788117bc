'''A class to practise on: good, partial, untouched and hostile submissions, and what each must get.

`python -m tools.grading sample-class DIR` writes it; the tests grade it and compare every grade.
'''

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.lab.course_error import CourseError

Notebook = dict[str, Any]
VICTIM = "p99_of_runs"  # the exercise that hostile cells stand in for: the third of seven


@dataclass(frozen=True)
class Sample:
    """One submission and its grade.

    Attributes:
        make: changes the notebook given, or returns the bytes of a file that is none.
        start: "solved" or "untouched": what `make` is given.
        lab: number of the lab.
        scores: points of exercises that do not get all of them ("*": every exercise).
        learner: words that the learner must read, in notes or in the exercise's message.
        instructor: words of the instructor's notes.
    """

    make: Callable[[Notebook], bytes | None] = lambda notebook: None
    start: str = "solved"
    lab: str = "3.3.1"
    scores: Mapping[str, int] = field(default_factory=dict)
    learner: str = ""
    instructor: str = ""


def write_class(root: Path, folder: Path, only: Collection[str] | None = None) -> list[Path]:
    """Write every sample, or those named, to `folder/<student>/`."""
    if unknown := set(only or ()) - SAMPLES.keys():
        raise CourseError(f"No such students: {', '.join(sorted(unknown))}. There are: {', '.join(SAMPLES)}.")
    written = []
    for student in only or SAMPLES:
        sample = SAMPLES[student]
        where = {"solved": "solutions", "untouched": "labs"}[sample.start]
        path = next((root / where).glob(f"lab-{sample.lab}-*.ipynb"))
        notebook = json.loads(path.read_text(encoding="utf-8"))
        data = sample.make(notebook)
        target = folder / student / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(json.dumps(notebook).encode() if data is None else data)
        written.append(target)
    return written


def _cell(notebook: Notebook, id_: str) -> dict[str, Any]:
    cell: dict[str, Any] = next(c for c in notebook["cells"] if c["id"] == id_)
    return cell


def _answer(exercise: str, code: str) -> Callable[[Notebook], None]:
    """Puts other code into an exercise's cell."""

    def make(notebook: Notebook) -> None:
        _cell(notebook, f"exercise-{exercise}")["source"] = code

    return make


def _answers(codes: Mapping[str, str]) -> Callable[[Notebook], None]:
    def make(notebook: Notebook) -> None:
        for exercise, code in codes.items():
            _answer(exercise, code)(notebook)

    return make


def _hostile(code: str, learner: str, instructor: str = "", points: int = 0) -> Sample:
    return Sample(_answer(VICTIM, code), scores={VICTIM: points}, learner=learner, instructor=instructor)


RIGHT = "def p99_of_runs(runs):\n    return float(np.percentile(np.concatenate(runs), 99))\n"
IN_CELL = "import os, sys, time\n{}\n" + RIGHT
IN_FUNCTION = "def p99_of_runs(runs):\n    import os, socket, sys, time\n    {}\n"


# ---- what happens to notebooks


def _without(id_: str) -> Callable[[Notebook], None]:
    def make(notebook: Notebook) -> None:
        notebook["cells"].remove(_cell(notebook, id_))

    return make


def _doubled(id_: str, **changes: Any) -> Callable[[Notebook], None]:
    """A copy of a cell right behind it, as copy and paste in JupyterLab make it."""

    def make(notebook: Notebook) -> None:
        cell = _cell(notebook, id_)
        twin = {**copy.deepcopy(cell), "id": "pasted", **changes}
        notebook["cells"].insert(notebook["cells"].index(cell) + 1, twin)

    return make


def _changed_in_the_first_of_two(notebook: Notebook) -> None:
    """The learner works in the first cell; an untouched copy stands behind it, with the same id."""
    _doubled(f"exercise-{VICTIM}", id=f"exercise-{VICTIM}", source="def p99_of_runs(runs):\n    ...\n")(
        notebook
    )


def _without_ids(notebook: Notebook) -> None:
    """Nbformat 4.4: cells have no ids."""
    notebook["nbformat_minor"] = 4
    for cell in notebook["cells"]:
        del cell["id"]


def _without_marks(notebook: Notebook) -> None:
    """Opened and saved by a program that knows neither ids nor nbgrader's marks."""
    _without_ids(notebook)
    for cell in notebook["cells"]:
        cell["metadata"] = {}


def _version_3(notebook: Notebook) -> bytes:
    """IPython 3's format: cells in a worksheet, code in `input`."""
    cells = []
    for cell in notebook["cells"]:
        code = cell["cell_type"] == "code"
        old = {"cell_type": cell["cell_type"], "metadata": cell["metadata"]}
        text = {"input" if code else "source": cell["source"]}
        extra = {"language": "python", "outputs": [], "collapsed": False} if code else {}
        cells.append({**old, **text, **extra})
    old_notebook = {
        "metadata": {"name": ""},
        "nbformat": 3,
        "nbformat_minor": 0,
        "worksheets": [{"cells": cells, "metadata": {}}],
    }
    return json.dumps(old_notebook).encode()


def _helper_cell(notebook: Notebook) -> None:
    """The exercise leans on a cell that the learner added."""
    cell = _cell(notebook, f"exercise-{VICTIM}")
    cell["source"] = "def p99_of_runs(runs):\n    return percentile_of_all(runs, 99)\n"
    helper = "def percentile_of_all(runs, p):\n    return float(np.percentile(np.concatenate(runs), p))\n"
    added = {**copy.deepcopy(cell), "id": "added", "metadata": {}, "source": helper}
    notebook["cells"].insert(notebook["cells"].index(cell), added)


def _split(notebook: Notebook) -> None:
    """Cut in two with JupyterLab's *Split Cell*, which gives both halves the marks."""
    head, tail = RIGHT.split("\n", 1)
    _doubled(f"exercise-{VICTIM}", source=f"{head.replace('p99_of_runs', 'p99')}\n{tail}")(notebook)
    _cell(notebook, f"exercise-{VICTIM}")["source"] = "half = 99 / 2\n"
    _cell(notebook, "pasted")["source"] += "\n\ndef p99_of_runs(runs):\n    return p99(runs) + 0 * half\n"


def _answer_in_own_cell(notebook: Notebook) -> None:
    """The answer stands behind the cell that was meant for it, which still says what to write."""
    answer = _cell(notebook, "answer-recommendation")
    written = {**answer, "id": "added", "metadata": {}}
    notebook["cells"].insert(notebook["cells"].index(answer) + 1, written)
    answer["source"] = "*Write your answer here.*"


def _retyped(notebook: Notebook) -> None:
    _cell(notebook, f"exercise-{VICTIM}")["cell_type"] = "markdown"


def _check_that_always_passes(notebook: Notebook) -> None:
    _answer(VICTIM, "def p99_of_runs(runs):\n    return 99.0\n")(notebook)
    _cell(notebook, f"check-{VICTIM}")["source"] = 'print("✔ p99_of_runs: right.")\n'


def _scripts(notebook: Notebook) -> None:
    """Saved outputs, a message and a written answer that a browser would run."""
    script = "<script>document.title = 'changed'</script>"
    html = {"output_type": "display_data", "metadata": {}, "data": {"text/html": script}}
    _cell(notebook, "answer-recommendation")["source"] = (
        f"{script} <img src=x onerror=\"document.title = 'changed'\"> "
        "[look](javascript:alert%281%29) $\\href{javascript:alert(1)}{x}$ </pre><script>1</script>"
    )
    cell = _cell(notebook, f"exercise-{VICTIM}")
    cell["outputs"] = [html]
    cell["source"] = (
        "from IPython.display import HTML, display\n"
        f'display(HTML("""{script}"""))\n'
        f"def p99_of_runs(runs):\n    raise ValueError({script!r})\n"
    )


def _half_characters(notebook: Notebook) -> None:
    """Lone surrogates, which JSON can hold and a file cannot."""
    added = {"cell_type": "code", "id": "\ud800", "metadata": {}, "outputs": [], "source": "\ud800"}
    notebook["cells"].insert(1, added)
    _cell(notebook, "answer-recommendation")["source"] = "vLLM \udfff"


OTHER_STYLES = {
    "stream_metrics": """
from itertools import dropwhile

class Metrics(dict):
    pass

def stream_metrics(sent, events, completion_tokens, *, digits=None):
    first = last = None
    for when, text in events:
        if text != "":
            last = when
            if first is None:
                first = when
    metrics = dict(ttft=np.float64(first) - sent, e2el=last - sent)
    gaps = completion_tokens - 1
    metrics["tpot"] = (metrics["e2el"] - metrics["ttft"]) / gaps if gaps else 0
    return metrics
""",
    "open_loop_latencies": """
def open_loop_latencies(arrivals, service):
    ends = []
    for due in arrivals:
        ends.append(max([due] + ends[-1:]) + service)
    return [np.float64(end - due) for end, due in zip(ends, arrivals)]
""",
    "p99_of_runs": """
def p99_of_runs(runs):
    everything = sorted(x for run in runs for x in run)
    place = 0.99 * (len(everything) - 1)
    low = int(place)
    high = min(low + 1, len(everything) - 1)
    return everything[low] + (place - low) * (everything[high] - everything[low])
""",
    "goodput": """
def goodput(requests, duration, ttft_limit, tpot_limit):
    frame = pd.DataFrame(requests)
    good = frame.ok & (frame.ttft <= ttft_limit) & (frame.tpot <= tpot_limit)
    return good.sum() / duration
""",
    "mean_interval": """
import statistics

def mean_interval(values, t):
    mean = statistics.fmean(values)
    reach = t * statistics.stdev(values) / len(values) ** 0.5
    return (mean - reach, mean + reach)
""",
    "decode_ceiling": """
decode_ceiling = lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
    bandwidth / (weight_bytes / batch + context * kv_bytes_per_token)
)
""",
    "best_for_api": """
def best_for_api(rows, ttft_limit_ms):
    best = None
    for row in rows:
        if row["concurrency"] < max(r["concurrency"] for r in rows):
            continue
        if row["failed"] or row["p95_ttft_ms"] > ttft_limit_ms:
            continue
        if best is None or row["output_throughput"] > best["output_throughput"]:
            best = row
    return best and best["label"]
""",
}
OTHER_STYLES_3 = {
    "block_pool": """
from collections import deque

class BlockPool:
    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.references = [0 for _ in range(num_blocks)]

    @property
    def free(self):
        return [b for b, count in enumerate(self.references) if not count]

    def allocate(self):
        for block in self.free:
            self.references[block] = 1
            return block
        raise OutOfBlocks

    def share(self, block):
        if not self.references[block]:
            raise ValueError("free")
        self.references[block] += 1

    def release(self, block):
        if not self.references[block]:
            raise ValueError("free")
        self.references[block] -= 1

block_pool = BlockPool
""",
    "append_slot": """
def append_slot(pool, table, num_tokens):
    full = num_tokens % pool.block_size == 0
    if not full and pool.references[table[-1]] < 2:
        return
    fresh = pool.allocate()
    if full:
        table += [fresh]
    else:
        old = table[-1]
        table[len(table) - 1:] = [fresh]
        pool.release(old)
        return old, fresh
""",
    "schedule": """
def schedule(waiting, running, limits):
    plan, left, evicted = {}, limits.token_budget, []
    for request in list(running):
        if request in evicted or left <= 0:
            break
        n = min(request.remaining, left)
        while request not in evicted and not request.fits(n):
            youngest = running[-1]
            del running[-1]
            youngest.preempt()
            evicted.append(youngest)
            waiting.insert(0, youngest)
        if request in evicted:
            break
        request.take(n)
        plan[request.job.job_id] = n
        left -= n
    if evicted:
        return plan
    while waiting and left > 0 and len(running) < limits.max_running:
        first = waiting[0]
        whole = first.remaining
        n = whole if whole <= left else left
        if (n < whole and not limits.chunked_prefill) or not first.fits(whole):
            return plan
        waiting.popleft()
        running.append(first)
        first.take(n)
        plan[first.job.job_id] = n
        left = left - n
    return plan
""",
}

WORKER = "import gc\nworker = next(o for o in gc.get_objects() if type(o).__name__ == 'Worker')\n"
LISTENS = f"""
{WORKER}
heard, unseal = [], worker.operations["unseal"]
worker.operations["unseal"] = lambda message: (heard.append(message["source"]), unseal(message))[1]
"""
USES_WHAT_IT_HEARD = """
import sys, types
space = vars(sys.modules.setdefault("heard", types.ModuleType("heard")))
exec(next(source for source in heard if "class BlockTable" in source), space)

def append_slot(pool, table, num_tokens):
    return space["BlockTable"](pool, table, num_tokens).grow()
"""
SENDS_OTHER_INPUTS_BACK = f"""
{WORKER}
use = worker.operations["use"]
worker.operations["use"] = lambda message: use({{**message, "restore": True}})

def p99_of_runs(runs):
    for run in runs:
        run[:] = [0.0] * len(run)
    return 0.0
"""
COURSES_METRICS = """
from utils.benchmark.trace import RequestTrace

def stream_metrics(sent, events, completion_tokens):
    trace = object.__new__(RequestTrace)
    return {"ttft": RequestTrace.ttft(trace), "tpot": 0.0, "e2el": 0.0}
"""
EMPTIES_ITS_INPUT = """
def open_loop_latencies(arrivals, service):
    arrivals[:] = []
    return arrivals
"""
DIES_WHEN_CODE_COMES_BACK = f"""
{WORKER}
worker.operations["unseal"] = lambda message: os._exit(1)
import os
"""
COLOURS = 'print("\\x1b[31mred\\x1b[0m, \\x1b[38mno colour\\x1b[38;5m", "10 %\\r100 %", sep="\\n")\n'

SAMPLES: dict[str, Sample] = {
    "good": Sample(),
    "good-lab-2": Sample(lab="3.3.2"),
    "untouched-lab-2": Sample(start="untouched", lab="3.3.2", scores={"*": 0}),
    "good-lab-3": Sample(lab="3.3.3"),
    "good-lab-4": Sample(lab="3.3.4"),
    "good-lab-5": Sample(lab="3.3.5"),
    "good-lab-6": Sample(lab="3.3.6"),
    "good-lab-7": Sample(lab="3.3.7"),
    "untouched-lab-7": Sample(start="untouched", lab="3.3.7", scores={"*": 0}),
    "untouched-lab-4": Sample(start="untouched", lab="3.3.4", scores={"*": 0}),
    "good-other-styles": Sample(_answers(OTHER_STYLES)),
    "good-other-styles-lab-3": Sample(_answers(OTHER_STYLES_3), lab="3.3.3"),
    "untouched": Sample(start="untouched", scores={"*": 0}, learner="the cell is as it was"),
    "untouched-lab-3": Sample(start="untouched", lab="3.3.3", scores={"*": 0}),
    "partial": Sample(
        _answers(
            {
                "stream_metrics": "def stream_metrics(sent, events, completion_tokens):\n"
                "    times = [at for at, text in events if text]\n"
                "    ttft, e2el = times[0] - sent, times[-1] - sent\n"
                '    return {"ttft": ttft, "e2el": e2el, "tpot": (e2el - ttft) / completion_tokens}\n',
                "goodput": "def goodput(requests, duration, ttft_limit, tpot_limit):\n"
                "    raise NotImplementedError\n",
                "mean_interval": "def mean_interval(values, t)\n    return 0, 1\n",
            }
        ),
        scores={"stream_metrics": 1, "goodput": 0, "mean_interval": 0},
        learner="the first token belongs to TTFT",
    ),
    # what happens to notebooks
    "check-deleted": Sample(
        _without(f"check-{VICTIM}"), learner="The check of p99_of_runs is missing", instructor="check is missing"
    ),
    "check-doubled": Sample(
        _doubled(f"check-{VICTIM}"), learner="is there 2 times", instructor="check is there 2 times"
    ),
    "check-edited": Sample(
        _check_that_always_passes,
        scores={VICTIM: 0},
        learner="The check of p99_of_runs was edited",
        instructor="check was edited",
    ),
    "exercise-deleted": Sample(
        _without(f"exercise-{VICTIM}"),
        scores={VICTIM: 0},
        learner="The cell of p99_of_runs is missing",
        instructor="its cell is missing",
    ),
    "exercise-doubled": Sample(
        _doubled(f"exercise-{VICTIM}", source="def p99_of_runs(runs):\n    return 0.0\n"),
        scores={VICTIM: 0},
        learner="they were taken one after the other",
        instructor="the cell is there 2 times, 2 changed",
    ),
    "id-doubled": Sample(
        _changed_in_the_first_of_two, scores={VICTIM: 0}, learner="is there 2 times", instructor="2 times"
    ),
    "ids-missing": Sample(_without_ids),
    "marks-missing": Sample(
        _without_marks, learner="had lost its marks", instructor="found by name, its id is lost"
    ),
    "cell-retyped": Sample(_retyped, learner="not a code cell any more", instructor="changed to markdown"),
    "helper-in-own-cell": Sample(
        _helper_cell,
        scores={VICTIM: 0},
        learner="'percentile_of_all' is defined in a cell that is not run",
        instructor="from a cell that is not graded",
    ),
    "cell-split": Sample(
        _split, learner="they were taken one after the other", instructor="the cell is there 2 times, 2 changed"
    ),
    "answer-in-own-cell": Sample(
        _answer_in_own_cell,
        learner="was not in its cell; it was taken from the one behind",
        instructor="recommendation: taken from the cell behind",
    ),
    "magics": _hostile("%matplotlib inline\n" + RIGHT, "", points=2),
    "format-3": Sample(_version_3),
    "no-json": Sample(
        lambda notebook: b"My answers are in the other file.",
        scores={"*": 0},
        learner="could not be read as a notebook",
        instructor="unreadable: it is not JSON",
    ),
    "cut-off": Sample(
        lambda notebook: json.dumps(notebook).encode()[:5000],
        scores={"*": 0},
        learner="could not be read",
        instructor="unreadable",
    ),
    "empty-file": Sample(lambda notebook: b"", scores={"*": 0}, learner="it is empty", instructor="it is empty"),
    "nested-json": Sample(
        lambda notebook: b"[" * 200_000, scores={"*": 0}, learner="could not be read", instructor="unreadable"
    ),
    # what exercises do
    "loops": _hostile("def p99_of_runs(runs):\n    while True:\n        pass\n", "Does a loop in it never end?"),
    "loops-in-cell": _hostile(IN_CELL.format("while True: pass"), "Does a loop in it never end?"),
    "loops-and-catches": _hostile(
        "def p99_of_runs(runs):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass\n",
        "Does a loop in it never end?",
    ),
    "sleeps": _hostile(IN_FUNCTION.format("time.sleep(10**6)"), "it waited for", "uses os, socket, sys"),
    "allocates": _hostile(IN_FUNCTION.format("return bytearray(50 << 30)"), "MemoryError"),
    "allocates-in-steps": _hostile(
        IN_FUNCTION.format("hoard = []\n    while True: hoard.append(bytes(1 << 20) + b'x')"), "emory"
    ),
    "forks": _hostile(IN_CELL.format("while True: os.fork()"), "", "uses os, sys"),
    "forks-and-allocates": _hostile(
        IN_FUNCTION.format("for _ in range(50): os.fork()\n    x = bytearray(1 << 30); time.sleep(30)"), ""
    ),
    "prints": _hostile(
        IN_CELL.format("for _ in range(1000): print('x' * 100_000)"), "", "uses os, sys", points=2
    ),
    "prints-past-python": _hostile(
        IN_CELL.format("for _ in range(1000): os.write(1, b'x' * 100_000); os.write(2, b'y' * 100_000)"),
        "",
        "uses os, sys",
        points=2,
    ),
    "kills-its-kernel": _hostile(IN_CELL.format("os.kill(os.getpid(), 9)"), "ended the process"),
    "kills-everything": _hostile(IN_CELL.format("os.kill(-1, 9)"), "ProcessLookupError", "uses os"),
    "exits": _hostile(IN_FUNCTION.format("sys.exit(0)"), "SystemExit"),
    "exits-in-cell": _hostile(IN_CELL.format("sys.exit(0)"), "SystemExit"),
    "exits-hard": _hostile(IN_FUNCTION.format("os._exit(0)"), "ended the process"),
    "crashes": _hostile("import ctypes\nctypes.string_at(0)\n" + RIGHT, "ended the process"),
    "opens-a-port": _hostile(
        "import socket\nlistener = socket.create_server(('127.0.0.1', 8000))\n" + RIGHT,
        "opened a port",
        "listens on a port",
        points=2,
    ),
    "calls-home": _hostile(
        "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=3)\n" + RIGHT, "unreachable"
    ),
    "reads-solutions": _hostile(
        "import re\nfrom pathlib import Path\n"
        "source = Path('../solutions/lab-3.3.1-engine-benchmark.py').read_text()\n"
        "exec(re.search(r'def p99_of_runs.*?### END', source, re.S)[0])\n",
        "FileNotFoundError",
        "uses exec, pathlib",
    ),
    "reads-the-gradebook": _hostile(
        "import glob, sqlite3\n"
        "books = [b for d in ('/tmp', '/root', '/home', '/work', '.', '..') for b in "
        "glob.glob(d + '/**/gradebook.db', recursive=True)]\n"
        "sqlite3.connect(books[0]).execute('update grade set manual_score = 99')\n" + RIGHT,
        "IndexError",
    ),
    "reads-others": _hostile(
        "import glob\n"
        "places = ['/tmp', '/course', '/home', '/work/*', '../..']\n"
        "found = [f for p in places for f in glob.glob(p + '/good/lab-3.3.1-*.ipynb')]\n"
        "text = open(found[0]).read()\n" + RIGHT,
        "IndexError",
        "uses open",
    ),
    "writes-outside": _hostile(
        "open('/course/utils/checks/expect.py', 'w').write('')\n" + RIGHT, "Read-only file system", "uses open"
    ),
    "patches-checks": _hostile(
        "import utils.checks, utils.checks.base, utils.checks.expect, tools.lab.judge.rpc_codec as wire\n"
        "for module in (utils.checks, utils.checks.expect):\n"
        "    module.expect_close = module.expect_equal = lambda *args, **kwargs: None\n"
        "utils.checks.base.Check.judge = lambda *args: utils.checks.CheckResult('right')\n"
        "def p99_of_runs(runs):\n    return 0.0\n",
        "p99",
        "uses utils",
    ),
    "redefines": _hostile(
        "import builtins\nbuiltins.print = builtins.abs = builtins.isinstance = lambda *a, **k: True\n"
        "builtins.AssertionError = builtins.Exception = ArithmeticError\n"
        "def p99_of_runs(runs):\n    return 1.0\n",
        "",
        "uses builtins",
    ),
    "equals-everything": _hostile(
        "class Everything(float):\n"
        "    __eq__ = __le__ = __ge__ = __lt__ = __gt__ = lambda self, other: True\n"
        "    __sub__ = __rsub__ = __abs__ = lambda self, *other: 0.0\n"
        "    __hash__ = float.__hash__\n"
        "def p99_of_runs(runs):\n    return Everything(1)\n",
        "of type Everything",
    ),
    "claims-a-type": _hostile(
        "class float_(object):\n    __class__ = float\n    __eq__ = lambda self, other: True\n"
        "    __hash__ = object.__hash__\n"
        "def p99_of_runs(runs):\n    return float_()\n",
        "of type float_",
    ),
    "stored-answers": _hostile(
        "import os\n"
        "def p99_of_runs(runs):\n"
        "    stored = {1000: 980.01, 3: 2.98}\n"
        "    return stored.get(sum(map(len, runs)), 980.01)\n",
        "p99 of",
        "uses os",
    ),
    "takes-the-reference": _hostile("p99_of_runs = checks.p99_of_runs.reference\n", "not in reach"),
    "takes-the-courses-own": Sample(
        _answer("best_for_api", "from utils.benchmark.recommend import best_for_api\n"),
        scores={"best_for_api": 0},
        learner="the course's own answer to an exercise",
        instructor="uses utils",
    ),
    "searches-memory": _hostile(
        "import gc, sys\n"
        "found = [o for o in gc.get_objects() if type(o).__name__ in ('Check', 'Grading', 'GradedPart')]\n"
        "frames = list(sys._current_frames().values())\n"
        "p99_of_runs = found[0].reference\n",
        "IndexError",
        "uses gc, sys",
    ),
    "keeps-what-is-unsealed": Sample(
        _answers({"block_pool": LISTENS + OTHER_STYLES_3["block_pool"], "append_slot": USES_WHAT_IT_HEARD}),
        lab="3.3.3",
        scores={"append_slot": 0},
        learner="not in reach",
        instructor="block_pool: uses gc",
    ),
    "sends-other-inputs-back": _hostile(SENDS_OTHER_INPUTS_BACK, "p99 of", "uses gc"),
    "empties-its-input": Sample(
        _answers({"open_loop_latencies": EMPTIES_ITS_INPUT}),
        scores={"open_loop_latencies": 0},
        learner="it changed its argument `arrivals`",
    ),
    "dies-when-code-comes-back": Sample(
        _answers({"block_pool": DIES_WHEN_CODE_COMES_BACK + OTHER_STYLES_3["block_pool"]}),
        lab="3.3.3",
        instructor="block_pool: uses gc, os",
    ),
    "breaks-what-comes-after": Sample(
        _answer(VICTIM, f"{WORKER}import os\nworker.operations['run'] = lambda message: os._exit(1)\n{RIGHT}"),
        scores={"goodput": 0},
        learner="ended the process",
        instructor="p99_of_runs: uses gc, os",
    ),
    "takes-the-courses-metrics": Sample(
        _answer("stream_metrics", COURSES_METRICS),
        scores={"stream_metrics": 0},
        learner="RequestTrace.ttft is the course's own answer",
        instructor="uses __new__, utils",
    ),
    "colours": _hostile(COLOURS + RIGHT, "red, no colour\n100 %", points=2),
    "raises-in-colours": _hostile(
        "def p99_of_runs(runs):\n    raise ValueError('\\x1b[38m \\x1b]0;title\\x07 no')\n", "ValueError: "
    ),
    "raises-what-checks-raise": _hostile(
        "from utils.checks import CheckFailed\ndef p99_of_runs(runs):\n    raise CheckFailed('right')\n",
        "your code raised CheckFailed: right",
        "uses utils",
    ),
    "takes-long-to-show": _hostile(
        "x = 1" + "\n" * 20_000 + "y = 2\n" + RIGHT, "takes too long to show", points=2
    ),
    "half-a-character": Sample(_half_characters),
    "writes-into-the-pipe": _hostile(
        "import os\n"
        "for number in range(3, 40):\n"
        "    try:\n        os.write(number, b'\\x00\\x00\\x00\\x02{}' * 3 + b'\\xff' * 40)\n"
        "    except OSError:\n        pass\n" + RIGHT,
        "grader's pipe",
        "uses os",
    ),
    "returns-too-much": _hostile("def p99_of_runs(runs):\n    return list(range(20_000_000))\n", ""),
    "returns-nests": _hostile(
        "def p99_of_runs(runs):\n    nest = []\n    for _ in range(5000): nest = [nest]\n    return nest\n",
        "nested too deeply",
    ),
    "returns-shared-items": _hostile(
        "def p99_of_runs(runs):\n    nest = [0]\n    for _ in range(50): nest = [nest, nest]\n    return nest\n",
        "more than 4000000 items",
    ),
    "returns-itself": _hostile(
        "def p99_of_runs(runs):\n    me = []\n    me.append(me)\n    return me\n", "expected float"
    ),
    "returns-half-a-character": _hostile("def p99_of_runs(runs):\n    return chr(0xD800)\n", "expected float"),
    "scripts": Sample(_scripts, scores={VICTIM: 0}, learner="ValueError"),
}
