"""Wrong solution that detects grading and returns stored answers.

An `AnswerReplayer` records the reference's answer to every call of an examination, and replays it. To an
unknown call it gives its last answer. A check on fixed inputs can't tell it from a right solution.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.lab.judge.rpc_codec import Codec, WireError, to_bytes


class _NoHandles:
    def give(self, thing: object) -> dict[str, Any]:
        return {"h": type(thing).__name__}

    def take(self, described: dict[str, Any]) -> object:
        raise WireError("nothing was given")


class AnswerReplayer:
    """Answers of a reference, by its calls.

    Args:
        reference: Function or class.
    """

    def __init__(self, reference: Any) -> None:
        self.reference = reference
        self.classes: set[type] = set()
        self.answers: dict[bytes, _StoredAnswer] = {}
        self.last: _StoredAnswer | None = None

    def recorder(self) -> Any:
        """Return the reference, with each of its answers recorded."""
        return self._imitate(self._record)

    def replayer(self) -> Any:
        """Return a solution that only replays recorded answers."""
        return self._imitate(self._replay)

    def _imitate(self, answer: Callable[..., Any]) -> Any:
        """Return a function or class like the reference that asks `answer(key, arguments, call)`."""
        replayer, reference = self, self.reference
        if not isinstance(reference, type):

            @functools.wraps(reference)
            def function(*args: Any, **kwargs: Any) -> Any:
                arguments = [list(args), kwargs]
                key = self._key([], arguments)
                return answer(key, arguments, lambda: reference(*args, **kwargs))

            return function

        class Like:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                state: dict[str, Any] = {"thing": None, "history": []}
                object.__setattr__(self, "_state", state)
                self._ask("__init__", args, kwargs, lambda: reference(*args, **kwargs))

            def _ask(self, name: str, args: Any, kwargs: Any, call: Callable[[], Any]) -> Any:
                state = object.__getattribute__(self, "_state")
                arguments = [list(args), kwargs]
                state["history"].append((name, copy.deepcopy(arguments)))

                def call_thing() -> Any:
                    result = call()
                    if name == "__init__":
                        state["thing"], result = result, None
                    return result

                return answer(replayer._key(state["history"], []), arguments, call_thing)

            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                state = object.__getattribute__(self, "_state")
                if inspect.isfunction(getattr(reference, name, None)):
                    return lambda *args, **kwargs: self._ask(
                        name, args, kwargs, lambda: getattr(state["thing"], name)(*args, **kwargs)
                    )
                key = replayer._key(state["history"], [name])
                return answer(key, [], lambda: getattr(state["thing"], name))

        return type(reference.__name__, (Like,), {})

    def _record(self, key: bytes, arguments: Any, call: Callable[[], Any]) -> Any:
        codec = Codec(_NoHandles(), self.classes, agree=True)
        codec.encode(arguments)
        try:
            result = call()
        except Exception as error:
            self.answers[key] = self.last = _StoredAnswer(codec.encode([None, arguments]), error)
            raise
        self.answers[key] = self.last = _StoredAnswer(codec.encode([result, arguments]))
        return result

    def _replay(self, key: bytes, arguments: Any, call: Callable[[], Any]) -> Any:
        codec = Codec(_NoHandles(), self.classes, agree=True)
        if key in self.answers:
            codec.encode(arguments)  # so that the same objects change as they did then
        stored = self.answers.get(key, self.last)
        assert stored is not None
        result, _ = codec.decode(stored.value)
        if stored.error is not None:
            raise stored.error
        return result

    def _key(self, history: list[Any], arguments: list[Any]) -> bytes:
        return to_bytes(Codec(_NoHandles(), self.classes, agree=True).encode([history, arguments]))


@dataclass(frozen=True)
class _StoredAnswer:
    """Encoded result and arguments after a call, and the exception that it raised."""

    value: Any
    error: Exception | None = None
