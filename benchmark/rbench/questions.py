"""What is asked, by content: the key of a question is the SHA-256 of its canonical JSON, in which no name of ours stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rbench.attacks.catalogue import Plan
from rbench.objectives import objective_of
from rbench_results.records import QuestionRecord
from rbench_results.seal import question_key
from rbench_threats.protocol import PerturbationSet

ENGINE = "2"  # of the attacks, the engine and the referee: another version is another question
BOUNDS = "1"  # of the certificates
PRECISION = "float32"


def set_record(space: PerturbationSet) -> dict[str, Any]:
    """A set by content: its family and its exact radii."""
    return {"family": space.family, "extent": exact(space)}


def exact(space: PerturbationSet) -> dict[str, str]:
    """The radii as reduced fractions, {"eps": "3/10"}: 0.3 and 3/10 are one question."""
    return {name: f"{value.numerator}/{value.denominator}" for name, value in space.extent.items()}


def question(model: str, dataset: str, space: PerturbationSet, plan: Plan, seed: int) -> QuestionRecord:
    """The record of one attack question. model, dataset: digests."""
    asked = {"plan": plan.name, "plan_json": plan.record(), "seed": seed, "engine": ENGINE, "precision": PRECISION, "kind": "attack"}
    return _keyed(model, dataset, space, objective_of(space).name, asked)


def certificate_question(model: str, dataset: str, space: PerturbationSet, methods: Sequence[str]) -> QuestionRecord:
    """The record of a certificate: bounds by these methods, each only where those before it proved nothing; in float64, no seed in it."""
    steps = [{"certificate": method} for method in methods]
    asked = {"plan": "+".join(methods), "plan_json": steps, "seed": 0, "engine": BOUNDS, "precision": "float64", "kind": "certificate"}
    return _keyed(model, dataset, space, "sensitivity", asked)


def _keyed(model: str, dataset: str, space: PerturbationSet, objective: str, asked: dict[str, Any]) -> QuestionRecord:
    record = QuestionRecord(
        key="", model=model, dataset=dataset, spec=str(space), set=set_record(space), family=space.family, extent=exact(space),
        objective=objective, title=str(space), sentence=space.sentence, **asked,
    )  # fmt: skip
    return replace(record, key=question_key(record))
