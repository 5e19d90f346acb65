"""Import a package without one of the libraries that it imports itself and that we never use.

While `absent(name)` lasts, `name` and its submodules are empty: whatever is taken from them is an
empty class, which may be subclassed and named in annotations and is of no other use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Placeholder:
    """Stands for any class of an absent library."""

    def __init_subclass__(cls, **_options: Any) -> None:
        """Takes whatever options the real class would take."""


class _Absence(MetaPathFinder, Loader):
    def __init__(self, name: str) -> None:
        self._name = name
        self.made: list[str] = []

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self._name:
            return None
        self.made.append(fullname)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, _spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = _placeholder


def _placeholder(name: str) -> type[Placeholder]:
    if name.startswith("__"):
        raise AttributeError(name)
    return Placeholder


@contextmanager
def absent(name: str) -> Iterator[None]:
    """Make a library absent unless it is imported already; afterwards it can be imported as ever."""
    absence = _Absence(name)
    sys.meta_path.insert(0, absence)
    try:
        yield
    finally:
        sys.meta_path.remove(absence)
        for module in absence.made:
            sys.modules.pop(module, None)
