"""Which rows the store lacks, chunk by chunk, one transaction each. The only writer of verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from rbench.judging import Asked, Entry, Judge
from rbench.probe import input_warning, warning
from rbench.witnesses import store_witnesses
from rbench_results.figures import FALLEN
from rbench_results.store import Store

CHUNK = 250  # examples per transaction, unless the plan runs in blocks
LOOKED_AT = 256  # images on which other input ranges are tried, where the clean accuracy leaves room for one


class Runner:
    """Answers the questions of one run. `warnings` is filled on the way."""

    def __init__(self, asked: Asked, store: Store) -> None:
        self.asked, self.store, self.judge = asked, store, Judge(asked)
        self.questions = self.judge.questions
        self.warnings: list[dict[str, str]] = list(asked.model.warnings)
        if self.judge.prover.why_not:
            self.warnings.append(warning("not-certified", f"no certificate: {self.judge.prover.why_not}"))
        for space in asked.members:
            self.warnings += [warning("set", note) for note in getattr(space, "notes", ())]
        if without := asked.plan.left_out(asked.members):
            text = f"the card says that the model has no gradient: plan {asked.plan.name} went without {', '.join(without)}"
            self.warnings.append(warning("no-gradient-attacks", text))

    def run(self) -> None:
        """Fill the store until every example of the slice is answered, or fell to another member."""
        known = [self.store.answered(record.key, 0, self.asked.n) for record in self.questions]
        done = 0
        for indices in self._chunks():
            for place in range(len(self.questions)):
                need = self._open(indices, place, known)
                if need:
                    known[place].update(self._answer(place, need))
                done += sum(index < self.asked.n for index in indices)
                self.asked.report("verdicts", min(done, self.asked.n * len(self.questions)), self.asked.n * len(self.questions))
            self.judge.clean.clear()
        self._late_warnings()

    def _chunks(self) -> Iterable[list[int]]:
        """Fixed runs of consecutive indices: whole blocks of the data set for a plan in blocks, so that a slice never changes a block."""
        block = self.asked.plan.block
        end = self.asked.n if block is None else min(-(-self.asked.n // block) * block, self.asked.data.size)
        step = block or CHUNK
        return [list(range(first, min(first + step, end))) for first in range(0, end, step)]

    def _open(self, indices: list[int], place: int, known: list[dict[int, str]]) -> list[int]:
        """The indices to ask: no verdict yet (or only an error); unless everything is wanted, neither fallen to a member nor proved."""
        entry = self.judge.entries[place]
        settled = set() if self.asked.full else {i for i in indices if any(other.get(i) == "broken" for other in known)}
        if not (self.asked.full or entry.methods):
            proofs = [rows for other, rows in zip(self.judge.entries, known, strict=True) if other.methods and _about(other, entry)]
            settled |= {i for i in indices if any(rows.get(i) == "certified" for rows in proofs)}
        missing = [i for i in indices if i < self.asked.n and i not in settled and known[place].get(i, "error") == "error"]
        return indices if missing and self.asked.plan.block is not None and not entry.methods else missing

    def _answer(self, place: int, need: list[int]) -> dict[int, str]:
        """Judge the indices, write witnesses, then verdicts and costs in one transaction."""
        record, standing = self.questions[place], self.judge.answer(place, need)
        clean = {index: self.asked.data.x[index] for index in standing.witnesses}
        places = store_witnesses(self.store.folder, record.key, need[0], standing.witnesses, clean, self.asked.witnesses)
        rows = [
            replace(verdict, witness=places[i][0], row=places[i][1]) if i in places else verdict
            for i, verdict in sorted(standing.verdicts.items())
        ]
        self.store.add_chunk(record.key, rows, standing.stages)
        return {row.index: row.status for row in rows}

    def _late_warnings(self) -> None:
        """What only the verdicts could tell."""
        told = [(record.spec, row) for record in self.questions for row in self.store.verdicts(record.key, 0, self.asked.n)]
        rows = [row for _, row in told]
        right = {row.index for row in rows if row.clean == row.label}  # of certificates too: they see the same clean pass
        accuracy, first = len(right) / max(len({row.index for row in rows}), 1), slice(0, min(self.asked.n, LOOKED_AT))
        x, y = (part[first].to(self.asked.model.device) for part in (self.asked.data.x, self.asked.data.y))
        scaled = input_warning(self.judge.model, x, y, accuracy, self.asked.model.classes)
        if scaled is not None:
            self.warnings.append(scaled)
        fallen = {row.index for row in rows if row.status in FALLEN}  # an error under another member no longer matters
        proved = {(spec, row.index) for spec, row in told if row.status == "certified"}  # nor does one of an attack beside a proof
        failed = [row for spec, row in told if row.status == "error" and row.index not in fallen and (spec, row.index) not in proved]
        errors = {row.index: row.reason or "" for row in failed}
        if errors:
            some = next(iter(errors.values()))
            self.warnings.append(
                warning(
                    "errors",
                    f"{len(errors)} of {self.asked.n} images have no verdict but an error and count as not robust; the first: {some}",
                )
            )
        if self.judge.refusals:
            self.warnings.append(
                warning("refused", f"the referee refused {self.judge.refusals} claims: outside the set, or no other class strictly ahead")
            )
        if self.judge.least < self.asked.width:
            self.warnings.append(warning("memory", f"memory was short: the width fell from {self.asked.width} to {self.judge.least} rows"))


def _about(proof: Entry, attack: Entry) -> bool:
    """Whether the certificate speaks of the very set that is attacked, and not of a ball around its candidates."""
    return proof.record.spec == attack.record.spec


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()
