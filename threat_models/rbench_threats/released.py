"""The four human-labelled sets of Tramèr et al. 2020, found under the data root or fetched from their source; never shipped.

Fetched files are checked by digest, put into our layout, checked by digest again, and kept in the user's cache beside their licence.
Source: github.com/ftramer/Excessive-Invariance at a fixed commit (MIT). `target` is not of the release: it was worked out from it.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from rbench_core.download import fetched, reachable
from rbench_core.errors import DataError, Failure, FileError
from rbench_core.files import atomic_write, checked, reason, sha256_bytes
from rbench_core.roots import data_roots
from rbench_threats.candidates import pack

FOLDER = "invariance"
COMMIT = "780cab97b95f3a2a50c8b2cd14f2256ce8062c41"
ADDRESS = f"https://raw.githubusercontent.com/ftramer/Excessive-Invariance/{COMMIT}"
LICENCE = "LICENSE"
SHA256 = {  # of the files of the source
    LICENCE: "e4b2979091b33abb80e01cb64bc2911d9dcb1a296b32543a5e5180ce9b0be27e",
    "invariance_examples/indexs.npy": "a6bd76c3327259475ff8d4e48a4c49cb1fd84df90bd651c45312486b3903968d",
    "invariance_examples/l0/automated.npy": "02eb24c04a8b7a26c397fa02e4ae90d43c9e0818eb9f6dcd007953d5279c6d8b",
    "invariance_examples/l0/automated_labels.npy": "8e4387f2a9e89678911071838dbf82a59788f49a07784b8960a3310c640a30ec",
    "invariance_examples/linf/automated_eps03.npy": "3f1dad7705a272bee7ff6186e241b591a4bba88f7f3a94c686954ba7f78bb986",
    "invariance_examples/linf/automated_eps03_labels.npy": "79c93e7ab230591861ea74996ba6c95942290ed9e209e83f0b45b6b0c468ad18",
    "invariance_examples/linf/automated_eps04.npy": "751cbe4a5a2b85255e6e38a12e9eca690b2a4d54dc8e9e0d9dd6a582aec37978",
    "invariance_examples/linf/automated_eps04_labels.npy": "bb28481ffe49bf13a77a06f43e32895e6270739119e1fc2e1e232aa02bc11316",
    "invariance_examples/linf/manual_eps04.npy": "d3e40f37cda8dffb29a08cf8edd56ebd5838e302468a1f7bdc77f58ee662dd5f",
    "invariance_examples/linf/manual_eps04_labels.npy": "c953a34663c9c8aeda12a2f1231a6c6ba035a3f9687ac10abcebfb5660390550",
    "invariance_examples/linf/manual_indexs.npy": "f92394039cbd784ec8da5adcd653f63c81cf805c474b5fc43a7357e4afc882cc",
    "linf/X_test_100.npy": "61d42f88b62c6d84d5015738e7c3f3ef0ff217495447e743fdb9ebe0933cb9ba",
    "linf/all_y_nns.npy": "7ff21b9d3d56da46ffc0032b9aeb2767684b547d899bf7e1a0340c63d5717a4c",
}
TARGETS = "9398280323383384789479888798334844894736828388480348083733880992207700928048678506972359880832393085"  # linf-0.3 and linf-0.4
DRAWN_FROM_SOURCES = 25  # the manual set: as many of the common sources, then as many of the first MNIST test images


@dataclass(frozen=True, slots=True)
class Released:
    """One set: the digest of its file as distributed (what names it in questions) and as we build it, the ball it is said to lie in."""

    name: str
    sha256: str
    built: str
    declared: str | None
    stem: str  # of its images' and labels' files at the source
    sentence: str


RELEASED = {
    each.name: each
    for each in (
        Released(
            "l0",
            "9160b6dec43e2c1ff82ad4772b738ad1969dd31eec81c1e04b6660c4670f3d36",
            "945f2a3d34bef7f4468f32da372e3dbb526a08b9412af80dc7069622d92fe989",
            None,
            "l0/automated",
            "Some strokes of 100 digits were replaced; people said what each shows now, and the model should say the same.",
        ),
        Released(
            "linf-0.3",
            "547d26ae99ade39de6021464ffd3d91c5ff42b7f4d216fe1b785906efdc411b2",
            "fd70d1225d4ffb29e438c4cd8a6680aadf29aa1f38bfc1d9af75e69de9de180f",
            "linf(eps=0.3)",
            "linf/automated_eps03",
            "Every pixel of 100 digits was moved by at most 0.3 towards another digit; people said what each shows now, and the model "
            "should say the same.",
        ),
        Released(
            "linf-0.4",
            "54265e01928af2013e9e154f50afa8bf457b82146290eaba830b746d57544bf8",
            "32967fde75f117ebb85b79bb9b2fe04970a1db25837f7a6384f9692a683fd288",
            "linf(eps=0.4)",
            "linf/automated_eps04",
            "The changes of linf-0.3 stretched to 0.4 (103 of 255 grey levels); people said what each shows now, and the model should "
            "say the same.",
        ),
        Released(
            "manual",
            "79421e9a11db3d9eecfad401fc3a721521f6aa05681c4349ef4b01d56cfe783d",
            "40b8a34b26d428832aacd0df79e8b06fe3b43aed59ab026956dc750a748d28a3",
            "linf(eps=0.4)",
            "linf/manual_eps04",
            "A person redrew 50 digits, no pixel moved by more than 0.4; people said what each shows now, and the model should say the "
            "same.",
        ),
    )
}


def read(name: str) -> tuple[bytes, Path]:
    """A set's file, checked, and where it lies: under the data root or in the cache, else built there from the source. Raises DataError."""
    known, roots = RELEASED[name], data_roots()
    places = [place / f"{name}.npz" for root in roots for place in ([root] if root.name == FOLDER else []) + [root / FOLDER]]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        data = _built(known, roots)
        return data, _kept(roots[-1] / FOLDER, name, data)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error
    if sha256_bytes(data) not in (known.sha256, known.built):
        checked(data, known.sha256, path)
    return data, path


def _kept(folder: Path, name: str, data: bytes) -> Path:
    """Where a built file lies from now on; a cache that cannot be written costs the same work next time, nothing more."""
    with suppress(FileError):
        atomic_write(folder / f"{name}.npz", data)
    return folder / f"{name}.npz"


def _built(known: Released, roots: list[Path]) -> bytes:
    """The file of a set from its source. Raises DataError within seconds where there is no network."""
    looked = " and ".join(str(root / FOLDER) for root in roots)
    fix = f"Go online, or put {known.name}.npz into the folder {FOLDER} under RBENCH_DATA (or --data)."
    if not reachable([ADDRESS]):
        raise DataError(f"invariance({known.name}): {known.name}.npz is not in {looked}, and its source does not answer", fix=fix)
    try:
        source = _source(roots[-1] / FOLDER)
        arrays = _arrays(known, source)
        return checked(pack(arrays), known.built, f"invariance({known.name}), built from {ADDRESS}")
    except DataError:
        raise
    except Failure as error:
        raise DataError(f"invariance({known.name}): {error.what}", expected=error.expected, fix=fix) from error


def _source(folder: Path) -> Callable[[str], Shaped[np.ndarray, "..."]]:
    """A reader of the source's arrays by path. Its licence comes first and stays beside what is kept."""
    licence = fetched(f"{ADDRESS}/{LICENCE}", SHA256[LICENCE], None)
    with suppress(FileError):
        atomic_write(folder / "LICENSE.txt", licence)

    def array(path: str) -> Shaped[np.ndarray, "..."]:
        found: Shaped[np.ndarray, "..."] = np.load(io.BytesIO(fetched(f"{ADDRESS}/{path}", SHA256[path], None)), allow_pickle=False)
        return found

    return array


def _arrays(known: Released, source: Callable[[str], Shaped[np.ndarray, "..."]]) -> dict[str, Shaped[np.ndarray, "..."]]:
    index, clean, classes = (source(path) for path in ("invariance_examples/indexs.npy", "linf/X_test_100.npy", "linf/all_y_nns.npy"))
    label = 45 - classes.sum(1, dtype=np.int64)  # all_y_nns names the nine other classes
    adv, human = (source(f"invariance_examples/{known.stem}{end}.npy") for end in ("", "_labels"))
    found = {"adv": adv, "human": human.astype(np.int64)}
    if len(adv) == len(clean):
        found |= {"clean": clean, "index": index.astype(np.int64), "label": label}
        return found if known.declared is None else {**found, "target": np.array([int(digit) for digit in TARGETS])}
    images, labels = _first_of_mnist(len(adv) - DRAWN_FROM_SOURCES)
    own = source("invariance_examples/linf/manual_indexs.npy").astype(np.int64)
    both = np.concatenate([clean[:DRAWN_FROM_SOURCES], images]), np.concatenate([label[:DRAWN_FROM_SOURCES], labels])
    return {**found, "clean": both[0], "index": own, "label": both[1]}


def _first_of_mnist(n: int) -> tuple[UInt8[np.ndarray, "n 28 28"], Int64[np.ndarray, " n"]]:
    """The first n test images of MNIST with labels; the digest of what is built from them tells whether they are."""
    images = np.frombuffer(_idx("t10k-images-idx3-ubyte", 16 + n * 784), np.uint8, n * 784, 16).reshape(n, 28, 28)
    return images, np.frombuffer(_idx("t10k-labels-idx1-ubyte", 8 + n), np.uint8, n, 8).astype(np.int64)


def _idx(stem: str, size: int) -> bytes:
    """The beginning of one of MNIST's files. Raises DataError."""
    folders = [root / name / raw for root in data_roots() for name in ("MNIST", "mnist") for raw in ("raw", ".")]
    for path in (folder / f"{stem}{ending}" for folder in folders for ending in ("", ".gz")):
        if path.is_file():
            try:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                    data: bytes = stream.read(size)
            except (OSError, EOFError) as error:
                raise DataError(f"{path}: {error}", fix="Fetch it again.") from error
            if len(data) == size:
                return data
    fix = (
        "Set RBENCH_DATA to the folder above MNIST, or run `rbench run --model mnist-standard --threat linf --n 1` once, which fetches it."
    )
    raise DataError(f"invariance(manual): half of its clean images are MNIST test images, and no {stem} is here", fix=fix)
