"""What somebody claims: one run with its questions, verdicts and witnesses, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbench_core.errors import FileError
from rbench_core.files import reason
from rbench_results.figures import Alarm, join, settle
from rbench_results.records import ModelRecord, QuestionRecord, RunRecord, VerdictRecord
from rbench_results.snapshot import Snapshot
from rbench_results.store import Store

Row = tuple[str, int]  # a question's key and an example's index


@dataclass(frozen=True, slots=True)
class Claim:
    """One run. `file` gives the bytes of a witness file by its name and raises FileError; `forward` is what the run's answers cost.

    `pilots` holds by question what its pilot found: it decided which attacks an example met, so it must decide that here.
    """

    run: RunRecord
    model: ModelRecord
    questions: list[QuestionRecord]
    rows: dict[str, dict[int, VerdictRecord]]
    file: Callable[[str], bytes]
    forward: int = 0
    seconds: float = 0.0
    pilots: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def indices(self) -> range:
        """The slice."""
        return range(self.run.first, self.run.first + self.run.n)

    def all_rows(self) -> list[tuple[QuestionRecord, VerdictRecord]]:
        """Every verdict of the slice with its question."""
        return [(question, row) for question in self.questions for row in self.rows[question.key].values()]

    def contradictions(self) -> list[tuple[int, str]]:
        """(index, spec) of the examples of which one row holds a witness and another a proof about the same set."""
        proved = {
            (question.spec, index)
            for question in self.questions
            for index, row in self.rows[question.key].items()
            if row.status == "certified"
        }
        broken = {
            (question.spec, index)
            for question in self.questions
            for index, row in self.rows[question.key].items()
            if row.status == "broken"
        }
        return sorted((index, spec) for spec, index in proved & broken)

    def status(self, index: int) -> str | None:
        """The joined status of an example; None: not answered."""
        found: dict[str, list[str | None]] = {spec: [] for _, spec in self.run.questions}
        for question, (_, spec) in zip(self.questions, self.run.questions, strict=True):
            row = self.rows[question.key].get(index)
            if row is not None and (question.kind == "attack" or question.spec == spec):  # not a proof about a ball around candidates
                found[spec].append(row.status)
        return join(_settled(statuses) for statuses in found.values())


def _settled(statuses: list[str | None]) -> str | None:
    """What the attack and the certificate of one set say; where they contradict each other, the witness, which can be looked at."""
    try:
        return settle(statuses)
    except Alarm:
        return "broken"


@dataclass(slots=True)
class Found:
    """What was found so far: checks for the record, problems in words, and the rows that were proved or computed again."""

    checks: list[dict[str, object]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    proved: set[Row] = field(default_factory=set)

    def note(self, name: str, checked: int, problems: list[str], text: str) -> None:
        """One check: how many things were looked at, which were wrong, and what it means that they are right."""
        self.checks.append({"name": name, "checked": checked, "wrong": len(problems), "text": text})
        self.problems += problems[:SHOWN]
        if len(problems) > SHOWN:
            self.problems.append(f"{name}: and {len(problems) - SHOWN} more")


SHOWN = 5


def of_store(store: Store, run: RunRecord) -> Claim:
    """The claim of a stored run."""
    questions = [store.question(key) for key, _ in run.questions]
    rows = {question.key: {row.index: row for row in store.verdicts(question.key, run.first, run.n)} for question in questions}
    model = next(model for model in store.models() if model.digest == run.model)
    stages = [stage for question in questions for stage in store.stages(question=question.key)]
    spent = sum(stage.forward for stage in stages), sum(stage.seconds for stage in stages)
    pilots = {pilot.question: pilot.facts for pilot in store.pilots(rows)}
    return Claim(run, model, questions, rows, witness_files(store.folder), *spent, pilots)


def witness_files(folder: Path) -> Callable[[str], bytes]:
    """Reads witness files of a results folder by their names, and nothing outside it. Raises FileError."""
    root = folder.resolve()

    def file(name: str) -> bytes:
        path = (root / name).resolve()
        try:
            if not path.is_relative_to(root):  # a database may come from anybody
                raise OSError("outside the folder of results")
            return path.read_bytes()
        except OSError as error:
            raise FileError(f"witness file {name}: {reason(error)}") from error

    return file


def of_snapshot(records: Snapshot, run: RunRecord, file: Callable[[str], bytes]) -> Claim:
    """The claim of one run of a bundle, whose records agree with themselves."""
    by_key = {question.key: question for question in records.questions}
    questions = [by_key[key] for key, _ in run.questions]
    end = run.first + run.n
    rows = {q.key: {row.index: row for row in records.verdicts.get(q.key, []) if run.first <= row.index < end} for q in questions}
    model = next(model for model in records.models if model.digest == run.model)
    stages = [stage for stage in records.stages if stage.question in rows]
    spent = sum(stage.forward for stage in stages), sum(stage.seconds for stage in stages)
    return Claim(run, model, questions, rows, file, *spent, {pilot.question: pilot.facts for pilot in records.pilots})
