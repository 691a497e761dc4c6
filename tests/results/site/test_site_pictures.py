"""Pictures: the pixels of the witness, a signed difference, a deterministic choice; a damaged file costs its pictures and nothing else."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from rbench_results.records import VerdictRecord
from rbench_results.site.pictures import BRIGHTER, DARKER, LIMIT, choose, draw, magnification, tiles
from stored import verdict


def broken(index: int, label: int, row: int, file: str = "w.safetensors") -> VerdictRecord:
    return verdict(index, "broken", label=label, predicted=2, witness=file, row=row)


def save(path: Path, x: np.ndarray, x_adv: np.ndarray, index: list[int]) -> None:
    save_file(
        {
            "index": np.array(index),
            "x": x.astype(np.float32),
            "x_adv": x_adv.astype(np.float32),
            "theta": np.zeros((len(x), 1), np.float32),
        },
        path,
    )


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_show_the_pixels(tmp_path: Path, channels: int) -> None:
    x = 0.25 + 0.5 * np.random.default_rng(0).random((2, channels, 5, 4)).astype(np.float32)
    x_adv = x.copy()
    x_adv[1, 0, 2, 3], x_adv[1, -1, 0, 0] = x[1, 0, 2, 3] + 0.25, x[1, -1, 0, 0] - 0.125
    save(tmp_path / "w.safetensors", x, x_adv, [7, 9])
    pictures, png, missing = draw(tmp_path, [("s", broken(9, 1, 1))], "img/a.png")
    assert not missing
    assert png is not None
    found = pixels(png)
    assert found.shape == (5, 12, 4)
    shown = np.rint(255 * x[1].clip(0, 1)).transpose(1, 2, 0)
    assert (found[:, :4, :3] == (shown if channels == 3 else shown.repeat(3, 2))).all()
    assert (found[:, :8, 3] == 255).all()
    difference = found[:, 8:]
    assert tuple(difference[2, 3]) == (*BRIGHTER, 255)
    assert tuple(difference[0, 0, :3]) == DARKER
    assert difference[0, 0, 3] == pytest.approx(128, abs=1)
    assert np.count_nonzero(difference[..., 3]) == 2
    (picture,) = pictures
    assert (picture.times, picture.index, picture.row, picture.rows, picture.width, picture.height) == (4.0, 9, 0, 1, 4, 5)


@pytest.mark.parametrize(("distance", "times"), [(0.3, 3.3), (1.0, 1.0), (8 / 255, 31.0), (0.0, 1.0), (0.6, 1.6), (0.1000001, 10.0)])
def test_the_magnification_is_what_the_caption_says(distance: float, times: float) -> None:
    x = np.zeros((1, 2, 2), np.float32)
    x_adv = x.copy()
    x_adv[0, 0, 0] = distance
    assert magnification(x, x_adv) == times
    assert tiles(x, x_adv)[0, 4, 3] == round(255 * min(1.0, times * np.float32(distance)))


def test_the_choice_goes_round_the_members_and_the_labels() -> None:
    members = {
        "a": [broken(i, i % 3, i) for i in range(40)],
        "b": [broken(i, 0, i) for i in range(2)],
        "c": [verdict(i) for i in range(9)],
        "d": [verdict(1, "broken")],
    }
    chosen = choose(members)
    assert len(chosen) == LIMIT
    assert [spec for spec, _ in chosen[:5]] == ["a", "b", "a", "b", "a"]
    assert [v.index for spec, v in chosen if spec == "a"][:6] == [0, 1, 2, 3, 4, 5]
    assert chosen == choose({name: list(reversed(rows)) for name, rows in members.items()})
    assert choose({}) == []


def test_what_is_damaged_is_left_out(tmp_path: Path) -> None:
    x = np.zeros((1, 1, 2, 2))
    save(tmp_path / "w.safetensors", x, x + 0.5, [3])
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:40])
    save_file({"index": np.array([3])}, tmp_path / "bare.safetensors")
    (tmp_path.parent / "secret.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes())
    save_file({"index": np.array(3), "x": x, "x_adv": x}, tmp_path / "scalar.safetensors")
    save_file({"index": np.array([3]), "x": x, "x_adv": np.zeros((1, 1, 2, 3))}, tmp_path / "shapes.safetensors")
    save_file({"index": np.array([3]), "x": x[0], "x_adv": x[0]}, tmp_path / "flat.safetensors")
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path.parent / "secret.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening one waits for ever
    names = ["torn", "bare", "gone", "scalar", "shapes", "flat", "page", "folder", "link", "loop", "pipe", "../secret", "n\0l"]
    files = [f"{name}.safetensors" for name in names]
    files += [str(tmp_path.parent / "secret.safetensors"), "", ".", "x" * 5000]
    chosen = [("s", broken(3, 1, 0, file)) for file in files] + [("s", broken(3, 1, 5)), ("s", broken(4, 1, 0)), ("s", broken(3, 1, 0))]
    pictures, png, missing = draw(tmp_path, chosen, "img/a.png")
    assert [(p.index, p.rows) for p in pictures] == [(3, 1)]
    assert png is not None
    assert missing == chosen[:-1]
    assert draw(tmp_path, chosen[:-1], "img/a.png") == ([], None, chosen[:-1])


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_to_a_file_breaks_a_build(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    save(tmp_path / "w.safetensors", random.random((2, 1, 3, 3)), random.random((2, 1, 3, 3)), [0, 1])
    data = bytearray((tmp_path / "w.safetensors").read_bytes())
    for at in random.integers(0, 330, size=1 + seed % 4):  # most of it in the header: types, shapes, offsets
        data[at] = random.integers(0, 256)
    (tmp_path / "w.safetensors").write_bytes(bytes(data[: len(data) - seed % 3]))
    chosen = [("s", broken(i, 0, i)) for i in range(2)]
    pictures, png, missing = draw(tmp_path, chosen, "img/a.png")
    assert len(pictures) + len(missing) == 2
    assert (png is None) == (not pictures)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float64, np.float16, np.bool_])
def test_values_that_are_no_image_are_drawn_within_its_range(tmp_path: Path, kind: type) -> None:
    x = np.array([[[[0, 1], [1, 0]]]], dtype=kind)
    far = np.array([[[[np.nan, np.inf], [-np.inf, 3e38]]]], dtype=np.float32)
    save_file({"index": np.array([0]), "x": x, "x_adv": far}, tmp_path / "w.safetensors")
    (picture,), png, _ = draw(tmp_path, [("s", broken(0, 0, 0))], "img/a.png")
    assert png is not None
    assert picture.times == 1.0
    assert pixels(png)[:, 2:4, 0].tolist() == [[0, 255], [0, 255]]


def test_large_images_make_fewer_pictures(tmp_path: Path) -> None:
    x = np.zeros((8, 3, 224, 224))
    save(tmp_path / "w.safetensors", x, x + 0.5, list(range(8)))
    pictures, png, missing = draw(tmp_path, [("s", broken(i, 0, i)) for i in range(8)], "img/a.png")
    assert 1 <= len(pictures) < 8
    assert not missing  # only not shown
    assert png is not None
    assert pixels(png).shape == (224 * len(pictures), 672, 4)
