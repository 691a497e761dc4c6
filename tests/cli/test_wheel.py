"""What is installed is whole: data files are in the wheel, and under tox the wheel is what the tests see."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import pytest

import rbench

CARRIED = {
    "rbench": ("py.typed", "attacks/plans/*.toml"),
    "rbench_core": ("py.typed",),
    "rbench_threats": ("py.typed", "presets/*.toml"),
    "rbench_zoo": ("py.typed", "cards/*.toml", "recipes/*.toml", "weights/*.safetensors"),
    "rbench_results": ("py.typed", "migrations/env.py", "migrations/script.py.mako", "migrations/versions/*.py", "site/templates/*.html*"),
}


@pytest.mark.parametrize(("package", "pattern"), [(package, pattern) for package, patterns in CARRIED.items() for pattern in patterns])
def test_the_installed_package_carries_its_data(package: str, pattern: str) -> None:
    found = list(Path(str(files(package))).glob(pattern))
    assert found
    assert all(path.stat().st_size > 0 or path.name == "py.typed" for path in found)


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="not under tox: an editable installation is allowed")
def test_under_tox_the_wheel_is_what_is_tested() -> None:
    assert rbench.__file__ is not None
    assert "site-packages" in Path(rbench.__file__).parts
    source = Path(__file__).parents[2] / "benchmark" / "rbench"
    shipped = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert not [path for path in shipped if not (Path(rbench.__file__).parent / path).is_file()]
