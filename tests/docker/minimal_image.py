"""A root file system made of this machine's own programs and the libraries they need, for `docker import`."""

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from utils.engines.llama_cpp import SERVER

IMAGE = "course-test/llama:1"
PLAIN = "course-test/plain:1"  # without an entry point


def libraries(program):
    """The shared libraries of a program, as the loader names them."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=20).stdout
    return set(re.findall(r"(/\S+) \(0x", listed))


def root_file_system():
    """A tar of /app/llama-server, a shell, sleep and curl, as the engine's own image has them."""
    programs = {str(SERVER): "/app/llama-server"}
    for name in ("sh", "sleep", "curl"):
        if found := shutil.which(name):
            programs[found] = f"/usr/bin/{name}"
    files = dict(programs)
    for program in programs:
        files |= {library: library for library in libraries(program)}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder in ("tmp", "root", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        for source, name in sorted(files.items()):
            tar.add(os.path.realpath(source), arcname=str(Path(name)).lstrip("/"))
    return data.getvalue()
