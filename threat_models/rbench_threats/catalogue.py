"""The catalogue of threats: presets by name, and specs built into sets. Imports torch only to build."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbench_core.catalogue import Entry, entries, installed, only
from rbench_core.code import from_file
from rbench_core.errors import CardError, SpecError, UnknownName, UsageError
from rbench_core.files import sha256_bytes
from rbench_threats.spec import Call, Exact, parse, written, written_name

if TYPE_CHECKING:
    from rbench_threats.protocol import PerturbationSet

SETS = {  # the catalogue's one line per set; sets of installed packages join by entry points of the group `rbench.sets`
    "linf": "rbench_threats.boxes:Linf",
    "l2": "rbench_threats.lp:L2",
    "l1": "rbench_threats.lp:L1",
    "l0": "rbench_threats.lp:L0",
    "rotation-translation": "rbench_threats.spatial:RotationTranslation",
    "contextual": "rbench_threats.contextual:Contextual",
    "learned": "rbench_threats.learned:Learned",
    "invariance": "rbench_threats.stored:Stored",
    "union": "rbench_threats.composite:Union",
    "affine": "rbench_threats.affine:Affine",
}
PRESET_KEYS = ("name", "title", "summary", "specs", "source")


@dataclass(frozen=True, slots=True)
class Threat:
    """What one run asks: the members of a union (or one set), with the name and the words that stand on the board."""

    name: str
    title: str
    sentence: str
    members: tuple[PerturbationSet, ...]
    spec: str

    def __str__(self) -> str:
        return self.spec


def presets() -> dict[str, Entry]:
    """Every preset by name. Raises CardError for a broken file."""
    found = entries([("built in", Path(str(resources.files("rbench_threats") / "presets")))])
    for entry in found.values():
        only(entry.table, PRESET_KEYS, entry.path)
        if not isinstance(entry.table.get("specs"), dict):
            raise CardError(f"{entry.path}: no table [specs]", expected='one spec per data set, such as mnist = "linf(eps=0.3)"')
    return found


def listing() -> list[dict[str, Any]]:
    """One object per preset and per set: name, kind, title, summary, specs by data set. No torch."""
    rows = [
        {"name": e.name, "kind": "preset", **{k: e.table.get(k, "") for k in ("title", "summary", "source")}, "specs": e.table["specs"]}
        for e in presets().values()
    ]
    named = {row["name"] for row in rows}
    return rows + [
        {"name": name, "kind": "set", "title": name, "summary": "", "source": "", "specs": {}} for name in _sets() if name not in named
    ]


def resolve(text: str, dataset: str | None = None, eps: str | None = None) -> Threat:
    """The threat that a preset's name or a spec means on a data set; eps replaces the radius of a single ball.

    Names are read without regard to case (`Linf`). Raises SpecError, UnknownName, UsageError.
    """

    from rbench_threats.composite import Union

    call = parse(text.strip())
    named = presets()
    preset = named.get(call.name.lower()) if not (call.args or call.named) else None
    if preset is None and call.name.lower() not in _sets() and ":" not in call.name:
        raise UnknownName(
            "threat", call.name, {*named, *_sets()}, fix="`rbench threats` lists them; a spec such as linf(eps=0.3) works too."
        )
    if preset is not None and eps is None:
        call = parse(_spec(preset, dataset))
    elif eps is not None:
        call = _with_radius(call, eps)
    built = build(call)
    title = preset.name if preset is not None and eps is None else str(built)
    members = built.members if isinstance(built, Union) else (built,)
    return Threat(title, title, built.sentence, members, str(built))


def _spec(preset: Entry, dataset: str | None) -> str:
    specs = preset.table["specs"]
    if dataset in specs or (dataset is None and len(specs) == 1):  # written for one data set alone: it says which
        return str(specs[dataset or next(iter(specs))])
    example = next(iter(specs.values()))
    raise UsageError(
        f"threat {preset.name}: no convention for data set {dataset!r}",
        expected=f"one of: {', '.join(specs)}",
        fix=f"Give the radius, as in {example}.",
    )


def _with_radius(call: Call, eps: str) -> Call:
    if call.named or call.args:
        raise UsageError(f"--eps {eps} beside a spec that has arguments", expected="a bare name such as linf, or the radius in the spec")
    kind = _class(call.name) if call.name.lower() in _sets() else None
    names = [] if kind is None or hasattr(kind, "from_spec") else [field.name for field in fields(kind)]
    if len(names) != 1:
        raise UsageError(
            f"--eps {eps} with threat {call.name}",
            expected="a single ball: linf, l2, l1 or l0",
            fix="Write the radii into a spec, such as union(linf(eps=0.3), l2(eps=2)).",
        )
    return Call(call.name, (), ((names[0], Exact(eps)),))


def build(call: Call) -> Any:
    """The set (or union of sets) of a parsed spec. Raises SpecError for unknown or missing arguments, UnknownName for an unknown set.

    A class that has `from_spec(args, named)` reads its own arguments; any other takes numbers by the names of its fields.
    """
    kind = _class(call.name)
    if hasattr(kind, "from_spec"):
        return kind.from_spec(call.args, dict(call.named))
    names = [field.name for field in fields(kind)]
    given: dict[str, Any] = dict(zip(names, call.args, strict=False))
    if len(call.args) > len(names) or any(key in given or key not in names for key, _ in call.named):
        raise SpecError(f"{call.name}: arguments {_shown(call)}", expected=f"{', '.join(names)}, each once")
    given.update(call.named)
    missing = [name for name in names if name not in given]
    if missing:
        raise SpecError(f"{call.name}: no {missing[0]}", expected=f"{call.name}({', '.join(f'{name}=...' for name in names)})")
    return kind(**{key: _number(value, call.name, key) for key, value in given.items()})


def _number(value: Any, where: str, key: str) -> Any:
    if isinstance(value, Exact):
        return value
    raise SpecError(f"{where}: {key}={value.name}", expected="a decimal such as 0.3 or a fraction such as 8/255")


def _shown(call: Call) -> str:
    return ", ".join([str(value) if isinstance(value, Exact) else value.name for value in call.args] + [key for key, _ in call.named])


def _from_file(name: str, kind: Any, text: str) -> Any:
    """The class of somebody's file, whose sets print as the spec that makes them again and carry the file's digest in their family."""
    if not isinstance(kind, type) or not is_dataclass(kind) or not hasattr(kind, "family"):
        raise SpecError(f"{name} is no set", expected="a frozen dataclass with the members of rbench_threats.protocol.PerturbationSet")
    digest = sha256_bytes(text.encode())

    def family(self: Any) -> str:
        plain = vars(kind).get("family", kind.family)
        return f"{plain.__get__(self, kind) if isinstance(plain, property) else plain}@{digest}"

    def spec(self: Any) -> str:
        return written(written_name(name), {field.name: getattr(self, field.name) for field in fields(self)})

    return type(kind.__name__, (kind,), {"__slots__": (), "family": property(family), "__str__": spec, "__module__": kind.__module__})


def _sets() -> dict[str, Any]:
    return {**SETS, **installed("rbench.sets")}


def _class(name: str) -> Any:
    """The class of a set: of the catalogue, of an installed package, or FILE.py:CLASS, which is executed."""
    file, _, attribute = name.rpartition(":")
    if file.endswith(".py"):
        return _from_file(name, *from_file(Path(file).expanduser(), attribute))
    name = name.lower()
    found = _sets().get(name)
    if found is None:
        raise UnknownName("set", name, _sets(), fix="`rbench threats` lists them.")
    if not isinstance(found, str):
        return found.load()
    module, _, attribute = found.partition(":")
    return getattr(importlib.import_module(module), attribute)
