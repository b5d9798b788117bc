"""The machine of the rehearsal: a Docker Engine, images, a model hub, a GPU's answers, and a learner.

Everything is in one temporary folder. Docker, ports, mounts, users, logs and signals are real. The GPU is
not: the hook that docker runs for `--gpus` adds no device, `nvidia-smi` reads a recorded answer, and the
images have `stub_engine.py` in place of an engine. This needs root, dockerd, runc, ip, unshare and setpriv.
"""

import contextlib
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import docker
from docker_daemon import CannotStart, Daemon
from minimal_image import libraries
from model_hub import ModelHub

from tools.authoring.release import write_release
from utils.engines import ENGINES
from utils.engines.container import LABEL
from utils.profiles import ROOT

SUPPORT = ROOT / "tests" / "support"
HUB_PORT = 17999
LEARNER = 12345
CAP_SYS_RESOURCE = 24
LEFT_OUT = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "test",
}
LEFT_OUT |= {"pydoc_data", "tkinter", "turtledemo", "unittest"}
GPUS = {
    # As tests/unit/doctor/doctor_machines has them.
    "spark": "NVIDIA GB10, 12.1, [N/A], [N/A], 580.95.05",
    "cuda": "NVIDIA GeForce RTX 4090, 8.9, 24564, 24100, 580.95.05",
}
NVIDIA_SMI = """#!{python}
# Answers queries from the recorded line of one GPU, and lists the programs in containers as its users.
import os, pathlib, sys
fields = ["name", "compute_cap", "memory.total", "memory.free", "driver_version"]
line = (pathlib.Path(__file__).parent / "gpu.txt").read_text().strip()
values = dict(zip(fields, line.split(", "))) | {{"index": "0", "uuid": "GPU-0", "mig.mode.current": "[N/A]"}}
values |= {{"memory.used": "0", "count": "1", "gpu_uuid": "GPU-0", "utilization.gpu": "0", "pci.bus_id": "0"}}
for argument in sys.argv[1:]:
    if argument.startswith("--query-gpu="):
        print(", ".join(values[field] for field in argument.partition("=")[2].split(",")))
        sys.exit()
    if argument.startswith("--query-compute-apps="):
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().split(b"\\0")
            except OSError:
                continue
            if b"/rehearsal/stub_engine.py" in command:
                row = {{"pid": folder.name, "process_name": "stub", "used_memory": "[N/A]", **values}}
                print(", ".join(row[field] for field in argument.partition("=")[2].split(",")))
        sys.exit()
    if argument == "-L":
        print(f"GPU 0: {{values['name']}} (UUID: GPU-0)")
        sys.exit()
print("| NVIDIA-SMI 580.95.05   Driver Version: 580.95.05   CUDA Version: 13.0 |")
"""
# Memory of a Spark, which its GPU shares, as tests/unit/doctor/doctor_machines/gb10.txt has it.
MEMINFO = {
    "spark": """MemTotal:       127600748 kB
MemFree:        112300100 kB
MemAvailable:   118566368 kB
Buffers:           100000 kB
Cached:           6100000 kB
SwapTotal:              0 kB
SwapFree:               0 kB
"""
}
HOOK = "#!/bin/sh\ncat >/dev/null\nexit 0\n"
TOOLKIT = '#!/bin/sh\necho "NVIDIA Container Toolkit CLI version 1.19.0"\n'
# For a machine that may not raise limits, as a container without CAP_SYS_RESOURCE.
RUNC = """#!{python} -I
import json, pathlib, sys, os
arguments = sys.argv[1:]
if "create" in arguments:
    file = pathlib.Path(arguments[arguments.index("--bundle") + 1]) / "config.json"
    spec = json.loads(file.read_text())
    spec["process"].pop("rlimits", None)
    file.write_text(json.dumps(spec))
os.execv("{runc}", ["runc", *arguments])
"""
AS_LEARNER = """
set -eu
mount --make-rprivate /
n=0
for path in $SHOWN; do # a learner cannot enter /root, so only these folders of it are shown
  case $path in /root/*) mkdir -p "$KEEP/$n"; mount --bind "$path" "$KEEP/$n"; n=$((n + 1)) ;; esac
done
if [ $n -gt 0 ]; then
  mount -t tmpfs -o mode=755 tmpfs /root
  n=0
  for path in $SHOWN; do
    case $path in /root/*) mkdir -p "$path"; mount --bind "$KEEP/$n" "$path"; n=$((n + 1)) ;; esac
  done
fi
mount --bind "$PASSWD" /etc/passwd
if [ -n "$MEMINFO" ]; then mount --bind "$MEMINFO" /proc/meminfo; fi
cd "$COURSE"
exec setpriv --reuid $LEARNER --regid $LEARNER $GROUPS_OPTION -- "$@"
"""


def may_raise_limits():
    """Tell whether this process may raise hard limits."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in lines if line.startswith("CapEff"))
    return bool(int(effective, 16) >> CAP_SYS_RESOURCE & 1)


def python_files():
    """Return this machine's Python, its library and what they load, by their places in the image."""
    program = os.path.realpath(sys.executable)
    library = Path(os.__file__).parent
    files = {program: "/opt/python/bin/python3"}
    for file in library.rglob("*"):
        parts = file.relative_to(library).parts
        if file.is_file() and not LEFT_OUT & set(parts) and not parts[0].startswith("config-"):
            files[str(file)] = f"/opt/python/lib/{library.name}/{file.relative_to(library)}"
    binaries = [program, *(file for file in files if file.endswith(".so"))]
    return files | {path: path for path in libraries(*binaries)}


def image_tar():
    """Return the root of all images: Python, the stand-in with its records, and chown."""
    chown = shutil.which("chown")
    files = python_files() | {path: path for path in libraries(chown)} | {chown: "/usr/bin/chown"}
    for name in ("stub_engine.py", "engine_flags.json", "fake_ollama.py"):
        files[str(SUPPORT / name)] = f"/rehearsal/{name}"
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder in ("tmp", "root", "proc", "sys", "dev", "run", "etc", "var/tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(entry)
        for source, place in sorted(files.items()):
            tar.add(os.path.realpath(source), arcname=place.lstrip("/"))
    return data.getvalue()


class Stage:
    """Everything that a rehearsal needs, started.

    Args:
        engines: Engines whose image is there. The others are missing, and no registry answers.

    Attributes:
        hub: The model hub, which also tells containers how to fail.
        client: A client of the Docker Engine.
        course: The learner's copy of the course.
        home: The learner's home.

    Raises:
        CannotStart: A program or a right is missing here.
    """

    def __init__(self, engines=("vllm", "sglang", "tensorrt_llm", "llama_cpp", "ollama")):
        for program in ("runc", "unshare", "setpriv"):
            if shutil.which(program) is None:
                raise CannotStart(f"there is no {program}")
        self.folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
        self.folder.chmod(0o755)
        self.closing = contextlib.ExitStack()
        self.closing.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._set_up(engines)
        except BaseException:
            self.close()
            raise

    def _set_up(self, engines):
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        base = Path(os.path.realpath(sys.executable))
        for name, text in {
            "nvidia-container-runtime-hook": HOOK,
            "nvidia-ctk": TOOLKIT,
            "nvidia-smi": NVIDIA_SMI.format(python=base),
            "rehearsal-runc": RUNC.format(python=base, runc=shutil.which("runc")),
        }.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        runtime = ["--add-runtime", f"rehearsal={self.bin}/rehearsal-runc"]
        runtime += ["--default-runtime", "rehearsal"]
        self.daemon = Daemon([] if may_raise_limits() else runtime, self.bin)
        self.closing.callback(self.daemon.close)
        os.chown(self.daemon.socket, 0, LEARNER + 1)
        self.client = docker.DockerClient(self.daemon.host)
        self.hub = ModelHub(self.folder, self.daemon.gateway, HUB_PORT)
        self.closing.callback(self.hub.close)
        self._make_images(engines)
        self.course, self.home = self.folder / "course", self.folder / "home"
        write_release(ROOT, self.course)
        (self.course / ".venv").symlink_to(ROOT / ".venv")
        self.home.mkdir()
        passwd = "".join(
            f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{user.pw_dir}:{user.pw_shell}\n"
            for user in pwd.getpwall()
        )
        (self.folder / "passwd").write_text(
            f"{passwd}learner:x:{LEARNER}:{LEARNER}::{self.home}:/bin/sh\n"
        )
        subprocess.run(["chown", "-hR", f"{LEARNER}:{LEARNER}", self.course, self.home], check=True)

    def _make_images(self, engines):
        stub = ["/opt/python/bin/python3", "/rehearsal/stub_engine.py"]
        self.client.api.import_image_from_data(image_tar(), "rehearsal", "base")
        base = self.client.containers.create("rehearsal:base", stub)
        for name in engines:
            repository, _, tag = ENGINES[name].container.image.rpartition(":")
            changes = [f"ENTRYPOINT {json.dumps([*stub, name])}", "ENV PYTHONHOME=/opt/python"]
            if name == "ollama":
                changes.append('CMD ["serve"]')
            base.commit(repository, tag, changes="\n".join(changes))
        base.remove()

    def close(self):
        """End everything, and remove the folder."""
        self.closing.close()

    def left(self):
        """Return the names of the course's containers."""
        found = self.client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
        return [container.name for container in found]

    def wait_until_nothing_is_left(self, seconds=6.0):
        """Return the containers that are still there after some time."""
        deadline = time.monotonic() + seconds
        while (found := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def fresh_home(self):
        """Give the learner a home without caches."""
        shutil.rmtree(self.home)
        self.home.mkdir()
        os.chown(self.home, LEARNER, LEARNER)

    def start(self, command, profile, *, groups=(LEARNER + 1,), **changes):
        """Start a command as the learner in the course's folder, and return its process.

        Args:
            command: Program and arguments.
            profile: `spark` or `cuda`.
            groups: The learner's further groups; the first one may use docker.
            **changes: Environment variables.
        """
        (self.bin / "gpu.txt").write_text(GPUS[profile] + "\n")
        memory = self.folder / "meminfo"
        memory.write_text(MEMINFO.get(profile, ""))
        prefix = Path(os.path.realpath(sys.executable)).parents[1]
        option = f"--groups {','.join(map(str, groups))}" if groups else "--clear-groups"
        (self.folder / "keep").mkdir(exist_ok=True)
        outer = {
            "SHOWN": f"{prefix} {ROOT} {os.path.realpath(ROOT / '.venv')}",
            "KEEP": str(self.folder / "keep"),
            "PASSWD": str(self.folder / "passwd"),
            "MEMINFO": str(memory) if profile in MEMINFO else "",
            "COURSE": str(self.course),
            "LEARNER": str(LEARNER),
            "GROUPS_OPTION": option,
            "PATH": os.environ["PATH"],
        }
        inner = {
            "HOME": str(self.home),
            "USER": "learner",
            "LOGNAME": "learner",
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{self.course}:{SUPPORT}",
            "DOCKER_HOST": self.daemon.host,
            "HF_ENDPOINT": self.hub.url,
            "COURSE_PROFILE": profile,
            "COURSE_LOAD": "quick",
            "COURSE_REHEARSAL": "1",
            "CXX": "no-compiler",  # building engine files takes minutes; tests/notebooks does it
            "LANG": "C.UTF-8",
        } | changes
        pairs = [f"{name}={value}" for name, value in inner.items()]
        words = [
            "unshare",
            "-m",
            "sh",
            "-c",
            AS_LEARNER,
            "as-learner",
            "env",
            "-i",
            *pairs,
            *command,
        ]
        return subprocess.Popen(
            words,
            env=outer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command, profile, *, timeout=120, **options):
        """Run a command as the learner; return its exit code and its output."""
        process = self.start(command, profile, **options)
        try:
            text, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            return None, text
        return process.returncode, text

    def python(self, code, profile, **options):
        """Run Python code as the learner; return its exit code and its output."""
        return self.run([str(ROOT / ".venv/bin/python"), "-c", code], profile, **options)

    def notebook(self, stem, profile, *, limit=240, whole=600, **options):
        """Run a lab's notebook as the learner; return what `learner_run.py` tells of it.

        Args:
            stem: Name of the notebook.
            profile: `spark` or `cuda`.
            limit: Longest time of a cell, seconds.
            whole: Longest time of the notebook, seconds.
            **options: Options of `start`.
        """
        out = self.home / f"{stem}.{profile}.json"
        command = [str(ROOT / ".venv/bin/python"), str(SUPPORT / "learner_run.py")]
        command += [str(self.course / "labs" / f"{stem}.ipynb"), str(out), str(limit)]
        code, text = self.run(command, profile, timeout=whole, **options)
        if not out.exists():
            return {
                "error": f"exit code {code}: {text[-3000:]}",
                "cells": {},
                "faults": [text[-500:]],
            }
        found = json.loads(out.read_text())
        out.unlink()
        return found
