"""SGLang's own language for prompts, without the engine that its package also holds.

`import sglang` begins with the engine: it patches transformers, imports torch and triton. A program in
SGLang's language needs none of it: it talks to a running engine over HTTP. So the package is entered into
`sys.modules` unexecuted, and its subpackage `sglang.lang` is imported from the unmodified wheel. Where the
whole `sglang` was imported before, it is used as it is.

    from utils.engines.sglang_language import sgl

    sgl.set_default_backend(sgl.RuntimeEndpoint(engine.base_url))

    @sgl.function
    def answer(s, question):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("text", max_tokens=32))

Two traps of sglang 0.5.23 (sglang/lang/interpreter.py): `group += ...` on the result of `s.fork(n)` takes an
expression, a callable or a list with one expression for each branch, but no plain string; and a program that
ends in an exception while branches are open leaves their threads running, which keeps Python from ending.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

PACKAGE = "sglang"
# Of the names that `sglang/__init__.py` takes from `sglang.lang`, those that need no engine in this process.
NAMES = {
    "sglang.lang.api": (
        "assistant",
        "assistant_begin",
        "assistant_end",
        "flush_cache",
        "function",
        "gen",
        "gen_int",
        "gen_string",
        "get_server_info",
        "select",
        "separate_reasoning",
        "set_default_backend",
        "system",
        "system_begin",
        "system_end",
        "user",
        "user_begin",
        "user_end",
    ),
    "sglang.lang.backend.runtime_endpoint": ("RuntimeEndpoint",),
    "sglang.lang.choices": (
        "greedy_token_selection",
        "token_length_normalized",
        "unconditional_likelihood_normalized",
    ),
}


def enter_package() -> ModuleType:
    """Return the package `sglang` in `sys.modules`: as it was imported before, or else unexecuted.

    Raises:
        ModuleNotFoundError: sglang is not installed; the message has the command.
    """
    if PACKAGE in sys.modules:
        return sys.modules[PACKAGE]
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(
            "sglang is not in the course's environment. Run: make setup STEP=course", name=PACKAGE
        )
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    return package


def load() -> SimpleNamespace:
    """SGLang's own objects under the names that `import sglang as sgl` would give them.

    Raises:
        ModuleNotFoundError: sglang is not installed, or a package that its language needs.
    """
    enter_package()
    found = {}
    for module, names in NAMES.items():
        source = importlib.import_module(module)
        found.update({name: getattr(source, name) for name in names})
    return SimpleNamespace(**found)


sgl = load()
