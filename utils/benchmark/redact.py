"""Commands and addresses without their secrets, for records, logs and pages."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
_NAME = re.compile(r"(api[-_]?key|token|secret|password|passwd|authorization)$", re.IGNORECASE)
_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:sk|hf|nvapi|ghp|xox[a-z])[-_][A-Za-z0-9_-]{8,}")
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[?&])([^=&\s]*(?:key|token|secret|sig)[^=&\s]*)=[^&\s]+", re.IGNORECASE)


def redact(command: Sequence[str]) -> list[str]:
    """Return a command with `***` for each secret.

    Secrets are the values of options and variables whose name ends in key, token, secret or password, and
    anything that looks like a key of a known service.
    """
    shown = []
    hide = False
    for word in command:
        if hide and not word.startswith("-"):
            shown.append(HIDDEN)
            hide = False
            continue
        name, equals, value = word.partition("=")
        if equals and value and _NAME.search(name):
            word = f"{name}={HIDDEN}"
        hide = not equals and word.startswith("-") and bool(_NAME.search(name))
        shown.append(redact_text(word))
    return shown


def redact_text(text: str) -> str:
    """Return a text with `***` for keys of known services and for secrets in addresses."""
    text = _LOOKS_LIKE_A_KEY.sub(HIDDEN, text)
    text = _PASSWORD_IN_URL.sub(f"{HIDDEN}@", text)
    return _QUERY.sub(rf"\1={HIDDEN}", text)
