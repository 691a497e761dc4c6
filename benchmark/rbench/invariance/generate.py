"""The linf generating attack on a data set: images in, a file of candidates for people to label out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from rbench.data import sources
from rbench.invariance.neighbours import Finder, Neighbour
from rbench.invariance.perturb import MNIST_TARGETS, Targets, all_others, chosen, stretched, targets_of, towards
from rbench_core.catalogue import read_toml
from rbench_core.errors import UsageError
from rbench_core.files import atomic_write
from rbench_threats.candidates import pack
from rbench_threats.spec import Exact

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Sources:
    """The images to change, exact, on the 0-255 scale, and the training images that they are moved towards, as bytes."""

    clean: Float32[np.ndarray, "n h w"]
    label: Int64[np.ndarray, " n"]
    train: UInt8[np.ndarray, "m h w"]
    train_label: Int64[np.ndarray, " m"]

    @property
    def whole(self) -> bool:
        """Whether the images are whole grey levels of 255 (MNIST's are; the 16 of digits lie between)."""
        return bool((self.clean == np.round(self.clean)).all())


def generate(
    dataset: str,
    *,
    eps: str,
    index: str,
    out: Path,
    rescale_from: str | None = None,
    true_inverse: bool = False,
    targets: Path | None = None,
    data: Path | None = None,
    report: Report | None = None,
) -> tuple[Path, Path]:
    """Write candidates for test images into `out` and their review page beside it; returns both paths. Raises UsageError, DataError.

    rescale_from: make them for that radius, then stretch them to eps and cut to 8 bit, as the released 0.4 set was made.
    """
    from rbench.invariance.review import page

    radius, base = _radius(eps), _radius(rescale_from or eps)
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}", expected="a file name that ends in .npz")
    rows = indices(index, sources.find(dataset).test)
    given = sources_of(dataset, rows, data)
    if rescale_from is not None and not given.whole:
        raise UsageError(
            f"--rescale-from with {dataset}", expected="a data set of 8-bit images", fix="Leave it out: the attack runs at --eps."
        )
    table = _targets(dataset, targets)
    found = attack(given, base, table, true_inverse=true_inverse, report=report)
    if rescale_from is not None:
        pairs = zip(given.clean, found["adv"], strict=True)
        found["adv"] = np.stack([stretched(x.astype(np.uint8), a, base, radius) for x, a in pairs])
    clean = given.clean.astype(np.uint8) if given.whole else given.clean
    told = {"dataset": np.array(dataset), "declared": np.array(f"linf(eps={radius})")}
    content = pack({**found, "clean": clean, "index": np.array(rows, dtype=np.int64), "label": given.label, **told})
    atomic_write(out, content)
    beside = out.with_suffix(".html")
    atomic_write(beside, page(content, out))
    return out, beside


def attack(
    given: Sources, eps: Fraction, targets: Targets, *, true_inverse: bool = False, report: Report | None = None
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """`adv` (n, h, w) float32, `target` (n,): the search, then the move towards the chosen neighbour, image by image."""
    finder = Finder(given.train, given.train_label)
    moved, aimed = [], []
    for done, (image, label) in enumerate(zip(given.clean, given.label.tolist(), strict=True), start=1):
        found = finder.find(np.round(image).astype(np.uint8), label, true_inverse=true_inverse)
        adv, target = candidate(image, label, found, eps, targets)
        moved.append(adv)
        aimed.append(target)
        if report is not None:
            report("candidates", done, len(given.clean))
    return {"adv": np.stack(moved), "target": np.array(aimed, dtype=np.int64)}


def candidate(
    image: Float32[np.ndarray, "h w"], label: int, found: Sequence[Neighbour], eps: Fraction, targets: Targets
) -> tuple[Float32[np.ndarray, "h w"], int]:
    """The image moved towards each neighbour; of the allowed targets the one that darkens least."""
    moved = {each.target: towards(image, each.aligned, eps) for each in found}
    target = chosen(image, moved, targets[label])
    return moved[target], target


def sources_of(dataset: str, rows: Sequence[int], root: Path | None) -> Sources:
    """Test images at `rows` and the whole training set. Raises UsageError for images with colour or another shape than a square."""
    test, train = sources.load(dataset, "test", root), sources.load(dataset, "train", root)
    if test.shape[0] != 1 or test.shape[1] != test.shape[2]:
        raise UsageError(f"dataset {dataset}: images of shape {test.shape}", expected="square grey images, such as mnist or digits")
    if max(rows) >= len(test):
        raise UsageError(f"--index {max(rows)}", expected=f"less than {len(test)}, the test images that are here")
    clean = (test.x[list(rows), 0] * 255).numpy()
    clean = np.where(np.abs(clean - np.round(clean)) < 1e-4, np.round(clean), clean)  # x/255 in float32 and back is off by a hair
    return Sources(clean, test.y[list(rows)].numpy(), (train.x[:, 0] * 255).round().byte().numpy(), train.y.numpy())


def indices(text: str, size: int) -> list[int]:
    """`0-24,159` as positions, each once, in the order given. Raises UsageError."""
    found: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not (first.isascii() and first.isdecimal() and (not dash or (last.isascii() and last.isdecimal()))):
            raise UsageError(f"--index {text[:60]!r}", expected="positions and ranges of test images, such as 0-24,159")
        found += range(int(first[:9]), int((last or first)[:9]) + 1)
        if len(found) > size:
            break
    if not found or len(set(found)) < len(found) or max(found) >= size:
        raise UsageError(f"--index {text[:60]!r}", expected=f"positions from 0 to {size - 1}, each once")
    return found


def _radius(text: str) -> Exact:
    eps = Exact(text)
    if not 0 < eps <= 1:
        raise UsageError(f"eps={eps}", expected="0 < eps <= 1, since images lie in [0, 1]")
    return eps


def _targets(dataset: str, path: Path | None) -> Targets:
    """The user's table, the released one for MNIST, every other class for the rest."""
    classes = len(sources.find(dataset).classes)
    if path is not None:
        return targets_of(read_toml(path), classes)
    return MNIST_TARGETS if dataset == "mnist" else all_others(classes)
