"""Which rows the store lacks, chunk by chunk, one transaction each. The only writer of verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from rbench.attacks.pilot import Facts, pilot_rows
from rbench.judging import Asked, Entry, Judge, Standing
from rbench.probe import input_warning, warning
from rbench.witnesses import store_witnesses
from rbench_results.figures import FALLEN
from rbench_results.store import Store

CHUNK = 1000  # examples per transaction, unless the plan runs in blocks: a stage that few reach should find many of them together
LARGE, FEWER = 4096, 250  # images of more values are attacked for longer, and a kill should lose less
LOOKED_AT = 256  # images on which other input ranges are tried, where the clean accuracy leaves room for one


class Runner:
    """Answers the questions of one run. `warnings` is filled on the way."""

    def __init__(self, asked: Asked, store: Store, judge: Judge | None = None) -> None:
        self.asked, self.store, self.judge = asked, store, judge or Judge(asked)
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
        chunks = self._chunks()
        if any(self._open(indices, place, known) for indices in chunks for place in range(len(known))):
            self._pilots(known)
        done = 0
        for indices in chunks:
            self._chunk(indices, known)
            done += sum(index < self.asked.n for index in indices)
            self.asked.report("verdicts", done, self.asked.n)
            self.judge.clean.clear()
        if self.asked.curve:
            from rbench.evidence.curves import draw

            draw(self)
        self._late_warnings()

    def _pilots(self, known: list[dict[int, str]]) -> None:
        """The facts of every question that has a pilot, from the store or from the pilot itself."""
        for place, entry in enumerate(self.judge.entries):
            if not entry.pilot:
                continue
            told = self.store.pilot(entry.record.key)
            if told is not None:
                self.judge.facts[place] = Facts.from_json(told)
                continue
            rows = pilot_rows(self.asked.data.size, entry.pilot, self.asked.seed)
            standing = self.judge.pilot(place, self._proved(rows, entry, known))
            known[place].update(self._file(place, standing))
            self.store.put_pilot(entry.record.key, self.asked.run, self.judge.facts[place].to_json())
        self.judge.clean.clear()

    def _proved(self, rows: list[int], entry: Entry, known: list[dict[int, str]]) -> set[int]:
        """Those of the rows, in the slice or not, that a certificate of the same set covers; none where everything is wanted."""
        if self.asked.full:
            return set()
        proved: set[int] = set()
        for place, other in enumerate(self.judge.entries):
            if other.methods and _about(other, entry):
                fresh = [row for row in rows if known[place].get(row, "error") == "error"]
                known[place].update(self._file(place, self.judge.answer(place, fresh)) if fresh else {})
                proved |= {row for row in rows if known[place].get(row) == "certified"}
        return proved

    def _chunk(self, indices: list[int], known: list[dict[int, str]]) -> None:
        """Certificates, then what every example meets under each member, then member by member the rest for those that still stand."""
        attacks = [place for place, entry in enumerate(self.judge.entries) if not entry.methods]
        for place, entry in enumerate(self.judge.entries):
            if entry.methods and (need := self._open(indices, place, known)):
                known[place].update(self._file(place, self.judge.answer(place, need)))
        begun: dict[int, Standing] = {}
        order = sorted(attacks, key=lambda place: -self.judge.facts[place].yields if place in self.judge.facts else 0)
        for place in order:
            need = [index for index in self._open(indices, place, known) if index not in self._fell(begun)]
            if need:
                begun[place] = self.judge.begin(place, need)
        for place, standing in begun.items():
            known[place].update(self._file(place, self.judge.finish(place, standing, self._fell(begun, apart=place))))

    def _fell(self, begun: dict[int, Standing], apart: int | None = None) -> set[int]:
        """What fell to a member, so that the others need not ask; nothing where everything is wanted, or whole blocks are."""
        if self.asked.full or self.asked.plan.block is not None:
            return set()
        return {index for place, standing in begun.items() if place != apart for index in standing.witnesses}

    def _chunks(self) -> Iterable[list[int]]:
        """Fixed runs of consecutive indices: whole blocks of the data set for a plan in blocks, so that a slice never changes a block."""
        block = self.asked.plan.block
        end = self.asked.n if block is None else min(-(-self.asked.n // block) * block, self.asked.data.size)
        step = block or (CHUNK if self.asked.data.x[0].numel() <= LARGE else min(CHUNK, FEWER))
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

    def _file(self, place: int, standing: Standing) -> dict[int, str]:
        """Write witnesses, then verdicts and costs in one transaction."""
        record = self.questions[place]
        clean = {index: self.asked.data.x[index] for index in standing.witnesses}
        first = min(standing.verdicts, default=0)
        places = store_witnesses(self.store.folder, record.key, first, standing.witnesses, clean, self.asked.witnesses)
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
