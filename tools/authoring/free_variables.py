"""Which names an exercise takes from elsewhere: while a lab is graded, few cells run."""

from __future__ import annotations

import builtins
import symtable
from collections.abc import Iterator

_ALWAYS = frozenset({*dir(builtins), "display", "get_ipython", "__name__", "__file__"})


def names_from_elsewhere(source: str) -> set[str]:
    """Return the names that a cell uses and neither defines nor finds among the builtins.

    Args:
        source: Python that parses.
    """
    top = symtable.symtable(source, "cell", "exec")
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}
    own |= {symbol.get_name() for symbol in top.get_symbols() if symbol.is_imported()}
    own |= {scope.get_name() for scope in top.get_children()}
    return set(_used(top)) - own - _ALWAYS


def _used(scope: symtable.SymbolTable) -> Iterator[str]:
    outermost = scope.get_type() == "module"
    for symbol in scope.get_symbols():
        if symbol.is_referenced() and (outermost or symbol.is_global()):
            yield symbol.get_name()
    for inner in scope.get_children():
        yield from _used(inner)
