"""Set-up with small steps in place of the real ones."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tools.setup import __main__ as command
from tools.setup import setup_steps
from tools.setup.packages import install, install_cpu_torch, uv_settings
from tools.setup.progress_line import Progress
from tools.setup.setup_steps import (
    COURSE,
    LLAMA_CPP,
    LLAMA_CPP_NATIVE,
    REQUIREMENTS,
    SGLANG,
    SGLANG_CUDA,
    STAMP,
    VLLM,
    VLLM_CUDA,
    Step,
    steps_for,
)
from tools.setup.shell import SetupError, Shell, advice_for
from utils.profiles import ROOT


def good(shell, target):
    target.mkdir()
    shell.run([sys.executable, "-c", "print('installing torch')"])
    (target / "file").write_text("x")


def bad(shell, target):
    target.mkdir()
    (target / "half").write_text("x")
    shell.run([sys.executable, "-c", "print('No matching distribution found for x'); exit(1)"])


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "LOGS", tmp_path / "logs")
    (tmp_path / "logs").mkdir()

    monkeypatch.setattr(command, "UV_CACHE", tmp_path / "uv")

    def step(build=good, name="one", compiles=False):
        target, locks = tmp_path / name, ("course.txt",)
        return Step(name, f"step {name}", target, 1.0, 0.001, locks, build, compiles=compiles)

    return step


def test_a_step_runs_once(make, capsys):
    step = make()
    command.set_up([step])
    assert "1 min, 0.0 GB" in capsys.readouterr().out
    assert step.done()
    (step.target / "file").write_text("changed")
    command.set_up([step])
    assert (step.target / "file").read_text() == "changed"
    assert capsys.readouterr().out == ""


def test_later_commands_go_on_with_the_python_that_set_up(make, tmp_path):
    def asked(*arguments):
        line = ["make", "-n", "doctor", *arguments]
        alone = {
            k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHON"))
        }
        message = subprocess.run(
            line, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True
        )
        return message.stdout

    shutil.copy(ROOT / "Makefile", tmp_path)
    assert asked() == "python3 -m tools.doctor\n"
    command.set_up([make()])
    (tmp_path / "logs").rename(tmp_path / ".setup")
    assert asked() == f"{sys.executable} -m tools.doctor\n"
    assert asked("PYTHON=python3.13") == "python3.13 -m tools.doctor\n"
    (tmp_path / ".setup" / "python").write_text("/no/such/python")
    assert asked() == "python3 -m tools.doctor\n"


def test_costs_are_said_before_anything_starts(make, capsys):
    def noisy(shell, target):
        print("STARTED")
        good(shell, target)

    command.set_up([make(noisy)])
    output = capsys.readouterr().out
    assert output.index("1 min") < output.index("STARTED")


def test_a_failed_step_leaves_nothing_and_says_what_to_do(make):
    step = make(bad)
    with pytest.raises(SetupError, match="No matching distribution") as caught:
        command.set_up([step])
    assert "Python 3.11 to 3.13" in caught.value.advice
    assert not step.target.exists()


def test_finished_steps_are_kept_when_a_later_one_fails(make):
    first, second = make(good, "first"), make(bad, "second")
    with pytest.raises(SetupError):
        command.set_up([first, second])
    assert first.done()
    assert not second.target.exists()


def waiting_for(file, seconds=600):
    """A step that starts a command, says so in `file`, and waits until somebody ends it."""
    code = f"import pathlib, time; pathlib.Path({str(file)!r}).touch(); time.sleep({seconds})"

    def build(shell, target):
        target.mkdir()
        shell.run([sys.executable, "-c", code])

    return build


def until(file):
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_compiling_runs_beside_the_steps_that_install(make, tmp_path, capsys):
    def meets(own, other):
        def build(shell, target):
            (tmp_path / own).touch()
            until(tmp_path / other)
            good(shell, target)

        return build

    installs = make(meets("a", "b"), "installs")
    compiles = make(meets("b", "a"), "compiles", compiles=True)
    after = make(good, "after")
    (tmp_path / "uv").mkdir()
    command.set_up([installs, compiles, after])
    assert installs.done() and compiles.done() and after.done()
    assert not (tmp_path / "uv").exists(), "the cache goes with the set-up"
    lines = capsys.readouterr().out.splitlines()
    ready = [line.split(":")[0].strip() for line in lines if ": ready after" in line]
    assert sorted(ready) == ["after", "compiles", "installs"]
    assert ready.index("installs") < ready.index("after"), "installing steps run in order"


@pytest.mark.parametrize("compiling_fails", [True, False])
def test_one_that_fails_ends_what_runs_beside_it(make, tmp_path, compiling_fails):
    def fails_late(shell, target):
        until(tmp_path / "started")
        bad(shell, target)

    fails = make(fails_late, "fails", compiles=compiling_fails)
    waits = make(waiting_for(tmp_path / "started"), "waits", compiles=not compiling_fails)
    never = make(good, "never", compiles=not compiling_fails)
    began = time.monotonic()
    with pytest.raises(SetupError, match=r"fails: .*ended with code 1"):
        command.set_up([fails, waits, never])
    assert time.monotonic() - began < 60
    assert not any(step.target.exists() for step in (fails, waits, never))


def test_ctrl_c_ends_both_of_two_lanes(make, tmp_path, monkeypatch, capsys):
    def message(shell, target):
        until(tmp_path / "started")
        target.mkdir()
        os.kill(os.getpid(), signal.SIGINT)
        waiting_for(tmp_path / "never")(shell, target / "inner")

    first = make(waiting_for(tmp_path / "started"), "first")
    second = make(message, "second", compiles=True)
    monkeypatch.setattr(command, "steps_for", lambda name: (first, second))
    monkeypatch.setattr(sys, "argv", ["setup"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    began = time.monotonic()
    assert command.main() == 130
    assert time.monotonic() - began < 60
    assert not first.target.exists() and not second.target.exists()
    assert "goes on from here" in capsys.readouterr().err


def test_a_terminal_shows_all_that_runs_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((81, 24)))
    progress = Progress()
    progress.show("vllm", 3, "Installing")
    progress.show("llama_cpp", 4, "[12/163] Building " + "x" * 100)
    progress.finish("vllm", "  vllm: ready after 5 s")
    alone, both, ready = capsys.readouterr().out.split("\r")[1:4]
    assert alone.startswith("  vllm ...    3 s  Installing")
    assert "vllm ...    3 s  Installing" in both and "llama_cpp ...    4 s  [12/" in both
    assert max(map(len, (alone, both, ready.rstrip("\n")))) <= 80
    assert ready.startswith("  vllm: ready after 5 s") and ready.endswith("\n")


def test_elsewhere_a_step_says_a_line_now_and_then(capsys):
    progress = Progress()
    for seconds in range(0, 50, 5):
        progress.show("a", seconds, "x")
    progress.show("a", 50, "now", force=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["20", "40", "50"]


def test_uv_is_told_what_pip_is_configured_to():
    config = (
        ":env:.find-links='/a /b'\n"
        "global.cert='/ca.pem'\n"
        "global.constraint='/c.txt'\n"
        "global.find-links='/unused'\n"
        "global.index-url='https://user:a=b@index/simple'\n"
        "global.no-index='false'\n"
        "install.extra-index-url='\\nhttps://one/\\nfile:///two'\n"
        "install.proxy='http://proxy'\n"
    )
    options, environment = uv_settings(config)
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert pairs == [
        ("--index-strategy", "unsafe-best-match"),
        ("--default-index", "https://user:a=b@index/simple"),
        ("--extra-index-url", "https://one/"),
        ("--extra-index-url", "file:///two"),
        ("--find-links", "/a"),
        ("--find-links", "/b"),
        ("--constraint", "/c.txt"),
    ]
    assert environment["SSL_CERT_FILE"] == "/ca.pem"
    assert environment["ALL_PROXY"] == "http://proxy"
    assert "--constraint" not in uv_settings(config, alone=True)[0]
    assert uv_settings("")[0] == ["--index-strategy", "unsafe-best-match"]
    assert uv_settings(":env:.no-index='1'\n")[0][-1] == "--no-index"


class Told:
    """A shell that only notes its commands; `fails` says which of them end badly."""

    def __init__(self, fails):
        self.fails = fails
        self.commands = []

    def run(self, command, environment=None):
        self.commands.append(" ".join(command))
        if self.fails(self.commands[-1]):
            raise SetupError("no", "try")

    def output(self, command):
        return ""

    def say(self, text):
        pass


def test_pip_installs_what_uv_cannot():
    shell = Told(lambda command: "-m uv" in command)
    install(shell, "python", "--no-deps", "x==1")
    assert [command.split()[2] for command in shell.commands] == ["pip", "uv", "pip"]
    assert shell.commands[-1].endswith("--no-deps x==1")
    shell = Told(lambda command: False)
    install(shell, "python", "x==1")
    assert [command.split()[2] for command in shell.commands] == ["pip", "uv"]
    with pytest.raises(SetupError):
        install(Told(lambda command: True), "python", "x==1")


def test_pytorchs_own_index_is_asked_last():
    shell = Told(lambda command: "+cpu" in command)
    install_cpu_torch(shell, "python")
    assert "--torch-backend cpu" in shell.commands[-1]
    shell = Told(lambda command: False)
    install_cpu_torch(shell, "python")
    assert shell.commands[-1].endswith("+cpu")


def test_a_step_that_was_killed_half_way_starts_afresh(make):
    step = make()
    step.target.mkdir()
    (step.target / "half").write_text("x")
    assert not step.done()
    command.set_up([step])
    assert step.done()
    assert not (step.target / "half").exists()


def test_a_changed_lock_makes_a_step_due_again(make, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_steps, "REQUIREMENTS", tmp_path)
    (tmp_path / "course.txt").write_text("a==1\n")
    step = make()
    command.set_up([step])
    (tmp_path / "course.txt").write_text("a==2\n")
    assert not step.done()


def test_a_full_disk_is_refused_before_the_start(make, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    step = make()
    with pytest.raises(SetupError, match=r"needs about 1.0 GB .* has 0.1 GB free"):
        command.set_up([step])
    assert not step.target.exists()


def test_an_interrupt_ends_the_command_and_its_children(tmp_path):
    marker = tmp_path / "pid"
    child = tmp_path / "child.py"
    child.write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, str(child), str(marker)]
    code = (
        "from pathlib import Path\n"
        "from tools.setup.shell import Shell\n"
        f"Shell('x', Path({str(tmp_path / 'log')!r})).run({command!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (marker.exists() and marker.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_an_unknown_step_is_refused_with_the_right_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["setup", "--only", "vlm"])
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    monkeypatch.setattr(setup_steps, "on_x86", lambda machine: True)
    assert command.main() == 1
    assert (
        "The steps are: course, vllm, sglang, llama_cpp, llama_cpp_native, site."
        in capsys.readouterr().err
    )


def test_a_wrong_profile_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["setup"])
    monkeypatch.setenv("COURSE_PROFILE", "tpu")
    assert command.main() == 1
    assert "cpu, cuda, cuda-local, spark" in capsys.readouterr().err


def test_gpu_profiles_take_their_engines_from_containers():
    for profile in ("spark", "cuda", "cuda-local"):
        step = steps_for(profile)[0]
        costs = {"minutes": COURSE.minutes, "gigabytes": COURSE.gigabytes}
        assert dataclasses.replace(step, **costs) == COURSE
        assert step.gigabytes > COURSE.gigabytes + 4  # NVIDIA's libraries
    assert len(steps_for("spark")) == 1
    assert steps_for("cuda-local")[1:] == (VLLM_CUDA, SGLANG_CUDA, LLAMA_CPP)


def test_sglang_is_set_up_where_it_runs_without_its_kernels(monkeypatch):
    monkeypatch.setattr(setup_steps.platform, "machine", lambda: "x86_64")
    assert steps_for("cpu") == (COURSE, VLLM, SGLANG, LLAMA_CPP)
    monkeypatch.setattr(setup_steps.platform, "machine", lambda: "aarch64")
    assert steps_for("cpu") == (COURSE, VLLM, LLAMA_CPP)


def test_sglang_gets_what_stands_in_and_is_due_when_that_changes(monkeypatch, tmp_path):
    parts = tmp_path / "parts"
    (parts / "sgl_kernel").mkdir(parents=True)
    (parts / "sgl_kernel" / "__init__.py").write_text("x = 1\n")
    (parts / "hook.pth").write_text("import hook\n")
    monkeypatch.setattr(setup_steps, "install_cpu_torch", lambda shell, python: None)
    monkeypatch.setattr(setup_steps, "install", lambda shell, python, *arguments: None)

    def make_venv(shell, target):
        (target / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        return "python"

    monkeypatch.setattr(setup_steps, "make_venv", make_venv)
    step = dataclasses.replace(SGLANG, target=tmp_path / "sglang", parts=(parts,))
    step.run(Shell("sglang", tmp_path / "log"))
    packages = step.target / "lib" / "python3.11" / "site-packages"
    assert (packages / "sgl_kernel" / "__init__.py").read_text() == "x = 1\n"
    assert (packages / "hook.pth").is_file()
    assert step.done()
    (parts / "sgl_kernel" / "__pycache__").mkdir()
    (parts / "sgl_kernel" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"x")
    assert step.done()
    (parts / "sgl_kernel" / "__init__.py").write_text("x = 2\n")
    assert not step.done()
    (parts / "sgl_kernel" / "__init__.py").write_text("x = 1\n")
    assert step.done()
    (parts / "entry_points.txt").write_text("[plugins]\n")
    assert not step.done(), "what is no Python file is copied, too"


def test_native_build_asks_for_compiler_before_downloading(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match="needs a C\\+\\+ compiler") as caught:
        LLAMA_CPP_NATIVE.build(Shell("llama_cpp_native", tmp_path / "log"), tmp_path / "native")
    assert "Without NATIVE=1" in caught.value.advice


def test_llama_cpp_is_hashed_wheel_without_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    shell = Told(lambda command: False)
    LLAMA_CPP.build(shell, tmp_path / "llama_cpp")
    built, installed, loaded = shell.commands
    assert "-m venv" in built
    assert "--no-deps --require-hashes -r" in installed
    assert installed.endswith("xllamacpp.hash.txt")
    assert loaded.endswith("import xllamacpp")


@pytest.mark.parametrize(
    ("fails", "output", "advice"),
    [
        (
            "pip install",
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES",
            "not the one that was pinned",
        ),
        ("pip install", "OSError: [Errno 28] No space left on device", "disk is full"),
        ("pip install", "ProxyError('Cannot connect to proxy.')", "set HTTPS_PROXY"),
        ("pip install", "IncompleteRead(9 bytes read, 5 more expected)", "cut off"),
        ("import xllamacpp", "ImportError: libgomp.so.1: cannot open shared", "libgomp1"),
    ],
)
def test_failed_llama_cpp_leaves_nothing_and_tells_fix(
    make, monkeypatch, tmp_path, fails, output, advice
):
    real = Shell.run

    def run(shell, line, environment=None):
        if fails in " ".join(line):
            line = [sys.executable, "-c", f"print({output!r}); exit(1)"]
        elif "-m venv" not in " ".join(line):
            line = [sys.executable, "-c", ""]
        elif fails == "pip install":
            (tmp_path / "llama_cpp").mkdir()
            return
        real(shell, line, environment)

    monkeypatch.setattr(Shell, "run", run)
    step = make(LLAMA_CPP.build, "llama_cpp")
    with pytest.raises(SetupError) as caught:
        command.set_up([step])
    assert advice in caught.value.advice
    assert not step.target.exists()


def chosen(monkeypatch, *arguments):
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    monkeypatch.setattr(setup_steps, "on_x86", lambda machine: True)
    return command.choose(*arguments)


def test_native_adds_compiled_build(monkeypatch):
    assert chosen(monkeypatch, ["llama_cpp"], True) == [LLAMA_CPP, LLAMA_CPP_NATIVE]
    assert chosen(monkeypatch, None, True)[-1] == LLAMA_CPP_NATIVE
    assert LLAMA_CPP_NATIVE not in chosen(monkeypatch, None)
    assert chosen(monkeypatch, ["llama_cpp_native"]) == [LLAMA_CPP_NATIVE]


def test_native_is_refused_without_llama_cpp(monkeypatch):
    with pytest.raises(SetupError, match="llama_cpp is not among the steps"):
        chosen(monkeypatch, ["vllm"], True)


def test_make_passes_native_on(tmp_path):
    line = ["make", "-n", "setup", "STEP=llama_cpp", "NATIVE=1"]
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    shutil.copy(ROOT / "Makefile", tmp_path)
    message = subprocess.run(
        line, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True
    )
    assert message.stdout == "python3 -m tools.setup --only llama_cpp --native\n"


def test_plan_tells_which_parts_an_earlier_version_made(make, capsys):
    old, half, new = make(name="old"), make(name="half"), make(name="new")
    (old.target / "bin").mkdir(parents=True)
    (old.target / "bin" / "llama-server").write_text("compiled")
    (old.target / STAMP).write_text("stamp of an earlier layout")
    half.target.mkdir()
    command.set_up([old, half, new])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    again = [line for line in lines if line.startswith("made again")]
    assert again == [
        "made again: it was for another version, Python, profile or folder",
        "made again: it was not finished",
    ]
    assert lines.index(again[0]) == lines.index(next(x for x in lines if "step old" in x)) + 1
    assert not (old.target / "bin").exists()
    assert old.done()
    assert old.why_again() == ""


def test_changed_recipe_makes_step_due_again(make):
    step = make()
    command.set_up([step])
    assert not dataclasses.replace(step, recipe="2").done()


def test_duration_below_minute_is_in_seconds():
    assert command.duration(0.1) == "6 s"
    assert command.duration(8.0) == "8 min"


def test_silent_command_moves_progress_line(tmp_path, monkeypatch):
    shown = []

    class Seen(Progress):
        def show(self, title, seconds, text, *, force=False):
            shown.append(seconds)

    shell = Shell("silent", tmp_path / "log", progress=Seen())
    shell.run([sys.executable, "-c", "import time; time.sleep(1.4)"])
    assert len(shown) >= 3
    assert shown == sorted(shown)


def test_llama_cpp_build_keeps_compute_settings():
    lines = setup_steps.LLAMA_CPP_CMAKE.read_text().splitlines()
    given = "\n".join(line for line in lines if not line.strip().startswith("#"))
    assert "llama-common" in given and "-O1" in given
    words = given.replace("(", " ").replace(")", " ").split()
    assert not {"ggml", "ggml-base", "ggml-cpu", "llama"} & set(words)


def test_a_full_disk_in_mid_step_is_recognised(tmp_path):
    assert "disk is full" in advice_for("OSError: [Errno 28] No space left on device", tmp_path)


@pytest.mark.parametrize("name", ["course.txt", "vllm-cpu.txt", "sglang-cpu.txt"])
def test_every_version_is_pinned_and_no_engine_or_torch_is_among_them(name):
    lines = [
        line
        for line in (REQUIREMENTS / name).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert len(lines) > 90
    assert all("==" in line for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert not names & {"torch", "vllm", "sglang", "tensorrt-llm"}
    assert ("torchvision" in names) == (name == "sglang-cpu.txt")  # with its schemas declared
    assert not any(n.startswith("nvidia-") for n in names)


def test_the_lock_holds_what_pyproject_asks_for():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    lock = (REQUIREMENTS / "course.txt").read_text().lower()
    for requirement in wanted:
        if "==" in requirement and not requirement.startswith("torch=="):
            assert f"\n{requirement.lower()}" in lock, f"{requirement}: run make lock"


def test_steps_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        COURSE.minutes = 0


def test_without_a_network_that_is_what_is_said(tmp_path):
    log = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
        "ERROR: No matching distribution found for torch==2.13.0+cpu\n"
    )
    assert "could not be reached" in advice_for(log, tmp_path)


def test_the_course_environment_depends_on_the_profile(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    on_cpu = COURSE.key()
    monkeypatch.setenv("COURSE_PROFILE", "cuda")
    assert COURSE.key() != on_cpu


def test_commands_inherit_the_lock_so_that_a_rerun_waits_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "LOGS", tmp_path)
    with command.locked() as lock:
        shell = Shell("x", tmp_path / "log", lock)
        shell.run([sys.executable, "-c", f"import os; os.fstat({lock})"])
        with pytest.raises(SetupError):
            Shell("x", tmp_path / "log").run([sys.executable, "-c", f"import os; os.fstat({lock})"])


@pytest.mark.parametrize("number", command.STOPS)
def test_being_told_to_end_twice_cleans_up_once(number, make, monkeypatch, capsys):
    def message(shell, target):
        target.mkdir()
        os.kill(os.getpid(), number)
        try:
            time.sleep(5)
        finally:  # make passes on what it was told: the second comes while this cleans up
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            (target / "inner").mkdir()

    step = make(message)
    before = {known: signal.getsignal(known) for known in command.STOPS}
    monkeypatch.setattr(command, "steps_for", lambda name: (step,))
    monkeypatch.setattr(sys, "argv", ["setup"])
    try:
        assert command.main() == 130
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
    assert not step.target.exists()
    assert "goes on from here" in capsys.readouterr().err
