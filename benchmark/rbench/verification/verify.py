"""`rbench verify`: a stored run looked at again. What was confirmed, at which n, and what was not."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rbench.api import attack_conditions, environment, load_slice, own_examples
from rbench.attacks.catalogue import Plan
from rbench.attacks.evaluate import Passes
from rbench.attacks.pilot import Facts
from rbench.attacks.widths import WIDTHS, WIDTHS_SAID
from rbench.data.dataset import Dataset
from rbench.judging import Asked, Judge
from rbench.models import Found as Model
from rbench.models import Wrapped, attacked, find
from rbench.progress import Progress
from rbench.runner import now
from rbench.verification.again import check_sample, sample_of, worst_share
from rbench.verification.checks import (
    check_clean,
    check_data,
    check_model,
    check_proofs,
    check_questions,
    check_seals,
    check_witnesses,
    confirmed,
    methods_of,
    unproved,
)
from rbench.verification.claim import Claim, Found, of_store
from rbench_core.errors import StoreError, UsageError
from rbench_core.files import canonical_json, results_folder, sha256_bytes
from rbench_results.records import VerificationRecord
from rbench_results.seal import answers_digest
from rbench_results.store import Store
from rbench_threats.protocol import PerturbationSet


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of it. `record` is stored; passes and seconds are what verifying cost, beside what the run's answers had cost."""

    record: VerificationRecord
    claim: Claim
    passes: Passes
    drawn: int  # open examples that were asked again
    open: int  # examples that no witness and no clean answer decides
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 when something is wrong."""
        return 0 if self.record.ok else 1

    def to_json(self) -> str:
        """The record, with what it cost."""
        cost = {**asdict(self.passes), "seconds": self.record.seconds, "run_forward": self.claim.forward, "run_seconds": self.claim.seconds}
        return json.dumps({**asdict(self.record), "open": self.open, "drawn": self.drawn, "cost": cost, "notes": self.notes}, indent=2)

    def to_table(self) -> str:
        """For a person, as plain text."""
        run, record = self.claim.run, self.record
        lines = [f"run {run.id}: {run.model_name} under {run.threat} on {run.dataset_name}, n = {run.n}, plan {run.plan}", ""]
        for check in record.checks:
            state = "ok" if not check["wrong"] else "WRONG"
            lines.append(f"{state:<6} {check['name']:<10} {check['checked']:>6,}  {check['text']}")
        lines += ["", *(f"WRONG  {problem}" for problem in record.problems), *([""] if record.problems else [])]
        verdict = "verified" if record.ok else "NOT verified: something is wrong; right are"
        lines.append(f"{verdict} on {record.confirmed} of {record.n} examples")
        bound = worst_share(self.drawn) if record.ok else None
        if bound is not None and self.drawn < self.open:
            lines.append(f"With 95 % confidence at most {100 * bound:.1f} % of the {self.open} sampled from would come out otherwise.")
        spent = f"{self.passes.forward:,} forward passes in {record.seconds:.1f} s"
        lines.append(f"cost   {spent}; the run's answers took {self.claim.forward:,} in {self.claim.seconds:.1f} s")
        return "\n".join([*lines, *(f"note   {note}" for note in self.notes)])

    __str__ = to_table


def verify(
    run: str = "latest",
    *,
    model: str | nn.Module | None = None,
    dataset: str | tuple[Tensor, Tensor] | Any = None,
    data: Path | str | None = None,
    sample: int | str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    width: int | None = None,
    results: Path | str | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Look at a stored run again: seals, labels, digests, clean answers, every witness and proof, and a random sample of the rest.

    model, dataset: where the run was made from objects, or its file has moved. sample: how many of the examples that no witness decides
    are computed again (default: one in twenty, at least 8), drawn by `seed` (default: by the system's randomness, so nobody can know it
    beforehand). The result is kept in the store and stands on the board. Raises RbenchError; a claim that is wrong is no error but
    `record.ok` False.
    """
    folder = Path(results).expanduser() if results is not None else results_folder()
    with Store.open(folder, create=False) as store:
        claim = of_store(store, store.run(run))
    asked_model, asked_data = model or claim.run.request.get("model"), dataset if dataset is not None else claim.run.request.get("dataset")
    if claim.run.submitted is not None and model is None:
        fix = "Verify that file, or give --model and --dataset."
        raise UsageError(f"run {claim.run.id} came by the bundle {claim.run.submitted.get('name')}, which brought its model", fix=fix)
    for value, name in ((asked_model, "model"), (asked_data, "dataset")):
        if value is None:
            fix = "Give them to rbench.verify, or --model FILE.py:FACTORY and --dataset NAME."
            raise UsageError(f"run {claim.run.id} was made from objects: its {name} has no name", expected="model and data set", fix=fix)
    verified = verify_claim(
        claim, find(asked_model), asked_data, data=data, sample=sample, seed=seed, device=device, width=width, progress=progress
    )
    return recorded(verified, folder)


def verify_claim(
    claim: Claim,
    model: Model | None,
    dataset: Any,
    *,
    data: Path | str | None,
    sample: int | str | None,
    seed: int | None,
    device: str,
    width: int | None,
    progress: Progress | None,
    bundle: str | None = None,
) -> Verified:
    """All checks of one claim; model None: those that need none."""
    began, started, passes, found = now(), time.perf_counter(), Passes(), Found()
    drawn_by = secrets.randbits(48) if seed is None else seed
    spaces, plan = check_questions(claim, found)
    own = own_examples(spaces, claim.run.threat, claim.run.dataset_name, data)
    images = own if own is not None else load_slice(dataset, claim.run.first + claim.run.n, plan, data)
    check_seals(claim, found)
    check_data(claim, images, found)
    drawn, open_, told = 0, 0, {"sample_seed": drawn_by}
    if found.problems or plan is None:  # what follows would compare with the wrong thing
        return _verified(claim, found, passes, began, started, bundle, told, 0, 0)
    if model is None:
        check_witnesses(claim, spaces, images, None, 64, passes, found)
        return _verified(claim, found, passes, began, started, bundle, told, 0, 0)
    told_width = claim.run.environment.get("width")
    rows = width or (told_width if type(told_width) is int and told_width in WIDTHS else WIDTHS[0])
    if rows not in WIDTHS:
        raise UsageError(f"width={rows}", expected=WIDTHS_SAID)
    ready = attacked(model.module, name=model.name, dataset=images, device=device, source=model.source, title=model.title)
    with attack_conditions(images, device), ready as wrapped:
        judge = Judge(_asked(claim, wrapped, images, spaces, plan, rows, progress))
        told |= environment(judge.asked)
        judge.facts |= {at: Facts.from_json(claim.pilots[q.key]) for at, q in enumerate(judge.questions) if q.key in claim.pilots}
        check_model(claim, wrapped, found)
        if not found.problems:
            check_clean(claim, judge, found)
            check_witnesses(claim, spaces, images, wrapped, rows, passes, found)
            check_proofs(claim, judge, found)
            rest = unproved(claim, found)
            chosen = sample_of(rest, sample, drawn_by, plan.block)
            drawn, open_ = len(chosen), len(rest)
            check_sample(claim, judge, chosen, len(rest), found)
        passes.add(judge.passes)
    return _verified(claim, found, passes, began, started, bundle, told, drawn, open_)


def _asked(
    claim: Claim, wrapped: Wrapped, images: Dataset, spaces: list[PerturbationSet], plan: Plan, width: int, progress: Progress | None
) -> Asked:
    run = claim.run
    report: Callable[[str, int, int], None] = progress.update if progress is not None else lambda stage, done, total: None
    methods = methods_of(claim.questions)
    return Asked(wrapped, images, tuple(spaces), plan, run.n, run.seed, width, run.full, "none", run.id, report, methods)


def _verified(
    claim: Claim, found: Found, passes: Passes, began: str, started: float, bundle: str | None, told: dict[str, Any], drawn: int, open_: int
) -> Verified:
    record = VerificationRecord(
        id="",
        run=claim.run.id,
        started=began,
        bundle=bundle,
        ok=not found.problems,
        n=claim.run.n,
        confirmed=confirmed(claim, found),
        answers=answers_digest((question.key, row) for question, row in claim.all_rows()),
        checks=found.checks,
        problems=found.problems,
        environment=told,
        seconds=time.perf_counter() - started,
    )
    return Verified(_named(record), claim, passes, drawn, open_)


def _named(record: VerificationRecord) -> VerificationRecord:
    return replace(record, id=sha256_bytes(canonical_json(asdict(record)).encode()))


def recorded(verified: Verified, folder: Path) -> Verified:
    """Keep the result in a store; a store that cannot be written is no reason to lose it."""
    try:
        with Store.open(folder) as store:
            store.put_verification(verified.record)
    except StoreError as error:
        verified.notes.append(f"not kept: {error}")
    return verified
