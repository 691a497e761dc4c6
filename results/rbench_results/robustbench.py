"""A run in the shape of RobustBench's model_info files, so that those who know these can read ours.

Keys and types as in RobustBench/robustbench@78fcc9e, model_info/<dataset>/<Linf|L2>/*.json (197 files): radii and accuracies are strings,
accuracies in per cent with two decimals, what is unknown is null, as their `ModelInfo` writes it. `autoattack_acc` means AutoAttack's
standard version there, and here: any other plan's figure stands under `rbench_acc`. `threat_model` is theirs as an argument, not as a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rbench_core.errors import Failure, UsageError
from rbench_results.records import QuestionRecord, RunRecord
from rbench_results.report import run_report
from rbench_results.site.words import exactly, links, number
from rbench_results.store import Store

BALLS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}
SPEC = re.compile(r"(\w+)\((?:\w+=)?([^(),]+)\)")  # linf(eps=8/255), linf(8/255)
MASKING = frozenset({"random", "probabilities", "batch-dependent", "no-gradient", "zero-gradient", "masking"})  # codes of a run's warnings


def model_info(store: Store, run_id: str) -> dict[str, Any]:
    """One run as a model_info object. Raises UnknownName, UsageError unless the threat is one lp ball, Failure for an unfinished run."""
    run = store.run(run_id)
    question = _ball(store, run)
    report = run_report(store, run.id)
    if report["robust"] is None:
        raise Failure(f"run {run.id} is {run.state}: some of its {run.n} images have no answer", fix="Run the same command again to go on.")
    eps = next(iter(question.extent.values()))
    card, auto = run.card, _is_autoattack(question)
    return {
        "link": _link(card),
        "name": card.get("title") or run.model_name,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": None,
        "dataset": run.dataset_name,
        "venue": None,
        "architecture": _architecture(card),
        "eps": number(eps),
        "clean_acc": _percent(report["clean"]),
        "reported": _reported(card, question),
        "autoattack_acc": _percent(report["robust"]) if auto else None,
        **({} if auto else {"rbench_acc": _percent(report["robust"])}),
        "unreliable": any(warning.get("code") in MASKING for warning in run.warnings) if auto else None,
        "footnote": _footnote(run, report, auto),
        "threat_model": BALLS[question.family],
    }


def _ball(store: Store, run: RunRecord) -> QuestionRecord:
    """The one attacked set of the run. Raises UsageError where it is another threat than an lp ball around the image."""
    asked = [store.question(key) for key, _ in run.questions]
    attacks = {question.spec: question for question in asked if question.kind == "attack" and question.objective == "sensitivity"}
    balls = [question for question in attacks.values() if question.family in BALLS and len(question.extent) == 1]
    if len(balls) != 1 or len({spec for _, spec in run.questions}) != 1:
        wanted = "one lp ball, since RobustBench's files know no other"
        raise UsageError(f"run {run.id} asks {run.spec}", expected=wanted, fix="`rbench show RUN --json` has every run.")
    return balls[0]


def _is_autoattack(question: QuestionRecord) -> bool:
    """Whether AutoAttack's standard version was the whole plan."""
    plan = question.plan_json
    return len(plan) == 1 and isinstance(plan[0], dict) and (plan[0].get("attack"), plan[0].get("version")) == ("autoattack", "standard")


def _percent(figure: Mapping[str, Any] | None) -> str | None:
    return None if figure is None else f"{100 * figure['accuracy']:.2f}"


def _part(card: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table of the card; cards of other people's files may have anything in its place."""
    found = card.get(key)
    return found if isinstance(found, dict) else {}


def _link(card: Mapping[str, Any]) -> str | None:
    """The address that the card's source names first: paper, then repository (owner/name@commit:path)."""
    source = _part(card, "source")
    for address in (address for key in ("paper", "repository") for _, address in links(source.get(key) or "")):
        if address is not None:
            return address
    place = re.match(r"([\w.-]+/[\w.-]+)@", str(source.get("repository") or ""))
    return f"https://github.com/{place[1]}" if place else None


def _architecture(card: Mapping[str, Any]) -> str | None:
    return str(_part(card, "architecture").get("factory") or "").rpartition(":")[2] or None


def _reported(card: Mapping[str, Any], question: QuestionRecord) -> str | None:
    """The lowest robust accuracy that others published for this very ball, in per cent."""
    rows = _part(card, "source").get("reported")
    same = [row for row in rows if isinstance(row, dict) and _same_ball(row.get("threat"), question)] if isinstance(rows, list) else []
    known = [share for row in same if isinstance(share := row.get("robust_accuracy"), int | float)]
    return f"{100 * min(known):.2f}" if known else None


def _same_ball(threat: object, question: QuestionRecord) -> bool:
    found = SPEC.fullmatch(str(threat).strip().lower())
    if found is None or found[1] != question.family:
        return False
    radius = exactly(found[2].strip())
    return radius is not None and radius == exactly(next(iter(question.extent.values())))


def _footnote(run: RunRecord, report: Mapping[str, Any], auto: bool) -> str:
    """What a reader of the figure must know: who attacked, how many images, how sure."""
    figure = report["robust"]
    who = "AutoAttack (standard)" if auto else f"Not AutoAttack: rbench_acc is rbench's plan {run.plan}"
    return (
        f"{who}, seed {run.seed}, on images {run.first} to {run.first + run.n - 1} (95 % interval {100 * figure['low']:.2f} to "
        f"{100 * figure['high']:.2f}); rbench {run.environment.get('rbench', 'of an unknown version')}, run {run.id}."
    )
