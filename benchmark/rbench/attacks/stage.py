"""One attack of a plan over a list of examples: searched, refereed, and whatever goes wrong on the way given a name.

Out of memory halves the width; an exception of the model is bisected down to the examples that cause it; a claim that the referee refuses
sends its example back to the search, with a stricter threshold where rounding was to blame, and trusting no attack to stay inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rbench.attacks import tree
from rbench.attacks.catalogue import Stage
from rbench.attacks.evaluate import Crash, OutOfMemory, Passes, clean_logits
from rbench.attacks.noise import Row, row_keys
from rbench.attacks.referee import NO_FALL, NOT_FINITE, WIDTH, Judged, judge
from rbench.attacks.search import Best, Examples, Search
from rbench.attacks.warm import StartAt
from rbench.attacks.widths import WIDTHS, at_most
from rbench_core.errors import ModelError
from rbench_threats.protocol import Context, PerturbationSet

BAD = "the model returned NaN or infinity"
REFUSALS = 3  # searches of an example whose claims the referee refuses

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Witness:
    """A fall that passed the referee: θ (P,), the image (C, H, W) and what the model says there."""

    theta: Float[Tensor, " p"]
    image: Float[Tensor, "c h w"]
    predicted: int
    margin: float
    gauge: float
    target: int
    restart: int


@dataclass(slots=True)
class Outcome:
    """What one attack did, by place in the list of examples."""

    witnesses: dict[int, Witness] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    closest: dict[int, tuple[float, Tensor]] = field(default_factory=dict)  # smallest margin inside the set and its θ
    passes: Passes = field(default_factory=Passes)
    width: int = 0  # the smallest that was needed

    def merge(self, other: Outcome, places: list[int]) -> None:
        """Take in the outcome of a part; places: of its examples in this list."""
        for name in ("witnesses", "refused", "errors", "closest"):
            getattr(self, name).update({places[place]: value for place, value in getattr(other, name).items()})
        self.passes.add(other.passes)
        self.width = min(self.width or other.width, other.width)


def part_of(examples: Examples, places: list[int]) -> Examples:
    """The examples at some places."""
    rows = torch.tensor(places, device=examples.label.device)
    order = None if examples.order is None else examples.order[rows]
    return Examples(examples.x[rows], examples.label[rows], examples.index[rows], examples.clean[rows], order)


def run_stage(
    model: nn.Module,
    space: PerturbationSet,
    stage: Stage,
    examples: Examples,
    *,
    seed: int,
    width: int,
    closest: dict[int, tuple[float, Tensor]],
    progress: Progress | None = None,
) -> Outcome:
    """Attack every example once more. closest: what earlier attacks of the plan saw, for a stage that starts from there.

    In a part of a combination θ of `closest`, here and in the outcome, is the part's own; a witness's is the combination's.
    """
    if stage.part is not None:
        alone: PerturbationSet = space.parts[stage.part]  # type: ignore[attr-defined]  # the capability "blocks"
        rest = {"seed": seed, "width": width}
        found = run_stage(model, alone, replace(stage, part=None), examples, closest=closest, progress=progress, **rest)
        return _lifted(model, space, stage.part, examples, found, **rest)
    if stage.foreign:
        spent = Passes()
        try:
            return _foreign(model, space, stage, examples, seed, width, spent)
        except (ModelError, Crash, OutOfMemory) as error:  # it needs the whole block, so nobody can say whose fault it is
            said = f"{stage.label}: {error}"
            return Outcome(errors=dict.fromkeys(range(len(examples)), said), passes=spent, width=width)
    if stage.start == "best" and closest:
        known = torch.tensor([place in closest for place in range(len(examples))], device=examples.x.device)
        none = torch.zeros_like(next(iter(closest.values()))[1])
        theta = torch.stack([closest[place][1] if place in closest else none for place in range(len(examples))]).to(examples.x.device)
        space = StartAt(space, examples.index, known, theta)  # type: ignore[assignment]  # passes everything on
    beyond, passes = torch.zeros(len(examples), device=examples.label.device), Passes()
    outcome = _safely(model, space, stage, examples, beyond, seed, width, progress, passes)
    outcome.passes = passes  # of searches that failed as well: what the model has seen, it has seen
    return outcome


def _lifted(model: nn.Module, space: PerturbationSet, part: int, examples: Examples, found: Outcome, *, seed: int, width: int) -> Outcome:
    """The falls that a part's own search found, as the combination's: each is rendered and judged again there."""
    places = sorted(found.witnesses)
    if not places:
        return found
    claims, before = part_of(examples, places), [found.witnesses.pop(place) for place in places]
    theta = space.lifted(part, torch.stack([w.theta for w in before]).to(claims.x), claims.x.shape[1:])  # type: ignore[attr-defined]
    try:
        judged = judge(model, space, plain_context(space, claims, seed), theta, claims.label, found.passes, min(width, WIDTH))
    except (Crash, OutOfMemory) as error:
        found.errors.update(dict.fromkeys(places, str(error)))
        return found
    for row, place in enumerate(places):
        if judged.accepted[row]:
            found.witnesses[place] = _witness(judged, row, theta[row], before[row].target, before[row].restart)
        else:
            _refuse(found, place, judged.reason[row])
    return found


def _safely(
    model: nn.Module,
    space: PerturbationSet,
    stage: Stage,
    examples: Examples,
    beyond: Tensor,
    seed: int,
    width: int,
    progress: Progress | None,
    passes: Passes,
) -> Outcome:
    """The search, again at half the width when memory is short, and half by half when the model raises."""
    try:
        return _judged(model, space, stage, examples, beyond, seed, width, progress, passes)
    except (OutOfMemory, torch.OutOfMemoryError, MemoryError) as error:
        short = f"out of memory at {width} rows: {error}"
    except Crash as error:
        short = ""
        if len(examples) == 1:
            return Outcome(errors={0: str(error)}, width=width)
    if short:  # outside the handler, whose exception keeps the failed batch alive
        if width == WIDTHS[0]:
            return Outcome(errors=dict.fromkeys(range(len(examples)), short), width=width)
        return _safely(model, space, stage, examples, beyond, seed, at_most(width // 2), progress, passes)
    whole = Outcome()
    for places in torch.arange(len(examples)).split((len(examples) + 1) // 2):
        part = part_of(examples, places.tolist())
        whole.merge(_safely(model, space, stage, part, beyond[places.to(beyond.device)], seed, width, progress, passes), places.tolist())
    return whole


def _judged(
    model: nn.Module,
    space: PerturbationSet,
    stage: Stage,
    examples: Examples,
    beyond: Tensor,
    seed: int,
    width: int,
    progress: Progress | None,
    passes: Passes,
    again: int = 0,
) -> Outcome:
    search = Search(
        model,
        space,
        stage.attack,  # type: ignore[arg-type]  # not a foreign one
        examples,
        spec=stage.spec,
        seed=seed,
        width=width,
        beyond=beyond,
        progress=progress,
        passes=passes,
        checked=again > 0,
    )
    best = search.run()
    outcome = Outcome(width=width)
    bad = best.bad.tolist()
    outcome.errors = {place: BAD for place in range(len(examples)) if bad[place]}
    finite = best.margin.isfinite().tolist()
    outcome.closest = {place: (float(best.margin[place]), best.theta[place].cpu()) for place in range(len(examples)) if finite[place]}
    claims = [place for place, fell in enumerate(best.fell.tolist()) if fell]
    if not claims:
        return outcome
    judged = _referee(model, space, search, best, claims, passes, width)
    for row, place in enumerate(claims):
        if judged.accepted[row]:
            outcome.witnesses[place] = _witness(judged, row, best.theta[place], int(best.target[place]), int(best.restart[place]))
        else:
            _refuse(outcome, place, judged.reason[row])
    if outcome.refused and again < REFUSALS:
        places = list(outcome.refused)
        rows = torch.tensor(places, device=beyond.device)
        rounding = torch.tensor([outcome.refused[place] == NO_FALL for place in places], device=beyond.device)
        stricter = torch.maximum(2 * best.margin[rows].abs(), 1e-6 * examples.clean[rows].abs().amax(1)) * rounding
        second = _judged(model, space, stage, part_of(examples, places), stricter, seed, width, progress, passes, again + 1)
        for place in second.witnesses:
            del outcome.refused[places[place]]
        second.refused.clear()
        outcome.merge(second, places)
    return outcome


def _referee(model: nn.Module, space: PerturbationSet, search: Search, best: Best, claims: list[int], passes: Passes, width: int) -> Judged:
    rows = torch.tensor(claims, device=best.theta.device)
    ctx = tree.take(search.contexts, best.restart[rows] * len(search.examples) + rows)
    return judge(model, space, ctx, best.theta[rows], search.examples.label[rows], passes, min(width, WIDTH))


def _witness(judged: Judged, row: int, theta: Tensor, target: int, restart: int) -> Witness:
    numbers = int(judged.predicted[row]), float(judged.margin[row]), float(judged.gauge[row])
    return Witness(theta.cpu(), judged.images[row].cpu(), *numbers, target, restart)


def _foreign(model: nn.Module, space: PerturbationSet, stage: Stage, examples: Examples, seed: int, width: int, passes: Passes) -> Outcome:
    """An attack of another library: it returns images, and the referee treats them as it treats ours."""
    ctx, bad = plain_context(space, examples, seed), set[int]()
    attack, counter = stage.attack, _Counter(model, lambda images: _blame(space, ctx, images, len(examples), bad))
    counter.passes = passes
    images = attack.attack(counter, space, examples.x, examples.label, seed=seed, classes=examples.clean.shape[1])  # type: ignore[union-attr]
    outcome = Outcome(passes=counter.passes, width=width, errors=dict.fromkeys(sorted(bad), BAD))
    outcome.passes.useful = outcome.passes.forward
    theta = space.from_images(ctx, images.to(examples.x))  # type: ignore[attr-defined]  # the capability "additive"
    logits, reasons = clean_logits(model, images.to(examples.x).nan_to_num(), width, outcome.passes)
    outcome.errors.update(reasons)
    label = examples.label.tolist()
    said = [place for place, row in enumerate(logits) if row is not None]
    outcome.errors.update({place: BAD for place in said if not bool(logits[place].isfinite().all())})  # type: ignore[union-attr]
    claims = [place for place in said if int(logits[place].argmax()) != label[place]]  # type: ignore[union-attr]
    if claims:
        rows = torch.tensor(claims, device=examples.label.device)
        judged = judge(model, space, tree.take(ctx, rows), theta[rows], examples.label[rows], outcome.passes, min(width, WIDTH))
        for row, place in enumerate(claims):
            if judged.accepted[row]:
                outcome.witnesses[place] = _witness(judged, row, theta[place], -1, 0)
            else:
                _refuse(outcome, place, judged.reason[row])
    return outcome


def _refuse(outcome: Outcome, place: int, reason: str) -> None:
    """A claim refused: where the model gave the referee no numbers, the example has an error, for it must never pass as a survivor."""
    if reason == NOT_FINITE:
        outcome.errors[place] = BAD
    else:
        outcome.refused[place] = reason


def _blame(space: PerturbationSet, ctx: Context, images: Float[Tensor, "rows c h w"], places: int, bad: set[int]) -> None:
    """Add to `bad` the examples in whose sets the images lie, whichever of them the attack was working on. places: how many examples."""
    for image in images:
        rows = torch.tensor([place for place in range(places) if place not in bad], dtype=torch.long, device=images.device)
        if len(rows):
            part = tree.take(ctx, rows)
            theta = space.from_images(part, image.expand(len(rows), *image.shape))  # type: ignore[attr-defined]  # "additive"
            bad.update(rows[space.excess(part, theta) <= 0].tolist())


def plain_context(space: PerturbationSet, examples: Examples, seed: int) -> Context:
    """Contexts without a row of an engine behind them: restart 0, untargeted."""
    index = examples.index.cpu().numpy()
    key = torch.from_numpy(row_keys(seed, "context", index, 0 * index - 1, 0 * index)).to(examples.label.device)
    zero = torch.zeros_like(examples.label)
    return space.context(examples.x, Row(examples.index, examples.label, zero - 1, zero, key, zero))


class _Counter(nn.Module):
    """Counts the rows that a foreign attack sends through the model, forward and (by a hook on the logits) backward.

    Images without a finite answer are handed to `bad`: the attack itself may well pass over them as not adversarial.
    """

    def __init__(self, model: nn.Module, bad: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.model, self.passes, self.bad = model, Passes(), bad
        self.eval()

    def forward(self, images: Float[Tensor, "rows c h w"]) -> Tensor:
        """The model's logits, counted."""
        self.passes.forward += len(images)
        logits: Tensor = self.model(images)
        sound = logits.detach().isfinite().all(1)
        if not sound.all():
            self.bad(images.detach()[~sound])
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, grad: Int[Tensor, "..."] | Tensor) -> None:
        self.passes.backward += len(grad)
