"""What is asked, by content: the key of a question is the SHA-256 of its canonical JSON, in which no name of ours stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rbench.attacks.catalogue import Plan
from rbench_results.records import QuestionRecord
from rbench_results.seal import question_key
from rbench_threats.protocol import PerturbationSet

ENGINE = "1"  # of the attacks, the engine and the referee: another version is another question
PRECISION = "float32"
OBJECTIVE = "sensitivity"  # a fall is another class than the label; a clean mistake decides the row


def set_record(space: PerturbationSet) -> dict[str, Any]:
    """A set by content: its family and its exact radii."""
    return {"family": space.family, "extent": exact(space)}


def exact(space: PerturbationSet) -> dict[str, str]:
    """The radii as reduced fractions, {"eps": "3/10"}: 0.3 and 3/10 are one question."""
    return {name: f"{value.numerator}/{value.denominator}" for name, value in space.extent.items()}


def question(model: str, dataset: str, space: PerturbationSet, plan: Plan, seed: int) -> QuestionRecord:
    """The record of one question. model, dataset: digests."""
    record = QuestionRecord(
        key="", model=model, dataset=dataset, spec=str(space), set=set_record(space), family=space.family, extent=exact(space),
        objective=OBJECTIVE, plan=plan.name, plan_json=plan.record(), seed=seed, engine=ENGINE, precision=PRECISION, title=str(space),
        sentence=space.sentence,
    )  # fmt: skip
    return replace(record, key=question_key(record))
