"""The whole path, from a command to what a person or a program reads; and that nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rbench
from command import rbench as process
from end_to_end.asking import PLAN, Command, Write
from rbench.data import load
from rbench_core.errors import UsageError
from rbench_results.store import Store
from rbench_threats.catalogue import resolve

UNION = "union(linf(eps=0.1), l2(eps=0.6))"
FIGURE = {"accuracy", "low", "high", "n"}
REPORT: dict[str, type | tuple[type, ...]] = {  # DESIGN section 6: keys are only ever added
    "run": str,
    "model": str,
    "dataset": str,
    "threat": str,
    "plan": str,
    "n": int,
    "clean": dict,
    "robust": dict,
    "certified": dict,
    "members": dict,
    "verdicts": list,
    "cost": dict,
    "warnings": list,
    "site": str,
}


def passes(report: rbench.Report) -> tuple[int, int]:
    own = report.data["cost"]["this_run"]
    return own["forward"], own["backward"]


def statuses(report: rbench.Report) -> dict[int, str]:
    return {row["index"]: row["status"] for row in report.data["verdicts"]}


@pytest.fixture
def ask(means: str, tmp_path: Path) -> Any:
    """`rbench.evaluate` of the nearest-mean net on digits, into one folder, without pages unless asked."""

    def evaluate(**options: Any) -> rbench.Report:
        given = {"threat": UNION, "dataset": "digits", "n": 50, "plan": PLAN, "results": tmp_path / "results", "site": False}
        return rbench.evaluate(means, **{**given, **options})

    return evaluate


# --- the command line ---------------------------------------------------------------------------------------------------------------


def test_run_prints_one_object_of_the_fixed_keys_and_show_prints_it_again(means: str, command: Command, tmp_path: Path) -> None:
    results = ["--results", tmp_path / "results"]
    done = command("run", "--model", means, "--dataset", "digits", "--threat", "linf", "--n", 50, "--plan", PLAN, "--json", *results)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    for key, kind in REPORT.items():
        assert isinstance(report[key], kind), key
    assert (report["model"], report["dataset"], report["threat"], report["plan"], report["n"]) == (
        "means.py:make",
        "digits",
        "linf",
        PLAN,
        50,
    )
    assert set(report["clean"]) == set(report["robust"]) == FIGURE
    assert 0 < report["robust"]["low"] < report["robust"]["accuracy"] < report["clean"]["accuracy"] < 1
    assert report["clean"]["n"] == report["robust"]["n"] == 50
    [(spec, member)] = report["members"].items()
    assert member["clean"] == report["clean"]
    assert member["robust"] == report["robust"]
    assert member["certified"] == report["certified"]
    assert 0 < report["certified"]["accuracy"] <= report["robust"]["accuracy"]
    assert [row["index"] for row in report["verdicts"]] == list(range(50))
    for row in report["verdicts"]:
        assert isinstance(row["label"], int)
        assert row["members"] == {spec: row["status"]}
        assert row["attack"] == (PLAN if row["status"] == "broken" else None)
    assert {row["status"] for row in report["verdicts"]} == {"misclassified", "broken", "certified", "survived"}
    assert all(isinstance(report["cost"][key], int) for key in ("forward", "backward", "useful"))
    assert isinstance(report["cost"]["seconds"], float)
    assert Path(report["site"]).is_file()
    shown = command("show", "latest", "--json", *results)
    assert (shown.returncode, shown.stderr, json.loads(shown.stdout)) == (0, "", report)
    assert json.loads(command("show", report["run"][:17], "--json", *results).stdout) == report  # a beginning of its id


def test_run_and_show_print_the_same_table_for_people(means: str, command: Command, tmp_path: Path) -> None:
    results = ["--results", tmp_path / "results"]
    done = command("run", "--model", means, "--dataset", "digits", "--threat", UNION, "--n", 40, "--plan", PLAN, *results)
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "means.py:make under",
        "images 0 to 39 (n = 40)",
        "clean",
        "linf(eps=0.1)",
        "l2(eps=0.6)",
        "worst member of each image",
        "certified",
    ):
        assert words in done.stdout
    page = Path(done.stdout.splitlines()[-1].removeprefix("page:").strip())
    assert page.is_file()
    assert "means.py:make" in page.read_text()
    assert command("show", "latest", *results).stdout == done.stdout
    assert max(map(len, done.stdout.splitlines()[:-2])) <= 100  # but for the run's id and the path
    alone = command("run", "--model", means, "--dataset", "digits", "--threat", "l2", "--n", 5, "--plan", PLAN, *results)
    assert "n/a  no certificate was asked for, or none is known" in alone.stdout


def test_a_process_of_its_own_says_nothing_on_stderr(means: str, tmp_path: Path) -> None:
    """A fresh interpreter, where no filter of the tests hides what dependencies say."""
    threat = "union(linf(eps=0.05), l2(eps=0.5), l1(eps=1), l0(pixels=1), rotation-translation(degrees=10, shift=1))"
    done = process(
        "run",
        "--model",
        means,
        "--dataset",
        "digits",
        "--threat",
        threat,
        "--n",
        "3",
        "--plan",
        "plan(pgd(steps=1), topk(steps=1))",
        "--results",
        str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("means.py:make under")


def test_old_habits_work(means: str, command: Command, tmp_path: Path) -> None:
    args = ["run", "--model", means, "--dataset", "digits", "--n", 20, "--plan", PLAN, "--results", tmp_path, "--json"]
    report = json.loads(command(*args, "--threat", "Linf", "--eps", "8/255").stdout)
    assert list(report["members"]) == ["linf(eps=8/255)"]
    again = json.loads(command(*args, "--threat", "LINF", "--eps", "16/510").stdout)  # the same number is the same question
    assert again["cost"]["this_run"]["forward"] == 0
    other = json.loads(command(*args, "--threat", "L2", "--eps", "0.5").stdout)
    assert list(other["members"]) == ["l2(eps=0.5)"]


@pytest.mark.parametrize(("plan", "key", "other"), [("autoattack", "autoattack_acc", "rbench_acc"), (PLAN, "rbench_acc", "autoattack_acc")])
def test_a_run_in_robustbench_s_shape(means: str, command: Command, tmp_path: Path, plan: str, key: str, other: str) -> None:
    args = ["--model", means, "--dataset", "digits", "--n", 20, "--threat", "Linf", "--eps", "8/255", "--plan", plan, "--results", tmp_path]
    report = json.loads(command("run", *args, "--json").stdout)
    done = command("show", "latest", "--as", "robustbench", "--results", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    info = json.loads(done.stdout)
    assert info[key] == f"{100 * report['robust']['accuracy']:.2f}"
    assert info.get(other) is None
    assert (info["eps"], info["threat_model"], info["dataset"]) == ("8/255", "Linf", "digits")
    assert info["clean_acc"] == f"{100 * report['clean']['accuracy']:.2f}"


def test_one_example_is_shown_with_what_every_run_found(ask: Any, command: Command, tmp_path: Path) -> None:
    report = ask()
    weak = ask(threat="linf(eps=0.0001)", plan="pgd(steps=1)")
    fallen = next(row for row in report.data["verdicts"] if row["status"] == "broken")
    done = command("show", weak.run, "--example", fallen["index"], "--json", "--results", tmp_path / "results")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["label"], told["clean"]) == (fallen["label"], fallen["label"])
    assert [row["spec"] for row in told["history"]][:2] == ["linf(eps=0.0001)", "linf(eps=0.1)"]
    [row] = [row for row in told["history"] if row["status"] == "broken"]
    assert (row["spec"], row["attack"], row["entered"], row["run"]) == (fallen["fell_to"], PLAN, [PLAN], report.run)
    assert Path(told["picture"]).read_bytes() == report.example(fallen["index"]).to_png()


def test_a_factory_or_model_that_prints_leaves_stdout_to_the_result(model_file: Write, command: Command, tmp_path: Path) -> None:
    model = model_file("""
        print("reading the file")

        class Chatty(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = make()

            def forward(self, x):
                print("forward", len(x))
                return self.net(x)

        def model():
            print("building")
            return Chatty().eval()
    """)
    done = command(
        "run", "--model", model, "--dataset", "digits", "--threat", "linf", "--n", 5, "--plan", PLAN, "--json", "--results", tmp_path
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["n"] == 5
    assert "building" in done.stderr
    assert "forward" in done.stderr


# --- Python -------------------------------------------------------------------------------------------------------------------------


def test_a_report_is_a_table_a_frame_json_and_pictures(ask: Any) -> None:
    report = ask()
    assert report.run == report.data["run"]
    assert report.exit_code == 0
    assert str(report) == report.to_table()
    assert json.loads(report.to_json()) == report.data
    assert "linf(eps=0.1)" in report._repr_html_()
    frame = report.to_frame()
    assert frame.index.tolist() == list(range(50))
    assert frame["status"].to_dict() == statuses(report)
    assert list(frame.columns[-2:]) == ["linf(eps=0.1)", "l2(eps=0.6)"]
    assert (frame["status"] == "survived").mean() == report.data["robust"]["accuracy"]


def test_the_adversarial_images_lie_in_their_sets_and_fool_the_model(ask: Any, means: str) -> None:
    report = ask(full=True)
    found = report.adversarial()
    broken = [index for index, status in statuses(report).items() if status == "broken"]
    assert found.indices.tolist() == broken
    data = load("digits", n=50)
    assert torch.equal(found.x, data.x[found.indices])
    assert torch.equal(found.label, data.y[found.indices])
    predicted = rbench.load_model(means)(found.x_adv).argmax(1)
    assert torch.equal(predicted, found.predicted)
    assert (predicted != found.label).all()
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    for spec, moved in zip(found.member, (found.x_adv - found.x).flatten(1).double(), strict=True):
        eps = float(resolve(spec).members[0].extent["eps"])
        assert moved.norm(p=torch.inf if spec.startswith("linf") else 2) <= eps + 1e-6


def test_a_report_without_a_fall_has_no_pictures_and_the_same_shape(ask: Any) -> None:
    found = ask(threat="linf(eps=0.0001)").adversarial()
    assert (len(found.indices), len(found.x), len(found.x_adv), found.member) == (0, 0, 0, [])


def test_tensors_a_loader_and_the_name_give_the_same_verdicts(ask: Any) -> None:
    data = load("digits", n=50)
    pair = ask(dataset=(data.x, data.y), n=None)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data.x, data.y), batch_size=17)
    loaded = ask(dataset=loader)
    assert statuses(pair) == statuses(loaded) == statuses(ask())
    assert pair.data["dataset"] == "custom"
    assert passes(loaded) == (0, 0)  # the same content is the same data set


def test_a_module_is_given_back_as_it_came(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)).train()
    model[1].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = rbench.evaluate(model, threat="linf", dataset="digits", n=10, plan=PLAN, results=tmp_path, site=False)
    assert "train-mode" in {warning["code"] for warning in report.data["warnings"]}
    assert all(part.training for part in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(UsageError):
        rbench.evaluate(model, threat="linf", dataset="digits", n=501, results=tmp_path)
    assert model.training


# --- nothing is computed twice --------------------------------------------------------------------------------------------------------


def test_the_same_question_again_computes_nothing(ask: Any) -> None:
    first, second = ask(), ask()
    assert passes(first) > (0, 0)
    assert passes(second) == (0, 0)
    assert second.run != first.run
    for key in ("clean", "robust", "members", "verdicts", "counts"):
        assert second.data[key] == first.data[key]


def test_a_larger_n_runs_only_what_is_missing(ask: Any, tmp_path: Path) -> None:
    entered: list[int] = []
    whole = ask(n=80, results=tmp_path / "at once")
    for n in (30, 80, 50):
        report = ask(n=n)
        with Store.open(tmp_path / "results", create=False) as store:
            entered.append(sum(stage.entered for stage in store.stages(run=report.run) if stage.position == 0))  # the clean pass
        assert statuses(report) == {index: status for index, status in statuses(whole).items() if index < n}
    assert entered == [30, 50, 0]


def test_a_member_alone_shares_its_rows_with_the_union(ask: Any) -> None:
    union = ask(full=True)  # else who falls to a member's screen is not asked under the others
    alone = ask(threat="linf(eps=0.1)")
    assert passes(alone) == (0, 0)
    assert statuses(alone) == {row["index"]: row["members"]["linf(eps=0.1)"] for row in union.data["verdicts"]}


def test_a_union_asks_nothing_that_its_members_have_answered(ask: Any, tmp_path: Path) -> None:
    alone = {spec: ask(threat=spec) for spec in ("l2(eps=0.6)", "linf(eps=0.1)")}
    union = ask()
    assert passes(union) == (0, 0)
    for spec, report in alone.items():
        assert statuses(report) == {row["index"]: row["members"][spec] for row in union.data["verdicts"]}
    assert union.data["robust"] == ask(results=tmp_path / "other").data["robust"]


def test_full_completes_the_members(ask: Any, tmp_path: Path) -> None:
    thrifty = ask()
    member = thrifty.data["members"]["l2(eps=0.6)"]
    assert member["robust"] is None
    assert member["skipped"] > 0
    assert "skipped" in {row["members"]["l2(eps=0.6)"] for row in thrifty.data["verdicts"]}
    full = ask(full=True)
    assert passes(full) > (0, 0)
    assert all(row["robust"] is not None and row["skipped"] == 0 for row in full.data["members"].values())
    assert statuses(full) == statuses(thrifty)
    assert statuses(ask(threat="l2(eps=0.6)", results=tmp_path / "other")) == {
        row["index"]: row["members"]["l2(eps=0.6)"] for row in full.data["verdicts"]
    }
    assert ask().data["members"]["l2(eps=0.6)"]["robust"] is not None  # what is known is shown, asked for or not


class Moody(nn.Module):
    """The nearest-mean net, which raises on some images as long as a file lies there; file and digest stay the same."""

    def __init__(self, net: nn.Module, switch: Path) -> None:
        super().__init__()
        self.net, self.switch = net, switch

    def forward(self, x: Tensor) -> Tensor:
        if self.switch.exists() and (x[:, 0, 4, 4] > 0.9).any():
            raise ValueError("too bright")
        logits: Tensor = self.net(x)
        return logits


def test_errors_are_asked_again_and_give_way_to_answers(means: str, ask: Any, tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    model = Moody(rbench.load_model(means), switch).eval()
    options = {"threat": UNION, "dataset": "digits", "n": 50, "plan": PLAN, "results": tmp_path / "moody", "site": False}
    switch.touch()
    ill = rbench.evaluate(model, **options)
    errors = [row for row in ill.data["verdicts"] if row["status"] == "error"]
    assert 0 < len(errors) < 50
    assert {row["reason"] for row in errors} == {"the model raised ValueError: too bright"}
    assert ill.data["robust"]["accuracy"] * 50 == ill.data["counts"]["survived"]  # an error counts as not robust
    assert any(warning["code"] == "errors" and str(len(errors)) in warning["text"] for warning in ill.data["warnings"])
    switch.unlink()
    well = rbench.evaluate(model, **options)
    assert passes(well) > (0, 0)
    assert statuses(well) == statuses(ask())
    assert "errors" not in {warning["code"] for warning in well.data["warnings"]}
