"""The curves of a run: from its stored verdicts and witnesses, through the search of curve.py, into the store."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rbench.attacks.evaluate import Passes
from rbench.attacks.ladder import Ladder
from rbench.attacks.search import Examples
from rbench.attacks.stage import plain_context
from rbench.evidence.curve import Drawing, Known
from rbench.judging import Entry, Standing
from rbench.probe import warning
from rbench_core.files import atomic_write
from rbench_results.curve import STAGE
from rbench_results.records import CurveRow, StageRecord, VerdictRecord

if TYPE_CHECKING:
    from rbench.runner import Runner


def draw(runner: Runner) -> None:
    """A curve for every member that is an additive ball of one radius; for the others a warning. Needs the run's verdicts in the store.

    All curves together cost at most as many passes as the verdicts did, whichever run made those.
    """
    if earlier := _earlier(runner):
        runner.store.put_curve(runner.asked.run, earlier)
        return
    rows: list[CurveRow] = []
    places = [place for place, entry in enumerate(runner.judge.entries) if not entry.methods]
    ladders = {place: Ladder.of(runner.judge.entries[place].space, runner.asked.data.shape) for place in places}
    left, drawn = _price(runner, places), [place for place in places if ladders[place] is not None]
    for done, place in enumerate(drawn):
        part = _Part(runner, place, ladders[place], left // (len(drawn) - done))  # type: ignore[arg-type]  # one of those with a ladder
        rows += part.rows()
        left -= part.spent
    for place in set(places) - set(drawn):
        spec = runner.judge.entries[place].spec
        runner.warnings.append(warning("no-curve", f"no accuracy over eps for {spec}: it is no additive ball of one radius"))
    runner.store.put_curve(runner.asked.run, rows)


def _earlier(runner: Runner) -> list[CurveRow]:
    """The curve that another run of this version drew of the same questions and images, if one did."""
    own = runner.store.run(runner.asked.run)
    for run in reversed(runner.store.runs()):
        same = (run.questions, run.first, run.n) == (own.questions, own.first, own.n) and run.state == "done"
        if same and run.environment["rbench"] == own.environment["rbench"] and (rows := runner.store.curve(run.id)):
            return rows
    return []


def _price(runner: Runner, places: list[int]) -> int:
    """Passes that the verdicts of the slice took: a question's pilot, and of all else the slice's share where more images are answered."""
    found = 0
    for place in places:
        key = runner.judge.entries[place].record.key
        pilot = set((runner.store.pilot(key) or {"indices": []})["indices"])
        known = [index for index in runner.store.answered(key) if index not in pilot]
        own = sum(index < runner.asked.n for index in known)
        stages = [row for row in runner.store.stages(question=key) if row.position != STAGE]
        found += sum(row.forward + row.backward for row in stages if row.pilot)
        found += sum(row.forward + row.backward for row in stages if not row.pilot) * own // max(len(known), 1)
    return found


class _Part:
    """One member's curve."""

    def __init__(self, runner: Runner, place: int, ladder: Ladder, limit: int) -> None:
        self.runner, self.ladder, self.limit, self.spent = runner, ladder, limit, 0
        self.entry: Entry = runner.judge.entries[place]
        self.verdicts = {row.index: row for row in runner.store.verdicts(self.entry.record.key, 0, runner.asked.n)}
        others = [entry for entry in runner.judge.entries if entry.methods and entry.record.spec == self.entry.record.spec]
        found = [row for entry in others for row in runner.store.verdicts(entry.record.key, 0, runner.asked.n)]
        self.proved = {row.index for row in found if row.status == "certified"}

    def rows(self) -> list[CurveRow]:
        """One row per example of the slice: 0 for a mistake on the clean image and for an error, which is robust at no radius."""
        asked, standing = self.runner.asked, Standing()
        unseen = [index for index in range(asked.n) if self._status(index) is None]
        found_right = self.runner.judge.clean_pass(self.entry, unseen, standing)
        stand = [index for index in range(asked.n) if self._status(index) in ("certified", "survived", "broken")]
        right = sorted([*stand, *found_right])
        found: dict[int, tuple[float | None, str | None]] = dict.fromkeys(range(asked.n), (0.0, None)) | self._searched(right, standing)
        key, spec = self.entry.record.key, self.entry.spec
        return [CurveRow(question=key, spec=spec, index=i, gauge=gauge, attack=attack) for i, (gauge, attack) in sorted(found.items())]

    def _status(self, index: int) -> str | None:
        """What the run knows of an example under this member; None: nothing, since it fell to another one."""
        row = self.verdicts.get(index)
        return "certified" if index in self.proved else None if row is None else row.status

    def _searched(self, right: list[int], standing: Standing) -> dict[int, tuple[float | None, str | None]]:
        """Gauge and attack of each example that the model gets right; None: none is known."""
        before = sum(row.forward + row.backward for row in standing.stages)
        if not right:
            return {}
        drawing = self._drawing(right, self.limit - before)
        started = time.perf_counter()
        drawing.run()
        self._file(drawing.passes, len(right), before, time.perf_counter() - started)
        self._tell(drawing)
        self._keep(drawing)
        known = zip(drawing.known.gauge.tolist(), drawing.known.level.tolist(), drawing.known.attack, strict=True)
        ends = [*map(_below, self.ladder.radii), None]  # a point in the set of a level, tolerances and all, is not beyond its radius
        return {
            index: (None, None) if (end := ends[level]) is None else (min(gauge, end), attack)
            for index, (gauge, level, attack) in zip(right, known, strict=True)
        }

    def _drawing(self, right: list[int], limit: int) -> Drawing:
        asked, judge = self.runner.asked, self.runner.judge
        rows, device = torch.tensor(right), asked.model.device
        labels = self.entry.objective.labels(asked.data, right).to(device)
        unknown = torch.zeros(len(right), asked.model.classes, device=device)  # logits of clean images: asked for when they are needed
        examples = Examples(asked.data.x[rows].to(device), labels, rows.to(device), unknown)
        gradient = any(stage.gradient for stage in self.entry.stages)
        known = self._known(examples, right)
        return Drawing(judge.model, self.ladder, examples, known, asked.seed, asked.width, limit, gradient, asked.report)

    def _known(self, examples: Examples, right: list[int]) -> Known:
        """What the run knows: its witnesses where they are kept, else their gauges; where it looked in vain nobody need look again."""
        count, device, ladder = len(right), examples.x.device, self.ladder
        theta, gauge = torch.zeros_like(examples.x).flatten(1), torch.full((count,), torch.inf, device=device)
        files: dict[str, Mapping[str, Tensor]] = {}
        attack: list[str | None] = [None] * count
        for place, index in enumerate(right):
            row = self.verdicts.get(index)
            if row is not None and row.status == "broken" and row.gauge is not None:
                gauge[place], attack[place] = min(row.gauge, 1.0), row.attack
                kept = _theta(self.runner.store.folder, row, files)
                theta[place] = theta[place] if kept is None else kept.to(theta)
        contexts = [plain_context(space, examples, self.runner.asked.seed) for space in ladder.sets]
        bounds = torch.tensor([float(radius) for radius in ladder.radii], device=device)
        unseen = torch.bucketize(gauge, bounds)  # the witness is not kept: by its gauge alone
        level = torch.where((theta != 0).any(1), ladder.level(contexts, theta), unseen)
        proved = torch.tensor([index in self.proved for index in right], device=device)
        stood = torch.tensor([self._status(index) == "survived" for index in right], device=device)
        floor = torch.where(proved | stood, ladder.asked, -1)
        gauge = torch.where(level < len(ladder), gauge.minimum(bounds[level.clamp_max(len(ladder) - 1)]), gauge)
        return Known(level, gauge, theta, attack, floor, proved)

    def _file(self, passes: Passes, entered: int, before: int, seconds: float) -> None:
        """The cost of the curve, as a stage of the run behind all attacks; the clean pass is in it."""
        asked, key = self.runner.asked, self.entry.record.key
        self.spent = passes.forward + passes.backward + before
        forward, useful = passes.forward + before, passes.useful
        stage = StageRecord(
            run=asked.run, question=key, position=STAGE, attack="accuracy over eps", entered=entered, forward=forward,
            backward=passes.backward, useful=useful, seconds=seconds, model_seconds=passes.model_seconds, step_seconds=passes.step_seconds,
        )  # fmt: skip
        self.runner.store.add_chunk(key, [], [stage])

    def _tell(self, drawing: Drawing) -> None:
        """What the search found that the verdicts do not know."""
        level, ladder = drawing.known.level, self.ladder
        stood = [self._status(index) == "survived" for index in drawing.examples.index.tolist()]
        late = sum(here <= ladder.asked and was for here, was in zip(level.tolist(), stood, strict=True))
        if late:
            text = f"accuracy over eps of {self.entry.spec}: {late} images that the plan left standing fell inside the asked radius"
            self.runner.warnings.append(warning("curve-below", text))
        if drawing.gradient and not drawing.searched:
            text = f"accuracy over eps of {self.entry.spec}: the run was too cheap to leave passes for a search, its witnesses alone were"
            self.runner.warnings.append(warning("curve-coarse", f"{text} drawn in; a smaller radius gives a closer bound"))
        if drawing.contradicted:
            text = f"accuracy over eps of {self.entry.spec}: {len(drawing.contradicted)} proved images fell inside the asked radius"
            self.runner.warnings.append(warning("curve-contradicts", text))

    def _keep(self, drawing: Drawing) -> None:
        """The curve's adversarial points in one file per member, `curves/RUN-PLACE.safetensors`, where witnesses are kept whole."""
        known, asked = drawing.known, self.runner.asked
        rows = ((known.level < len(self.ladder)) & (known.theta != 0).any(1)).nonzero().squeeze(1)
        if asked.witnesses != "all" or not len(rows):
            return
        ctx = plain_context(self.ladder.space, drawing.examples, asked.seed)
        images = self.ladder.space.render(ctx, known.theta)
        parts = {"index": drawing.examples.index, "x_adv": images, "theta": known.theta, "gauge": known.gauge}
        tensors = {name: part[rows].cpu().contiguous() for name, part in parts.items()}
        name = f"curves/{asked.run}-{[entry.spec for entry in self.runner.judge.entries if not entry.methods].index(self.entry.spec)}"
        atomic_write(self.runner.store.folder / f"{name}.safetensors", save(tensors, {"spec": self.entry.record.spec}))


def _theta(folder: Path, row: VerdictRecord, files: dict[str, Mapping[str, Tensor]]) -> Tensor | None:
    """The witness of a verdict, where its file is still there and whole. files: those that are open."""
    if row.witness is None or row.row is None:
        return None
    if row.witness not in files:
        try:
            files[row.witness] = load((folder / row.witness).read_bytes())
        except (OSError, SafetensorError):
            files[row.witness] = {}
    tensors = files[row.witness]
    return tensors["theta"][row.row] if "theta" in tensors else None


def _below(exact: Fraction) -> float:
    """The largest float that is not above a radius."""
    near = float(exact)
    return near if Fraction(near) <= exact else math.nextafter(near, 0)
