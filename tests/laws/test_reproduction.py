"""The same question gives the same statuses, bit for bit, whatever the order, the pieces, the width, the stops and the starts (law 4)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rbench.attacks.noise
import rbench.attacks.search
import rbench.runner
from laws.nets import digit_net, digits, right_examples
from laws.runs import Statuses, run, statuses, stored
from rbench.attacks.catalogue import resolve_plan
from rbench.attacks.pilot import pilot_rows
from rbench.attacks.stage import part_of, run_stage
from rbench.attacks.widths import WIDTHS
from rbench_results.store import Store
from rbench_threats.catalogue import build
from rbench_threats.spec import parse

N = 36
THREAT = "union(linf(eps=0.06), l2(eps=0.3), l1(eps=0.7), l0(pixels=1), rotation-translation(degrees=4, shift=0.1))"
PLAN = str(Path(__file__).with_name("gated.toml"))  # every attack small, behind a pilot and its gates
KEYS = rbench.attacks.noise.row_keys


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Statuses:
    found = statuses(run(tmp_path_factory.mktemp("undisturbed"), threat=THREAT, plan=PLAN, n=N))
    assert {"broken", "survived", "misclassified"} == set(found.values())
    return found


def members_of(folder: Path, questions: list[dict[str, str]], n: int) -> dict[str, Statuses]:
    with stored(folder) as store:
        return {question["spec"]: store.answered(question["key"], 0, n) for question in questions}


@pytest.mark.parametrize("piece", [10, 36])
def test_pieces_do_not_matter(piece: int, undisturbed: Statuses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of ten, and all at once."""
    monkeypatch.setattr(rbench.runner, "CHUNK", piece)
    assert statuses(run(tmp_path, threat=THREAT, plan=PLAN, n=N)) == undisturbed


@pytest.mark.parametrize("width", [16, 32, 256])
def test_widths_agree(width: int, undisturbed: Statuses, tmp_path: Path) -> None:
    """On this machine and these nets logits are the same bits at every width of the list, so agreement is exact."""
    assert statuses(run(tmp_path, threat=THREAT, plan=PLAN, n=N, width=width)) == undisturbed


def test_a_larger_n_adds_rows(undisturbed: Statuses, tmp_path: Path) -> None:
    """5, then 21, then all: only what is missing runs, and nothing that stood changes."""
    before = 0
    for n in (5, 21, N):
        report = run(tmp_path, threat=THREAT, plan=PLAN, n=n)
        assert statuses(report) == {index: undisturbed[index] for index in range(n)}
        clean = [stage for stage in report.data["stages"] if stage["position"] == 0 and not stage["pilot"]]
        fresh = set(range(n)) - set(pilot_rows(digits().size, 12, 0))  # the pilot has its own clean pass
        assert sum(stage["entered"] for stage in clean) == len(fresh), "an image's clean logits were asked again"
        assert report.data["cost"]["this_run"]["forward"] > 0
        assert report.data["cost"]["forward"] > before
        before = report.data["cost"]["forward"]
    again = run(tmp_path, threat=THREAT, plan=PLAN, n=N)
    assert statuses(again) == undisturbed
    assert again.data["cost"]["this_run"]["forward"] == 0, "an answered question was computed again"


def test_the_members_own_verdicts_with_full(tmp_path: Path) -> None:
    """With --full a member's verdicts are those of the member asked alone: no member feels the others."""
    whole = run(tmp_path / "all", threat=THREAT, plan=PLAN, n=20, full=True)
    together = members_of(tmp_path / "all", whole.data["questions"], 20)
    for place, (spec, answers) in enumerate(together.items()):
        alone = statuses(run(tmp_path / str(place), threat=spec, plan=PLAN, n=20))
        assert alone == answers


@pytest.mark.parametrize("seed", range(2))
def test_a_run_goes_on_after_partial_answers(seed: int, undisturbed: Statuses, tmp_path: Path) -> None:
    """Verdicts struck out at random, as merging or an older run may leave them: what is missing comes back the same."""
    run(tmp_path, threat=THREAT, plan=PLAN, n=N)
    random = np.random.default_rng(seed)
    with sqlite3.connect(tmp_path / "rbench.sqlite") as connection:
        rows = connection.execute("SELECT question_id, `index` FROM verdict").fetchall()
        struck = [row for row in rows if random.random() < 0.4]
        connection.executemany("DELETE FROM verdict WHERE question_id = ? AND `index` = ?", struck)
    connection.close()
    assert struck
    assert statuses(run(tmp_path, threat=THREAT, plan=PLAN, n=N)) == undisturbed


def test_a_run_that_was_stopped_goes_on(undisturbed: Statuses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two chunks, again and again; each time it goes on where it stood."""
    monkeypatch.setattr(rbench.runner, "CHUNK", 15)
    add, turns = Store.add_chunk, []

    def stops(self: Store, *chunk: Any) -> None:
        turns.append(1)
        if len(turns) % 3 == 0:
            raise KeyboardInterrupt
        add(self, *chunk)

    monkeypatch.setattr(Store, "add_chunk", stops)
    for _ in range(30):
        try:
            found = statuses(run(tmp_path, threat=THREAT, plan=PLAN, n=N))
            break
        except KeyboardInterrupt:
            continue
    assert len(turns) > 3
    assert found == undisturbed


def test_a_run_that_was_stopped_before_its_pilot_s_facts_goes_on(
    undisturbed: Statuses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its verdicts are stored, what they decide is not: the pilot comes again, and decides the same."""

    def stops(self: Store, *facts: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_pilot", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, threat=THREAT, plan=PLAN, n=N)
    assert statuses(run(tmp_path, threat=THREAT, plan=PLAN, n=N)) == undisturbed


@pytest.mark.parametrize("spec", ["linf(eps=0.06)", "l0(pixels=1)", "rotation-translation(degrees=4, shift=0.1)"])
def test_order_of_examples_does_not_matter(spec: str) -> None:
    """A stage's examples shuffled, in two halves, at every width: the same fall, whoever stands beside them."""
    net, space = digit_net(), build(parse(spec))
    examples = right_examples(net, digits(N))
    for stage in resolve_plan(PLAN).stages_for(space):  # type: ignore[arg-type]
        first = run_stage(net, space, stage, examples, seed=0, width=64, closest={})  # type: ignore[arg-type]
        known = {int(examples.index[place]) for place in first.witnesses}
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1)).tolist()
        for parts, width in (([order], 64), ([order[:20], order[20:]], 16), ([order[::-1]], WIDTHS[-1])):
            found = set()
            for places in parts:
                part = part_of(examples, places)
                outcome = run_stage(net, space, stage, part, seed=0, width=width, closest={})  # type: ignore[arg-type]
                found |= {int(part.index[place]) for place in outcome.witnesses}
            assert found == known


def test_seeds_are_questions_of_their_own(tmp_path: Path) -> None:
    """Another seed throws other dice, and is stored beside the first."""
    plan = "pgd(steps=1, rate=0.01)"
    first, second = (run(tmp_path, threat="rotation-translation(degrees=20, shift=0.5)", plan=plan, n=100, seed=seed) for seed in (0, 1))
    assert first.data["questions"][0]["key"] != second.data["questions"][0]["key"]
    assert statuses(first) != statuses(second)


def _by_place(seed: int, attack: str, example: np.ndarray, target: np.ndarray, restart: np.ndarray) -> np.ndarray:
    return KEYS(seed, attack, np.arange(len(example)), target, restart)


def _by_number(seed: int, attack: str, example: np.ndarray, target: np.ndarray, restart: np.ndarray) -> np.ndarray:
    return KEYS(seed, f"{attack} of {len(example)}", example, target, restart)


@pytest.mark.parametrize("keys", [_by_place, _by_number], ids=lambda keys: keys.__name__)
def test_noise_by_place_or_batch_is_caught(keys: Callable[..., np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack's kind of noise: what an image gets depends on who stands before it. The law of pieces sees it."""
    sought: dict[str, Any] = {"threat": "rotation-translation(degrees=20, shift=0.5)", "plan": "pgd(steps=1, rate=0.01)", "n": 100}

    def in_pieces(piece: int, name: str) -> Statuses:
        monkeypatch.setattr(rbench.runner, "CHUNK", piece)
        return statuses(run(tmp_path / f"{name} {piece}", **sought))

    assert in_pieces(7, "right") == in_pieces(100, "right")
    monkeypatch.setattr(rbench.attacks.search, "row_keys", keys)
    assert in_pieces(7, "wrong") != in_pieces(100, "wrong")
