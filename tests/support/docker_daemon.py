"""A Docker Engine of its own for the tests: own data, socket and bridge; it touches no firewall."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import docker


class CannotStart(Exception):
    """Why there is no Docker Engine here."""


class Daemon:
    """`dockerd` with everything of it in one folder.

    Published ports work through docker's proxy, which needs neither iptables nor forwarding.

    Args:
        arguments: Further arguments of dockerd.
        programs: Folder that comes first on its PATH.

    Attributes:
        host: Address for DOCKER_HOST.
        gateway: Address of this machine as its containers see it.
    """

    def __init__(self, arguments=(), programs=None):
        for program in ("dockerd", "ip"):
            if shutil.which(program) is None:
                raise CannotStart(f"there is no {program} (Debian: apt install docker.io iproute2)")
        if os.geteuid() != 0:
            raise CannotStart("dockerd needs root")
        self.arguments, self.programs = list(arguments), programs
        self.folder = Path(tempfile.mkdtemp(prefix="course-docker-"))
        self.folder.chmod(0o711)  # other users reach the socket
        self.socket = self.folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.log = self.folder / "dockerd.log"
        self.bridge = f"course{os.getpid() % 10**7}"
        self.process = None
        try:
            self._make_bridge()
            self.start()
        except BaseException:
            self.close()
            raise

    def _make_bridge(self):
        third = os.getpid() % 250
        self.gateway = f"10.213.{third}.1"
        for command in (
            ["link", "add", "name", self.bridge, "type", "bridge"],
            ["address", "add", f"{self.gateway}/24", "dev", self.bridge],
            ["link", "set", self.bridge, "up"],
        ):
            done = subprocess.run(["ip", *command], capture_output=True, text=True, timeout=10)
            if done.returncode:
                raise CannotStart(f"no network bridge: {done.stderr.strip()}")

    def start(self):
        """Starts it, again too; returns when it answers."""
        command = ["dockerd", "--host", self.host, "--bridge", self.bridge]
        command += ["--data-root", str(self.folder / "data")]
        command += ["--exec-root", str(self.folder / "exec")]
        command += ["--pidfile", str(self.folder / "pid")]
        command += [
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ]
        command += ["--max-download-attempts", "1", *self.arguments]
        environment = dict(os.environ)
        if self.programs:
            environment["PATH"] = f"{self.programs}:{environment['PATH']}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(docker.errors.DockerException):
                docker.DockerClient(self.host).ping()
                return
            time.sleep(0.1)
        tail = self.log.read_text().strip().splitlines()[-1:]
        raise CannotStart(f"dockerd does not start: {tail}")

    def stop(self):
        """Ends it, and with it the containers that run."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=40)

    def close(self):
        """Ends it and removes all that it had."""
        self.stop()
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)
