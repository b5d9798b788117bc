"""The process in which a learner's cells run; the grader asks, it answers (tools/lab/judge/session.py).

Nothing here is trusted once a learner's cell has run: it may have changed any of it. All that it can
do with that is to send other values, and values are what the grader judges.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, BinaryIO

import numpy as np
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tools.lab.judge.parent_death_signal import end_with_parent
from tools.lab.judge.rpc_codec import Codec, WireError, from_bytes, to_bytes
from tools.lab.judge.syscalls import refuse_for_ever
from utils.checks.attempt import (
    ExpectedKind,
    LocalAnswer,
    line_of,
    refuse_changes,
    signature_fault,
    why_empty,
)
from utils.checks.expect import brief

TEXT_LIMIT = 20_000
_CUT = "\n[... the rest was cut: {} characters are kept]\n"
_MAX_PICTURES = 3


class Things:
    """Objects that stay here and have a number."""

    def __init__(self) -> None:
        self.things: list[object] = []

    def give(self, thing: object) -> dict[str, Any]:
        """See `wire.Handles`."""
        self.things.append(thing)
        return {"h": len(self.things) - 1, "name": type(thing).__name__[:80], "repr": brief(thing)}

    def take(self, described: dict[str, Any]) -> object:
        """See `wire.Handles`."""
        return self.things[described["h"]]


class Cut(io.TextIOBase):
    """File that keeps the beginning of the written text, and drops the rest."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.room = TEXT_LIMIT
        self.cut = False

    def write(self, text: str) -> int:
        """Keep what there is room for."""
        self.kept.append(text[: self.room])
        self.cut = self.cut or len(text) > self.room
        self.room -= min(len(text), self.room)
        return len(text)

    def text(self) -> str:
        """Return the kept text, with a note where something was dropped."""
        return "".join(self.kept) + (_CUT.format(TEXT_LIMIT) if self.cut else "")


class LearnerShell(InteractiveShell):
    """IPython without a terminal or a window."""

    def enable_gui(self, gui: str | None = None) -> None:
        """`%matplotlib` asks for it; there is none to enable."""


class Worker:
    """Runs cells in IPython, and looks at, calls and reads what they define."""

    def __init__(self) -> None:
        self.things = Things()
        self.classes: set[type] = set()
        config = Config()
        config.HistoryManager.enabled = False
        self.shell = LearnerShell.instance(config=config)
        self.shell.showtraceback = _say_nothing  # type: ignore[method-assign]
        self.operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "run": self.run,
            "look": self.look,
            "agree": self.agree,
            "use": self.use,
            "seed": self.seed,
            "unseal": self.unseal,
        }

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run one cell; reply with its outputs, and with the error that ended it."""
        out, err = Cut(), Cut()
        publisher = CapturingDisplayPublisher()  # type: ignore[no-untyped-call]
        keep, self.shell.display_pub = self.shell.display_pub, publisher
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                result = self.shell.run_cell(message["code"])  # type: ignore[no-untyped-call]
        finally:
            self.shell.display_pub = keep
        streams = [("stdout", out.text()), ("stderr", err.text())]
        outputs = [{"output_type": "stream", "name": n, "text": t} for n, t in streams if t] + list(
            _pictures(publisher.outputs)
        )
        error = result.error_before_exec or result.error_in_exec
        return {"outputs": outputs, "error": None if error is None else self.describe(error, None)}

    def look(self, message: dict[str, Any]) -> dict[str, Any]:
        """Reply with a variable of the cells: a number to call it by, and its faults."""
        if message["variable"] not in self.shell.user_ns:
            return {"found": False}
        thing = self.shell.user_ns[message["variable"]]
        wanted = ExpectedKind(message["kind"], tuple(message["parameters"]))
        empty = why_empty(thing)
        fault = "" if empty else signature_fault(thing, wanted)
        codec = Codec(self.things, self.classes, agree=False)
        value = codec.encode(thing) if wanted.kind == "value" and not (empty or fault) else None
        local = LocalAnswer(thing)
        written = {"stubs": local.stubs(), "untouched": local.untouched()}
        found = {"found": True, "empty": empty, "fault": fault, "value": value}
        return found | written | self.things.give(thing)

    def agree(self, message: dict[str, Any]) -> dict[str, Any]:
        """Classes whose objects may cross by value."""
        codec = Codec(self.things, self.classes, agree=False)
        for name in message["classes"]:
            codec._class(name)
        return {}

    def use(self, message: dict[str, Any]) -> dict[str, Any]:
        """Call, read or change one thing."""
        thing: Any = self.things.things[message["handle"]]
        codec = Codec(self.things, self.classes, agree=False)
        arguments = codec.decode(message["arguments"])
        args, kwargs = arguments
        how = message["how"]
        sink = Cut()
        error = None
        result = None
        pid = os.getpid()
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                if how == "call":
                    result = thing(*args, **kwargs)
                    if result is ...:
                        raise NotImplementedError("it returns ...")
                    if not message["restore"] and not isinstance(thing, type):
                        # Another codec, because this one would give the objects their old contents.
                        sent = Codec(self.things, self.classes, agree=False)
                        refuse_changes(thing, sent.decode(message["arguments"]), arguments)
                elif how == "list":
                    result = list(thing)
                else:
                    result = _USES[how](thing, *args)
            reply = codec.encode([result, arguments if message["restore"] else None])
        except BaseException as caught:
            error = self.describe(caught, thing)
            reply = codec.encode([None, arguments if message["restore"] else None])
        if os.getpid() != pid:  # the learner's code forked: only one of us may answer
            os._exit(1)
        return {"value": reply, "error": error}

    def seed(self, message: dict[str, Any]) -> dict[str, Any]:
        """Chance, the same each time."""
        random.seed(message["seed"])
        np.random.seed(message["seed"])
        return {}

    def unseal(self, message: dict[str, Any]) -> dict[str, Any]:
        """Give functions of the course their code back, once no grade depends on them."""
        codes = dict(_codes(compile(message["source"], message["module"], "exec")))
        module = sys.modules.get(message["module"]) or __import__(message["module"], fromlist=["_"])
        for name in message["names"]:
            for function in _functions(module, name):
                if function.__qualname__ in codes:
                    function.__code__ = codes[function.__qualname__]
        return {}

    def describe(self, error: BaseException, learner: Any) -> dict[str, Any]:
        """Return an exception in plain values."""
        try:
            text = str(error.msg if isinstance(error, SyntaxError) else error)[:2000]
        except Exception:
            text = ""
        place = line_of(error, learner) if learner is not None else _line(error)
        mro = [f"{kind.__module__}:{kind.__qualname__}" for kind in type(error).__mro__]
        name = type(error).__name__[:80]
        return {"mro": mro, "name": name, "text": text, "line": place[0], "code": place[1][:200]}


_USES: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "item": lambda thing, key: thing[key],
    "len": len,
    "bool": bool,
}


def _say_nothing(*args: object, **kwargs: object) -> None:
    """In place of a printed traceback: the reply tells of the error."""


def _line(error: BaseException) -> tuple[int, str]:
    """Line of the cell at which its execution failed."""
    if isinstance(error, SyntaxError):
        return error.lineno or 0, (error.text or "").strip()
    traceback, number = error.__traceback__, 0
    while traceback is not None:
        if "ipython-input" in traceback.tb_frame.f_code.co_filename:
            number = traceback.tb_lineno
        traceback = traceback.tb_next
    return number, ""


def _pictures(outputs: list[Any]) -> Iterator[dict[str, Any]]:
    """Return a cell's display, without anything that a browser would run."""
    for output in outputs[:_MAX_PICTURES]:
        data = output["data"]
        kept = {"text/plain": str(data.get("text/plain", ""))[:2000]}
        picture = data.get("image/png")
        if isinstance(picture, str) and len(picture) < 400_000:
            kept["image/png"] = picture
        yield {"output_type": "display_data", "data": kept, "metadata": {}}


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


def _functions(module: Any, name: str) -> Iterator[FunctionType]:
    thing = module
    for part in name.split("."):
        thing = vars(thing)[part] if isinstance(thing, type) else getattr(thing, part)
    for member in vars(thing).values() if isinstance(thing, type) else [thing]:
        function = getattr(member, "fget", member)
        if isinstance(function, FunctionType):
            yield function


def _limit(memory: int, processes: int, file_bytes: int) -> None:
    """Bound what this process and its children may take; cannot be undone."""
    wanted = [
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ]
    for what, value in wanted:
        if value >= 0:
            _, hard = resource.getrlimit(what)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(what, (value, value))


def _read(channel: BinaryIO, size: int) -> bytes:
    data = channel.read(size)
    if len(data) < size:
        os._exit(0)  # the grader is gone
    return data


def main() -> None:
    """Answer requests on two file descriptors until the other side closes."""
    source, target, memory, processes, file_bytes, refuse = map(int, sys.argv[1:7])
    end_with_parent()
    requests, replies = os.fdopen(source, "rb"), os.fdopen(target, "wb")
    _limit(memory, processes, file_bytes)
    if refuse:
        refuse_for_ever()
    worker = Worker()

    def send(message: dict[str, Any]) -> None:
        replies.write(to_bytes(message))
        replies.flush()

    send({"n": 0})
    while True:
        message = from_bytes(_read(requests, int.from_bytes(_read(requests, 4), "big")))
        number, pid = message["n"], os.getpid()
        try:
            reply = worker.operations[message["op"]](message)
        except BaseException as error:
            reply = {"failed": f"{type(error).__name__}: {error}"[:500]}
        if os.getpid() != pid:
            os._exit(1)
        try:
            send({"n": number} | reply)
        except WireError as error:
            send({"n": number, "failed": str(error)})


if __name__ == "__main__":
    main()
