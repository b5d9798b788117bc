"""The sandbox holds, and the session takes nothing on trust."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from tools.lab.judge.sandbox import PlainSandbox, SandboxError, SandboxLimits, find_sandbox
from tools.lab.judge.seal import build_sealed
from tools.lab.judge.session import Session
from utils.checks.attempt import ExpectedKind, InputChanged, Stopped
from utils.profiles import ROOT

pytestmark = pytest.mark.timeout(300)
LIMITS = SandboxLimits(cell_s=5, check_s=5, idle_s=3, memory_bytes=1 << 30, files=1000)
FUNCTION, CLASS, VALUE = (
    ExpectedKind("function", ("x",)),
    ExpectedKind("class"),
    ExpectedKind("value"),
)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sandbox")
    build_sealed(ROOT, folder / "course", ["utils.kvcache.blocks.BlockPool"])
    return find_sandbox("bubblewrap", folder / "course", ROOT / "models", folder)


@pytest.fixture
def session(sandbox):
    with Session(sandbox, LIMITS) as session:
        yield session


def value(session, code):
    """What a cell assigns to `seen`, as plain values."""
    _, error = session.run(f"import json\n{code}\nseen = json.dumps(seen)")
    assert error is None, error
    answer = session.look("seen", VALUE)
    return json.loads(answer.subject(True, []))


def test_sandbox_shows_python_and_course_only(session):
    roots = value(session, "import os\nseen = sorted(os.listdir('/'))")
    usual = {
        "bin",
        "course",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "sbin",
        "tmp",
        "usr",
    }
    assert set(roots) - usual <= {
        os.path.normpath(path).split("/")[1] for path in (os.sys.prefix, os.sys.base_prefix)
    }
    assert value(session, "seen = sorted(os.listdir('/course'))") == [
        "labs",
        "models",
        "tools",
        "utils",
    ]
    for path in (ROOT / "solutions", ROOT / "utils", ROOT / "labs", ROOT / ".git"):
        assert value(session, f"seen = os.path.exists({str(path)!r})") is False


def test_sandbox_runs_as_nobody_and_alone(session):
    facts = "seen = [os.getuid(), [p for p in os.listdir('/proc') if p.isdigit()]]"
    uid, processes = value(session, f"import os\n{facts}")
    assert uid != 0 or os.geteuid() != 0
    assert len(processes) <= 4
    status = value(session, "seen = open('/proc/self/status').read()")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_sandbox_writes_in_its_own_folder_only(session):
    assert (
        value(session, "import os\nopen('mine', 'w').write('x')\nseen = os.getcwd()")
        == "/course/labs"
    )
    for place in ("/course/utils/x", "/usr/x", "/x", os.sys.prefix + "/x"):
        _, error = session.run(f"open({place!r}, 'w')")
        assert error.name in ("OSError", "PermissionError")
    _, error = session.run("open('big', 'wb').write(bytes(100 << 20))")
    assert error.name == "OSError"


def test_two_submissions_share_neither_files_nor_ports(sandbox):
    with Session(sandbox, LIMITS) as one, Session(sandbox, LIMITS) as other:
        code = "import socket\nopen('/tmp/left', 'w').write('answers')\n"
        assert one.run(code + "server = socket.create_server(('127.0.0.1', 8765))")[1] is None
        assert one.listening()
        assert not other.listening()
        _, error = other.run(
            "import socket\nsocket.create_connection(('127.0.0.1', 8765), timeout=2)"
        )
        assert error.name == "ConnectionRefusedError"
        assert other.run("open('/tmp/left')")[1].name == "FileNotFoundError"


def test_there_is_no_network(session):
    _, error = session.run("import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=2)")
    assert "unreachable" in error.text


def test_functions_are_called_with_exact_values_and_errors_come_back(session):
    session.run(
        "def double(x):\n    if x is None:\n        raise KeyError('none')\n    return x * 2\n"
    )
    answer = session.look("double", FUNCTION)
    assert (answer.empty(), answer.fault(FUNCTION)) == ("", "")
    unfinished = []
    double = answer.subject(True, unfinished)
    with session.budget(5):
        assert double(np.float64(1.5)) == 3.0
        assert type(double(np.float64(1))) is np.float64
        assert double([1]) == [1, 1]
        with pytest.raises(KeyError) as caught:
            double(None)
    assert str(caught.value) == "'none'"
    assert type(caught.value).__name__ == "KeyError"
    assert answer.place(caught.value) == (3, "raise KeyError('none')")
    assert unfinished == []


def test_arguments_are_changed_in_place_only_where_that_is_asked_for(session):
    session.run("def grow(x):\n    x.append(7)\n")
    answer = session.look("grow", FUNCTION)
    items = [1]
    with session.budget(5):
        with pytest.raises(InputChanged, match=r"its argument `x` from \[1\] to \[1, 7\]"):
            answer.subject(True, [])(items)
        assert items == [1]
        answer.subject(False, [])(items)
    assert items == [1, 7]


def test_classes_live_there_and_are_used_from_here(session):
    session.run(
        "class Box:\n    def __init__(self, size):\n        self.size = size\n        self.items = []\n"
        "    def put(self, item):\n        self.items.append(item)\n        return len(self.items)\n"
        "    def __len__(self):\n        return len(self.items)\n"
        "class Sly(Box):\n    __eq__ = lambda self, other: True\n    __hash__ = None\n"
    )
    with session.budget(5):
        box = session.look("Box", CLASS).subject(True, [])(3)
        assert (box.put("a"), box.put("b"), box.items, box.size) == (1, 2, ["a", "b"], 3)
        box.size = 9
        assert box.size == 9
        assert len(box) == 2
        assert type(box).__name__ == "Box"
        with pytest.raises(AttributeError):
            _ = box.nothing
        sly = session.look("Sly", CLASS).subject(True, [])(1)
        assert sly != 1
        assert sly != box


def test_faults_and_stubs_are_seen(session):
    session.run("def f(y): return y\ng = ...\nh = lambda x: ...\nclass K: pass\n")
    assert "it should take (x)" in session.look("f", FUNCTION).fault(FUNCTION)
    assert session.look("g", FUNCTION).empty() == "it is still ..."
    assert "is not a class" in session.look("f", CLASS).fault(CLASS)
    assert session.look("nothing", FUNCTION) is None
    unfinished = []
    with session.budget(5), pytest.raises(NotImplementedError):
        session.look("h", FUNCTION).subject(True, unfinished)(1)
    assert len(unfinished) == 1


def test_outputs_of_cells_are_cut_and_made_harmless(session):
    code = (
        "import sys\nfrom IPython.display import HTML, display\n"
        "print('a' * 100_000)\nprint('b' * 10, file=sys.stderr)\n"
        "display(HTML('<script>1</script>'))\n"
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(1, 1))\ndisplay(fig)\n"
    )
    outputs, error = session.run(code)
    assert error is None
    text = outputs[0]["text"]
    assert text.startswith("aaa")
    assert "the rest was cut" in text
    assert len(text) < 21_000
    assert outputs[1] == {"output_type": "stream", "name": "stderr", "text": "b" * 10 + "\n"}
    assert all(set(o["data"]) <= {"text/plain", "image/png"} for o in outputs[2:])
    assert "image/png" in outputs[3]["data"]


def test_terminal_codes_are_dropped(session):
    outputs, error = session.run("print('\\x1b[31mred\\x1b[0m \\x1b[38m \\x07!', '1 %\\r99 %')")
    assert (error, outputs[0]["text"]) == (None, "99 %\n")
    outputs, error = session.run(
        "print('\\x1b[31mred\\x1b[0m \\x1b[38m \\x07!')\nraise ValueError('\\x1b[38m')"
    )
    assert (error.text, outputs[0]["text"]) == ("", "red  !\n")


def test_there_is_no_memory_that_nobody_counts_and_no_new_namespace(session):
    for code in (
        "import os\nos.memfd_create('mine')",
        "open('/dev/shm/mine', 'w')",
        "open('/mine', 'w')",
        "open('/dev/mine', 'w')",
        "from multiprocessing.shared_memory import SharedMemory\nSharedMemory(create=True, size=9)",
    ):
        _, error = session.run(code)
        assert error.name in ("PermissionError", "OSError"), code
    refused = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "seen = [libc.shmget(0, 4096, 0o1600), libc.msgget(0, 0o1600), libc.unshare(0x10000000)]"
    )
    assert value(session, refused) == [-1, -1, -1]
    started = "import os\npid = os.fork()\nif pid == 0: os._exit(7)\nseen = os.waitpid(pid, 0)[1]"
    assert value(session, started) == 7 << 8


def test_files_are_counted(session):
    code = "for i in range(10**7): open(f'/tmp/{i}', 'w').close()"
    with pytest.raises(Stopped, match="the limit is 1000"):
        session.run(code)


def test_children_that_nobody_waits_for_are_counted_too(sandbox):
    code = (
        "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "while True:\n"
        "    if os.fork() == 0:\n"
        "        while time.process_time() < 2: pass\n"
        "        os._exit(0)\n"
        "    time.sleep(1.5)\n"
    )
    with Session(sandbox, LIMITS) as session, pytest.raises(Stopped, match="did not finish in 5 s"):
        session.run(code)


def test_a_reply_may_say_nothing_of_the_graders_own_objects(session):
    session.run(
        "import gc\nworker = next(o for o in gc.get_objects() if type(o).__name__ == 'Worker')\n"
        "use = worker.operations['use']\n"
        "worker.operations['use'] = lambda message: use({**message, 'restore': True})\n"
        "def f(x):\n    x[:] = [9]\n    return x\n"
    )
    f = session.look("f", FUNCTION).subject(True, [])
    actual = [1, 2]
    with session.budget(5):
        assert f(actual) == [9]
    assert actual == [1, 2]


def test_magics_awaits_and_syntax_errors(session):
    assert session.run("%time 1 + 1")[1] is None
    assert session.run("import asyncio\nawait asyncio.sleep(0)")[1] is None
    _, error = session.run("def f(:\n    pass")
    assert (error.name, error.line) == ("SyntaxError", 1)


def test_waiting_is_ended_and_computing_is_not_waiting(sandbox):
    with Session(sandbox, LIMITS) as session:
        busy = "import time\nend = time.process_time() + 3.5\nwhile time.process_time() < end: pass"
        assert session.run(busy)[1] is None
        began = time.monotonic()
        with pytest.raises(Stopped, match="it waited for 3 s"):
            session.run("import time\ntime.sleep(1000)")
        assert time.monotonic() - began < 30
        assert session.closed


def test_a_session_that_has_used_up_its_notebooks_time_does_not_start(sandbox):
    with pytest.raises(Stopped, match="the notebook took more than 180 s in all"):
        Session(sandbox, LIMITS, spent_s=181)


def test_sealed_code_comes_back(session):
    code = "from utils.kvcache.blocks import BlockPool\nblock = BlockPool(3, 4).allocate()"
    assert "not in reach" in session.run(code)[1].text
    source = (ROOT / "utils" / "kvcache" / "blocks.py").read_text()
    session.unseal("utils.kvcache.blocks", ["BlockPool"], source)
    assert session.run(code)[1] is None
    assert session.look("block", VALUE).subject(True, []) == 0


def test_chance_is_the_same_each_time(session):
    code = "import random\nseen = [random.random(), float(__import__('numpy').random.rand())]"
    session.seed(3)
    first = value(session, code)
    session.seed(3)
    assert value(session, code) == first


def test_no_sandbox_is_named_as_what_it_is(tmp_path):
    build_sealed(ROOT, tmp_path / "course", [])
    plain = find_sandbox("none", tmp_path / "course", ROOT / "models", tmp_path)
    assert isinstance(plain, PlainSandbox)
    assert "NO SANDBOX" in plain.protections()[0]
    with Session(plain, LIMITS) as session:
        assert value(session, "import utils\nseen = utils.__file__").startswith(
            str(tmp_path / "course")
        )
        assert "COURSE" not in str(
            value(session, "import os\nseen = sorted(set(os.environ) - {'COURSE_PROFILE'})")
        )


def test_a_sandbox_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    ask = {"course": tmp_path, "models": tmp_path, "home": tmp_path}
    with pytest.raises(SandboxError, match="There is no sandbox 'docker'"):
        find_sandbox("docker", **ask)
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match=r"Permission denied(.|\n)*SANDBOX=none"):
        find_sandbox("bubblewrap", **ask)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        find_sandbox("bubblewrap", **ask)
