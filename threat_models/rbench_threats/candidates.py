"""The file layout of stored candidates: an .npz of changed images, the images they came from, and what people call them. numpy alone.

Keys: `adv` and `clean` on the 0-255 scale, (n, h, w) or (n, c, h, w); `index` (n,), the position of the clean image in its data set;
`label` (n,), its label there; `human` (n,), what people call `adv`. Optional: `target` (n,), the class aimed at; `declared`, the ball that
the candidates are said to lie in, such as linf(eps=0.3); `unsettled` (m,), indices of images on which people did not agree, left out.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Num, Shaped

from rbench_core.errors import DataError

LARGEST = 1 << 28  # bytes of all arrays of a file
DATE = (1980, 1, 1, 0, 0, 0)  # of every member: the same arrays are the same bytes
CLASSES = 10


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What a file holds, checked; images (n, c, h, w) on the 0-255 scale. eight_bit: `adv` holds whole grey levels."""

    adv: Float[np.ndarray, "n c h w"]
    clean: Float[np.ndarray, "n c h w"]
    human: Int64[np.ndarray, " n"] | None
    index: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    target: Int64[np.ndarray, " n"] | None
    declared: str | None
    unsettled: int
    eight_bit: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.adv.shape[1:]
        return channels, height, width

    def distance(self) -> Float64[np.ndarray, " n"]:
        """The linf distance of each candidate from its clean image, on the 0-255 scale, where it is exact."""
        found: Float64[np.ndarray, " n"] = np.abs(self.adv.astype(np.float64) - self.clean).reshape(len(self.adv), -1).max(1)
        return found


def pack(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> bytes:
    """An .npz file of these arrays, in the order of their names: the same arrays give the same bytes, uncompressed and with fixed dates."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = zipfile.ZipInfo(f"{name}.npy", DATE)
            member.create_system, member.external_attr = 3, 0o644 << 16
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name], order="C"), version=(1, 0), allow_pickle=False)
            archive.writestr(member, content.getvalue())
    return file.getvalue()


def arrays_of(data: bytes, where: object) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array of an .npz file; objects are refused unseen, and a file that unpacks to more than LARGEST bytes. Raises DataError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise DataError(f"{where}: more than {LARGEST:,} bytes once unpacked", expected="a set of stored candidates")
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except DataError:
        raise
    except Exception as error:  # a damaged file makes zipfile, zlib and numpy raise whatever they please
        words = " ".join(str(error).split())[:120]
        raise DataError(
            f"{where}: no .npz file of plain arrays ({type(error).__name__}: {words})", fix="Make or fetch it again."
        ) from error


def unpack(data: bytes, where: object) -> Candidates:
    """The candidates of a file; what is wrong is told in one line. `human` may be absent: `labelled` asks for it. Raises DataError."""
    arrays = arrays_of(data, where)
    lacking = [key for key in ("adv", "clean", "index", "label") if key not in arrays]
    if lacking:
        raise DataError(
            f"{where}: no array {lacking[0]!r}", expected="adv, clean, index, label and human; docs/invariance.md has the layout"
        )
    adv, clean = (_images(arrays[key], f"{where}: {key}") for key in ("adv", "clean"))
    if adv.shape != clean.shape:
        raise DataError(f"{where}: adv has the shape {arrays['adv'].shape}, clean {arrays['clean'].shape}", expected="one size for both")
    n = len(adv)
    labels = {key: _whole(arrays[key], n, f"{where}: {key}") for key in ("index", "label", "human", "target") if key in arrays}
    for key in ("label", "human", "target"):
        _classes(labels.get(key), f"{where}: {key}")
    declared = _text(arrays["declared"], f"{where}: declared") if "declared" in arrays else None
    unsettled = int(arrays["unsettled"].size) if "unsettled" in arrays else 0
    rest = labels.get("human"), labels["index"], labels["label"], labels.get("target")
    return Candidates(adv, clean, *rest, declared, unsettled, arrays["adv"].dtype == np.uint8)


def labelled(found: Candidates, where: object) -> Candidates:
    """The same, if people have labelled it. Raises DataError."""
    if found.human is None:
        fix = "Let people label them on its review page, then run `rbench invariance import`."
        raise DataError(f"{where}: no human labels", expected="the array human, one class per candidate", fix=fix)
    return found


def _text(array: Shaped[np.ndarray, "..."], where: str) -> str:
    if array.ndim or array.dtype.kind != "U":
        raise DataError(f"{where} has the shape {array.shape} and type {array.dtype}", expected="one text, such as linf(eps=0.3)")
    return str(array[()])


def _images(array: Shaped[np.ndarray, "..."], where: str) -> Float[np.ndarray, "n c h w"]:
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(f"{where} has the shape {array.shape}", expected="(n, height, width) or (n, channels, height, width)")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{where} is {array.dtype}", expected="uint8, or floats on the 0-255 scale")
    images = array.astype(np.float32) if array.ndim == 4 else array.astype(np.float32)[:, None]
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 255):
        raise DataError(f"{where} holds values outside 0 to 255", expected="grey levels on the 0-255 scale")
    return images


def _whole(array: Num[np.ndarray, "..."], n: int, where: str) -> Int64[np.ndarray, " n"]:
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise DataError(f"{where} has the shape {array.shape} and type {array.dtype}", expected=f"({n},) whole numbers, one per candidate")
    if n and (array.min() < 0 or array.max() >= 2**31):
        raise DataError(f"{where} holds {array.min()} to {array.max()}", expected="numbers from 0 on")
    return array.astype(np.int64)


def _classes(labels: Int64[np.ndarray, " n"] | None, where: str) -> None:
    if labels is not None and (labels >= CLASSES).any():
        place = int((labels >= CLASSES).argmax())
        raise DataError(f"{where} of candidate {place} is {labels[place]}", expected=f"a class from 0 to {CLASSES - 1}")


def check_distance(found: Candidates, eps: float, where: object, ball: object) -> None:
    """Refuse a candidate outside its declared linf ball, by its distance. eps in [0, 1]. Raises DataError.

    Slack: 1e-6, and for a set in whole grey levels one of them (1/255), since they cannot hit every radius.
    """
    distance = found.distance() / 255
    slack = 1e-6 + (1 / 255 if found.eight_bit else 0.0)
    if (distance > eps + slack).any():
        place = int(distance.argmax())
        allowed = f"at most {eps + slack:.6f}" + (", one grey level of slack included" if found.eight_bit else "")
        what = f"{where}: candidate {place} lies at linf distance {distance[place]:.4f}, outside its declared ball {ball}"
        raise DataError(what, expected=allowed, fix="Declare the ball that it was made for.")
