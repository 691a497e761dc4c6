"""The receiving side: a bundle opened, its model rebuilt, its claims as records. Nothing of it is executed unless that is asked for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from rbench.bundle.archive import Archive, read
from rbench.data import sources
from rbench.models import Found, of_card, of_file
from rbench.questions import ENGINE
from rbench_core.catalogue import read_toml
from rbench_core.errors import FileError, ModelError, RbenchError
from rbench_core.files import sha256_bytes
from rbench_results.reading import read_snapshot
from rbench_results.records import DatasetRecord, RunRecord
from rbench_results.snapshot import Snapshot, check
from rbench_zoo import architectures
from rbench_zoo.card import Card, parse

KINDS = ("card", "file")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files, keys and seals agree with one another."""

    archive: Archive
    card: Card
    kind: str  # "card": built by the card; "file": by a factory without arguments, as FILE.py:FACTORY was
    records: Snapshot

    @property
    def submitted(self) -> list[RunRecord]:
        """The runs that are claimed; the others in it only tell where some verdicts were made."""
        return [run for run in self.records.runs if run.id in self.archive.manifest["runs"]]

    @property
    def runs_code(self) -> bool:
        """Whether its model can only be built by executing what the bundle names."""
        module, _, name = self.card.architecture.factory.rpartition(":")
        known = getattr(architectures, name, None) if module == architectures.__name__ else None
        return not (self.kind == "card" and isinstance(known, type) and issubclass(known, nn.Module))


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """A bundle, its card, weights and factory laid out in a folder of their own meanwhile. Raises FileError, CardError, StoreError."""
    archive = read(path)
    manifest = archive.manifest
    if manifest.get("engine") != ENGINE:
        theirs = f"engine {manifest.get('engine')!r:.20} of rbench {manifest.get('rbench')!r:.20}"
        what = f"{path.name}: made by {theirs}; this one is engine {ENGINE}"
        raise FileError(what, fix="Its verdicts answer other questions: use that version, or have the model submitted anew.")
    kind = manifest.get("kind")
    if kind not in KINDS:
        raise FileError(f"{path.name}: kind {kind!r:.40}", expected=f"one of: {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="rbench-bundle-") as scratch:
        folder = Path(scratch)
        for name in ("card.toml", "weights.safetensors", "factory.py"):
            if name in archive.names:
                (folder / name).write_bytes(archive.read(name))
        card = _card(folder, path)
        if archive.manifest.get("name") != card.name:
            raise FileError(f"{path.name}: bundle.json names the model {archive.manifest.get('name')!r:.80}, its card {card.name!r}")
        yield Bundle(archive, card, kind, _records(archive, card, path))


def _card(folder: Path, path: Path) -> Card:
    try:
        card = parse(read_toml(folder / "card.toml"), folder / "card.toml", origin=f"bundle {path.name}")
    except RbenchError as error:
        raise FileError(f"{path.name}: {str(error).replace(str(folder) + '/', '')}") from error
    if card.weights.file != "weights.safetensors" or sha256_bytes((folder / "weights.safetensors").read_bytes()) != card.weights.sha256:
        raise FileError(f"{path.name}: weights.safetensors is not what its card speaks of", expected=f"SHA-256 {card.weights.sha256[:12]}…")
    return card


def _records(archive: Archive, card: Card, path: Path) -> Snapshot:
    """Keys, seals and references hold; the model goes by the name of the card."""
    try:
        records = read_snapshot(json.loads(archive.read("record.json")))
        check(records)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path.name}: record.json does not read ({str(error)[:120]})") from error
    except RbenchError as error:
        raise FileError(f"{path.name}: {error}") from error
    fault = _fault(archive, records)
    if fault is not None:
        raise FileError(f"{path.name}: {fault}", expected="a file from `rbench submit`")
    told = {"name": card.name, "bundle": archive.sha256, "contact": archive.manifest.get("contact")}
    models = [replace(model, name=card.name, title=card.title, dataset=card.dataset, card=card.table) for model in records.models]
    runs = [replace(run, model_name=card.name, card=card.table, submitted=told, request={}) for run in records.runs]
    return replace(records, models=models, runs=runs)


def _fault(archive: Archive, records: Snapshot) -> str | None:
    """What a bundle says beyond its own model and its own runs, or leaves out."""
    model, submitted = archive.manifest.get("model"), archive.manifest.get("runs")
    runs = {run.id: run for run in records.runs}
    if [record.digest for record in records.models] != [model] or {question.model for question in records.questions} - {model}:
        return "record.json speaks of other models than the one of bundle.json"
    if not isinstance(submitted, list) or not submitted or not all(isinstance(id, str) and id in runs for id in submitted):
        return "bundle.json names runs that are not in it"
    if not isinstance(archive.manifest.get("contact"), str | None):
        return "its contact is no text"
    for record in records.datasets:  # first: slices are bounded by their sizes
        if not _known(record):
            return f"data set {record.name!r:.60} is none that rbench knows"
    slices: dict[str, set[int]] = {}
    for id in submitted:
        for key, _ in runs[id].questions:
            slices.setdefault(key, set()).update(range(runs[id].first, runs[id].first + runs[id].n))
    if {question.key for question in records.questions} != set(slices):
        return "it holds other questions than its submitted runs ask"
    for run in records.runs:
        if run.model != model or not {key for key, _ in run.questions} <= set(slices) or not _in_the_past(run):
            return f"run {run.id} is of another model, asks other questions, or is no run of the past"
        if not all({"code", "text"} <= warning.keys() for warning in run.warnings):
            return f"run {run.id} has a warning without code or text"
    for key, rows in records.verdicts.items():
        for row in rows:
            if row.index not in slices.get(key, ()) or row.run not in runs or not row.seal:
                return f"example {row.index}: a verdict outside the submitted runs, or without a seal"
    if any(stage.run not in runs or stage.question not in slices for stage in records.stages):
        return "costs of a run that is not in it"
    if any(pilot.run not in runs or pilot.question not in slices for pilot in records.pilots):
        return "a pilot of a run or of a question that is not in it"
    if any(id not in runs or row.index not in slices.get(row.question, ()) for id, rows in records.curves.items() for row in rows):
        return "a curve of a run that is not in it, or beyond its images"
    return None


def _in_the_past(run: RunRecord) -> bool:
    """A day ahead is a clock; a year is an attempt to be the newest for ever."""
    try:
        times = [datetime.fromisoformat(text) for text in (run.started, run.finished) if text is not None]
        return all(time.tzinfo is not None and time < datetime.now(UTC) + timedelta(days=1) for time in times)
    except ValueError:
        return False


def _known(record: DatasetRecord) -> bool:
    source = sources.SOURCES.get(record.of or record.name)  # candidates that a threat brings are as those of the set they were made from
    return source is not None and (record.shape, record.classes) == (source.shape, source.classes) and record.size <= source.test


def rebuild(bundle: Bundle) -> Found:
    """The model of an opened bundle. Executes the bundle's factory where it has one. Raises ModelError, FileError, UsageError."""
    if bundle.kind == "card":
        return of_card(bundle.card, None)
    factory = bundle.card.architecture.factory.rpartition(":")[2]
    found = of_file(bundle.card.path.parent / "factory.py", factory, bundle.card.name)
    try:
        tensors = load((bundle.card.path.parent / "weights.safetensors").read_bytes())
        found.module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise ModelError(f"{bundle.archive.path.name}: its weights do not fit what factory.py builds: {told}") from error
    return replace(found, title=bundle.card.title)
