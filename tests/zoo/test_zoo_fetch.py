"""Weights found in a mirror, at an address or as their authors published them; what is damaged, foreign or hostile gives one line."""

from __future__ import annotations

import http.client
import io
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rbench_core.errors import FileError, ModelError, RbenchError
from rbench_core.files import sha256_bytes
from rbench_zoo import fetch
from rbench_zoo.load import load_model, model_digest
from zoo.cards import read_card, tensors, write_card, write_weights

ADDRESS = "https://example.org/0123456/original.pt"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
Opened = list[str]
Serve = Callable[..., Opened]


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RBENCH_WEIGHTS", raising=False)
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Puts answers, bytes or errors, behind every address, one per call; returns the list of addresses that were asked."""

    def serving(*answers: bytes | Exception) -> Opened:
        left, calls = list(answers), Opened()

        def urlopen(url: str, timeout: float) -> Any:
            calls.append(url)
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return io.BytesIO(answer)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return calls

    return serving


def saved(value: object) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def card_of(folder: Path, original: bytes, more: str = "", changes: dict[str, str] | None = None) -> Path:
    """A card whose safetensors file is nowhere and whose original has the digest of these bytes."""
    path = write_card(folder, changes=changes)
    path.with_suffix(".safetensors").unlink()
    source = f'[weights.source]\nurl = "{ADDRESS}"\nsha256 = "{sha256_bytes(original)}"\nformat = "state-dict"\n{more}\n[training]'
    path.write_text(path.read_text().replace("[training]", source))
    return path


def line_of(path: Path) -> str:
    """The one line that loading the card ends with."""
    with pytest.raises(RbenchError) as error:
        load_model(read_card(path))
    assert isinstance(error.value, (ModelError, FileError))
    assert "\n" not in str(error.value)
    return str(error.value)


def usual(folder: Path) -> str:
    """The digest of the model with the card's weights as safetensors."""
    card = read_card(write_card(folder / "usual"))
    return model_digest(load_model(card), card)


# --- mirror and address -------------------------------------------------------------------------------------------------------------


def test_a_mirror_is_searched_by_digest_whatever_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = read_card(write_card(tmp_path))
    mirror = tmp_path.with_name(f"{tmp_path.name}-mirror")
    (mirror / "deep").mkdir(parents=True)
    card.path.with_suffix(".safetensors").rename(mirror / "deep" / "x.safetensors")
    write_weights(mirror / "small.safetensors", tensors(seed=5))  # the right name, the wrong content
    with pytest.raises(ModelError, match=r"RBENCH_WEIGHTS \(not set\)"):
        load_model(card)
    monkeypatch.setenv("RBENCH_WEIGHTS", str(mirror))
    assert model_digest(load_model(card), card) == usual(tmp_path)
    (mirror / "deep" / "x.safetensors").unlink()
    with pytest.raises(ModelError, match=str(mirror)):
        load_model(card)


def test_a_url_is_fetched_once_and_checked(tmp_path: Path, serve: Serve) -> None:
    path = write_card(tmp_path, changes={'file = "small.safetensors"': 'url = "https://example.org/small.safetensors"'})
    good = path.with_suffix(".safetensors").read_bytes()
    calls = serve(urllib.error.URLError("no route"), http.client.IncompleteRead(b""), good[:-1], good)
    assert "no route" in line_of(path)
    assert "RBENCH_WEIGHTS" in line_of(path)
    assert f"{len(good) - 1:,} bytes" in line_of(path)
    assert not (tmp_path / "cache").exists()  # nothing unchecked is kept
    load_model(read_card(path))
    load_model(read_card(path))
    assert len(calls) == 4


def test_what_cannot_be_downloaded_says_why(tmp_path: Path) -> None:
    path = write_card(tmp_path, changes={"[training]": 'needs_mirror = "ten files were joined into one"\n[training]'})
    path.with_suffix(".safetensors").unlink()
    assert "cannot be downloaded: ten files were joined into one. Set RBENCH_WEIGHTS" in line_of(path)


# --- as published -------------------------------------------------------------------------------------------------------------------


PUBLISHED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a state dict": (lambda good: good, ""),
    "of a checkpoint": (lambda good: {"state_dict": good, "epoch": 3}, 'entry = "state_dict"'),
    "with a prefix": (lambda good: {f"module.{key}": value for key, value in good.items()}, 'prefix = "module."'),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_an_original_gives_the_same_model_as_the_safetensors(case: str, tmp_path: Path, serve: Serve) -> None:
    make, more = PUBLISHED[case]
    original = saved(make(tensors()))
    path = card_of(tmp_path, original, more)
    calls = serve(original)
    card = read_card(path)
    assert model_digest(load_model(card), card) == usual(tmp_path)
    load_model(card)
    assert calls == [ADDRESS]  # the second time it comes from the cache


def test_an_original_may_be_safetensors_and_lie_in_the_mirror(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "mirror" / "renamed.pt", {f"net.{key}": value for key, value in tensors().items()})
    original = (tmp_path / "mirror" / "renamed.pt").read_bytes()
    path = card_of(tmp_path, original, 'prefix = "net."')
    path.write_text(path.read_text().replace('format = "state-dict"', 'format = "safetensors"'))
    monkeypatch.setenv("RBENCH_WEIGHTS", str(tmp_path / "mirror"))
    calls = serve()
    card = read_card(path)
    assert model_digest(load_model(card), card) == usual(tmp_path)
    assert calls == []


def test_the_safetensors_go_before_the_original(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    path = card_of(tmp_path, saved(tensors()))
    write_weights(tmp_path / "mirror" / "x.safetensors", tensors())
    monkeypatch.setenv("RBENCH_WEIGHTS", str(tmp_path / "mirror"))
    calls = serve()
    load_model(read_card(path))
    assert calls == []


# --- bad weights --------------------------------------------------------------------------------------------------------------------


class Hostile:
    """A pickle of it opens, when it is read, a file of the folder that it names."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def test_nothing_is_opened_before_its_digest_agrees(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved(tensors())
    path = card_of(tmp_path, good)
    serve(good[: len(good) // 2], good + b"\0", PAGE)
    opened: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *args, **more: opened.append(args))
    for words in (f"{len(good) // 2:,} bytes", "SHA-256 is", "looks like an HTML page"):
        line = line_of(path)
        assert words in line
        assert ADDRESS in line
    assert opened == []


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("torch_file", [True, False])
def test_a_pickle_that_executes_code_is_refused_and_not_executed(torch_file: bool, protocol: int, tmp_path: Path, serve: Serve) -> None:
    mark = tmp_path / "mark"
    bad = {"0.bias": Hostile(mark)}
    original = saved(bad) if torch_file else pickle.dumps(bad, protocol=protocol)
    torch.load(io.BytesIO(saved(bad)), weights_only=False)["0.bias"].close()
    assert mark.exists()  # it would work
    mark.unlink()
    serve(original)
    line = line_of(card_of(tmp_path, original))
    assert not mark.exists()
    assert "more than tensors" in line
    assert "Nothing of it was executed" in line


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "a page": (PAGE, "looks like an HTML page"),
    "nothing": (b"", "cannot be read"),
    "half a file": (saved(tensors())[:700], "cannot be read"),
    "a list": (saved([1, 2]), "it is a list"),
    "a number": (saved(3), "it is a int"),
    "a checkpoint": (saved({"state_dict": tensors(), "epoch": 1}), "with 'state_dict', 'epoch'"),
    "a net for other images": (saved({**tensors(), "5.weight": torch.zeros(5, 3)}), "instead of float32 [5, 48]"),
    "another net": (saved({"conv.weight": torch.zeros(2)}), "do not fit"),
    "a key too many": (saved({**tensors(), "scale": torch.zeros(2)}), "scale is not of this net"),
    "a key too few": (saved({key: value for key, value in tensors().items() if key != "0.bias"}), "0.bias is missing"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_original_with_its_digest_that_holds_something_else(case: str, tmp_path: Path, serve: Serve) -> None:
    data, words = UNREADABLE[case]
    path = card_of(tmp_path, data)
    serve(data)
    line = line_of(path)
    assert words in line
    assert "small" in line
    assert len(line) < 500


def test_a_checkpoint_without_the_entry_says_what_it_has(tmp_path: Path, serve: Serve) -> None:
    data = saved({"model": tensors()})
    serve(data)
    line = line_of(card_of(tmp_path, data, 'entry = "state_dict"'))
    assert "no entry 'state_dict'" in line
    assert "'model'" in line


def test_a_page_in_place_of_the_safetensors_is_called_one(tmp_path: Path) -> None:
    path = write_card(tmp_path)
    path.with_suffix(".safetensors").write_bytes(PAGE)
    assert "looks like an HTML page" in line_of(path)  # another digest
    path.write_text(path.read_text().replace(read_card(path).weights.sha256, sha256_bytes(PAGE)))
    assert "looks like an HTML page" in line_of(path)  # the digest of the page itself
