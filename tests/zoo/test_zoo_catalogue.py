"""The catalogue of models: cards of every origin by name, a broken one beside the others, and no import of what is only listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rbench_core.errors import CardError, UnknownName
from rbench_zoo import catalogue
from rbench_zoo.card import Card
from zoo.cards import write_card


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry folder; the package's own cards play no part."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("RBENCH_REGISTRY", str(folder))
    monkeypatch.setattr(catalogue, "BUILT_IN", tmp_path / "built-in")
    (tmp_path / "built-in").mkdir()
    return folder


def found(name: str) -> Card:
    card = catalogue.find(name)
    assert isinstance(card, Card)
    return card


def test_no_card_of_the_package_is_broken() -> None:
    assert [row for row in catalogue.listing() if row["broken"]] == []


def test_registries_join_the_built_in_cards(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(catalogue.BUILT_IN, "one")
    write_card(registry, "two")
    (tmp_path / "second").mkdir()
    write_card(tmp_path / "second", "three")
    monkeypatch.setenv("RBENCH_REGISTRY", os.pathsep.join([str(registry), str(tmp_path / "second"), ""]))
    assert list(catalogue.cards()) == ["one", "three", "two"]
    origins = {row["name"]: row["origin"] for row in catalogue.listing()}
    assert origins == {"one": "built in", "two": f"registry {registry}", "three": f"registry {tmp_path / 'second'}"}


def test_the_listing_is_plain_data(registry: Path) -> None:
    write_card(registry)
    (row,) = json.loads(json.dumps(catalogue.listing()))
    told = {"name": "small", "dataset": "digits", "architecture": "SmallCNN", "training": "linf-at", "parameters": 382, "broken": None}
    assert told.items() <= row.items()


def test_a_broken_card_leaves_the_others_alone_and_says_why(registry: Path) -> None:
    write_card(registry, "good")
    write_card(registry, "typo", changes={"dataset =": "datset ="})
    (registry / "no-toml.toml").write_text("name = ")
    (registry / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert list(catalogue.cards()) == ["good"]
    assert found("good").name == "good"
    reasons = {row["name"]: row["broken"] for row in catalogue.listing()}
    assert reasons.keys() == {"good", "typo", "no-toml", "binary"}
    assert "datset" in reasons["typo"] or "dataset" in reasons["typo"]
    for name in ("typo", "no-toml", "binary"):
        with pytest.raises(CardError) as error:
            catalogue.find(name)
        assert str(error.value) == reasons[name]
        assert str(registry) in reasons[name]


def test_a_broken_copy_does_not_hide_the_card_that_works(registry: Path) -> None:
    write_card(catalogue.BUILT_IN, "small")
    write_card(registry, "small", changes={"schema = 1": "schema = 9"})
    assert found("small").path.parent == catalogue.BUILT_IN
    assert len([row for row in catalogue.listing() if row["broken"]]) == 1


def test_a_name_given_twice_is_nobodys(registry: Path) -> None:
    write_card(catalogue.BUILT_IN, "small")
    write_card(catalogue.BUILT_IN, "other")
    write_card(registry, "small", seed=1)
    assert list(catalogue.cards()) == ["other"]
    with pytest.raises(CardError) as error:
        catalogue.find("small")
    assert all(str(folder) in str(error.value) for folder in (catalogue.BUILT_IN, registry))


def test_a_registry_that_is_absent_is_said(registry: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_card(registry)
    monkeypatch.setenv("RBENCH_REGISTRY", os.pathsep.join([str(tmp_path / "typo"), str(registry)]))
    assert [(row["name"], bool(row["broken"])) for row in catalogue.listing()] == [(str(tmp_path / "typo"), True), ("small", False)]


def test_unknown_names_get_the_nearest(registry: Path) -> None:
    write_card(registry, "digits-linf-at")
    with pytest.raises(UnknownName, match="digits-linf-at") as error:
        catalogue.find("digits-linf")
    assert "FILE.py:FACTORY" in str(error.value)
    assert error.value.exit_code == 2


def test_entry_points_are_listed_by_name_and_never_imported(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {name: EntryPoint(name, "a_package_that_is_not_installed:make", catalogue.GROUP) for name in ("theirs", "small")}
    monkeypatch.setattr(catalogue, "installed", lambda group: points)
    write_card(registry)
    rows = {row["name"]: row for row in catalogue.listing()}
    assert rows["theirs"]["origin"] == "entry point a_package_that_is_not_installed:make"
    assert isinstance(catalogue.find("theirs"), EntryPoint)
    with pytest.raises(CardError, match="a_package_that_is_not_installed"):  # a card and an entry point of one name
        catalogue.find("small")


def test_the_listings_load_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "safetensors", "pandas", "sklearn"}
    used = "from rbench_zoo import catalogue; catalogue.listing()"
    code = f"import sys; {used}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
