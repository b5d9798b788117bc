"""A root file system made of this machine's own programs and the libraries they need, for `docker import`."""

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from utils.engines import ENGINES, llama_cpp_server

IMAGE = "course-test/llama:1"
PLAIN = "course-test/plain:1"  # without an entry point


def libraries(*programs):
    """Return the shared libraries of programs, as the loader names them."""
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, timeout=20).stdout
    return set(re.findall(r"(/\S+) \(0x", listed))


def wheel(python):
    """Return the files of the wheel's server with its Python, and a script named like the program."""
    code = (
        "import sys, sysconfig; print(sysconfig.get_path('stdlib'), sysconfig.get_path('purelib'))"
    )
    message = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    library, packages = map(Path, message.stdout.split())
    files = {os.path.realpath(python): "/app/python", llama_cpp_server.__file__: "/app/server.py"}
    left_out = {"__pycache__", "site-packages", "dist-packages", "test", "idlelib", "ensurepip"}
    for file in library.rglob("*"):
        if file.is_file() and not left_out & set(file.parts):
            files[str(file)] = f"/app/lib/{library.name}/{file.relative_to(library)}"
    for file in packages.glob("xllamacpp*/*"):
        if file.is_file():
            files[str(file)] = f"/app/{file.relative_to(packages)}"
    script = '#!/usr/bin/sh\nPYTHONHOME=/app exec /app/python /app/server.py "$@"\n'
    return files, {"/app/llama-server": script}


def root_file_system():
    """Return a tar of /app/llama-server, a shell, sleep and curl, as the engine's own image has them."""
    native, texts, programs = ENGINES["llama_cpp"].local.needs, {}, {}
    if native.name == "llama-server":
        programs[str(native)] = "/app/llama-server"
    else:
        programs, texts = wheel(native)
    for name in ("sh", "sleep", "curl"):
        if found := shutil.which(name):
            programs[found] = f"/usr/bin/{name}"
    files = dict(programs)
    for program in programs:
        if not os.access(program, os.X_OK) and not program.endswith(".so"):
            continue
        files |= {library: library for library in libraries(program)}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder in ("tmp", "root", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        for name, text in texts.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.mode, entry.size = 0o755, len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
        for source, name in sorted(files.items()):
            tar.add(os.path.realpath(source), arcname=str(Path(name)).lstrip("/"))
    return data.getvalue()
