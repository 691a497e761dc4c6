"""The data sets by name: what they are, where their files lie, and a user's own tensors in the same form.

Files are looked for in the folder given (`--data`, else RBENCH_DATA) and in the user's cache; what is in neither is downloaded into the
cache. A folder that the user named is never written to. Nothing here imports torch before images are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbench_core.errors import DataError, UnknownName, UsageError
from rbench_core.files import cache_folder
from rbench_core.roots import data_roots

if TYPE_CHECKING:
    from rbench.data.dataset import Dataset
    from rbench.data.readers import Raw

DIGIT_NAMES = tuple("0123456789")
SPLITS = ("test", "train")


@dataclass(frozen=True, slots=True)
class Source:
    """A data set as published: `train` and `test` count its images, `folders` are the names its files' folder may have."""

    name: str
    title: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: int
    test: int
    default_n: int
    licence: str
    folders: tuple[str, ...] = ()


SOURCES = {
    source.name: source
    for source in (
        Source("digits", "Handwritten digits of scikit-learn (UCI)", (1, 8, 8), DIGIT_NAMES, 1297, 500, 500, "CC BY 4.0"),
        Source("mnist", "MNIST", (1, 28, 28), DIGIT_NAMES, 60_000, 10_000, 1_000, "CC BY-SA 3.0, as commonly stated", ("MNIST", "mnist")),
        Source(
            "fashion-mnist",
            "Fashion-MNIST",
            (1, 28, 28),
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            60_000,
            10_000,
            1_000,
            "MIT",
            ("FashionMNIST", "fashion-mnist"),
        ),
        Source(
            "cifar10",
            "CIFAR-10",
            (3, 32, 32),
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            50_000,
            10_000,
            1_000,
            "none published; research use is customary",
            ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar10"),
        ),
    )
}


def find(name: str) -> Source:
    """The data set of that name. Raises UnknownName with the nearest ones."""
    if name not in SOURCES:
        raise UnknownName("data set", name, SOURCES)
    return SOURCES[name]


def names() -> list[str]:
    return list(SOURCES)


def default_n(name: str) -> int:
    """How many images a run takes unless it is told otherwise."""
    return find(name).default_n


def listing(root: Path | None = None) -> list[dict[str, Any]]:
    """One plain object per data set. `found` is the folder of its test files, "scikit-learn" for digits, None where a download is due."""
    return [
        {
            "name": source.name,
            "title": source.title,
            "shape": list(source.shape),
            "classes": len(source.classes),
            "train": source.train,
            "test": source.test,
            "default_n": source.default_n,
            "licence": source.licence,
            "found": _where(source, root),
        }
        for source in SOURCES.values()
    ]


def load(name: str, split: str = "test", root: Path | str | None = None, n: int | None = None) -> Dataset:
    """The first n images of a split (None: all of it), in the published order. Raises UnknownName, UsageError, DataError.

    Where fewer than n are there, those are served. `note` says so, and how much of the split lies here (CIFAR-10 with some of its batches).
    """
    source = find(name)
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if n is not None and n < 1:
        raise UsageError(f"n={n}", expected="a whole number from 1 on, or all")
    raw = _read(source, split, root)
    _check(raw, source, split)
    from rbench.data.dataset import from_raw

    return from_raw(raw, name=name, classes=source.classes, split=split, note=_note(source, split, len(raw.labels), n), n=n)


def present(name: str, split: str = "test", root: Path | str | None = None) -> list[Path]:
    """The split's files that lie here, none where `load` would download them. Nothing is opened."""
    return _locate(find(name), split, _roots(root))


def from_tensors(x: Any, y: Any, name: str = "custom", classes: Sequence[str] | None = None, note: str | None = None) -> Dataset:
    """A user's images (n, C, H, W), floats in [0, 1], and integer labels (n,), as tensors or arrays. Copies. Raises UsageError.

    Without `classes` their number is the largest label + 1, which a model's may exceed.
    """
    from rbench.data.dataset import Dataset, content_digest, images, labels

    x = images(x)
    y = labels(y, len(x))
    known = tuple(classes) if classes is not None else tuple(str(i) for i in range(int(y.max()) + 1))
    if int(y.max()) >= len(known):
        raise UsageError(f"y holds the label {int(y.max())}", expected=f"less than {len(known)}, the number of class names")
    digest = content_digest(x.numpy(), y.numpy(), 1)
    return Dataset(name, x, y, known, digest, "custom", note, size=len(x), open_classes=classes is None)


def from_loader(loader: Iterable[Any], name: str = "custom", classes: Sequence[str] | None = None, n: int | None = None) -> Dataset:
    """The (x, y) batches of a DataLoader, one after another, at most n rows. Raises UsageError.

    A loader that shuffles gives another order, and so another data set, at each call: `note` says so.
    """
    import torch

    xs, ys, rows = [], [], 0
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise UsageError(f"the loader yields {type(batch).__name__}", expected="pairs (x, y)")
        xs.append(torch.as_tensor(batch[0]))
        ys.append(torch.as_tensor(batch[1]))
        rows += len(xs[-1])
        if n is not None and rows >= n:
            break
    if not rows:
        raise UsageError("the loader yields no images")
    if len({tuple(part.shape[1:]) for part in xs}) > 1:
        raise UsageError(f"the loader yields images of the shapes {sorted({tuple(part.shape[1:]) for part in xs})}", expected="one shape")
    shuffled = isinstance(getattr(loader, "sampler", None), torch.utils.data.RandomSampler)
    note = "read from a loader that shuffles: another call sees another order" if shuffled else None
    return from_tensors(torch.cat(xs)[:n], torch.cat(ys)[:n], name, classes, note)


def _read(source: Source, split: str, root: Path | str | None) -> Raw:
    from rbench.data import readers

    if not source.folders:
        return readers.read_digits(split)
    files = _files(source, split, root)
    if source.name == "cifar10":
        return readers.read_cifar(files)
    if len(files) < 2:
        raise DataError(f"{files[0]}: its labels, {_idx_stems(split)[1]}(.gz), do not lie beside it")
    return readers.read_idx_pair(files[0], files[1])


def _check(raw: Raw, source: Source, split: str) -> None:
    """Whether the files are those of this data set, as far as shapes and labels tell. Raises DataError."""
    if not len(raw.labels):
        raise DataError(f"{source.name}: the {split} files hold no images")
    shape, last = raw.images.shape[1:], int(raw.labels.max())
    if shape != source.shape or last >= len(source.classes):
        expected = f"{source.shape} and {len(source.classes) - 1}"
        raise DataError(f"{source.name}: the {split} files hold images of shape {shape}, labels up to {last}", expected=expected)


def _files(source: Source, split: str, root: Path | str | None) -> list[Path]:
    """The split's files, after a download if need be. Raises DataError."""
    roots = _roots(root)
    if root is not None and not roots[0].is_dir():
        raise DataError(f"{roots[0]}: no such folder", expected="the folder that holds the data sets")
    found = _locate(source, split, roots)
    if not found:
        found = _locate(source, split, [_download(source, roots)])
    if not found:
        raise DataError(f"{source.name}: the download brought no {split} files")
    return found


def _download(source: Source, roots: list[Path]) -> Path:
    from rbench.data.torchvision_shim import download

    try:
        download(source.name, roots[-1])
    except DataError as error:
        looked = " and ".join(str(root) for root in roots)
        place = roots[0] / source.folders[0]
        fix = f"Put the published files into {place}, set RBENCH_DATA (or --data) to the folder above them, or go online."
        raise DataError(f"{error}; no files of it in {looked}", fix=fix) from error
    return roots[-1]


def _roots(root: Path | str | None) -> list[Path]:
    """The folder given, else RBENCH_DATA; then the user's cache, the only one that is written to."""
    return data_roots(root, cache_folder() / "data")


def _where(source: Source, root: Path | None) -> str | None:
    files = _locate(source, "test", _roots(root))
    return str(files[0].parent) if files else None if source.folders else "scikit-learn"


def _locate(source: Source, split: str, roots: list[Path]) -> list[Path]:
    """The split's files in the first folder that has any: CIFAR-10's batches in their order, or images (and labels)."""
    places = (place for root in roots for place in _places(source, root))
    return next(filter(None, (_present(place, source, split) for place in places)), [])


def _present(folder: Path, source: Source, split: str) -> list[Path]:
    if source.name == "cifar10":
        stems, endings = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)], (".bin", "")
    else:
        stems, endings = _idx_stems(split), ("", ".gz")
    found = [next((path for path in (folder / f"{stem}{ending}" for ending in endings) if path.is_file()), None) for stem in stems]
    return [path for path in found if path is not None]


def _idx_stems(split: str) -> list[str]:
    part = "t10k" if split == "test" else "train"
    return [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]


def _places(source: Source, root: Path) -> list[Path]:
    """Folders named for the data set, under the root or the root itself: MNIST's and Fashion-MNIST's files have the same names."""
    places = [root / name / raw for name in source.folders for raw in ("raw", ".")]
    if root.name in source.folders:
        places += [root / "raw", root]
    if root.name == "raw" and root.parent.name in source.folders:
        places.append(root)
    return places


def _note(source: Source, split: str, there: int, n: int | None) -> str | None:
    whole = source.test if split == "test" else source.train
    kind = "test" if split == "test" else "training"
    notes = [f"{there:,} of {whole:,} {kind} images"] if there < whole else []
    if n is not None and n > there:
        notes.append(f"{n:,} were asked for, {there:,} are here")
    return "; ".join(notes) or None
