"""One example's whole history: what every stored question about it says of one model, by which attack, on which evidence. No torch.

A run names the model, the data set and the slice; the history holds the questions of all runs about the same model and data.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbench_core.errors import FileError, UsageError
from rbench_core.files import atomic_write
from rbench_results.curve import STAGE
from rbench_results.records import QuestionRecord, RunRecord, StageRecord, VerdictRecord
from rbench_results.report import run_report
from rbench_results.site import pictures
from rbench_results.site.facts import class_name
from rbench_results.site.words import slug, visible
from rbench_results.store import Store
from rbench_results.strip import strip_png

LINE = 100


@dataclass(frozen=True)
class Example:
    """`data` is the object of `rbench show RUN --example I --json`; `str` is the text; notebooks show the pictures."""

    data: dict[str, Any]
    folder: Path
    shown: list[tuple[str, pictures.Pair]] = field(repr=False)  # caption, (clean, adversarial) of each witness that can be read

    @classmethod
    def of(cls, store: Store, run_id: str, index: int) -> Example:
        """Example `index` of the data set, in the slice of a run. Raises UnknownName, UsageError for one that the run did not ask."""
        run = store.run(run_id)
        if not run.first <= index < run.first + run.n:
            raise UsageError(f"example {index} of run {run.id}", expected=f"{run.first} to {run.first + run.n - 1}, the run's own")
        found = list(_verdicts(store, run, index))
        if not found:
            raise UsageError(f"example {index} of run {run.id} has no answer yet", fix="Run the same command again to go on.")
        pairs = pictures.read(store.folder, [verdict for _, verdict in found])
        classes = next((data.classes for data in store.datasets() if data.digest == run.dataset), ())
        history = [
            {**_entry(question, verdict, _tried(store, question.key, verdict)), **_witness(store.folder, verdict, pair)}
            for (question, verdict), pair in zip(found, pairs, strict=True)
        ]
        shown = [(_caption(row, classes), pair) for row, pair in zip(history, pairs, strict=True) if pair is not None]
        return cls({**_head(store, run, index, classes, found), "history": history}, store.folder, shown)

    def to_json(self, picture: Path | None = None) -> str:
        """The history as JSON, with the path of its picture."""
        return json.dumps({**self.data, "picture": None if picture is None else str(picture)}, indent=2, allow_nan=False)

    def to_text(self, picture: Path | None = None) -> str:
        """The history for a person: one paragraph per question, at most 100 columns but for file names."""
        paragraphs = ["\n".join(_paragraph(row, self.data["run"])) for row in self.data["history"]]
        return "\n\n".join(["\n".join(_title(self.data)), *paragraphs, _picture_line(self, picture)])

    def __str__(self) -> str:
        return self.to_text()

    def to_png(self) -> bytes | None:
        """Clean, adversarial and magnified difference of every witness that can be read, as one PNG; None where there is none."""
        return strip_png(self.shown)

    _repr_png_ = to_png

    def save(self, path: Path | None = None) -> Path | None:
        """Write the PNG, by default to examples/RUN-INDEX.png in the results folder; None where nothing can be drawn. Raises FileError."""
        png = self.to_png()
        if png is None:
            return None
        target = path or self.folder / "examples" / f"{slug(self.data['run'])}-{self.data['index']}.png"
        try:
            atomic_write(target, png)
        except FileError as error:
            raise FileError(error.what, fix="Name another file with --out.") from error
        return target


def _verdicts(store: Store, run: RunRecord, index: int) -> Iterator[tuple[QuestionRecord, VerdictRecord]]:
    """Every stored answer about the example: the run's own questions first, in its order, then the others from the oldest."""
    own = [key for key, _ in run.questions]
    asked = {question.key: question for question in store.questions(model=run.model, dataset=run.dataset)}
    for key in [*own, *(key for key in asked if key not in own)]:
        for verdict in store.verdicts(key, index, 1):
            yield asked[key], verdict


def _head(
    store: Store, run: RunRecord, index: int, classes: Sequence[str], found: Sequence[tuple[QuestionRecord, VerdictRecord]]
) -> dict[str, Any]:
    row = next(row for row in run_report(store, run.id)["verdicts"] if row["index"] == index)
    verdict = found[0][1]
    return {
        "run": run.id,
        "model": run.model_name,
        "model_digest": run.model,
        "dataset": run.dataset_name,
        "dataset_digest": run.dataset,
        "index": index,
        "label": verdict.label,
        "label_name": class_name(classes, verdict.label),
        "clean": verdict.clean,
        "clean_name": class_name(classes, verdict.clean),
        "threat": run.threat,
        "status": row["status"],
        "fell_to": row["fell_to"],
        "members": row["members"],
    }


def _tried(store: Store, key: str, verdict: VerdictRecord) -> list[StageRecord]:
    """The stages of the example's own way: the pilot's for one of its images, else all others."""
    pilot = verdict.index in (store.pilot(key) or {"indices": ()})["indices"]
    return [stage for stage in store.stages(run=verdict.run, question=key) if stage.pilot == pilot and stage.position != STAGE]


def _entry(question: QuestionRecord, verdict: VerdictRecord, stages: Sequence[StageRecord]) -> dict[str, Any]:
    """One question's answer, with what makes it an answer to this question and to no other."""
    asked = ("key", "kind", "spec", "plan", "seed", "objective", "engine", "precision")
    told = ("status", "attack", "target", "restart", "clean", "predicted", "margin", "gauge", "reason", "run")
    made_on = ("width", "device", "threads", "torch")
    return {
        **{name: getattr(question, name) for name in asked},
        **{name: getattr(verdict, name) for name in told},
        "entered": _entered(verdict, stages),
        "made_on": {name: getattr(verdict, name) for name in made_on},
    }


def _entered(verdict: VerdictRecord, stages: Sequence[StageRecord]) -> list[str]:
    """The attacks that tried the example, in the plan's order: all of them, or those up to the one that broke it.

    None tried an example that the model got wrong, or that its clean pass failed on. Of two attacks of one name the first counts.
    Under a plan with gates: those that may have tried it, since a gate's decision is not stored; an example of the pilot met all.
    """
    attacks = [
        stage.attack for stage in sorted(stages, key=lambda stage: stage.position) if 0 < stage.position < STAGE
    ]  # 0: the clean pass
    if verdict.clean != verdict.label:
        return []
    return attacks[: attacks.index(str(verdict.attack)) + 1] if verdict.status == "broken" and verdict.attack in attacks else attacks


def _witness(folder: Path, verdict: VerdictRecord, pair: pictures.Pair | None) -> dict[str, Any]:
    """Where the adversarial image lies, and whether it can be read there."""
    if verdict.witness is None:
        return {"witness": None}
    state = "here" if pair is not None else "unreadable" if _exists(folder / verdict.witness) else "missing"
    return {"witness": {"file": verdict.witness, "row": verdict.row, "state": state}}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _caption(row: Mapping[str, Any], classes: Sequence[str]) -> str:
    """What stands above a strip of pictures."""
    return f"{row['spec']}: now {class_name(classes, row['predicted'])}, by {row['attack']} (plan {row['plan']}, seed {row['seed']})"


# --- as text ------------------------------------------------------------------------------------------------------------------------


def _title(data: Mapping[str, Any]) -> Iterator[str]:
    yield f"image {data['index']} of {data['dataset']}: label {_named(data, 'label')}; {data['model']} says {_named(data, 'clean')}"
    told = data["status"] or "not answered by every member"
    yield f"run {data['run']}, {data['threat']}: {told}" + (f", fell to {data['fell_to']}" if data["fell_to"] else "")
    unasked = [spec for spec, status in data["members"].items() if status in (None, "skipped")]
    yield from _wrapped(f"not asked in it: {', '.join(unasked)}" if unasked else "")


def _named(data: Mapping[str, Any], key: str) -> str:
    """A class by number, with its name where that says more."""
    number, name = data[key], data[f"{key}_name"]
    return "nothing" if number is None else str(number) if name == str(number) else f"{number} ({name})"


def _paragraph(row: Mapping[str, Any], run: str) -> Iterator[str]:
    yield f"{row['spec']}, {row['kind'] if row['kind'] != 'attack' else 'plan'} {row['plan']}, seed {row['seed']}: {row['status']}"
    parts = [f"{name} {row[key]}" for key, name in _TOLD.items() if row[key] is not None]
    parts += [f"{name} {row[name]:.4g}" for name in ("margin", "gauge") if row[name] is not None]
    yield from _wrapped(", ".join(parts))
    yield from _wrapped(f"tried by {', '.join(row['entered'])}" if row["entered"] else "no attack tried it")
    yield from _wrapped(row["reason"] or "")
    if row["status"] == "broken" or row["witness"]:
        yield f"  witness: {_where(row['witness'])}"
    on = row["made_on"]
    whose = "this run" if row["run"] == run else f"run {row['run']}"
    yield from _wrapped(f"from {whose}: {on['device']}, width {on['width']}, threads {on['threads']}, torch {on['torch']}")


_TOLD = {"attack": "by", "predicted": "prediction", "target": "target", "restart": "restart"}


def _where(witness: Mapping[str, Any] | None) -> str:
    if witness is None:
        return "not kept"
    lost = {"here": "", "missing": ": the file is missing", "unreadable": ": the file is damaged, or holds another image there"}
    return f"{witness['file']}, row {witness['row']}{lost[witness['state']]}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(str(visible(text)), LINE, initial_indent="  ", subsequent_indent="    ", break_long_words=False)


def _picture_line(example: Example, picture: Path | None) -> str:
    if picture is not None:
        return f"picture: {picture}"
    if example.shown:
        return "picture: not written"
    broken = any(row["status"] == "broken" for row in example.data["history"])
    return f"picture: none, since {'no adversarial image of it is left' if broken else 'nothing broke it'}"
