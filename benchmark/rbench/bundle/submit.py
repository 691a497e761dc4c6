"""`rbench submit`: one model with its runs, packed so that somebody else can rebuild it, check it and show it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import load, save
from torch import Tensor

from rbench.api import environment_of
from rbench.bundle.archive import write
from rbench.data import sources
from rbench.models import Found, attacked, find
from rbench.questions import ENGINE
from rbench.runner import now
from rbench.verification.claim import witness_files
from rbench.witnesses import SAMPLE
from rbench.witnesses import check as known_policy
from rbench_core.errors import FileError, ModelError, UsageError
from rbench_core.files import atomic_write, canonical_json, reason, results_folder, sha256_bytes
from rbench_results.merge import snapshot
from rbench_results.reading import written
from rbench_results.records import RunRecord, VerdictRecord
from rbench_results.seal import is_named_by_content, sealed
from rbench_results.snapshot import Snapshot
from rbench_results.store import Store
from rbench_zoo import catalogue
from rbench_zoo.card import NAME, Card

SUFFIX = ".rbench.zip"
PATIENCE = 600  # seconds for the trial in a fresh process


@dataclass(frozen=True, slots=True)
class About:
    """What a submitter says of a model, for its card."""

    name: str
    title: str | None = None
    training: str | None = None
    licence: str | None = None
    paper: str | None = None
    contact: str | None = None


def submit(
    model: str,
    *,
    name: str,
    title: str | None = None,
    training: str | None = None,
    licence: str | None = None,
    paper: str | None = None,
    contact: str | None = None,
    build: str | None = None,
    run: str | None = None,
    witnesses: str = "sample",
    out: Path | str | None = None,
    results: Path | str | None = None,
) -> Path:
    """Write NAME.rbench.zip: card, weights, the factory's source where rbench does not build the model itself, runs, verdicts, witnesses.

    model: a zoo name, or FILE.py:FACTORY. build: a function of the same file that builds the net without reading its weights, where
    FACTORY reads them from a file. run: one run; default: every finished run of this model on a named data set. A card's own title,
    training and licence stand in for absent ones. The bundle is tried in a fresh process before it is kept. Raises RbenchError.
    """
    about = _complete(About(name, title, training, licence, paper, contact), _card_of(model))
    known_policy(witnesses)
    folder, target = Path(results).expanduser() if results is not None else results_folder(), _target(out, name)
    found = find(model)
    with Store.open(folder, create=False) as store:
        runs = _runs(store, found, model, run)
        records, files = _records(store, runs, witnesses)
    files |= _model_files(found, model, about, build)
    files["record.json"] = canonical_json(written(records)).encode()
    manifest = {
        "rbench": environment_of()["rbench"],
        "engine": ENGINE,
        "name": name,
        "contact": contact,
        "created": now(),
        "kind": "card" if _card_of(model) else "file",
        "model": runs[0].model,
        "runs": [run.id for run in runs],
        "environment": environment_of(),
    }
    data = write(target, manifest, files)
    _try(data, runs[0].model)
    atomic_write(target, data)
    return target


def _card_of(model: str) -> Card | None:
    """The card of a zoo model; None for FILE.py:FACTORY. Raises UsageError for what a bundle cannot carry."""
    if model.rpartition(":")[0].endswith(".py"):
        return None
    entry = catalogue.find(model)
    if not isinstance(entry, Card):
        fix = "Write a file with a factory, and submit FILE.py:FACTORY."
        raise UsageError(f"model {model} comes from an installed package", expected="a card or FILE.py:FACTORY", fix=fix)
    return entry


def _complete(about: About, card: Card | None) -> About:
    """All that a card needs, or one line with everything that is missing."""
    if not NAME.fullmatch(about.name):
        raise UsageError(f"name {about.name[:90]!r}", expected="letters, digits, dots, dashes and underscores, at most 80")
    if card is not None:
        told = card.training.summary or card.training.recipe
        about = replace(
            about, title=about.title or card.title, training=about.training or told, licence=about.licence or card.source.licence,
            paper=about.paper or card.source.paper,
        )  # fmt: skip
    missing = [f"--{key}" for key in ("title", "training", "licence") if not (getattr(about, key) or "").strip()]
    if missing:
        fix = "Say what it is, how it was trained, and under which licence others may use it."
        raise UsageError(f"a submission lacks {', '.join(missing)}", expected="a title, a training and a licence", fix=fix)
    return about


def _target(out: Path | str | None, name: str) -> Path:
    folder = Path(out).expanduser() if out is not None else Path.cwd()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", expected="a folder for the bundle")
    return folder / f"{name}{SUFFIX}"


def _runs(store: Store, found: Found, model: str, run: str | None) -> list[RunRecord]:
    """The finished runs of this very model on named data sets. Raises UsageError where there is none."""
    asked = [store.run(run)] if run is not None else [each for each in store.runs() if each.state == "done"]
    named = [each for each in asked if each.dataset_name in sources.names()]
    digests: dict[str, str] = {}
    for name in sorted({each.dataset_name for each in named}):
        digests[name] = _digest(found, name)
    chosen = [each for each in named if each.model == digests[each.dataset_name] and each.state == "done"]
    if not chosen:
        had = (
            f"run {asked[0].id} is another model's, unfinished or on data without a name"
            if run
            else f"no finished run of it in {store.folder}"
        )
        fix = f"First: rbench run --model {model} --threat union-lp"
        raise UsageError(f"model {model}: {had}", expected="a run to submit", fix=fix)
    return chosen


def _digest(found: Found, dataset: str) -> str:
    """The digest of the model on this data set, or "" where it does not fit that data."""
    images = sources.load(dataset, n=16)
    try:
        with attacked(found.module, name=found.name, dataset=images, source=found.source, title=found.title) as wrapped:
            return wrapped.digest
    except ModelError:
        return ""


# --- records ------------------------------------------------------------------------------------------------------------------------


def _records(store: Store, runs: list[RunRecord], policy: str) -> tuple[Snapshot, dict[str, bytes]]:
    """The runs with all that they rest on, and the witness files; of witnesses that stay behind the verdicts forget the name."""
    whole = _closure(snapshot(store), runs)
    files: dict[str, bytes] = {}
    verdicts: dict[str, list[VerdictRecord]] = {}
    file = witness_files(store.folder)
    for key, rows in whole.verdicts.items():
        verdicts[key], kept = _with_witnesses(file, key, rows, policy)
        files |= kept
    return replace(whole, verdicts=verdicts), files


def _closure(all_: Snapshot, runs: list[RunRecord]) -> Snapshot:
    """The runs with their verdicts, and the records, no more, of the runs in which some of these were made."""
    reach: dict[str, set[int]] = {}
    for run in runs:
        for key, _ in run.questions:
            reach.setdefault(key, set()).update(range(run.first, run.first + run.n))
    verdicts = {key: [row for row in all_.verdicts[key] if row.index in indices] for key, indices in sorted(reach.items())}
    pilots = [pilot for pilot in all_.pilots if pilot.question in reach]  # they decided how every row was judged
    ids = {run.id for run in runs} | {row.run for rows in verdicts.values() for row in rows} | {pilot.run for pilot in pilots}
    kept = [_private(run, reach) for run in all_.runs if run.id in ids]
    models, datasets = {run.model for run in kept}, {run.dataset for run in kept}
    return Snapshot(
        models=[model for model in all_.models if model.digest in models],
        datasets=[dataset for dataset in all_.datasets if dataset.digest in datasets],
        questions=[question for question in all_.questions if question.key in reach],
        runs=kept,
        verdicts=verdicts,
        stages=[stage for stage in all_.stages if stage.run in ids and stage.question in reach],
        pilots=pilots,
        curves={run.id: all_.curves[run.id] for run in runs if run.id in all_.curves},
    )


def _private(run: RunRecord, reach: Collection[str]) -> RunRecord:
    """The run without what is nobody's business: paths of the submitter's machine, and questions that are not submitted."""
    asked, command = str(run.request.get("model", "")), run.command
    if ":" in asked:
        file, _, factory = asked.rpartition(":")
        command = command.replace(asked, f"{Path(file).name}:{factory}")
    questions = [(key, spec) for key, spec in run.questions if key in reach]
    return replace(run, command=command, request={}, submitted=None, questions=questions)


def _with_witnesses(
    file: Callable[[str], bytes], key: str, rows: list[VerdictRecord], policy: str
) -> tuple[list[VerdictRecord], dict[str, bytes]]:
    """Rows and files of one question: all witnesses, a sample per file, or none. A file that is lost here is an error."""
    named = [row for row in rows if row.witness is not None]
    drawn = sorted(named, key=lambda row: sha256_bytes(f"{key}{row.index}".encode()))
    chosen = {row.index for row in (drawn if policy == "all" else drawn[:SAMPLE] if policy == "sample" else [])}
    if not chosen:
        return [sealed(key, replace(row, witness=None, row=None, seal="")) if row.witness else row for row in rows], {}
    tensors = _gathered(file, [row for row in named if row.index in chosen])
    data = save(tensors)
    first = int(tensors["index"][0])
    name = f"witnesses/{key[:16]}/{first:06d}-{sha256_bytes(data)}.safetensors"
    places = {int(index): place for place, index in enumerate(tensors["index"])}
    kept = []
    for row in rows:
        if row.witness is None and row.seal:
            kept.append(row)
        else:
            there = row.index in places
            kept.append(sealed(key, replace(row, witness=name if there else None, row=places.get(row.index), seal="")))
    return kept, {name: data}


def _gathered(file: Callable[[str], bytes], rows: Iterable[VerdictRecord]) -> dict[str, Tensor]:
    """The chosen witnesses of several files as one, by index."""
    files: dict[str, dict[str, Tensor]] = {}
    parts: dict[str, list[Tensor]] = {}
    for row in sorted(rows, key=lambda row: row.index):
        name = str(row.witness)
        if name not in files:
            data = file(name)
            if not is_named_by_content(name, data):
                raise FileError(f"witness file {name}: its content has another digest", fix="Give `--witnesses none`, or run again.")
            files[name] = load(data)
        for part, tensor in files[name].items():
            parts.setdefault(part, []).append(tensor[row.row or 0])
    return {part: torch.stack(tensors) for part, tensors in parts.items()}


# --- the model ----------------------------------------------------------------------------------------------------------------------


def _model_files(found: Found, model: str, about: About, build: str | None) -> dict[str, bytes]:
    """card.toml, weights.safetensors and, where the model comes from a file, factory.py."""
    card = _card_of(model)
    if card is None:
        path, _, factory = model.rpartition(":")
        net, architecture = found.module, {"factory": f"factory.py:{build or factory}"}
        source: bytes | None = Path(path).expanduser().read_bytes()
        training, origin = {}, {}
    else:
        net = found.module if card.architecture.scaling is None else found.module.get_submodule("net")
        architecture, source = dict(card.table["architecture"]), _beside(card)
        training, origin = card.table.get("training", {}), card.table.get("source", {})
        if source is not None:
            architecture["factory"] = f"factory.py:{card.architecture.factory.rpartition(':')[2]}"
    weights = save({key: value.detach().cpu().contiguous().clone() for key, value in net.state_dict().items()})
    kept = {key: value for key, value in (card.table if card else {}).items() if key in ("parameters", "gradient")}
    paper = {"paper": about.paper} if about.paper else {}
    table: dict[str, Any] = {
        "schema": 1, "name": about.name, "title": about.title, "dataset": found.dataset or "unknown", **kept, "architecture": architecture,
        "weights": {"file": "weights.safetensors", "sha256": sha256_bytes(weights)},
        "training": {**training, "summary": about.training},
        "source": {**origin, "licence": about.licence, **paper},
    }  # fmt: skip
    files = {"card.toml": tomli_w.dumps(table).encode(), "weights.safetensors": weights}
    return files | ({"factory.py": source} if source is not None else {})


def _beside(card: Card) -> bytes | None:
    file = card.architecture.factory.rpartition(":")[0]
    return (card.path.parent / file).read_bytes() if file.endswith(".py") else None


TRIAL = "import sys; from rbench.bundle.submit import trial; trial(sys.argv[1], sys.argv[2])"


def _try(data: bytes, digest: str) -> None:
    """Rebuild the model from the bundle in a fresh process, in an empty folder. Raises ModelError with what went wrong there."""
    with tempfile.TemporaryDirectory(prefix="rbench-trial-") as scratch:
        path = Path(scratch) / f"trial{SUFFIX}"
        path.write_bytes(data)
        env: Mapping[str, str] = {key: value for key, value in os.environ.items() if key != "RBENCH_REGISTRY"}
        command = [sys.executable, "-c", TRIAL, str(path), digest]
        try:
            done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True, timeout=PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelError(f"the bundle could not be tried: {reason(error) if isinstance(error, OSError) else error}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1].replace(scratch + "/", "")
        fix = "A bundle carries one Python file and the weights: FACTORY, or the function named by --build, must need nothing else."
        raise ModelError(f"a fresh process cannot rebuild the model from the bundle: {said[:300]}", fix=fix)


def trial(path: str, digest: str) -> None:
    """What the fresh process does: rebuild, and compare the digest. Exits with a line on stderr."""
    from rbench.bundle.receive import opened, rebuild
    from rbench_core.errors import RbenchError

    try:
        with opened(Path(path)) as bundle:
            found = rebuild(bundle)
            dataset = next(run.dataset_name for run in bundle.records.runs)
            rebuilt = _digest(found, dataset)
    except RbenchError as error:
        sys.exit(str(error))
    if rebuilt != digest:
        sys.exit(f"it has another digest there ({rebuilt[:12]}…, here {digest[:12]}…): not all that decides its answers is in the bundle")
