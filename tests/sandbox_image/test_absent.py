"""A library that is imported by another one and never used can be left out."""

import importlib
import sys
from pathlib import Path

import pytest

from agent_runtime_sandbox.drivers.absent import absent


def test_an_absent_library_costs_no_import_and_is_there_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy_library").mkdir()
    (tmp_path / "heavy_library" / "__init__.py").write_text("LOADED = True")
    (tmp_path / "heavy_library" / "parts.py").write_text("class Part: real = True")
    (tmp_path / "light_user.py").write_text(
        "import heavy_library.parts\n"
        "from heavy_library.parts import Part\n"
        "class Mine(Part, extra='allow'): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    with absent("heavy_library"):
        user = importlib.import_module("light_user")

    assert not hasattr(user.Part, "real")
    assert "heavy_library" not in sys.modules
    assert importlib.import_module("heavy_library.parts").Part.real


def test_a_library_that_is_there_already_stays() -> None:
    with absent("json"):
        library = importlib.import_module("json")

    assert library.loads("1") == 1
    assert sys.modules["json"] is library
