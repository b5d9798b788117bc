"""What can go wrong when an engine is asked for, each with the next step in its message."""

from __future__ import annotations

from pathlib import Path


class EngineError(RuntimeError):
    """Any failure of an engine."""


class UnknownEngine(EngineError):
    """A name that is no engine's."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"There is no engine {name!r}. The engines are: {', '.join(known)}.")


class UnsupportedOption(EngineError):
    """An option that this engine does not have."""


class NotRunHere(EngineError):
    """An engine that this machine cannot run. It is counted as not run, never imitated.

    Attributes:
        engine: The engine's title.
        reason: Why, and what would change it.
    """

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(f"{engine}: not run here: {reason}")
        self.engine = engine
        self.reason = reason


class ModelMissing(EngineError):
    """The model's folder or file is not there, or not whole."""


class PortTaken(EngineError):
    """The port that was asked for is in use."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"Port {port} is in use by another program. Leave out port=, and a free one is taken; "
            f"or find the program (ss -ltnp | grep {port}) and end it."
        )
        self.port = port


class EngineStartError(EngineError):
    """An engine did not become healthy.

    Attributes:
        log_path: Its whole log.
        hint: What to try.
        tail: The last lines of its log.
    """

    def __init__(self, title: str, what: str, tail: str, hint: str, log_path: Path) -> None:
        indented = "\n".join("    " + line for line in tail.splitlines())
        super().__init__(
            f"{title} {what}\n\nThe end of its log ({log_path}):\n{indented}\n\nWhat to try: {hint}"
        )
        self.log_path = log_path
        self.hint = hint
        self.tail = tail
