"""From people's votes to labels: the class that more than half of an image's votes name. Whoever saw no digit votes too, for none."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from rbench.invariance.review import image_digest
from rbench_core.errors import DataError, UsageError
from rbench_core.files import atomic_write, reason
from rbench_threats.candidates import CLASSES, arrays_of, pack, unpack


class Vote(NamedTuple):
    """What one rater said of one candidate, named by `image_digest`; label None: no digit."""

    image: str
    rater: str
    label: int | None


class Imported(NamedTuple):
    """What came of the votes: the file, candidates in all, settled, changed among those, raters."""

    path: Path
    n: int
    settled: int
    changed: int
    raters: int


def majority(votes: Sequence[int | None]) -> int | None:
    """The class that more than half of the votes name; None for a tie, for none ahead, for no votes, and where most saw no digit."""
    counted = Counter(votes).most_common(1)
    return counted[0][0] if counted and 2 * counted[0][1] > len(votes) else None


def import_votes(file: Path, votes: Sequence[Path], out: Path) -> Imported:
    """Write the candidates on which people agree, with their labels, as a set file. Raises DataError, UsageError.

    Candidates without agreement leave the set; `unsettled` keeps their indices, `votes` (n, 11) how many said what, none last.
    """
    if out.suffix != ".npz" or not votes:
        raise UsageError(f"--out {out}, {len(votes)} files of votes", expected="a name that ends in .npz, and one file of votes at least")
    content = _read(file)
    found, arrays = unpack(content, file), arrays_of(content, file)
    names = [image_digest(adv) for adv in found.adv]
    cast = [vote for path in votes for vote in read_votes(path)]
    by_image = _tallied(cast, names)
    labels = [majority(by_image[name]) for name in names]
    settled = np.array([label is not None for label in labels])
    if not settled.any():
        raise DataError(f"{file}: on none of {len(names)} candidates do more than half of the votes agree", fix="Ask more people.")
    human = np.array([label for label in labels if label is not None], dtype=np.int64)
    kept = {key: value[settled] for key, value in arrays.items() if value.ndim and len(value) == len(settled)}
    rest = {key: value for key, value in arrays.items() if not value.ndim}
    counts = np.stack([_counts(by_image[name]) for name in names])[settled]
    atomic_write(out, pack({**rest, **kept, "human": human, "votes": counts, "unsettled": found.index[~settled]}))
    changed = int((human != found.label[settled]).sum())
    return Imported(out, len(names), int(settled.sum()), changed, len({vote.rater for vote in cast}))


def read_votes(path: Path) -> list[Vote]:
    """The votes of a file that the review page saved, JSON or CSV. Raises DataError."""
    text = _read(path).decode("utf-8", "replace")
    try:
        rows: Iterable[Any] = json.loads(text)["votes"] if path.suffix.lower() == ".json" else csv.DictReader(io.StringIO(text))
        return [_vote(row, path) for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        fix = "Save it again from the review page."
        raise DataError(
            f"{path}: no file of votes ({type(error).__name__}: {error})", expected="image, rater, label per vote", fix=fix
        ) from error


def _vote(row: Mapping[str, Any], path: Path) -> Vote:
    image, rater, label = row["image"], str(row["rater"]).strip(), row["label"]
    said = None if label in (None, "") else int(label) if str(label).isascii() and str(label).isdecimal() else -1
    if not rater:
        raise DataError(f"{path}: a vote without a rater", expected="a name or number per rater: nobody votes twice")
    if said is not None and not 0 <= said < CLASSES:
        raise DataError(f"{path}: {rater} says {str(label)[:20]!r}", expected=f"a class from 0 to {CLASSES - 1}, or nothing for none")
    return Vote(str(image), rater, said)


def _tallied(votes: Iterable[Vote], names: Sequence[str]) -> dict[str, list[int | None]]:
    """The votes of each candidate; the same file given twice counts once. Raises DataError for unknown candidates and second opinions."""
    said: dict[tuple[str, str], int | None] = {}
    known = set(names)
    for vote in votes:
        if vote.image not in known:
            raise DataError(
                f"{vote.rater} votes on an image {vote.image[:12]}… that is not in the file", expected="votes on these candidates"
            )
        if said.setdefault((vote.image, vote.rater), vote.label) != vote.label:
            raise DataError(f"{vote.rater} has two answers for the image {vote.image[:12]}…", expected="one vote per rater and image")
    found: dict[str, list[int | None]] = {name: [] for name in names}
    for (image, _), label in said.items():
        found[image].append(label)
    return found


def _counts(votes: Sequence[int | None]) -> Int64[np.ndarray, " kinds"]:
    counted = Counter(CLASSES if label is None else label for label in votes)
    return np.array([counted[label] for label in range(CLASSES + 1)], dtype=np.int64)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error
