"""Import a package without what it imports itself and we never use.

While `absent(name)` lasts, `name` and its submodules are empty: whatever is taken from them is an
empty class, which may be subclassed and named in annotations and is of no other use. While
`body_later(name)` lasts, submodules of a package can be imported before its own `__init__` has run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder


class Placeholder:
    """Stands for any class of an absent library."""

    def __init_subclass__(cls, **_options: Any) -> None:
        """Takes whatever options the real class would take."""


class _Absence:
    """A finder and a loader, without their abstract classes: to import those takes 4 ms of each start."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made: list[tuple[str, object]] = []

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name and not fullname.startswith(f"{self._name}."):
            return None
        package, _, part = fullname.rpartition(".")
        self._made.append((fullname, getattr(sys.modules.get(package), part, None)))
        return ModuleSpec(fullname, cast("Loader", self), is_package=True)

    def create_module(self, _spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = _placeholder

    def forget(self) -> None:
        """Leave nothing of what was made, in packages that are there neither: their parts are attributes."""
        for name, before in self._made:
            module = sys.modules.pop(name, None)
            package, _, part = name.rpartition(".")
            attributes = vars(sys.modules[package]) if package in sys.modules else {}
            if module is None or attributes.get(part) is not module:
                continue
            if before is None:
                del attributes[part]
            else:
                attributes[part] = before


def _placeholder(name: str) -> type[Placeholder]:
    if name.startswith("__"):
        raise AttributeError(name)
    return Placeholder


@contextmanager
def absent(name: str) -> Iterator[None]:
    """Make a library absent unless it is imported already; afterwards it can be imported as ever."""
    absence = _Absence(name)
    sys.meta_path.insert(0, cast("MetaPathFinder", absence))
    try:
        yield
    finally:
        sys.meta_path.remove(cast("MetaPathFinder", absence))
        absence.forget()


@contextmanager
def body_later(name: str) -> Iterator[None]:
    """Let submodules be imported without the package's `__init__`, which runs when it is imported itself.

    They are the same modules then. Of no effect where the package is imported already, or is not there.
    """
    spec = None if name in sys.modules else PathFinder.find_spec(name)
    if spec is None:
        yield
        return
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = package
    try:
        yield
    finally:
        del sys.modules[name]
