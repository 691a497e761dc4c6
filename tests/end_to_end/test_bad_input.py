"""A wrong request: one line that begins with `rbench: `, exit code 2, and not even the folder of results is made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rbench
from end_to_end.asking import PLAN, Ask, Command, one_line
from rbench_core.errors import RbenchError, UsageError

LONG = 10_000_000
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


# --- names ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("option", "given", "nearest"),
    [
        ("threat", "lnif", "linf"),
        ("threat", "union-pl", "union-lp"),
        ("dataset", "mnits", "mnist"),
        ("dataset", "CIFAR", "cifar10"),
        ("plan", "adpg", "apgd"),
        ("plan", "autoatack", "autoattack"),
        ("model", "digits-standrad", "no model named"),
    ],
)
def test_an_unknown_name_lists_the_nearest(option: str, given: str, nearest: str, ask: Ask) -> None:
    one_line(ask(**{option: given}), 2, given, nearest)


def test_an_unknown_recipe_and_an_unknown_run_list_the_nearest(command: Command, ask: Ask, tmp_path: Path) -> None:
    one_line(command("train", "msdd", "--out", tmp_path / "out"), 2, "msdd", "msd")
    assert not (tmp_path / "out").exists()
    one_line(command("show", "latest", "--results", tmp_path / "results"), 1, "no results in")
    assert not (tmp_path / "results").exists()
    assert ask().returncode == 0
    one_line(command("show", "2099", "--results", tmp_path / "results"), 2, "2099", "latest")


# --- numbers ----------------------------------------------------------------------------------------------------------------------------

EPS = ["0", "-0.1", "nan", "inf", "-inf", "1e400", "1e-400", "0/0", "1/0", "0/5", "8/", "/8", "8//255", "8/255/2", "8 / / 255", "0x1"]
EPS += ["True", "", " ", "٨", "½", "0,3", "1" * 400]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("threat", ["linf", "l2"])
def test_a_radius_that_is_none(threat: str, eps: str, ask: Ask) -> None:
    one_line(ask(threat=threat, eps=eps), 2)
    if "," not in eps:
        one_line(ask(threat=f"{threat}(eps={eps})"), 2)


@pytest.mark.usefixtures("untouched")
def test_eight_is_taken_for_grey_levels_and_the_fraction_is_shown(ask: Ask) -> None:
    for given in ({"threat": "linf", "eps": "8"}, {"threat": "linf(eps=8)"}, {"threat": "union(l2(eps=1), linf(eps=8.0))"}):
        one_line(ask(**given), 2, "eps=8", "8/255")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("threat", ["union-lp", "union(linf(eps=0.1), l2(eps=1))", "rotation-translation", "linf(eps=0.1)"])
def test_eps_beside_anything_but_a_single_ball(threat: str, ask: Ask) -> None:
    one_line(ask(threat=threat, eps="0.3"), 2, "--eps 0.3")


NUMBERS = {
    "n": ["0", "-1", "abc", "1.5", "", "٣", "1_000", "0x5", "nan", "501", str(10**30), "9" * 5000],
    "width": ["17", "0", "-16", "8", "4096", "abc", "16.0", str(10**30)],
    "seed": ["-1", "abc", "0.5", str(2**64), str(10**30), "9" * 5000],
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in NUMBERS.items() for value in values])
def test_a_number_that_cannot_be(option: str, value: str, ask: Ask) -> None:
    one_line(ask(**{option: value}), 2)


@pytest.mark.usefixtures("untouched")
def test_more_images_than_there_are(ask: Ask) -> None:
    one_line(ask(n=501), 2, "n=501", "at most 500", "--n all")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "device",
    [
        "nonsense",
        "",
        "meta",
        "vulkan",
        "gpu",
        "cuda:-1",
        "cuda:x",
        "1",
        pytest.param("cuda", marks=NO_GPU),
        pytest.param("cuda:1", marks=NO_GPU),
    ],
)
def test_a_device_that_is_not_here(device: str, ask: Ask) -> None:
    one_line(ask(device=device), 2, "device", "cpu")


# --- specs ------------------------------------------------------------------------------------------------------------------------------

SPECS = {
    "empty": "",
    "blank": "  ",
    "a number": "0.3",
    "unclosed": "linf(eps=0.3",
    "closed twice": "linf(eps=0.3))",
    "only brackets": "()",
    "no value": "linf(eps=)",
    "no name": "linf(=0.3)",
    "a name for a number": "linf(eps=big)",
    "another argument": "linf(radius=0.3)",
    "an argument twice": "linf(eps=0.3, eps=0.3)",
    "too many": "linf(0.1, 0.2)",
    "an empty union": "union()",
    "a union of nothing": "union(union(), union())",
    "a union of numbers": "union(0.1, 0.2)",
    "more pixels than there are": "l0(pixels=65)",
    "half a pixel": "l0(pixels=1.5)",
    "no pixels": "l0(pixels=0)",
    "a shift past the edge": "rotation-translation(degrees=10, shift=8)",
    "degrees below zero": "rotation-translation(degrees=-10, shift=1)",
    "nothing at all moves": "rotation-translation(degrees=0, shift=0)",
    "two specs": "linf(eps=0.1) l2(eps=1)",
    "digits of another script": "linf(eps=٠.٣)",
    "full-width": "ｌｉｎｆ(eps=0.3)",
    "python": "__import__('os').system('touch pwned')",
    "python that parses as a spec": "__import__(os)",
    "a format": "linf(eps={0.__class__})",
    "a path": "../../etc/passwd",
    "a line of our own": "linf(eps=0.3)\nrbench: all is well",
    "carriage return": "linf\rrbench: all is well",
    "line separators": "linf\u2028rbench: all is well\x85",
    "escapes": "\x1b[2J\x1b]0;owned\x07linf",
    "surrogates": "linf\udcff",
    "deep": "union(" * 5000 + "linf(eps=0.1)" + ")" * 5000,
    "deep and short": "union(" * 100 + "linf(eps=0.1)" + ")" * 100,
    "long name": "a" * LONG,
    "long number": f"linf(eps=0.{'1' * LONG})",
    "long list": f"union({','.join(['linf(eps=0.1)'] * 400_000)})",
    "long blank": " " * LONG + "x",
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("option", ["threat", "plan"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_that_is_broken_or_hostile(option: str, spec: str, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.perf_counter()
    one_line(ask(**{option: spec}), 2)
    assert time.perf_counter() - started < 2
    assert list(tmp_path.iterdir()) == []


PLANS = [
    "pgd(steps=0)",
    "pgd(steps=-1)",
    "pgd(steps=1.5)",
    "pgd(steps=ce)",
    "pgd(loss=5)",
    "pgd(loss=nonsense)",
    "pgd(40)",
    "plan()",
    "plan(3)",
    "plan(pgd, nonsense)",
    "plan(x=pgd)",
    "plan(plan(pgd))",
    "grid",
    "topk",
    "autoattack(batch=0)",
    "autoattack(version=best)",
    "autoattack(nonsense=1)",
    "foolbox:",
    "foolbox:NoSuchAttack",
    "foolbox:os",
    "foolbox:L2DeepFoolAttack(steps=many)",
    "plan(autoattack(batch=100), foolbox:L2DeepFoolAttack(batch=200))",
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_that_cannot_be_followed(plan: str, ask: Ask) -> None:
    one_line(ask(plan=plan), 2)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("option", ["model", "dataset", "device", "n", "seed", "eps", "certify", "witnesses"])
@pytest.mark.parametrize(
    "value", ["a" * LONG, "a\nrbench: b\x1b[2J\u2028c", "\udcff", "a.py:b\n" * 3], ids=["long", "lines", "surrogate", "files"]
)
def test_an_option_that_is_long_or_hostile(option: str, value: str, ask: Ask) -> None:
    given = {"threat": "linf"} if option == "eps" else {}
    one_line(ask(**{**given, option: value}), 2)


# --- one's own tensors ------------------------------------------------------------------------------------------------------------------

X, Y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])

TENSORS: dict[str, tuple[Any, str]] = {
    "grey levels": ((X * 255, Y), "[0, 1]"),
    "normalised": ((X - 0.5, Y), "[0, 1]"),
    "bytes": (((X * 255).byte(), Y), "255"),
    "NaN": ((X.where(X < 0.9, torch.nan), Y), "NaN"),
    "flat": ((X.flatten(1), Y), "(4, 64)"),
    "one image": ((X[0], Y[:1]), "(1, 8, 8)"),
    "no images": ((X[:0], Y[:0]), "(0, 1, 8, 8)"),
    "fewer labels": ((X, Y[:3]), "(4,)"),
    "one-hot labels": ((X, torch.eye(4).long()), "(4, 4)"),
    "float labels": ((X, Y.float()), "float32"),
    "negative labels": ((X, Y - 1), "-1"),
    "labels beyond the model's": ((X, Y + 7), "classes"),
    "another shape": ((X[:, :, :7], Y), "1×7×8"),
    "text": (("x", "y"), "x is str"),
    "one tensor": ((X,), "(x, y)"),
    "three": ((X, Y, Y), "(x, y)"),
    "a bare tensor": (X, "(x, y)"),
    "a list of both": ([X, Y], "(x, y)"),
    "a number": (5, "(x, y)"),
    "a loader of images": (torch.utils.data.DataLoader(X), "pairs"),
    "an empty loader": (torch.utils.data.DataLoader([]), "no images"),
    "a loader of two shapes": ([(X, Y), (X[:, :, :7], Y)], "shape"),
}


@pytest.mark.parametrize(("given", "hint"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_cannot_be_data(given: Any, hint: str, means: str, tmp_path: Path) -> None:
    with pytest.raises(RbenchError) as error:
        rbench.evaluate(means, dataset=given, threat="linf(eps=0.1)", plan=PLAN, results=tmp_path / "results")
    assert hint in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": -1},
        {"n": "1.5"},
        {"n": True},
        {"n": "ten"},
        {"n": "9" * 5000},
        {"seed": -1},
        {"seed": 2**63},
        {"width": 17},
        {"eps": float("nan"), "threat": "linf"},
        {"witnesses": "few"},
        {"certify": "all"},
    ],
    ids=str,
)
def test_python_gets_the_same_errors(wrong: dict[str, Any], means: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        rbench.evaluate(means, **{"dataset": "digits", "threat": "linf(eps=0.1)", "plan": PLAN, "results": tmp_path / "results", **wrong})
    assert list(tmp_path.iterdir()) == []
