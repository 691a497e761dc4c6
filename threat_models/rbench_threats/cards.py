"""Cards of sets that were learned: a TOML file that says what the set is and how it was made, with its weights beside it. No torch to list.

A built-in card lies in cards/, its weights in weights/; a user's card is named by its path, its weights lie in the card's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbench_core.catalogue import Entry, entries, only, read_toml
from rbench_core.errors import CardError, FileError, UnknownName
from rbench_core.files import canonical_json, read_checked, sha256_bytes

if TYPE_CHECKING:
    from torch import Tensor

KEYS = (
    "schema", "kind", "name", "title", "summary", "source", "dataset", "shape", "network", "weights", "radius", "quality", "training",
    "budget",
)  # fmt: skip
DECIDING = ("kind", "shape", "network", "budget")  # with the weights: what a θ renders to


@dataclass(frozen=True, slots=True)
class Card:
    """A card that was read. sha256: of all that decides the set, so that editorial changes make no new question."""

    name: str
    table: dict[str, Any]
    path: Path
    sha256: str
    tensors: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of the images that the set is for."""
        channels, height, width = self.table["shape"]
        return channels, height, width


def listing(kind: str | None = None) -> list[dict[str, Any]]:
    """One object per built-in card: name, kind, title, summary, data set, shape."""
    found = [entry for entry in built_in().values() if kind in (None, entry.table.get("kind"))]
    return [{"name": e.name, **{key: e.table.get(key, "") for key in ("kind", "title", "summary", "dataset", "shape")}} for e in found]


def built_in() -> dict[str, Entry]:
    """Every built-in card by name. Raises CardError."""
    return entries([("built in", _folder("cards"))])


def load(kind: str, name: str) -> Card:
    """The card of a name or of a path that ends in .toml, with its tensors. Raises UnknownName, CardError, FileError."""
    path, table, weights = _found(kind, name)
    _check(table, kind, path)
    sha256 = table["weights"]["sha256"]
    data = read_checked(weights / table["weights"]["file"], sha256)
    decided = canonical_json({"weights": sha256, **{key: table[key] for key in DECIDING if key in table}})
    return Card(str(table.get("name", path.stem)), table, path, sha256_bytes(decided.encode()), _tensors(data, path))


def _folder(name: str) -> Path:
    return Path(str(resources.files("rbench_threats") / name))


def _found(kind: str, name: str) -> tuple[Path, dict[str, Any], Path]:
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        return path, read_toml(path), path.parent
    known = {entry.name: entry for entry in built_in().values() if entry.table.get("kind") == kind}
    if name not in known:
        raise UnknownName(f"{kind} set", name, known, fix="A file of your own is named by its path, NAME.toml.")
    return known[name].path, known[name].table, _folder("weights")


def _check(table: dict[str, Any], kind: str, path: Path) -> None:
    only(table, KEYS, path)
    if table.get("schema") != 1 or table.get("kind") != kind:
        raise CardError(f"{path}: schema = {table.get('schema')!r}, kind = {table.get('kind')!r}", expected=f'schema = 1, kind = "{kind}"')
    shape, weights = table.get("shape"), table.get("weights")
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)):
        raise CardError(f"{path}: shape = {shape!r}", expected="[channels, height, width]")
    if not (isinstance(weights, dict) and set(weights) == {"file", "sha256"} and all(isinstance(v, str) for v in weights.values())):
        raise CardError(f"{path}: [weights] {weights!r}", expected="file and sha256")
    if Path(weights["file"]).name != weights["file"]:
        raise CardError(f"{path}: weights file {weights['file']!r}", expected="a name in the card's own folder")


def _tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    try:
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in read(data).items()}
    except SafetensorError as error:
        raise FileError(f"{path}: its weights are no safetensors file: {error}") from error
