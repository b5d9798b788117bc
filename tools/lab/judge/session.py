"""The grader's side of a worker process: asks, waits, bounds, and takes nothing on trust."""

from __future__ import annotations

import builtins
import contextlib
import copy
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import psutil

from tools.lab.judge.rpc_codec import MAX_BYTES, UNREADABLE, Codec, WireError, from_bytes, to_bytes
from tools.lab.judge.sandbox import Sandbox, SandboxLimits
from tools.lab.judge.sanitize_outputs import harmless, plain
from tools.lab.judge.syscalls import can_refuse
from utils.checks.attempt import ExpectedKind, Stopped, out_of_time
from utils.checks.failures import CheckFailed

_START_S = 60.0
_LOOK_S = 0.1
_ERROR_TEXT = 4000
_WAITING = (psutil.STATUS_SLEEPING, psutil.STATUS_IDLE, psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


class Died(Stopped):
    """The worker is gone, by its own doing or by a limit; a new one is needed."""

    def __init__(self, message: str, cause: str = "limit") -> None:
        super().__init__(message, cause)


def _overdrawn(limits: SandboxLimits) -> Died:
    return Died(f"the notebook took more than {limits.notebook_s:g} s in all", "time")


class Session:
    """One worker process, from start to end; use it as a context manager.

    Args:
        sandbox: how to start it.
        limits: what it may take.
        spent_s: processor seconds of the same notebook's earlier workers.

    Raises:
        Stopped: the notebook has used up its time.
        RuntimeError: it does not come up (a fault of the grader, not of the learner).
    """

    def __init__(self, sandbox: Sandbox, limits: SandboxLimits, spent_s: float = 0.0) -> None:
        if spent_s >= limits.notebook_s:
            raise _overdrawn(limits)
        self.limits = limits
        self.classes: set[type] = set()
        self._spent_before = spent_s
        self._seen_s = 0.0
        self._took_s: dict[tuple[int, float], float] = {}  # by process, also those that ended
        self._temporary: list[str] = []  # known once the worker is up: its root is ours before
        self._until, self._seconds = spent_s + _START_S, _START_S
        self._idle_s = 0.0
        self.closed = False
        self._number = 0
        self._buffer = b""
        self._errors = b""
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        processes = limits.processes if sandbox.own_user else -1
        numbers = [theirs_in, theirs_out, limits.memory_bytes, processes, 64 << 20]
        refuse = int(sandbox.own_user and can_refuse())
        command = ["-P", "-m", "tools.lab.judge.worker", *map(str, [*numbers, refuse])]
        self._process = subprocess.Popen(
            sandbox.command(command),
            cwd=sandbox.cwd,
            env=sandbox.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._tree = psutil.Process(self._process.pid)
        os.set_blocking(self._to, False)
        try:
            self._receive(0)
        except Stopped as stopped:
            self.close()
            if self.spent_s > limits.notebook_s:
                raise
            text = self._errors.decode(errors="replace")[-_ERROR_TEXT:]
            raise RuntimeError(f"the worker did not start: {stopped}\n{text}") from stopped
        family = self._tree.children(recursive=True)
        self._family = len(family)
        self._temporary = [f"/proc/{family[-1].pid}/root{folder}" for folder in sandbox.temporary]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and all that it started."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(psutil.Error):
            for process in self._tree.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        if self._process.stderr is not None:
            self._process.stderr.close()

    @property
    def spent_s(self) -> float:
        """Processor seconds of this notebook so far."""
        return self._spent_before + self._seen_s

    @contextlib.contextmanager
    def budget(self, seconds: float) -> Iterator[None]:
        """Bound what the body asks of the worker, in its processor seconds; `Stopped` beyond.

        Processor time, not the clock's: a busy machine makes no answer wrong. A worker that waits
        (sleeps, reads) is stopped after `limits.idle_s` of waiting in all.
        """
        self._look()
        self._until, self._seconds, self._idle_s = self.spent_s + seconds, seconds, 0.0
        yield

    # ---- asking

    def run(
        self, code: str, *, ours: bool = False
    ) -> tuple[list[dict[str, Any]], LearnersError | None]:
        """Run a cell. Return its outputs (nbformat's, text and pictures) and the error that ended it.

        Args:
            code: the cell.
            ours: whether it is the course's own, which gets more time.
        """
        with self.budget(_START_S if ours else self.limits.cell_s):
            reply = self._exchange("run", code=code)
        with self._reading("what the cell showed"):
            error = reply["error"]
            return harmless(reply["outputs"]), None if error is None else _described(error)

    def look(self, variable: str, wanted: ExpectedKind) -> RemoteAnswer | None:
        """Return the cells' value of a variable; None if there is none."""
        asked = {"variable": variable, "kind": wanted.kind, "parameters": wanted.parameters}
        with self.budget(self.limits.cell_s):
            found = self._exchange("look", **asked)
        with self._reading("your answer"):
            return RemoteAnswer(self, found) if found["found"] is True else None

    def agree(self, classes: Iterable[type]) -> None:
        """Let objects of these classes come back by value."""
        self.classes.update(classes)
        self._ask("agree", classes=[f"{kind.__module__}:{kind.__qualname__}" for kind in classes])

    def seed(self, seed: int) -> None:
        """Make chance in the worker the same each time."""
        self._ask("seed", seed=seed)

    def unseal(self, module: str, names: Sequence[str], source: str) -> None:
        """Give functions of a module their code back; see tools/lab/judge/seal.py."""
        self._ask("unseal", module=module, names=names, source=source)

    def read(self, node: Any) -> Any:
        """Return the only value of a reply."""
        with self._reading("your answer"):
            return Codec(self, self.classes, agree=True).decode(node)

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Whatever a reply holds that it should not ends the session, and nothing else."""
        try:
            yield
        except UNREADABLE as error:
            self._end(f"{what} cannot be read ({error})")

    def use(self, handle: int, how: str, *args: Any, restore: bool = False, **kwargs: Any) -> Any:
        """Call, read or change the object of a handle.

        Args:
            handle: its number.
            how: "call", or one of the worker's `_USES`.
            args: values; with kwargs, for a call.
            restore: whether the caller's objects change as the learner's code changes them.
            kwargs: see args.

        Raises:
            Exception: what the learner's code raised, rebuilt.
        """
        if not restore:  # whatever the reply says of them, it says of copies
            args, kwargs = copy.deepcopy((args, kwargs))
        codec = Codec(self, self.classes, agree=True)
        sent = codec.encode([list(args), kwargs])
        reply = self._exchange("use", handle=handle, how=how, arguments=sent, restore=restore)
        with self._reading("its result"):
            result, _ = codec.decode(reply["value"])
            error = None if reply["error"] is None else _described(reply["error"]).rebuild()
        if error is not None:
            raise error
        return result

    def _ask(self, operation: str, **what: Any) -> dict[str, Any]:
        """Send one request of the grader's own."""
        with self.budget(_START_S):
            return self._exchange(operation, **what)

    def _exchange(self, operation: str, **what: Any) -> dict[str, Any]:
        """Send one request, and return its reply.

        Raises:
            Died: there is no proper reply: the process ended, or wrote something else.
            Stopped: it took too long.
        """
        self._number += 1
        self._send(to_bytes({"n": self._number, "op": operation} | what))
        reply = self._receive(self._number)
        if "failed" in reply:
            with self._reading("a failure"):
                text = plain(str(reply["failed"]), 200)
            self._end(f"your code broke the process it ran in ({text})")
        return reply

    # ---- wire.Handles

    def give(self, thing: object) -> dict[str, Any]:
        """See `wire.Handles`."""
        if isinstance(thing, Remote):
            return {"h": object.__getattribute__(thing, "_handle")}
        raise WireError(f"a check can hand on plain values, not a {type(thing).__name__}")

    def take(self, described: dict[str, Any]) -> object:
        """See `wire.Handles`."""
        name = str(described.get("name"))
        name = name if name.isidentifier() and len(name) <= 80 else "object"
        kind = type(name, (Remote,), {})
        return kind(self, int(described["h"]), plain(str(described.get("repr")), 200))

    # ---- the pipe

    def _send(self, data: bytes) -> None:
        while data:
            _, ready, _ = select.select([], [self._to], [], _LOOK_S)
            if not ready:
                self._look(_LOOK_S)
            if ready:
                try:
                    data = data[os.write(self._to, data) :]
                except BrokenPipeError:
                    raise self._gone() from None

    def _receive(self, number: int) -> dict[str, Any]:
        """Return the reply of this number; late ones of earlier numbers are dropped."""
        assert self._process.stderr is not None
        errors = self._process.stderr.fileno()
        sources = [self._from, errors]
        looked = time.monotonic()
        while True:
            reply = self._next()
            if reply is not None and reply.get("n") == number:
                return reply
            if reply is not None:
                continue
            ready, _, _ = select.select(sources, [], [], _LOOK_S)
            if errors in ready:
                text = os.read(errors, 65536)
                self._errors = (self._errors + text)[-_ERROR_TEXT:]
                if not text:
                    sources.remove(errors)
            if self._from in ready:
                data = os.read(self._from, 1 << 20)
                if not data:
                    raise self._gone()
                self._buffer += data
            if (since := time.monotonic() - looked) > _LOOK_S:
                self._look(since)
                looked = time.monotonic()

    def _next(self) -> dict[str, Any] | None:
        if len(self._buffer) < 4:
            return None
        size = int.from_bytes(self._buffer[:4], "big")
        if size > MAX_BYTES:
            self._end("your code wrote into the grader's pipe")
        if len(self._buffer) < 4 + size:
            return None
        text, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
        try:
            return from_bytes(text)
        except WireError as error:
            self._end(f"your code wrote into the grader's pipe ({error})")

    def _look(self, waited_s: float = 0.0) -> None:
        """See what the worker takes; end what takes too much."""
        if self._process.poll() is not None:
            raise self._gone()
        waited_for, busy, family = 0.0, False, []
        with contextlib.suppress(psutil.Error):
            family = [self._tree, *self._tree.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                waited_for += sum(times[:4])
                self._took_s[process.pid, process.create_time()] = sum(times[:2])
                busy = busy or process.status() not in _WAITING
        # A child's time is added to its parent's when that waits for it, which it need not do.
        seconds = max(waited_for, sum(self._took_s.values()))
        computed_s = seconds - self._seen_s
        self._seen_s = max(self._seen_s, seconds)
        self._idle_s += 0.0 if busy or computed_s > waited_s / 2 else waited_s
        limits = self.limits
        memory = sum(_memory(process, shared=True) for process in family)
        if memory > limits.memory_bytes:
            memory = sum(_memory(process, shared=False) for process in family)
        if memory > limits.memory_bytes:
            took = f"{memory / 2**30:.1f} GiB of memory in {len(family)} processes"
            self._end(f"it took {took}; the limit is {limits.memory_bytes / 2**30:g} GiB")
        if len(family) > limits.processes:
            self._end(f"it started {len(family)} processes; the limit is {limits.processes}")
        if (files := self._files()) > limits.files:
            self._end(f"it made {files} files; the limit is {limits.files}")
        if self.spent_s > limits.notebook_s:
            self.close()
            raise _overdrawn(limits)
        if self.spent_s > self._until:
            self._end(str(out_of_time(self._seconds)), "time")
        if self._idle_s > limits.idle_s:
            self._end(f"it waited for {limits.idle_s:g} s, and nothing came", "time")

    def _files(self) -> int:
        """Files in the temporary folders; each takes memory of the kernel's, also an empty one."""
        built = 0
        with contextlib.suppress(OSError):
            for facts in map(os.statvfs, self._temporary):
                built += facts.f_files - facts.f_ffree
        return built

    def _end(self, message: str, cause: str = "limit") -> NoReturn:
        self.close()
        raise Died(message, cause)

    def _gone(self) -> Died:
        """Return the reason why the worker closed its end."""
        try:
            status = self._process.wait(2)
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        names = {number.value: number.name for number in signal.Signals}
        killed = -status if status < 0 else status - 128 if status > 128 else 0
        how = f" ({names[killed]})" if killed in names else ""
        return Died(f"your code ended the process it ran in{how}")

    def strays(self) -> bool:
        """Return whether more processes run than at the start."""
        with contextlib.suppress(psutil.Error):
            return len(self._tree.children(recursive=True)) > self._family
        return False

    def listening(self) -> bool:
        """Return whether the worker's side listens on a port."""
        with contextlib.suppress(psutil.Error, OSError):
            for process in self._tree.children(recursive=True):
                for table in ("tcp", "tcp6"):
                    with open(f"/proc/{process.pid}/net/{table}") as lines:
                        if any(line.split()[3] == "0A" for line in list(lines)[1:]):
                            return True
        return False


class Remote:
    """Proxy for an object of the learner's: questions to it are asked over there."""

    def __init__(self, session: Session, handle: int, shown: str) -> None:
        for name, value in (("_session", session), ("_handle", handle), ("_shown", shown)):
            object.__setattr__(self, name, value)

    def _use(self, how: str, *args: Any) -> Any:
        return self._session.use(self._handle, how, *args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._use("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._use("set", name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._session.use(self._handle, "call", *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._use("list"))

    def __len__(self) -> int:
        return int(self._use("len"))

    def __bool__(self) -> bool:
        return self._use("bool") is True

    def __getitem__(self, key: Any) -> Any:
        return self._use("item", key)

    def __deepcopy__(self, memo: object) -> Remote:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._handle == self._handle

    def __hash__(self) -> int:
        return hash(self._handle)

    def __repr__(self) -> str:
        return str(self._shown)


class RemoteAnswer:
    """An answer in a worker (`utils.checks.attempt.LearnerResult`)."""

    def __init__(self, session: Session, found: dict[str, Any]) -> None:
        self.session = session
        self._empty = plain(str(found["empty"]), 200)
        self._fault = plain(str(found["fault"]), 500)
        self._stubs = [plain(str(name), 80) for name in list(found["stubs"])[:50]]
        self._untouched = bool(found["untouched"])
        self._value = found.get("value")
        self._remote = session.take(found)

    def empty(self) -> str:
        """See `LearnerResult`."""
        return self._empty

    def stubs(self) -> list[str]:
        """See `LearnerResult`."""
        return self._stubs

    def untouched(self) -> bool:
        """See `LearnerResult`."""
        return self._untouched

    def fault(self, wanted: ExpectedKind) -> str:
        """See `LearnerResult`."""
        return self._fault

    def subject(self, copy_inputs: bool, unfinished: list[Exception]) -> Any:
        """See `LearnerResult`."""
        if self._value is not None:
            return self.session.read(self._value)
        remote = self._remote
        assert isinstance(remote, Remote)

        def subject(*args: Any, **kwargs: Any) -> Any:
            restore = not copy_inputs
            handle: int = object.__getattribute__(remote, "_handle")
            try:
                return self.session.use(handle, "call", *args, restore=restore, **kwargs)
            except NotImplementedError as error:
                unfinished.append(error)
                raise

        return subject

    def limit(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """See `LearnerResult`."""
        return self.session.budget(min(seconds, self.session.limits.check_s))

    def place(self, error: BaseException) -> tuple[int, str]:
        """See `LearnerResult`."""
        return getattr(error, "learners_line", (0, ""))


@dataclass(frozen=True)
class LearnersError:
    """An exception that was raised over there.

    Attributes:
        kinds: its classes, "module:name", the most special first.
        name: of its class.
        text: its message.
        line: of the learner's cell, 0 if unknown.
        code: the text of that line.
    """

    kinds: tuple[str, ...]
    name: str
    text: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.text else self.name

    def rebuild(self) -> BaseException:
        """Return an exception of the same name and kind, for a check to meet."""
        base = next((kind for kind in map(_exception, self.kinds) if kind), Exception)
        text = self.text
        kind = type(self.name, (base,), {"__str__": lambda _: text})
        error: Any = base.__new__(kind)
        error.learners_line = (self.line, self.code)
        built: BaseException = error
        return built


def _memory(process: psutil.Process, *, shared: bool) -> int:
    """Return the bytes of a process: shared ones counted whole, or (slower) by its part."""
    with contextlib.suppress(psutil.Error):
        if not shared:
            return int(process.memory_full_info().pss)
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _described(error: dict[str, Any]) -> LearnersError:
    name = str(error["name"])[:80]
    return LearnersError(
        tuple(map(str, error["mro"])),
        name if name.isidentifier() else "Error",
        plain(str(error["text"]), 2000),
        int(error["line"]),
        plain(str(error["code"]), 200),
    )


def _exception(name: str) -> type[BaseException] | None:
    """Return the exception class of that name, if a check may meet it."""
    module, _, qualname = name.partition(":")
    holder: object = builtins if module == "builtins" else None
    if module.startswith("utils."):
        holder = sys.modules.get(module)
    found = getattr(holder, qualname, None)
    fits = (
        isinstance(found, type)
        and issubclass(found, (Exception, SystemExit))
        and not issubclass(found, CheckFailed)  # that only a check may raise
    )
    return found if fits else None
