"""Pictures of witnesses: clean, adversarial, difference. One PNG per run holds all of them, a row of three tiles per witness.

One file in place of 72 keeps a build short on a slow disk; a page shows a tile by an SVG that looks at its part of the sheet.
Pixels stay pixels: the style sheet magnifies, nothing here does.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbench_results.records import VerdictRecord

LIMIT = 24  # witnesses shown per run
PIXELS = 1_000_000  # of one sheet: large images get fewer rows
BRIGHTER, DARKER = (209, 100, 28), (11, 87, 148)  # the style sheet's orange and blue
TILES = 3

Image = NDArray[np.float32]  # (C, H, W) in [0, 1]
Pair = tuple[Image, Image]  # clean, adversarial


@dataclass(frozen=True)
class Picture:
    """One witness on its sheet, with what its caption says."""

    sheet: str  # file, relative to the site
    row: int
    rows: int
    height: int
    width: int
    times: float  # how much the difference is magnified
    index: int
    label: int
    predicted: int | None
    member: str  # spec of the set that broke the image
    attack: str | None
    gauge: float | None
    oracle: int | None = None  # what people call the adversarial image


class Sheet(NamedTuple):
    """Pictures, the PNG that holds them, and the verdicts whose file is gone, damaged, somebody else's or outside the results folder."""

    pictures: list[Picture]
    png: bytes | None
    missing: list[tuple[str, VerdictRecord]]


def choose(members: Mapping[str, Sequence[VerdictRecord]], limit: int = LIMIT) -> list[tuple[str, VerdictRecord]]:
    """Up to `limit` broken verdicts that have a witness: members in turn, within a member one of every label before a second of any."""
    queues = [[(spec, verdict) for verdict in _varied(verdicts)] for spec, verdicts in members.items()]
    turns = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return [pair for pair, _ in zip(turns, range(limit), strict=False)]


def _varied(verdicts: Sequence[VerdictRecord]) -> list[VerdictRecord]:
    seen: dict[int, int] = defaultdict(int)
    keyed = []
    for verdict in sorted(verdicts, key=lambda v: v.index):
        if verdict.status == "broken" and verdict.witness is not None and verdict.row is not None:
            keyed.append((seen[verdict.label], verdict.index, verdict))
            seen[verdict.label] += 1
    return [verdict for _, _, verdict in sorted(keyed, key=lambda item: item[:2])]


def draw(folder: Path, chosen: Sequence[tuple[str, VerdictRecord]], name: str) -> Sheet:
    """The sheet NAME with as many of the (spec, verdict) as fit on it. What cannot be read is `missing`; nothing here raises for it."""
    pairs = read(folder, [verdict for _, verdict in chosen])
    shown = [(spec, v, pair) for (spec, v), pair in zip(chosen, pairs, strict=True) if pair is not None]
    missing = [item for item, pair in zip(chosen, pairs, strict=True) if pair is None]
    if not shown:
        return Sheet([], None, missing)
    height, width = shown[0][2][0].shape[1:]
    missing += [(spec, v) for spec, v, pair in shown if pair[0].shape[1:] != (height, width)]
    shown = [item for item in shown if item[2][0].shape[1:] == (height, width)][: max(1, PIXELS // (TILES * height * width))]
    pictures = [
        Picture(
            name, row, len(shown), height, width, magnification(*pair), v.index, v.label, v.predicted, spec, v.attack, v.gauge, v.oracle
        )
        for row, (spec, v, pair) in enumerate(shown)
    ]
    return Sheet(pictures, png(np.concatenate([tiles(*pair) for _, _, pair in shown])), missing)


def read(folder: Path, verdicts: Sequence[VerdictRecord]) -> list[Pair | None]:
    """Clean and adversarial image of every verdict, None where none can be read; each file is opened once, and only these rows are read."""
    wanted: dict[str, list[int]] = defaultdict(list)
    for place, verdict in enumerate(verdicts):
        wanted[str(verdict.witness)].append(place)
    found: list[Pair | None] = [None] * len(verdicts)
    for file, places in wanted.items():
        for place, pair in zip(places, _rows(folder, file, [verdicts[place] for place in places]), strict=False):
            found[place] = pair
    return found


def _rows(folder: Path, file: str, verdicts: Sequence[VerdictRecord]) -> list[Pair | None]:
    from safetensors import SafetensorError, safe_open

    try:
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():  # a merged database may come from anybody
            return []
        with safe_open(path, framework="numpy") as opened:
            index, x, x_adv = opened.get_tensor("index"), opened.get_slice("x"), opened.get_slice("x_adv")
            return [_pair(index, x, x_adv, verdict) for verdict in verdicts]
    except (OSError, SafetensorError, ValueError, IndexError, TypeError, KeyError, AttributeError, RuntimeError, MemoryError):
        return []  # numpy and safetensors have no one error for a name, a loop of links, a type or a shape that they do not read


def _pair(index: NDArray[np.int64], x: Any, x_adv: Any, verdict: VerdictRecord) -> Pair | None:  # x: slices of the open file
    """The verdict's row, if the file agrees that it is this example's and holds images there."""
    row, shape = verdict.row, x.get_shape()
    if row is None or index.ndim != 1 or not 0 <= row < len(index) or index[row] != verdict.index:
        return None
    if len(shape) != 4 or shape != x_adv.get_shape() or 0 in shape or shape[2] * shape[3] > PIXELS:
        return None
    clean, adversarial = x[row : row + 1][0], x_adv[row : row + 1][0]
    return _image(clean), _image(adversarial)


def _image(values: NDArray[Any]) -> Image:
    return np.nan_to_num(values.astype(np.float32)).clip(0, 1)


def magnification(x: Image, x_adv: Image) -> float:
    """How much the difference is magnified: the furthest value gets full colour. Two significant digits, rounded down."""
    furthest = float(np.abs(difference(x, x_adv)).max())
    if furthest <= 0:
        return 1.0
    unit = 10.0 ** (np.floor(np.log10(1 / furthest)) - 1)
    return float(f"{np.floor(1 / furthest / unit + 0.01) * unit:.6g}")


def difference(x: Image, x_adv: Image) -> NDArray[np.float32]:
    """(H, W): per pixel the signed change of the channel that changed most."""
    change = x_adv - x
    furthest = np.abs(change).argmax(0)[None]
    return np.asarray(np.take_along_axis(change, furthest, 0)[0], dtype=np.float32)


def tiles(x: Image, x_adv: Image) -> NDArray[np.uint8]:
    """(H, 3 W, 4) RGBA: clean, adversarial, difference (orange brighter, blue darker; its ground is the page's)."""
    change = difference(x, x_adv) * magnification(x, x_adv)
    colour = np.where(change[..., None] > 0, BRIGHTER, DARKER).astype(np.uint8)
    alpha = np.rint(255 * np.abs(change).clip(0, 1)).astype(np.uint8)
    return np.concatenate([rgba(x), rgba(x_adv), np.dstack([colour, alpha])], axis=1)


def rgba(x: Image) -> NDArray[np.uint8]:
    """(H, W, 4): three channels are colour, any other number of them is shown as its mean."""
    if len(x) != 3:
        x = np.repeat(x.mean(0, keepdims=True), 3, axis=0)
    levels = np.rint(255 * x.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return np.dstack([levels, np.full(levels.shape[:2], 255, np.uint8)])


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 4) as a PNG file."""
    from PIL import Image as pillow

    stream = io.BytesIO()
    pillow.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
