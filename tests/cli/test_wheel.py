"""What is installed is whole: data files are in the wheel, and under tox the wheel is what the tests see."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

CARRIED = {
    "rbench": ("py.typed", "attacks/plans/*.toml"),
    "rbench_core": ("py.typed",),
    "rbench_threats": ("py.typed", "presets/*.toml"),
    "rbench_zoo": ("py.typed", "cards/*.toml", "recipes/*.toml", "weights/*.safetensors"),
    "rbench_results": (
        "py.typed",
        "migrations/env.py",
        "migrations/script.py.mako",
        "migrations/versions/*.py",
        "site/templates/*.html*",
        "site/static/*",
    ),
}
ROOT = Path(__file__).parents[2]
ROOMS = ("benchmark", "threat_models", "model_zoo", "results")
SOURCES = [path.parent for room in ROOMS for path in sorted((ROOT / room).glob("*/__init__.py"))]


@pytest.mark.parametrize(("package", "pattern"), [(package, pattern) for package in CARRIED for pattern in CARRIED[package]])
def test_the_installed_package_carries_its_data(package: str, pattern: str) -> None:
    found = list(Path(str(files(package))).glob(pattern))
    assert found
    assert all(path.stat().st_size > 0 or path.name == "py.typed" for path in found)


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="not under tox: an editable installation is allowed")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_under_tox_the_wheel_is_what_is_tested_and_lacks_no_file(source: Path) -> None:
    module = import_module(source.name)
    assert module.__file__ is not None
    installed = Path(module.__file__).parent
    assert "site-packages" in installed.parts
    found = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    here = {path for path in found if not any(part.startswith((".", "__pycache__")) for part in path.parts)}  # caches of tools are not ours
    assert sorted(path for path in here if not (installed / path).is_file()) == []
