"""Pairs (x, x̃) for learning a set: a data set whose partners are drawn anew at every turn, or a folder of image files.

A drawn partner is a function of (seed, image, turn) alone, by the engine's counters: epochs, restarts and batches move nothing.
Splits are by group (the image itself; in a folder what its name says): no clean image stands on two sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench.attacks.noise import Row, row_keys
from rbench.data import sources
from rbench_core.errors import DataError, UsageError
from rbench_threats import partners
from rbench_threats.set_config import SetConfig

Images = Float[Tensor, "rows c h w"]
SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".webp")
SHARE = 10  # one group in ten of a folder is for the test


@runtime_checkable
class Part(Protocol):
    """One side of a split: `x` (n, c, h, w), and its partners at a turn."""

    @property
    def x(self) -> Images: ...

    def partners(self, rows: Int[Tensor, " rows"], turn: int) -> Images:
        """x̃ of the named rows; other turns, other draws."""


@dataclass(frozen=True)
class Drawn:
    """Images whose partners are made, fresh at every turn. index: where each image stands in its split."""

    x: Images
    index: Int[np.ndarray, " n"]
    kind: partners.Partner
    seed: int
    split: str

    def partners(self, rows: Int[Tensor, " rows"], turn: int) -> Images:
        images = self.x[rows]
        index = self.index[rows.numpy()]
        key = torch.from_numpy(row_keys(self.seed, f"pairs {self.kind.kind} {self.split}", index, 0 * index, 0 * index + turn))
        zero = torch.zeros_like(rows)
        row = Row(rows, zero, zero, zero, key, zero)
        _, channels, height, width = self.x.shape
        return self.kind.make(images, row.uniform(self.kind.numbers((channels, height, width)), stream=0))


@dataclass(frozen=True)
class Fixed:
    """Pairs that are there; every turn is the same."""

    x: Images
    partner: Images

    def partners(self, rows: Int[Tensor, " rows"], turn: int) -> Images:
        return self.partner[rows]


@dataclass(frozen=True)
class Pairs:
    """The three sides, and a sentence on what was read."""

    train: Part
    validation: Part
    test: Part
    said: str

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width


def pairs(config: SetConfig, *, seed: int, data: Path | str | None = None) -> Pairs:
    """The pairs that a config names. Raises CardError, UsageError, DataError."""
    if config.pairs.get("kind") == "folder":
        path = Path(str(config.pairs.get("path", ""))).expanduser()
        return folder(path if path.is_absolute() else config.path.parent / path, config.validation, seed)
    kind = partners.build(config.pairs, config.path)
    train, test = sources.load(config.dataset, split="train", root=data), sources.load(config.dataset, root=data)
    if config.validation >= len(train):
        raise UsageError(f"{config.path}: validation = {config.validation}", expected=f"less than {len(train)}, the training images")
    order = np.random.default_rng([seed, len(train)]).permutation(len(train))
    sides = np.sort(order[config.validation :]), np.sort(order[: config.validation])
    fitted, held = (Drawn(train.x[torch.from_numpy(rows)], rows, kind, seed, "train") for rows in sides)
    said = f"{len(fitted.x):,} training and {len(held.x):,} validation images of {config.dataset}, {len(test):,} test images"
    return Pairs(fitted, held, Drawn(test.x, np.arange(len(test)), kind, seed, "test"), said)


# --- a folder of pairs ------------------------------------------------------------------------------------------------------------


def folder(path: Path, validation: int, seed: int) -> Pairs:
    """PATH/clean/NAME.png beside PATH/perturbed/NAME.png or NAME.ANYTHING.png (several partners of one image). Raises DataError.

    The group of a pair is NAME's first folder (`scene7/light3.png`: scene7), else NAME itself. One group in ten, at least one, is the
    test; `validation` groups, at most one in ten but at least one, are held out.
    """
    found = _found(path)
    clean = {name: _image(place) for name, place in sorted({(name, place) for name, place, _ in found})}
    partner = [_image(place) for _, _, place in found]
    places = [place for _, place in sorted({(name, place) for name, place, _ in found})] + [place for _, _, place in found]
    _one_shape(list(zip(places, [*clean.values(), *partner], strict=True)))
    same = [place for (name, _, place), image in zip(found, partner, strict=True) if np.array_equal(clean[name], image)]
    if same:
        raise DataError(f"{len(same)} of {len(found)} partners are identical to their image, {same[0]} first", fix="Leave them out.")
    groups = [name.partition("/")[0] for name, _, _ in found]
    return _split(groups, np.stack([clean[name] for name, _, _ in found]), np.stack(partner), validation, seed, path)


def _found(path: Path) -> list[tuple[str, Path, Path]]:
    """(name, clean file, partner file) of every pair, by name. Raises DataError for a missing folder, an image or a partner alone."""
    sides = {side: _files(path / side) for side in ("clean", "perturbed")}
    known, found = dict(sides["clean"]), []
    for name, place in sides["perturbed"]:
        owner = name if name in known else name.rpartition(".")[0]
        if owner not in known:
            raise DataError(f"{place} has no clean image", expected=f"{path / 'clean' / (owner or name)} with the ending of an image")
        found.append((owner, known[owner], place))
    alone = sorted(set(known) - {name for name, _, _ in found})
    if alone:
        raise DataError(f"{len(alone)} of {len(known)} images have no partner, {known[alone[0]]} first",
                        expected=f"{path / 'perturbed' / alone[0]} with the ending of an image")  # fmt: skip
    return found


def _files(folder: Path) -> list[tuple[str, Path]]:
    """(name without ending, file) of every image below a folder, sorted. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", expected="a folder of pairs: clean/ and perturbed/ with images of the same names")
    places = sorted(place for place in folder.rglob("*") if place.suffix.lower() in SUFFIXES)
    if not places:
        raise DataError(f"{folder} holds no image", expected=f"files that end in {', '.join(SUFFIXES)}")
    return [(place.relative_to(folder).with_suffix("").as_posix(), place) for place in places]


def _image(place: Path) -> Float[np.ndarray, "c h w"]:
    """An image file as float32 in [0, 1] with 1 to 4 channels. Raises DataError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(place) as opened:
            kept = opened if opened.mode in ("L", "LA", "RGB", "RGBA") else opened.convert("L" if opened.mode in ("1", "I;16") else "RGB")
            levels = np.asarray(kept, dtype=np.float32) / 255
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise DataError(f"{place}: {' '.join(str(error).split())}", expected="an image file") from error
    return levels[None] if levels.ndim == 2 else np.ascontiguousarray(levels.transpose(2, 0, 1))


def _one_shape(images: list[tuple[Path, Float[np.ndarray, "c h w"]]]) -> None:
    first, wanted = images[0][0], images[0][1].shape
    for place, image in images:
        if image.shape != wanted:
            raise DataError(f"{place} has the shape {image.shape}", expected=f"{wanted}, as {first} has")


def _split(
    groups: list[str],
    clean: Float[np.ndarray, "n c h w"],
    partner: Float[np.ndarray, "n c h w"],
    validation: int,
    seed: int,
    path: Path,
) -> Pairs:
    """By group, in an order drawn from the seed. Raises DataError for fewer than three groups."""
    names = sorted(set(groups))
    if len(names) < 3:
        raise DataError(f"{path}: {len(names)} groups of pairs", expected="at least 3: one each to learn from, to choose by and to test on")
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    part = max(1, len(names) // SHARE)
    held = max(1, min(validation, part))
    place = np.array([names.index(group) for group in groups])
    sides = order[part + held :], order[part : part + held], order[:part]
    parts = [np.flatnonzero(np.isin(place, side)) for side in sides]
    fixed = [Fixed(torch.from_numpy(clean[rows]), torch.from_numpy(partner[rows])) for rows in parts]
    counts = ", ".join(f"{len(side)} groups with {len(rows)} pairs" for side, rows in zip(sides, parts, strict=True))
    said = f"{clean.shape[1]} channels of {clean.shape[2]}x{clean.shape[3]}; to learn, choose, test: {counts}"
    return Pairs(fixed[0], fixed[1], fixed[2], said)
