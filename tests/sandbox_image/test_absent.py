"""A library that is imported by another one and never used can be left out."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from agent_runtime_sandbox.drivers.absent import absent, body_later


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


def test_an_absent_part_of_a_package_is_no_attribute_of_it_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_package").mkdir()
    (tmp_path / "half_package" / "__init__.py").write_text("replaced = 'a name of its own'")
    for part in ("heavy", "replaced"):
        (tmp_path / "half_package" / f"{part}.py").write_text("LOADED = True")
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("half_package")

    with absent("half_package.heavy"), absent("half_package.replaced"):
        importlib.import_module("half_package.heavy")
        importlib.import_module("half_package.replaced")

    assert not hasattr(package, "heavy")
    assert package.replaced == "a name of its own"
    assert importlib.import_module("half_package.heavy").LOADED
    with absent("half_package.heavy"):  # it is there already, and stays
        importlib.import_module("half_package.heavy")
    assert package.heavy.LOADED


def test_a_part_of_a_package_can_be_had_before_its_body_and_is_the_same_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_package").mkdir()
    (tmp_path / "slow_package" / "__init__.py").write_text("from .part import Part\nBODY = True")
    (tmp_path / "slow_package" / "part.py").write_text("class Part: pass")
    monkeypatch.syspath_prepend(tmp_path)

    with body_later("slow_package"):
        early = importlib.import_module("slow_package.part").Part
        assert not hasattr(sys.modules["slow_package"], "BODY")

    package = importlib.import_module("slow_package")
    assert package.BODY
    assert package.Part is early
    with body_later("slow_package"):
        assert sys.modules["slow_package"] is package
    with body_later("no_such_package"):
        assert importlib.util.find_spec("no_such_package") is None
