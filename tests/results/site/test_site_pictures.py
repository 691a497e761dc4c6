"""Pictures: the pixels of the witness, a signed difference, a deterministic choice; a damaged file costs its pictures and nothing else."""

from __future__ import annotations

import io
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
    x = np.random.default_rng(0).random((2, channels, 5, 4)).astype(np.float32)
    x_adv = x.copy()
    x_adv[1, 0, 2, 3], x_adv[1, -1, 0, 0] = x[1, 0, 2, 3] + 0.25, x[1, -1, 0, 0] - 0.125
    save(tmp_path / "w.safetensors", x, x_adv, [7, 9])
    pictures, png = draw(tmp_path, [("s", broken(9, 1, 1))], "img/a.png")
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
    files = ["torn.safetensors", "bare.safetensors", "gone.safetensors", "../secret.safetensors"]
    chosen = [("s", broken(3, 1, 0, file)) for file in files] + [("s", broken(3, 1, 5)), ("s", broken(4, 1, 0)), ("s", broken(3, 1, 0))]
    pictures, png = draw(tmp_path, chosen, "img/a.png")
    assert [(p.index, p.rows) for p in pictures] == [(3, 1)]
    assert png is not None
    assert draw(tmp_path, chosen[:4], "img/a.png") == ([], None)


def test_large_images_make_fewer_pictures(tmp_path: Path) -> None:
    x = np.zeros((8, 3, 224, 224))
    save(tmp_path / "w.safetensors", x, x + 0.5, list(range(8)))
    pictures, png = draw(tmp_path, [("s", broken(i, 0, i)) for i in range(8)], "img/a.png")
    assert 1 <= len(pictures) < 8
    assert png is not None
    assert pixels(png).shape == (224 * len(pictures), 672, 4)
