"""Pairs to learn from: fresh and seeded by counters, split by group; a folder says in one line what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from laws.given import images, rows
from rbench.data.pairs import Pairs, folder, pairs
from rbench_core.errors import CardError, DataError, UsageError
from rbench_threats import partners
from rbench_threats.set_config import read_config
from rbench_threats.spatial import RotationTranslation
from rbench_threats.spec import Exact

RTS = read_config("digits-rts")


def test_at_scale_1_a_partner_is_the_exact_threat_s_image() -> None:
    """So that verdicts under the learned and the exact set are about one perturbation."""
    x, space = images((1, 28, 28), 8, 0), RotationTranslation(30, 3)
    theta = torch.tensor([30.0, 3.0, 3.0]) * (2 * torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) - 1)
    shown = space.render(space.context(x, rows(8)), theta)
    known = partners.warped(x, torch.stack([theta[:, 0], torch.ones(8), theta[:, 1], theta[:, 2]], 1))
    torch.testing.assert_close(known, shown, rtol=0, atol=1e-5)


def test_scaling_by_two_doubles_the_distances() -> None:
    """A point two pixels right of the centre goes to four."""
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 6] = 1
    wide = partners.warped(x, torch.tensor([[0.0, 2.0, 0.0, 0.0]]))
    assert wide[0, 0, 4, 8] == pytest.approx(1, abs=1e-5)
    assert wide[0, 0, 4, 6] == pytest.approx(0, abs=1e-5)


def test_noise_fills_the_ball_and_stays_in_range() -> None:
    kind = partners.Noise(Exact("0.3"))
    x = images((1, 28, 28), 4, 0)
    moved = kind.make(x, torch.rand(4, 784, generator=torch.Generator().manual_seed(0)))
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert 0.29 < float((moved - x).abs().max()) <= 0.3 + 1e-6


def test_partners_are_fresh_each_turn_and_the_same_for_the_same_counter() -> None:
    given = pairs(RTS, seed=0)
    some = torch.arange(40)
    first = given.train.partners(some, 0)
    assert torch.equal(given.train.partners(some, 0), first)
    torch.testing.assert_close(given.train.partners(torch.tensor([7]), 0)[0], first[7], rtol=0, atol=1e-6)
    assert not torch.equal(given.train.partners(some, 1), first)
    assert not torch.equal(pairs(RTS, seed=1).train.partners(some, 0), first)


def test_no_image_stands_on_two_sides() -> None:
    given = pairs(RTS, seed=0)
    sides = [{row.numpy().tobytes() for row in part.x} for part in (given.train, given.validation, given.test)]
    assert [len(part.x) for part in (given.train, given.validation, given.test)] == [1100, 197, 500]
    assert len(sides[0] | sides[1] | sides[2]) == sum(len(side) for side in sides)


def test_two_splits_draw_apart() -> None:
    """The same image number on two sides gets different partners."""
    given = pairs(RTS, seed=0)
    still = replace(given.validation, x=given.test.x[:5], index=np.arange(5))  # type: ignore[type-var]
    assert not torch.equal(still.partners(torch.arange(5), 0), given.test.partners(torch.arange(5), 0))


def test_all_training_images_held_out_is_refused() -> None:
    with pytest.raises(UsageError, match="1297"):
        pairs(replace(RTS, validation=1297), seed=0)


# --- a folder -------------------------------------------------------------------------------------------------------------------------


def stored(path: Path, name: str, value: int, size: tuple[int, int] = (6, 5), mode: str = "L") -> None:
    place = path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    shade = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0]) + value
    Image.fromarray(shade).convert(mode).save(place)


def scenes(path: Path, groups: int = 12, each: int = 3) -> Path:
    """Scenes with lights in pairs; the clean image of each pair has a grey level of its own, so that splits can be told apart."""
    for group in range(groups):
        for light in range(each):
            stored(path, f"clean/scene{group}/light{light}.png", 8 * group + light)
            stored(path, f"perturbed/scene{group}/light{light}.png", 8 * group + light + 100)
    return path


def test_a_folder_is_split_by_group(tmp_path: Path) -> None:
    given = folder(scenes(tmp_path), validation=50, seed=0)
    assert given.shape == (1, 5, 6)
    parts = [(part.x[:, 0, 0, 0] * 255).round().long() // 8 for part in (given.train, given.validation, given.test)]
    assert [len(set(part.tolist())) for part in parts] == [10, 1, 1]
    assert len({*parts[0].tolist(), *parts[1].tolist(), *parts[2].tolist()}) == 12
    some = torch.arange(len(given.train.x))
    moved = given.train.partners(some, 0)
    torch.testing.assert_close((moved - given.train.x) * 255, torch.full_like(moved, 100.0), rtol=0, atol=1e-3)
    assert torch.equal(given.train.partners(some, 5), moved)
    assert "10 groups with 30 pairs" in given.said


def test_several_partners_of_one_image_stay_together(tmp_path: Path) -> None:
    for group in range(4):
        stored(tmp_path, f"clean/{group}.png", group)
        for kind in ("fog", "blur"):
            stored(tmp_path, f"perturbed/{group}.{kind}.png", group + len(kind))
    given = folder(tmp_path, validation=1, seed=0)
    assert [len(part.x) for part in (given.train, given.validation, given.test)] == [4, 2, 2]


def single(path: Path) -> None:
    stored(path, "clean/scene3/extra.png", 9)


def orphan(path: Path) -> None:
    stored(path, "perturbed/scene3/extra.png", 9)


def larger(path: Path) -> None:
    stored(path, "perturbed/scene3/light0.png", 9, size=(7, 5))


def coloured(path: Path) -> None:
    stored(path, "clean/scene3/light0.png", 9, mode="RGB")


def identical(path: Path) -> None:
    stored(path, "perturbed/scene3/light0.png", 24)


def broken(path: Path) -> None:
    (path / "clean/scene3/light0.png").write_bytes(b"no picture")


def unpaired(path: Path) -> None:
    for place in (path / "perturbed").rglob("*.png"):
        place.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (single, "1 of 37 images have no partner"),
        (orphan, "has no clean image"),
        (larger, "has the shape (1, 5, 7); expected (1, 5, 6)"),
        (coloured, "light0.png has the shape (3, 5, 6); expected (1, 5, 6)"),
        (identical, "1 of 36 partners are identical"),
        (broken, "light0.png: cannot identify"),
        (unpaired, "holds no image"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_is_wrong_is_named_in_one_line(spoil: object, words: str, tmp_path: Path) -> None:
    scenes(tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        folder(tmp_path, validation=1, seed=0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_groups_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 groups"):
        folder(scenes(tmp_path, groups=2), validation=1, seed=0)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "absent", validation=1, seed=0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "blur"}, "one of: linf, rts"),
        ({"kind": "linf"}, "expected eps"),
        ({"kind": "linf", "eps": "0.3", "shift": "1"}, "expected eps"),
        ({"kind": "rts", "degrees": "200", "smallest": "1", "largest": "1", "shift": "0"}, "0 <= degrees <= 180"),
        ({"kind": "rts", "degrees": "20", "smallest": "1.2", "largest": "1", "shift": "0"}, "smallest <= largest"),
    ],
)
def test_pairs_that_make_no_sense(table: dict[str, str], words: str) -> None:
    with pytest.raises(CardError) as caught:
        partners.build(table, "config.toml")
    assert words in str(caught.value)


def test_pairs_is_a_value_of_three_sides() -> None:
    assert isinstance(pairs(RTS, seed=0), Pairs)
