"""Models whose card says that they have no gradient: what a plan leaves out, what it says, and a run from a registry's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rbench
from laws.attack_laws import curved_net
from laws.entries import entries
from laws.given import images
from laws.nets import Counting, digit_net
from rbench.attacks.catalogue import DEFAULT_PLAN, GRADIENT_FREE_PLAN, Stage, plan_files, resolve_plan
from rbench.attacks.external import Foolbox
from rbench.attacks.foolbox_classes import DECISIONS, UNUSABLE, kind_of, offered, parameters
from rbench.attacks.search import Examples
from rbench.attacks.stage import run_stage
from rbench.models import find
from rbench.questions import question
from rbench_core.errors import Failure, RbenchError, UsageError
from rbench_core.files import canonical_json, sha256_bytes
from rbench_threats.lp import L0, L1, L2, Linf
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spatial import RotationTranslation
from rbench_zoo.architectures import SmallCNN
from zoo.cards import write_card

LINF, TURN = Linf("0.1"), RotationTranslation(degrees=30, shift=1)
UNION = "union(linf(eps=0.2), l2(eps=1), l1(eps=3), l0(pixels=4), rotation-translation(degrees=30, shift=1))"

NET = """
import torch
from rbench_zoo.architectures import SmallCNN

class Cut(SmallCNN):
    def forward(self, x):
        return super().forward(x.detach())

def make(channels, hidden):
    return Cut(tuple(channels), hidden)
"""


# --- plans ----------------------------------------------------------------------------------------------------------------------------

# SHA-256 of the plans' records, which are part of every question's key: another one means that stored verdicts answer no question any more.
RECORDS = {
    "apgd": "87f489a5a04b77e2fb24962e0b16ad56d6920880a6a2c5158d647d1b65532766",
    "pgd": "9c9ebb7120e6d79055185af27d707bcf4c177206b72c35272b176c355ee770b4",
}


@pytest.mark.parametrize("name", RECORDS)
def test_the_records_of_plans_stay(name: str) -> None:
    """`python -c "..."` with the line below makes a digest; a change asks every question of the plan anew, and the changelog says so."""
    assert sha256_bytes(canonical_json(resolve_plan(name).record()).encode()) == RECORDS[name]


@pytest.mark.parametrize("name", plan_files())
def test_a_model_with_a_gradient_gets_the_plan_as_it_is(name: str) -> None:
    assert resolve_plan(name).for_model(True) == resolve_plan(name)


def test_what_is_left_out_makes_another_question() -> None:
    """An undeclared and a declared model of the same weights are not answered by each other's verdicts; `queries` is one and the same."""
    for name, same in (("apgd", False), (GRADIENT_FREE_PLAN, True)):
        plans = resolve_plan(name), resolve_plan(name).for_model(False)
        keys = {question("model", "data", TURN, plan, 0).key for plan in plans}
        assert (len(keys) == 1) == same


def test_stages_that_need_a_gradient_are_left_out() -> None:
    ours = "apgd(steps=5), square(queries=5)"
    spec = f"plan({ours}, foolbox:LinfPGD(steps=5), foolbox:LinearSearchBlendedUniformNoiseAttack, autoattack, sparse-rs, grid)"
    plan = resolve_plan(spec).for_model(False)
    kept = ["square(queries=5)", "foolbox:LinearSearchBlendedUniformNoiseAttack", "sparse-rs", "grid"]
    assert [stage.label for stage in plan.stages] == kept
    assert [stage.label for stage in plan.stages_for(LINF)] == kept[:2]
    assert plan.left_out([LINF]) == ["apgd(steps=5)", "foolbox:LinfProjectedGradientDescentAttack(steps=5)", "autoattack"]
    assert plan.left_out([TURN]) == ["apgd(steps=5)"]
    assert resolve_plan(spec).left_out([LINF, TURN]) == []


def test_after_and_best_do_not_stand_alone() -> None:
    """The default plan on a set with a grid: the points stay, the gradient that would go on from it does not."""
    plan = resolve_plan(DEFAULT_PLAN).for_model(False)
    assert [stage.label for stage in plan.stages_for(TURN)] == ["random(draws=10)", "grid"]


def test_nothing_left_is_one_line_that_names_the_plan_to_take() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_plan("apgd").for_model(False).stages_for(LINF)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("plan apgd has no attack for linf(eps=0.1): ")
    assert "apgd(loss=dlr-targeted, steps=100, top=9) needs a gradient, which the model's card says it has not" in said
    assert "grid needs points" in said
    assert "slide" not in said, "slide has no use for this set anyway"
    assert said.endswith(f"Take --plan {GRADIENT_FREE_PLAN}, whose attacks need none.")
    with pytest.raises(UsageError, match="sparse-rs needs swaps") as caught:
        resolve_plan("sparse-rs").for_model(False).stages_for(LINF)
    assert "gradient" not in str(caught.value)


def test_the_plan_without_a_gradient_has_an_attack_for_every_set() -> None:
    plan = resolve_plan(GRADIENT_FREE_PLAN)
    assert plan == plan.for_model(False)
    assert plan.block is None
    assert all(plan.stages_for(entry.space) for entry in entries())


# --- attacks that say whether they need one ----------------------------------------------------------------------------------------------

BALLS: tuple[PerturbationSet, ...] = (L2("0.5"), L1(3), LINF, L0(6))


class Cut(nn.Module):
    """A net from which no gradient comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = curved_net((1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted({kind.__name__ for kind in offered().values()} - set(UNUSABLE)))
def test_foolbox_attacks_need_a_gradient_unless_they_look_at_decisions(name: str) -> None:
    """Those of the table send nothing back through the logits; all others do."""
    short = {"steps": 3, "repeats": 2, "directions": 5, "binary_search_steps": 2}
    try:
        attack = Foolbox(name, tuple((key, short[key]) for key in parameters(kind_of(name)) if key in short))
    except Failure:
        pytest.skip("needs numba")
    assert attack.gradient == (name not in DECISIONS)
    space = next(space for space in BALLS if attack.refuses(space) is None)
    net, x = Counting(curved_net((1, 8, 8))), images((1, 8, 8), 4, 0)
    attack.attack(net, space, x, net(x).argmax(1), seed=0, classes=6)
    assert (net.backwards > 0) == attack.gradient
    assert net.forwards > 4, "it asked nothing"


@pytest.mark.parametrize("spec", ["square(queries=3)", "sparse-rs(queries=3)", "grid", "apgd(steps=3)", "topk(steps=3)"])
def test_our_attacks_need_what_their_cycle_says(spec: str) -> None:
    """Run on a cut net: a "logits" cycle asks for no gradient, and a "gradient" cycle ends with a line that names the way out."""
    plan, net, x = resolve_plan(spec), Cut(), images((1, 8, 8), 20, 0)
    clean = net(x)
    space = next(space for space in (*BALLS, TURN) if plan.stages[0].attack.needs <= space.capabilities)
    examples = Examples(x, clean.argmax(1), torch.arange(20), clean)
    common: dict[str, Any] = {"seed": 0, "width": 32, "closest": {}}
    if plan.stages[0].gradient:
        with pytest.raises(RbenchError, match=f"--plan {GRADIENT_FREE_PLAN}"):
            run_stage(net, space, plan.stages[0], examples, **common)
    else:
        assert run_stage(net, space, plan.stages[0], examples, **common).passes.backward == 0


# --- from a folder of cards ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """Weights of a small net that knows the digits."""
    return digit_net().state_dict()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: dict[str, Tensor]) -> Path:
    """A folder with the cards `cut` (gradient = false) and `whole`, of one net and the same weights."""
    monkeypatch.setattr("zoo.cards.tensors", lambda seed: trained)
    folder = tmp_path / "cards"
    folder.mkdir()
    (folder / "cut.py").write_text(NET)
    shape = {"channels = [2, 3]": "channels = [8, 16]", "hidden = 5": "hidden = 32"}
    write_card(folder, "whole", changes=shape)
    cut = {'"rbench_zoo.architectures:SmallCNN"': '"cut.py:make"', 'title = "A small net"': 'title = "A cut net"\ngradient = false'}
    write_card(folder, "cut", changes={**shape, **cut})
    monkeypatch.setenv("RBENCH_REGISTRY", str(folder))
    return folder


def run(folder: Path, **asked: Any) -> Any:
    common: dict[str, Any] = {"model": "cut", "threat": UNION, "n": 40, "site": False, "results": folder / "results"}
    return rbench.evaluate(**{**common, **asked})


@pytest.mark.usefixtures("registry")
def test_a_card_says_whether_there_is_a_gradient() -> None:
    assert [find(name).gradient for name in ("cut", "whole")] == [False, True]
    assert find(SmallCNN((2, 3), 5)).gradient


@pytest.mark.usefixtures("registry")
def test_the_default_plan_breaks_what_has_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan asked for: `queries` (300 of them), every member has an attack, and the verdicts are about those of gradient attacks."""
    monkeypatch.setattr("rbench.attacks.catalogue._stage", _short)
    report = run(tmp_path, full=True)
    assert report.data["plan"] == GRADIENT_FREE_PLAN
    assert {row["code"] for row in report.data["warnings"]} == {"no-gradient"}, "nothing was left out"
    assert report.data["counts"]["error"] == 0
    assert report.data["cost"]["backward"] == 0
    known = run(tmp_path, model="whole", plan="plan(apgd(steps=20), apgd-sparse(steps=20), topk(steps=20), grid)", full=True)
    for spec in report.data["members"]:
        fallen, theirs = (sum(row["members"][spec] == "broken" for row in one.data["verdicts"]) for one in (report, known))
        assert fallen > 0, spec
        assert fallen >= 0.6 * theirs, f"{spec}: {fallen} fall, of {theirs} that fall to gradients"


@pytest.mark.usefixtures("registry")
def test_a_run_says_what_its_plan_went_without(tmp_path: Path) -> None:
    """Random points and the grid remain of the plan `apgd`: it runs, and the board is told."""
    threat = "rotation-translation(degrees=30, shift=1)"
    report = run(tmp_path, threat=threat, plan="apgd")
    assert [stage["attack"] for stage in report.data["stages"]] == ["clean pass", "random(draws=10)", "grid"]
    assert any(row["status"] == "broken" for row in report.data["verdicts"])
    (said,) = [row["text"] for row in report.data["warnings"] if row["code"] == "no-gradient-attacks"]
    assert "plan apgd went without apgd(loss=ce, steps=100), apgd(loss=dlr-targeted, steps=100, top=9)" in said
    sighted = run(tmp_path, threat=threat, plan="grid", model="whole")
    assert "no-gradient-attacks" not in {row["code"] for row in sighted.data["warnings"]}


@pytest.mark.usefixtures("registry")
def test_a_plan_of_gradients_alone_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    for plan in ("apgd", "autoattack", "foolbox:LinfPGD"):
        with pytest.raises(UsageError, match=f"Take --plan {GRADIENT_FREE_PLAN}"):
            run(tmp_path, threat="linf(eps=0.1)", plan=plan)
    assert not (tmp_path / "results").exists()


def _short(spec: str, **rest: Any) -> Stage:
    """A plan file's stage with 300 queries where it has 5,000."""
    built = resolve_plan(spec.replace("5000", "300")).stages[0]
    return Stage(built.attack, built.spec, built.label, **rest)
