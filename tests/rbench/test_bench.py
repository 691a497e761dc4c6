"""`rbench bench`: AutoAttack is AutoAttack, both sides are counted by one meter, misses are counted right, a killed suite goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rbench
from rbench.attacks.external import AutoAttack
from rbench.attacks.sealed import library, sealed
from rbench.bench import autoattack, run, suite
from rbench.bench.autoattack import _Watch, run_autoattack
from rbench.bench.compare import against, compared, disagreements, masking
from rbench.bench.markdown import markdown
from rbench.bench.meter import Meter
from rbench.bench.run import Pair, bench, prepared
from rbench.bench.sides import CLEAN, REST, Row, Side
from rbench.bench.suite import pairs_of, read_lines, run_suite, suites
from rbench.bench.text import result_text, totals_text
from rbench.bench.totals import surprises, totals
from rbench.cli.app import main
from rbench.data import sources
from rbench.models import attacked
from rbench_core.errors import CardError, Failure, FileError, UsageError
from rbench_threats.catalogue import resolve
from rbench_zoo import catalogue

N, SEED, MODEL, SET, PLAN = 8, 1, "digits-linf-at", "linf(eps=0.15)", "plan(apgd(steps=5))"


THEIRS = Row(SET, "apgd-ce", 8, 1, 9, 9, 1.0)


def line(call: Callable[[], object], kind: type[Exception] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# --- the meter ------------------------------------------------------------------------------------------------------------------------


def test_the_meter_counts_rows_both_ways_between_laps_and_lets_go_of_the_model() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(5, 1, 2, 2)
    meter = Meter(net)
    net(x)
    with meter.watching():
        with torch.no_grad():
            net(x)
        asked = x.clone().requires_grad_()
        logits = net(asked)
        for column in (0, 1):
            torch.autograd.grad(logits[:, column].sum(), asked, retain_graph=True)
        spent = meter.lap()
        net(x[:2])
        assert meter.lap().forward == 2
    net(x)
    assert (spent.forward, spent.backward) == (10, 10)
    assert spent.cpu >= 0
    assert meter.lap().forward == 0


# --- AutoAttack -----------------------------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """Counts on its own what a net sees."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen, self.back = net, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        logits: Tensor = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.back += len(gradient)


def hurried(driver: Any) -> Any:
    """A driver of pyautoattack with a tenth of its budgets: what is tested here does not depend on them."""
    driver.fab.n_iter, driver.square.n_queries, driver.apgd_targeted.n_iter = 10, 400, 20
    return driver


def test_attack_by_attack_it_is_one_plain_call_with_the_same_seed_and_costs_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    made = AutoAttack.adversary
    drivers: list[Any] = []
    monkeypatch.setattr(AutoAttack, "adversary", lambda *given, **named: drivers.append(hurried(made(*given, **named))) or drivers[-1])
    net, data, threat = rbench.load_model(MODEL), sources.load("digits"), resolve(SET, "digits")
    x, y = data.x[:N], data.y[:N]
    plain = Counted(net).eval()
    with sealed(plain, SEED, torch.device("cpu")):
        driver = hurried(library("pyautoattack").AutoAttack(plain, norm="Linf", eps=0.15, seed=SEED, version="standard"))
        images = driver.run_standard_evaluation(x, y, batch_size=N)[0]
    seen, back = plain.seen, plain.back
    with torch.no_grad():
        clean, after = net(x).argmax(1) == y, net(images).argmax(1) == y
    meter = Meter(net)
    with attacked(net, name="net", dataset=data) as model, meter.watching():
        side = run_autoattack(model, threat.members, x, y, 1, SEED, meter)
    assert side.stands == set(after.nonzero().flatten().tolist())
    assert side.fell.keys() == set((clean & ~after).nonzero().flatten().tolist())
    assert 0 < len(side.stands) < int(clean.sum())  # so that every attack had something to do
    assert (side.total("forward"), side.total("backward")) == (seen, back)
    told = {row.attack: (row.entered, row.broken) for row in side.rows if row.entered}
    assert list(told) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert sum(broken for _, broken in told.values()) == len(side.fell)
    assert side.refused == {}
    assert [made.seed for made in drivers] == [SEED]


class Driver:
    """Runs as pyautoattack's driver does: clean pass, then each attack on what stands. falls: by attack, the images' first values."""

    def __init__(self, falls: dict[str, set[int]]) -> None:
        self.falls, self.now = falls, "clean"
        for attack, part in autoattack.PARTS.items():
            setattr(self, part, SimpleNamespace(perturb=self.entry(attack)))

    def entry(self, attack: str) -> Callable[[Tensor, Tensor], Tensor]:
        def perturb(x: Tensor, y: Tensor) -> Tensor:
            self.now = attack
            return x

        return perturb

    def get_logits(self, x: Tensor) -> Tensor:
        wrong = torch.tensor([int(value) in self.falls.get(self.now, set()) for value in x.flatten()])
        return torch.stack([~wrong, wrong], 1).float()

    def run(self, n: int) -> None:
        alive = torch.arange(n).float()[:, None]
        alive = alive[self.get_logits(alive).argmax(1) == 0]
        for part in autoattack.PARTS.values():
            if len(alive):
                tried = getattr(self, part).perturb(alive, torch.zeros(len(alive)))
                alive = alive[self.get_logits(tried).argmax(1) == 0]


def test_of_a_union_the_first_member_that_breaks_an_example_is_named() -> None:
    side, y, meter = Side("autoattack", 1, 1, 6), torch.zeros(6, dtype=torch.long), Meter(nn.Identity())
    falls: list[dict[str, set[int]]] = [{"clean": {0}, "apgd-ce": {1}, "square": {2}}, {"clean": {0}, "apgd-t": {1, 3}, "fab-t": {4}}]
    for member, breaks in zip(("linf", "l2"), falls, strict=True):
        driver = Driver(breaks)
        _Watch(driver, member, y, meter, side)
        driver.run(6)
    assert side.wrong == [0]
    assert side.fell == {1: "apgd-ce in linf", 2: "square in linf", 3: "apgd-t in l2", 4: "fab-t in l2"}
    assert side.stands == {5}
    second = [(row.attack, row.entered, row.broken) for row in side.rows if row.member == "l2" and row.entered]
    assert second == [("apgd-ce", 5, 0), ("apgd-t", 5, 2), ("fab-t", 3, 1), ("square", 2, 0)]


# --- comparing ------------------------------------------------------------------------------------------------------------------------


def side(name: str, fell: dict[int, str], round: int = 1, cpu: float = 1.0, passes: int = 100, broken: int | None = None) -> Side:
    rows = [Row(SET, "apgd-ce", 9, len(fell) if broken is None else broken, passes // 2, passes // 2, cpu)]
    return Side(name, round, round, 10, rows, wrong=[9], fell=fell)


@pytest.mark.parametrize(
    ("late", "kind", "between"), [(49, "honest", False), (99, "honest", True), (100, "masked", True), (151, "masked", False)]
)
def test_a_pair_is_masked_from_ten_points_and_between_from_five_to_fifteen(late: int, kind: str, between: bool) -> None:
    broke = {"apgd-ce": 300, "apgd-t": 50, "fab-t": late - 1, "square": 1}
    rows = [Row("l2", attack, broken=count) for attack, count in broke.items()]
    found = masking([*rows, Row("linf", "square", broken=3)], 1000)
    assert (found["gap"], found["kind"], found["between"]) == (pytest.approx(late / 10), kind, between)


def test_misses_and_what_is_broken_beyond() -> None:
    told = against(side("autoattack", {1: "a", 2: "a", 3: "b"}), side("plan", {2: "c", 5: "d"}))
    assert (told["missed"], told["more"]) == ([1, 3], [5])
    assert told["robust"]["accuracy"] == 0.7


def test_disagreements_name_who_broke_what_and_an_agreement_is_none() -> None:
    rows = disagreements(
        [side("autoattack", {1: "ce", 2: "ce"}), side("autoattack", {1: "fab", 2: "ce", 3: "t"}, 2), side("plan", {1: "x"})]
    )
    assert [row["index"] for row in rows] == [2, 3]
    assert rows[1]["sides"] == {"autoattack, seed 1": None, "autoattack, seed 2": "t", "plan, seed 1": None}


def made(cpu: float = 0.5, kind: str | None = None, fell: dict[int, str] | None = None) -> dict[str, Any]:
    """A result as `bench` gives it, from sides made by hand: two rounds, one plan."""
    theirs = [side("autoattack", {1: "apgd-ce in l2", 2: "fab-t in l2"}), side("autoattack", {1: "apgd-ce in l2"}, 2, 3.0, 300)]
    ours = [side("p", {1: "x"} if fell is None else fell, 1, cpu, 10), side("p", {1: "x", 2: "x"}, 2, cpu, 30)]
    sides = [theirs[0], ours[0], theirs[1], ours[1]]
    environment = {"processor": "some", "threads": 1, "torch": "2", "pyautoattack": "0.2.0"}
    asked = {"model": "m", "rounds": 2, "seed": 1, "certify": "none", "device": "cpu"}
    head = {"model": "m", "dataset": "digits", "spec": SET, "members": [SET], "n": 10, "asked": asked, "width": 64}
    return {**head, "environment": environment, **compared(theirs, {"p": ours}), "sides": [one.to_json() for one in sides], "kind": kind}


def test_ratios_are_of_sums_over_all_rounds_and_totals_add_pairs_up() -> None:
    first, second = made(), made(1.5, fell={2: "y", 4: "y"})
    plan = first["plans"][0]
    assert (plan["cpu"], plan["passes"]) == (0.25, 0.1)
    assert plan["cpu_rounds"] == [0.5, pytest.approx(1 / 6)]
    (total,) = totals([first, second])
    assert (total.pairs, total.images, total.broken, total.second, total.missed, total.more) == (2, 20, 4, 2, 2, 1)
    assert (total.cpu, total.worst_cpu, total.passes) == (0.5, 0.75, 0.1)


def test_what_the_suite_or_a_detector_says_otherwise_is_listed() -> None:
    odd = made(kind="masked")
    odd["plans"][0]["detected"] = "honest"
    assert len(surprises([odd])) == 2
    assert [total.kind for total in totals([odd])] == ["masked"]
    fine = made(kind="honest")
    fine["plans"][0]["detected"] = "honest"
    assert surprises([fine]) == []


# --- a whole run ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cheap() -> Any:
    """AutoAttack replaced by a side that broke example 0, so that a whole run takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run,
            "run_autoattack",
            lambda *given: Side("autoattack", given[4], given[5], N, [THEIRS], [], {0: "a"}),
        )
        yield patch


@pytest.mark.usefixtures("cheap")
def test_a_plan_answers_as_in_rbench_run_and_the_meter_sees_more_than_it_says(tmp_path: Path) -> None:
    result = bench(Pair(MODEL, SET, (PLAN, "pgd(steps=2)"), n=N, seed=SEED, width=64))
    assert [(one["side"], one["seed"]) for one in result["sides"]] == [
        (name, seed) for seed in (SEED, SEED + 1) for name in ("autoattack", PLAN, "pgd(steps=2)")
    ]
    mine = result["sides"][1]
    report = rbench.evaluate(MODEL, threat=SET, plan=PLAN, n=N, seed=SEED, width=64, certify="none", results=tmp_path, site=False)
    broken = {str(row["index"]) for row in report.data["verdicts"] if row["status"] == "broken"}
    assert mine["fell"].keys() == broken
    assert 0 < len(broken) < N
    assert mine["total"]["forward"] > report.data["cost"]["forward"]  # the probe's passes too
    assert mine["total"]["backward"] > report.data["cost"]["backward"]
    assert next(row for row in mine["attacks"] if row["attack"] == "apgd(steps=5)")["entered"] == N - len(mine["fell"].keys() - broken)
    assert {row["attack"] for row in mine["attacks"]} == {CLEAN, "apgd(steps=5)", REST}  # no certificates
    text = result_text(json.loads(json.dumps(result, allow_nan=False)))
    assert max(map(len, text.splitlines())) <= 100
    assert "no certificates" in text
    assert "µs/pass" in text


@pytest.mark.usefixtures("cheap")
def test_certificates_are_asked_where_wanted_and_what_they_prove_is_not_attacked() -> None:
    result = bench(Pair("digits-ibp", "linf(eps=0.02)", (PLAN,), n=N, rounds=1, certify="auto"))
    rows = {row["attack"]: row["entered"] for row in result["sides"][1]["attacks"]}
    assert rows[next(name for name in rows if name.startswith("bounds"))] > rows.get("apgd(steps=5)", 0)
    assert "no certificates" not in result_text(result)


@pytest.mark.usefixtures("cheap")
def test_the_pilot_is_told_apart(tmp_path: Path) -> None:
    plan = tmp_path / "gated.toml"
    stages = '[[attacks]]\nspec = "apgd(steps=3)"\n[[attacks]]\nspec = "apgd(steps=5)"\nrows = "close"\nclose = 0.5\n'
    plan.write_text(f'name = "gated"\npilot = 10\n{stages}')
    result = bench(Pair(MODEL, SET, (str(plan),), n=N, rounds=1, width=64))
    attacks = result["sides"][1]["attacks"]
    assert {row["attack"] for row in attacks if row["pilot"] and row["entered"]} == {"clean pass", "apgd(steps=3)", "apgd(steps=5)"}
    assert {row["attack"] for row in attacks if not row["pilot"] and row["entered"]} >= {"clean pass", "apgd(steps=3)"}
    assert result["plans"][0]["pilot_cpu"] > 0
    assert result["plans"][0]["detected"] in ("honest", "masked")
    assert "the pilot" in result_text(result)


WRONG = {
    "an unknown plan": ({"plans": ("adpg",)}, "apgd"),
    "a plan twice": ({"plans": ("apgd", "apgd")}, "each once"),
    "a set that AutoAttack does not know": ({"threat": "l0(pixels=3)"}, "linf, l2 and l1"),
    "a union with such a member": ({"threat": "union(linf(eps=0.1), l0(pixels=3))"}, "linf, l2 and l1"),
    "a set that has no norm": ({"threat": "rotation-translation(degrees=10, shift=1)"}, "linf, l2 and l1"),
    "too many examples": ({"n": 100_000}, "at most 500"),
    "a width that is none": ({"width": 3}, "width=3"),
    "no rounds": ({"rounds": 0}, "rounds=0"),
}


@pytest.mark.parametrize(("given", "hint"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_one_line_before_anything_runs(given: dict[str, Any], hint: str) -> None:
    assert hint in line(lambda: prepared(Pair(**{"model": MODEL, "threat": SET, "n": N, **given})))


def test_without_pyautoattack_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise Failure(f"{name} cannot be imported", fix=f"pip install {name}")

    monkeypatch.setattr(autoattack, "library", absent)
    assert "pip install pyautoattack" in line(lambda: prepared(Pair(MODEL, SET, n=N)), Failure)


# --- suites ---------------------------------------------------------------------------------------------------------------------------

TWO = 'n = 8\n[[pair]]\nmodel = "a"\nthreat = "l2(eps=1)"\nkind = "masked"\n[[pair]]\nmodel = "b"\nthreat = "l1(eps=1)"\nn = 3\n'


def test_a_killed_suite_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fake(pair: Pair, report: object = None) -> dict[str, Any]:
        ran.append(f"{pair.model} {pair.threat} {pair.n}")
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {**made(), "asked": run.asked_of(pair)}

    monkeypatch.setattr(run, "bench", fake)
    (tmp_path / "two.toml").write_text(TWO)
    rows, out = pairs_of(str(tmp_path / "two.toml")), tmp_path / "out.jsonl"
    base = Pair("", "", (PLAN,))
    with pytest.raises(KeyboardInterrupt):
        list(run_suite(rows, base, out))
    assert len(read_lines(out)) == 1
    results = list(run_suite(rows, base, out))
    assert ran == ["a l2(eps=1) 8", "b l1(eps=1) 3", "b l1(eps=1) 3"]
    assert [result["kind"] for result in results] == ["masked", None]
    assert list(run_suite(rows, base, out)) == results == read_lines(out)
    list(run_suite(rows, Pair("", "", (PLAN,), seed=2), out))
    assert len(ran) == 5  # another seed is another question


def test_the_suites_that_come_with_the_package_name_models_and_sets_that_there_are() -> None:
    known = {row["name"] for row in catalogue.listing()}
    for name, entry in suites().items():
        for row in pairs_of(name):
            assert row["model"] in known, entry.path
            dataset = "fashion-mnist" if row["model"].startswith("fashion") else row["model"].partition("-")[0]
            autoattack.check_knows(resolve(row["threat"], dataset).members)
    assert {"published", "unions"} <= suites().keys()


BROKEN = {
    "no pairs": ("n = 3\n", "no pairs"),
    "no threat": ('[[pair]]\nmodel = "a"\n', "without threat"),
    "an unknown key": ('[[pair]]\nmodel = "a"\nthreat = "l1"\nradius = 3\n', "radius"),
    "a kind that is none": ('[[pair]]\nmodel = "a"\nthreat = "l1"\nkind = "odd"\n', "masked"),
    "no number of examples": ('[[pair]]\nmodel = "a"\nthreat = "l1"\nn = true\n', "n = True"),
}


@pytest.mark.parametrize(("text", "hint"), BROKEN.values(), ids=BROKEN)
def test_a_broken_suite_is_one_line(text: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(text)
    assert hint in line(lambda: pairs_of(str(tmp_path / "suite.toml")), CardError)


def test_a_file_that_holds_no_results_is_one_line(tmp_path: Path) -> None:
    for text in ("nonsense\n", "{}\n", "[1]\n"):
        (tmp_path / "f").write_text(text)
        assert "no file of results" in line(lambda: read_lines(tmp_path / "f"), FileError)


def test_the_tables_have_one_cell_per_column_and_every_disagreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [made(kind="honest"), made(1.5, fell={2: "y", 4: "y"})]
    suite.write_lines(tmp_path / "f.jsonl", results)
    assert main(["bench", "--table", str(tmp_path / "f.jsonl")]) == 0
    text = capsys.readouterr().out
    assert text == markdown(results) + "\n"
    tables = [[row.count("|") for row in table.splitlines()] for table in text.split("\n\n") if table.startswith("|")]
    assert [len(set(table)) for table in tables] == [1, 1, 1]
    assert [row.split(" | ")[2] for row in text.split("\n\n")[2].splitlines()[2:]] == ["2", "1", "4"]
    assert max(map(len, totals_text(results).splitlines())) <= 100


LINES = {
    "nothing": ([], "--model and --threat"),
    "a model alone": (["--model", "x"], "--threat"),
    "a suite and a model": (["--suite", "published", "--model", "x", "--json", "f"], "one of the two"),
    "a suite without a file": (["--suite", "published"], "--json"),
    "no such suite": (["--suite", "publishd", "--json", "f"], "published"),
    "no such table": (["--table", "nowhere.jsonl"], "nowhere.jsonl"),
}


@pytest.mark.parametrize(("args", "hint"), LINES.values(), ids=LINES)
def test_a_wrong_command_is_one_line(args: list[str], hint: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *args]) in (1, 2)
    out, err = capfd.readouterr()
    assert (out, err.count("\n"), err[:8]) == ("", 1, "rbench: ")
    assert hint in err
