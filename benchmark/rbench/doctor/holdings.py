"""What a run reads: the data sets and the weights of the zoo, found here or not."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rbench.doctor import Finding, Place
from rbench_core.errors import RbenchError
from rbench_core.files import sha256_file

BUDGET = 1 << 30  # bytes of a mirror that are read to know its digests; about 2 s
MIRRORED = (".safetensors", ".pt", ".pth", ".net")


def data(place: Place) -> Iterator[Finding]:
    """Each data set: where it lies, how much of it, whether its test images can be read. Nothing is downloaded."""
    from rbench.data import sources

    given = place.data or (Path(named).expanduser() if (named := os.environ.get("RBENCH_DATA", "").strip()) else None)
    if given is not None and not given.is_dir():
        yield Finding("data folder", "problem", f"{given}: no such folder", "Name the folder above the data sets by --data or RBENCH_DATA.")
        return
    for name, source in sources.SOURCES.items():
        if source.folders and not sources.present(name, root=given):
            where = given / source.folders[0] if given else f"a folder {source.folders[0]} below RBENCH_DATA"
            fix = f"The first run on it downloads it; offline, put the published files into {where}."
            yield Finding(f"data {name}", "note", "not here", fix)
            continue
        yield _read(name, given)


def _read(name: str, root: Path | None) -> Finding:
    """Both splits as far as they lie here; the test images are what runs need."""
    from rbench.data import sources

    source = sources.find(name)
    try:
        test = sources.load(name, "test", root, n=1)
    except RbenchError as error:
        return Finding(f"data {name}", "problem", error.what, error.fix or "Fetch the file again.")
    except Exception as error:  # one data set must not hide the others
        return Finding(f"data {name}", "problem", f"{type(error).__name__}: {error}", "Fetch its files again.")
    parts = [f"test {test.note or f'all {source.test:,} images'}"]
    state, fix = ("ok", None) if test.note is None else ("note", "`rbench run` takes those that are here.")
    trained = source.train if not source.folders else _batches(name, root)
    parts.append(f"training {trained:,} of {source.train:,}" if trained else "training images not here")
    if trained < source.train:
        state, fix = "note", fix or "Enough for `rbench run`; `rbench train` takes the training images that are here."
    where = next((f", in {path.parent}" for path in sources.present(name, root=root)), ", with scikit-learn")
    return Finding(f"data {name}", state, "; ".join(parts) + where, fix)


def _batches(name: str, root: Path | None) -> int:
    """Training images by the names of the files that are here: CIFAR-10 comes in five parts, the others in one pair."""
    from rbench.data import sources

    source, files = sources.find(name), sources.present(name, "train", root)
    whole = 5 if name == "cifar10" else 2
    return source.train * len(files) // whole if whole == 5 else source.train * (len(files) == whole)


def weights(place: Place) -> Iterator[Finding]:
    """RBENCH_WEIGHTS, and for every card where its weights are: here by their digest, to be downloaded, or only in a mirror."""
    from rbench_zoo.catalogue import cards
    from rbench_zoo.fetch import at_hand

    known, named = cards(), os.environ.get("RBENCH_WEIGHTS", "").strip()
    names = {Path(card.weights.file or "").name for card in known.values()}
    digests: dict[str, Path] = {}
    complete = True
    if named:
        yield _mirror(Path(named).expanduser())
        digests, complete = _digests(Path(named).expanduser(), names)
    else:
        fix = "Only models that are neither in the package nor online need it."
        yield Finding("weights folder", "note", "RBENCH_WEIGHTS is not set", fix)
    states: dict[str, list[str]] = defaultdict(list)
    for name, card in known.items():
        own, original = at_hand(card), card.weights.original
        wrong = [path for path, sha256 in own if _digest(path) != sha256]
        if wrong:
            what = f"{wrong[0]}: another SHA-256 than the card's, so the model is refused"
            yield Finding(f"weights {name}", "problem", what, "Remove the file, or fetch it again.")
        elif own or digests.keys() & {card.weights.sha256, *([original.sha256] if original else [])}:
            states["here"].append(name)
        elif card.weights.url or original:
            states["download"].append(name)
        else:
            states["mirror"].append(name)
    yield from _told(states, complete)


def _mirror(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("weights folder", "problem", f"{folder}: no such folder", "RBENCH_WEIGHTS names it: correct or unset it.")
    found = list(folder.rglob("*.safetensors"))
    state, fix = ("ok", None) if found else ("note", "RBENCH_WEIGHTS is searched for .safetensors files.")
    return Finding("weights folder", state, f"{folder}: {len(found)} safetensors files", fix)


def _digests(folder: Path, names: Iterable[str]) -> tuple[dict[str, Path], bool]:
    """SHA-256 -> file, those with the cards' names first, and whether all were read; a file that cannot be read is left out."""
    wanted, found, spent = set(names), dict[str, Path](), 0
    files = [path for path in folder.rglob("*") if path.suffix in MIRRORED and path.is_file()]
    for path in sorted(files, key=lambda path: (path.name not in wanted, str(path))):
        spent += path.stat().st_size
        if spent > BUDGET:
            return found, False
        if (digest := _digest(path)) is not None:
            found.setdefault(digest, path)
    return found, True


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, None where it cannot be read."""
    try:
        return sha256_file(path)
    except RbenchError:
        return None


def _told(states: Mapping[str, list[str]], complete: bool) -> Iterator[Finding]:
    """The cards by what stands between them and a run."""
    unsure = "" if complete else " (the folder is large: not every file's digest was looked at)"
    if states["here"]:
        yield Finding("weights here", "ok", f"{len(states['here'])} models by their digest: {', '.join(states['here'])}")
    if states["download"]:
        fix = "The first run downloads them; offline, set RBENCH_WEIGHTS to a folder that holds them."
        yield Finding("weights to fetch", "note", f"{len(states['download'])} models{unsure}: {', '.join(states['download'])}", fix)
    if states["mirror"]:
        fix = "They cannot be downloaded: set RBENCH_WEIGHTS to a folder that holds them."
        yield Finding("weights in a mirror", "note", f"{len(states['mirror'])} models{unsure}: {', '.join(states['mirror'])}", fix)
