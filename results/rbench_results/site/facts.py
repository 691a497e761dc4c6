"""Everything that the pages need from the store, read once per build."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

from rbench_results.audit import Audited, Pool, audited, pool
from rbench_results.board import contains, joined
from rbench_results.figures import Alarm, Figure
from rbench_results.records import (
    DatasetRecord,
    ModelRecord,
    QuestionRecord,
    RunRecord,
    StageRecord,
    VerdictRecord,
    VerificationRecord,
)
from rbench_results.seal import answers_digest
from rbench_results.site.standing import Standing, newest, of_runs
from rbench_results.site.words import set_label
from rbench_results.store import Store

# model, data set, objective, plan, seed, engine, precision: what two runs must share to feed one row of a board
Group = tuple[str, str, str, str, int, str, str]


class Remembering(Store):
    """A view of a store that reads every question's rows once: reports, boards and pictures ask for the same. Closed with the store."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.folder, store.engine)
        self._verdicts: dict[str, list[VerdictRecord]] = {}

    def verdicts(self, key: str, first: int = 0, n: int | None = None) -> list[VerdictRecord]:
        if key not in self._verdicts:
            self._verdicts[key] = super().verdicts(key)
        found = self._verdicts[key]
        end = found[-1].index + 1 if n is None and found else first + (n or 0)
        if not found or (first <= found[0].index and found[-1].index < end):
            return found
        return [verdict for verdict in found if first <= verdict.index < end]


class Facts:
    """A store, read lazily and remembered; nothing here changes while a site is drawn."""

    def __init__(self, store: Store) -> None:
        self.store = Remembering(store)
        self.runs: list[RunRecord] = store.runs()  # the oldest first
        self.models: dict[str, ModelRecord] = {model.digest: model for model in store.models()}
        self.datasets: dict[str, DatasetRecord] = {dataset.digest: dataset for dataset in store.datasets()}
        self.questions: dict[str, QuestionRecord] = {question.key: question for question in store.questions()}
        self._by_id = {run.id: run for run in self.runs}
        self.verifications = newest(self.runs, [found for found in store.verifications() if self._speaks_of_these(found)])
        self._joined: dict[str, dict[int, str]] = {}
        self.alarms: dict[str, str] = {}  # by question: a proof and a witness that contradict each other
        self._clean: dict[tuple[Group, int, int], Figure | None] = {}

    def _speaks_of_these(self, found: VerificationRecord) -> bool:
        """Whether the verdicts that stand here now are those that were verified: a bundle's may have given way to others."""
        run = self._by_id.get(found.run)
        if run is None:
            return False
        rows = ((key, row) for key, _ in run.questions for row in self.within(key, run.first, run.n))
        return answers_digest(rows) == found.answers

    def verdicts(self, key: str) -> list[VerdictRecord]:
        """Every verdict of a question, in the order of the index."""
        return self.store.verdicts(key)

    def within(self, key: str, first: int, n: int) -> list[VerdictRecord]:
        """The verdicts of a question on the slice [first, first + n)."""
        return self.store.verdicts(key, first, n)

    def joined(self, key: str) -> dict[int, str]:
        """What a board knows of a question: its verdicts and certificates, and the witnesses of all sets inside its own."""
        if key not in self._joined:
            try:
                self._joined[key] = joined(self.store, key, *self.certificates(key))
            except Alarm as alarm:  # the pages must stand all the same, and say it
                self.alarms[key] = str(alarm)
                self._joined[key] = {verdict.index: verdict.status for verdict in self.verdicts(key)}
        return self._joined[key]

    def certificates(self, key: str) -> list[str]:
        """Questions that certify the same set, for the same model and data."""
        asked = self.questions[key]
        same = (asked.model, asked.dataset, asked.objective, asked.spec)
        return [q.key for q in self.questions.values() if q.kind == "certificate" and (q.model, q.dataset, q.objective, q.spec) == same]

    def has_certificate(self, key: str) -> bool:
        """Whether anybody asked for a proof about this very set, or about a larger one of its family."""
        asked = self.questions[key]
        proofs = (q for q in self.questions.values() if q.kind == "certificate" and (q.model, q.dataset) == (asked.model, asked.dataset))
        return any(contains(proof, asked) for proof in proofs)

    def standing(self, run: RunRecord, sources: Iterable[str]) -> Standing | None:
        """Who vouches for a figure of this run, whose verdicts come from the runs of these ids."""
        return of_runs(run, [self._by_id[id] for id in sorted(set(sources)) if id in self._by_id], self.verifications)

    @cached_property
    def audited(self) -> list[Audited]:
        """Every question that has a pilot, with what it found."""
        return audited(self.store)

    @cached_property
    def pilots(self) -> dict[str, dict[str, object]]:
        """What pilots found, by question."""
        return {question.key: pilot.facts for question, pilot in self.audited}

    def pool(self, key: str) -> Pool | None:
        """The audits of all questions of this question's plan and engine; None where it has no pilot."""
        strangers = frozenset(run.id for run in self.runs if run.submitted is not None)
        return pool(self.questions[key], self.audited, strangers) if key in self.pilots else None

    def reach(self, key: str) -> int:
        """The end of the slices on which runs asked the question."""
        return max((run.first + run.n for run in self.runs if key in dict(run.questions)), default=0)

    @cached_property
    def stages(self) -> list[StageRecord]:
        """What every attack did and cost, in all runs."""
        return self.store.stages()

    @cached_property
    def stages_of_run(self) -> dict[str, list[StageRecord]]:
        found: dict[str, list[StageRecord]] = defaultdict(list)
        for stage in self.stages:
            found[stage.run].append(stage)
        return found

    @cached_property
    def stages_of_question(self) -> dict[str, list[StageRecord]]:
        found: dict[str, list[StageRecord]] = defaultdict(list)
        for stage in self.stages:
            found[stage.question].append(stage)
        return found

    @cached_property
    def groups(self) -> dict[Group, dict[str, list[tuple[RunRecord, str]]]]:
        """Group -> spec of a set -> (run, key of its attack question), the oldest run first."""
        found: dict[Group, dict[str, list[tuple[RunRecord, str]]]] = defaultdict(lambda: defaultdict(list))
        for run in self.runs:
            for key, spec in self.attacks(run):
                found[group_of(self.questions[key])][spec].append((run, key))
        return found

    def clean(self, group: Group, first: int, n: int) -> Figure | None:
        """Clean accuracy on a slice, from all that a group knows of its model; None unless every image has a verdict.

        As in a report: no prediction is a wrong one, and so are two that differ.
        """
        if (group, first, n) not in self._clean:
            keys = {key for asked in self.groups[group].values() for _, key in asked}
            labels: dict[int, int] = {}
            said: dict[int, set[int | None]] = defaultdict(set)
            for verdict in (verdict for key in keys for verdict in self.within(key, first, n)):
                labels[verdict.index] = verdict.label
                said[verdict.index].add(verdict.clean)
            right = sum(found - {None} == {labels[index]} for index, found in said.items())
            self._clean[group, first, n] = Figure.of(right, n) if n and len(said) == n else None
        return self._clean[group, first, n]

    def attacks(self, run: RunRecord) -> list[tuple[str, str]]:
        """(key, spec) of the sets that a run attacked, without its certificates."""
        return [(key, spec) for key, spec in run.questions if self.questions[key].kind == "attack"]

    def label(self, key: str) -> str:
        """What a question's set is called in a column."""
        question = self.questions[key]
        return set_label(question.family, question.extent, question.spec)

    def objective(self, run: RunRecord) -> str:
        """Whose label counts in a run; all its questions agree."""
        return next((self.questions[key].objective for key, _ in self.attacks(run)), "")

    @cached_property
    def twins(self) -> frozenset[str]:
        """Names that several models have: pages add a digest to them."""
        often = Counter(model.name for model in self.models.values())
        return frozenset(name for name, models in often.items() if models > 1)

    def classes(self, dataset: str) -> Sequence[str]:
        """The names of a data set's classes; empty where it is not stored."""
        found = self.datasets.get(dataset)
        return found.classes if found else ()


def group_of(question: QuestionRecord) -> Group:
    q = question
    return (q.model, q.dataset, q.objective, q.plan, q.seed, q.engine, q.precision)


def class_name(classes: Sequence[str], label: int | None) -> str:
    """A class as its data set calls it, or its number; a dash for none."""
    if label is None:
        return "–"
    return classes[label] if 0 <= label < len(classes) else str(label)
