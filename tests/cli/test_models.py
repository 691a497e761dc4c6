"""`rbench models` says where each model comes from; a broken or doubled card of a registry stands beside the ones that work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import rbench
from zoo.cards import write_card


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    write_card(folder, "theirs")
    write_card(folder, "typo", changes={"schema = 1": "schema = 1\nrobust = 0.5"})
    write_card(folder, "text", changes={"seed = 0": 'seed = "0"'})
    write_card(folder, "digits-msd")
    return folder


def test_the_table_has_a_column_for_the_origin(registry: Path) -> None:
    done = rbench("models", RBENCH_REGISTRY=str(registry))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "origin" in lines[0].split()
    assert max(map(len, lines)) <= 100
    (own,) = [line for line in lines if line.startswith("digits-standard ")]
    assert "built in" in own


def test_json_names_folders_and_the_reasons_of_the_broken(registry: Path) -> None:
    rows = {row["name"]: row for row in json.loads(rbench("models", "--json", RBENCH_REGISTRY=str(registry)).stdout)}
    assert rows["theirs"]["origin"] == f"registry {registry}"
    assert rows["digits-standard"]["origin"] == "built in"
    assert rows["mnist-abs"]["gradient"] is False
    assert [name for name, row in rows.items() if row["broken"]] == ["digits-msd", "text", "typo"]
    assert str(registry / "typo.toml") in rows["typo"]["broken"]
    assert "robust" in rows["typo"]["broken"]
    assert "a whole number" in rows["text"]["broken"]
    assert str(registry / "digits-msd.toml") in rows["digits-msd"]["broken"]
    assert "cards/digits-msd.toml" in rows["digits-msd"]["broken"]  # both files


@pytest.mark.parametrize("name", ["typo", "text", "digits-msd"])
def test_who_asks_for_a_broken_card_gets_its_line(name: str, registry: Path, tmp_path: Path) -> None:
    done = rbench("run", "--model", name, "--n", "2", "--results", str(tmp_path), RBENCH_REGISTRY=str(registry))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(registry / f"{name}.toml") in done.stderr
    assert list(tmp_path.iterdir()) == []
