"""The checks that need no attack: seals, questions, labels, the model's digest, the clean answers, every witness, every proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from rbench.attacks.catalogue import Plan, resolve_plan
from rbench.attacks.evaluate import Passes
from rbench.attacks.referee import judge
from rbench.attacks.search import Examples
from rbench.attacks.stage import plain_context
from rbench.certificates.methods import METHODS
from rbench.data.dataset import Dataset
from rbench.judging import Judge, Standing, proved_sets
from rbench.models import Wrapped
from rbench.objectives import objective_of
from rbench.questions import certificate_question
from rbench.questions import question as asked
from rbench.verification.claim import Claim, Found
from rbench_core.errors import FileError, RbenchError, UsageError
from rbench_results.figures import FALLEN
from rbench_results.records import QuestionRecord, VerdictRecord
from rbench_results.seal import is_intact, is_named_by_content
from rbench_results.store import PROBE_TOLERANCE, same_logits
from rbench_threats.catalogue import resolve
from rbench_threats.protocol import PIXEL_TOLERANCE, PerturbationSet

MARGIN_TOLERANCE = 1e-3  # of a margin, in units of the largest logit's order: machines differ in the last bits
PARTS = {"index": (torch.int64, 1), "x": (torch.float32, 4), "x_adv": (torch.float32, 4), "theta": (torch.float32, 2)}


def check_seals(claim: Claim, found: Found) -> None:
    """Each verdict says what it said when it was stored, and no example lacks its answer."""
    changed = [(question, row) for question, row in claim.all_rows() if not is_intact(question.key, row)]
    wrong = [_of(question, row, "the verdict does not agree with its seal") for question, row in changed]
    unsealed = sum(not row.seal for _, row in claim.all_rows())
    text = "verdicts agree with their seals" + (f"; {unsealed} were stored before there were seals" if unsealed else "")
    missing = [f"example {index}: no verdict" for index in claim.indices if claim.status(index) is None]
    both = [f"example {index} under {spec}: both broken and certified" for index, spec in claim.contradictions()]
    found.note("seals", len(claim.all_rows()), wrong + missing + both, text)


def check_questions(claim: Claim, found: Found) -> tuple[list[PerturbationSet], Plan | None]:
    """The run's threat and plan mean here what they meant there, and their questions are exactly those that were answered.

    A question is made anew from the run's model, data set, threat, plan and seed; key and words must come out as they are.
    """
    run, wrong, spaces, plan = claim.run, [], [], None
    try:
        plan = resolve_plan(run.plan).for_model(run.card.get("gradient", True) is True)
        threat = resolve(run.spec)
        spaces = list(threat.members)
        if str(resolve(run.threat, run.dataset_name)) != str(threat):
            wrong.append(
                f"run {run.id}: the threat {run.threat[:80]} is {resolve(run.threat, run.dataset_name)} here, and {run.spec[:80]} there"
            )
        made = [pair for space in spaces for pair in _asked(claim, space, plan)]
        if [(record.key, spec) for record, spec in made] != run.questions or [record for record, _ in made] != claim.questions:
            wrong += _unlike(claim, [record for record, _ in made])
    except RbenchError as error:
        wrong.append(f"run {run.id}: {error}")
    found.note("questions", len(claim.questions), wrong, "threat, plan, seed and engine are those of the verdicts")
    return spaces, plan


def methods_of(questions: Sequence[QuestionRecord]) -> tuple[str, ...]:
    """The methods of a run's certificates, none where it asked for none. Raises UsageError for one that this version does not know."""
    named = {tuple(str(step.get("certificate")) for step in q.plan_json) for q in questions if q.kind == "certificate"}
    if len(named) > 1 or not all(method in METHODS for methods in named for method in methods):
        raise UsageError(f"certificates by {sorted(named)}", expected=f"of one kind, by: {', '.join(METHODS)}")
    return named.pop() if named else ()


def _asked(claim: Claim, space: PerturbationSet, plan: Plan) -> list[tuple[QuestionRecord, str]]:
    """What the run's own words ask about one member: its certificates, then its attacks, each with the member's spec."""
    methods, run = methods_of(claim.questions), claim.run
    boxes = proved_sets(space) if methods else []
    proofs = [(certificate_question(run.model, run.dataset, box, methods), str(space)) for box in boxes]
    return [*proofs, (asked(run.model, run.dataset, space, plan, run.seed), str(space))]


def _unlike(claim: Claim, made: list[QuestionRecord]) -> list[str]:
    """What differs between the questions that the run's own words ask and those that it has answers to."""
    if len(made) != len(claim.questions) or len(claim.run.questions) != len(made):
        return [f"run {claim.run.id}: {len(claim.questions)} questions; its threat and its certificates ask {len(made)}"]
    names = [field.name for field in fields(QuestionRecord)]
    pairs = [(new, old, name) for new, old in zip(made, claim.questions, strict=True) for name in names]
    unlike = [
        f"question {old.spec[:60]}: {name} is not what the run asks" for new, old, name in pairs if getattr(new, name) != getattr(old, name)
    ]
    return unlike or [f"run {claim.run.id}: its members are called otherwise than its questions"]


def check_data(claim: Claim, data: Dataset, found: Found) -> None:
    """The images are those that were asked about, and the verdicts carry their labels."""
    wrong = []
    if data.digest != claim.run.dataset:
        wrong.append(f"data set {data.name}: its digest is {data.digest[:12]}…, the run's {claim.run.dataset[:12]}…")
    rows = [(q, row) for q, row in claim.all_rows() if row.index < len(data)]
    labels = data.y.tolist()
    wrong += [_of(q, row, f"label {row.label}; the data says {labels[row.index]}") for q, row in rows if row.label != labels[row.index]]
    found.note("data", len(rows), wrong, f"labels are those of {data.name}, whose digest is the run's")


def check_model(claim: Claim, wrapped: Wrapped, found: Found) -> None:
    """The model at hand is the one that was asked."""
    wrong = []
    if wrapped.digest != claim.run.model:
        told = f"its digest is {wrapped.digest[:12]}…, the run's {claim.run.model[:12]}…"
        wrong.append(f"model {wrapped.name}: {told}: other weights or other code")
    if not same_logits(claim.model.probe, wrapped.probe):
        wrong.append(f"model {wrapped.name}: its answers to the probe images differ by more than {PROBE_TOLERANCE:g} from the run's")
    found.note("model", 1, wrong, "weights and architecture have the run's digest, and the probe images the same answers")


def check_clean(claim: Claim, judge: Judge, found: Found) -> None:
    """The model's answer to every clean image, and so which of them it misclassifies."""
    wrong = []
    for entry in judge.entries:
        question, standing = entry.record, Standing()
        rows = claim.rows[question.key]
        if rows:
            judge.clean_pass(entry, sorted(rows), standing)
        for index, row in rows.items():
            answer = judge.clean[index]
            said = None if answer is None else int(answer.argmax())
            fault = _clean_fault(row, standing.verdicts.get(index), said)
            if fault is not None:
                wrong.append(_of(question, row, fault))
            elif row.status == "misclassified" or (entry.methods and index in standing.verdicts):
                found.proved.add((question.key, index))
    found.note("clean", len(claim.indices), wrong, "answers to the clean images are the model's")


def _clean_fault(row: VerdictRecord, again: VerdictRecord | None, said: int | None) -> str | None:
    """What a row says wrongly of its clean image. again: the verdict that the clean pass itself gives, None where it decides nothing; said:
    the model's answer."""
    if row.status == "error":
        return None
    if again is not None and again.status == "error":
        return f"no answer to the clean image: {again.reason}"
    decided = again is not None and row.status != again.status
    if decided or (row.status == "misclassified" and again is None):
        return f"{row.status}, but the model's answer to the clean image is {said} and the label {row.label}"
    return None if row.clean == said else f"clean prediction {row.clean}; the model says {said}"


@dataclass(frozen=True, slots=True)
class _Witnesses:
    """The witnesses of one question in this slice: rows, and what the files say of them."""

    rows: list[VerdictRecord]
    x: Tensor
    x_adv: Tensor
    theta: Tensor


def check_witnesses(
    claim: Claim, spaces: list[PerturbationSet], data: Dataset, wrapped: Wrapped | None, width: int, passes: Passes, found: Found
) -> None:
    """Every witness is rendered again and judged again; without a model only its membership is."""
    wrong: list[str] = []
    count = 0
    by_spec = {str(space): space for space in spaces}
    for question in (question for question in claim.questions if question.kind == "attack"):
        space = by_spec[question.spec]
        kept, problems = _opened(claim, question, data)
        wrong += problems
        if kept is not None:
            count += len(kept.rows)
            try:
                faults = _judged(question, space, kept, data, wrapped, width, passes)
            except (RuntimeError, ValueError) as error:  # parameters of another number cannot be rendered
                told = " ".join(str(error).split())[:120]
                faults = {row.index: _of(question, row, f"its witness cannot be rendered: {told}") for row in kept.rows}
            wrong += list(faults.values())
            if wrapped is not None:
                found.proved |= {(question.key, row.index) for row in kept.rows if row.index not in faults}
    lead = "lie in their sets and in [0, 1]" + (", and there another class leads" if wrapped is not None else "")
    found.note("witnesses", count, wrong, f"{lead}; files, clean images and renderings agree")


def _opened(claim: Claim, question: QuestionRecord, data: Dataset) -> tuple[_Witnesses | None, list[str]]:
    """The witnesses of a question that can be read, and what is wrong with the others."""
    named = [row for row in claim.rows[question.key].values() if row.witness is not None]
    files, wrong = {}, []
    for name in sorted({str(row.witness) for row in named}):
        try:
            files[name] = _tensors(name, claim.file(name))
        except FileError as error:
            wrong.append(str(error))
    rows, parts = [], []
    for row in named:
        tensors = files.get(str(row.witness))
        if tensors is None:
            continue
        place = -1 if row.row is None else row.row
        if row.status != "broken" or not 0 <= place < len(tensors["index"]) or int(tensors["index"][place]) != row.index:
            wrong.append(_of(question, row, "its witness is that of another example"))
        elif tensors["x"].shape[1:] != data.x.shape[1:] or tensors["x_adv"].shape != tensors["x"].shape:
            wrong.append(_of(question, row, "its witness has another image shape"))
        else:
            rows.append(row)
            parts.append([tensors[part][place] for part in list(PARTS)[1:]])
    if not rows:
        return None, wrong
    return _Witnesses(rows, *(torch.stack(part) for part in zip(*parts, strict=True))), wrong


def _tensors(name: str, data: bytes) -> Mapping[str, Tensor]:
    """A witness file whose content is the one that its name promises. Raises FileError."""
    if not is_named_by_content(name, data):
        raise FileError(f"witness file {name}: its content has another digest", expected="the one in its name: it was changed")
    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise FileError(f"witness file {name}: {error}") from error
    for part, (dtype, rank) in PARTS.items():
        tensor = tensors.get(part)
        if tensor is None or tensor.dtype != dtype or tensor.ndim != rank or len(tensor) != len(tensors["index"]):
            raise FileError(f"witness file {name}: no {part}, or not as rbench writes it", expected=f"{dtype} of {rank} axes")
    return tensors


@torch.no_grad()
def _judged(
    question: QuestionRecord, space: PerturbationSet, kept: _Witnesses, data: Dataset, wrapped: Wrapped | None, width: int, passes: Passes
) -> dict[int, str]:
    """What is wrong, by index."""
    index = torch.tensor([row.index for row in kept.rows])
    device = wrapped.device if wrapped is not None else torch.device("cpu")
    x, label = data.x[index].to(device), objective_of(space).labels(data, index.tolist()).to(device)
    ctx = plain_context(space, Examples(x, label, index.to(device), torch.zeros(len(x), 2, device=device)), question.seed)
    theta = kept.theta.to(device)
    faults: dict[int, str] = {}

    def fault(row: VerdictRecord, text: str) -> None:
        faults.setdefault(row.index, _of(question, row, text))

    images, outside = space.render(ctx, theta), space.excess(ctx, theta) > 0
    same = (kept.x == data.x[index]).flatten(1).all(1).tolist()
    near = ((images.cpu() - kept.x_adv).abs().flatten(1).amax(1) <= PIXEL_TOLERANCE).tolist()
    beyond = ((images < -PIXEL_TOLERANCE) | (images > 1 + PIXEL_TOLERANCE)).flatten(1).any(1)
    for place, row in enumerate(kept.rows):
        if not same[place]:
            fault(row, "the witness's clean image is not the data set's")
        if bool(outside[place]):
            fault(row, "the witness lies outside the set")
        if bool(beyond[place]):
            fault(row, "the witness lies outside [0, 1]")
        if not near[place]:
            fault(row, "the witness's image is not what its parameters render")
    if wrapped is None:
        return faults
    judged = judge(wrapped.module, space, ctx, theta, label, passes, min(width, 64))
    scale = float(judged.margin.abs().amax().clamp(min=1))
    for place, row in enumerate(kept.rows):
        if not bool(judged.accepted[place]):
            fault(row, f"the referee refuses the witness: {judged.reason[place]}")
        elif int(judged.predicted[place]) != row.predicted:
            fault(row, f"at the witness the model says {int(judged.predicted[place])}; the verdict {row.predicted}")
        elif row.margin is None or abs(float(judged.margin[place]) - row.margin) > MARGIN_TOLERANCE * scale:
            fault(row, f"at the witness the margin is {float(judged.margin[place]):.4g}; the verdict says {row.margin}")
    return faults


def check_proofs(claim: Claim, judge: Judge, found: Found) -> None:
    """Every certificate is made again: a bound takes milliseconds, and a wrong one would hide a fall from every attack."""
    wrong, count = [], 0
    for place, entry in enumerate(judge.entries):
        question = entry.record
        proved = {index: row for index, row in claim.rows[question.key].items() if row.status == "certified"} if entry.methods else {}
        again = judge.answer(place, sorted(proved)).verdicts if proved else {}
        count += len(proved)
        for index, row in proved.items():
            if again[index].status == "certified":
                found.proved.add((question.key, index))
            else:
                wrong.append(_of(question, row, f"certified was claimed; bounded again it is {again[index].status}"))
    if count or wrong:
        found.note("proofs", count, wrong, "certificates come out again")


def unproved(claim: Claim, found: Found) -> list[int]:
    """Examples whose answer only another search could confirm: survivors, and falls whose witness was not kept. Errors rest.

    Of a `--full` run also those of which one member's verdict is open: there each member shows a figure of its own.
    """
    if claim.run.full:
        rows = ((question, row) for question, row in claim.all_rows() if row.status != "error")
        return sorted({row.index for question, row in rows if (question.key, row.index) not in found.proved})
    return [index for index in claim.indices if claim.status(index) not in (None, "error") and not _confirmed(claim, found, index)]


def confirmed(claim: Claim, found: Found) -> int:
    """Examples of the slice whose joined status is proved or was computed again."""
    return sum(_confirmed(claim, found, index) for index in claim.indices)


def _confirmed(claim: Claim, found: Found, index: int) -> bool:
    status = claim.status(index)
    rows = [(question, row) for question in claim.questions if (row := claim.rows[question.key].get(index)) is not None]
    if status in FALLEN:
        return any(row.status in FALLEN and (question.key, index) in found.proved for question, row in rows)
    return status not in (None, "error") and all((question.key, index) in found.proved for question, row in rows)


def _of(question: QuestionRecord, row: VerdictRecord, text: str) -> str:
    return f"example {row.index} under {question.spec}: {text}"
