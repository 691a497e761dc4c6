"""A run in the shape of RobustBench's files: their keys and types, and no figure under a name that means another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbench_core.errors import Failure, UsageError
from rbench_results.records import QuestionRecord
from rbench_results.robustbench import model_info
from stored import filled, question, verdict

THEIRS = {  # keys of all 197 files of model_info/*/{Linf,L2} at RobustBench/robustbench@78fcc9e, with the type of what is known
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
    "unreliable": bool,
    "footnote": str,
}
OURS = {"rbench_acc": str, "threat_model": str}
AUTO = {"plan": "autoattack", "plan_json": [{"attack": "autoattack", "version": "standard", "batch": 200}]}
CARD = {
    "title": "Net of a paper",
    "architecture": {"factory": "rbench_zoo.architectures:SmallCNN"},
    "source": {
        "paper": "Somebody 2018 (arXiv:1706.06083)",
        "reported": [
            {"threat": "linf(eps=0.3)", "attack": "PGD-40", "robust_accuracy": 0.62},
            {"threat": "Linf(3/10)", "attack": "PGD-100", "robust_accuracy": 0.6},
            {"threat": "linf(eps=0.1)", "robust_accuracy": 0.1},
            {"threat": "l2(eps=0.3)", "robust_accuracy": 0.2},
            {"threat": "linf(eps=0.3)", "certified_accuracy": 0.05},
        ],
    },
}


def info(
    folder: Path, *asked: QuestionRecord, statuses: tuple[str, ...] = ("survived", "survived", "broken", "misclassified"), **fields: Any
) -> dict[str, Any]:
    """model_info of run r1 of these questions, after a round through JSON."""
    with filled(folder, *asked, **fields) as store:
        for one in asked:
            rows = [verdict(i, status, clean=0 if status == "misclassified" else 1) for i, status in enumerate(statuses)]
            store.add_chunk(one.key, rows, [])
        found: dict[str, Any] = json.loads(json.dumps(model_info(store, "r1")))
    return found


def test_keys_and_types_are_theirs_and_the_unknown_is_null(tmp_path: Path) -> None:
    found = info(tmp_path, question(**AUTO), card=CARD, plan="autoattack", environment={"rbench": "0.1.0"})
    assert list(THEIRS) == [key for key in found if key not in OURS]
    for key, value in found.items():
        assert value is None or isinstance(value, {**THEIRS, **OURS}[key]), key
    assert [key for key, value in found.items() if value is None] == ["authors", "additional_data", "number_forward_passes", "venue"]
    assert (found["link"], found["name"]) == ("https://arxiv.org/abs/1706.06083", "Net of a paper")
    assert (found["dataset"], found["architecture"], found["eps"], found["threat_model"]) == ("digits", "SmallCNN", "0.3", "Linf")
    assert (found["clean_acc"], found["autoattack_acc"], found["reported"]) == ("75.00", "50.00", "60.00")
    assert "rbench_acc" not in found
    assert found["unreliable"] is False
    for words in ("AutoAttack (standard)", "images 0 to 3", "15.00 to 85.00", "0.1.0", "run r1"):
        assert words in found["footnote"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"plan_json": [{"attack": "autoattack", "version": "rand"}]},
        {"plan_json": [{"attack": "autoattack", "version": "standard"}, {"attack": "pgd"}]},
        {"plan": "autoattack", "plan_json": ["autoattack"]},
    ],
    ids=str,
)
def test_only_autoattack_s_standard_version_is_called_so(tmp_path: Path, fields: dict[str, Any]) -> None:
    found = info(tmp_path, question(**fields))
    assert (found["autoattack_acc"], found["rbench_acc"], found["unreliable"]) == (None, "50.00", None)
    assert found["footnote"].startswith("Not AutoAttack: rbench_acc is rbench's plan apgd")


@pytest.mark.parametrize(
    ("family", "eps", "shown", "norm"), [("linf", "8/255", "8/255", "Linf"), ("l2", "1/2", "0.5", "L2"), ("l1", "12", "12", "L1")]
)
def test_radii_are_written_as_people_write_them(tmp_path: Path, family: str, eps: str, shown: str, norm: str) -> None:
    found = info(tmp_path, question(family, eps))
    assert (found["eps"], found["threat_model"], found["reported"]) == (shown, norm, None)


def test_a_warning_of_masking_makes_autoattack_unreliable(tmp_path: Path) -> None:
    asked = question(**AUTO)
    assert info(tmp_path, asked, warnings=[{"code": "zero-gradient", "text": "x"}])["unreliable"] is True
    assert info(tmp_path / "other", asked, warnings=[{"code": "train-mode", "text": "x"}])["unreliable"] is False


@pytest.mark.parametrize(
    ("card", "link", "architecture"),
    [
        ({}, None, None),
        ({"source": 3, "architecture": "x", "title": ""}, None, None),
        ({"source": {"paper": "javascript:alert(1)", "reported": "0.5"}}, None, None),
        ({"source": {"repository": "owner/name@abc:path"}}, "https://github.com/owner/name", None),
        ({"source": {"paper": "a book", "repository": "https://example.invalid/x"}}, "https://example.invalid/x", None),
        ({"architecture": {"factory": "net.py:make"}, "source": {"reported": [3, {"threat": None, "robust_accuracy": "x"}]}}, None, "make"),
    ],
    ids=str,
)
def test_a_card_that_says_little_or_nonsense(tmp_path: Path, card: dict[str, Any], link: str | None, architecture: str | None) -> None:
    found = info(tmp_path, question(), card=card)
    assert (found["link"], found["architecture"], found["name"], found["reported"]) == (link, architecture, "net", None)


@pytest.mark.parametrize(
    "asked",
    [
        [question(), question("l2", "1/2")],
        [question("rotation-translation", "3/10", extent={"degrees": "30", "shift": "3"})],
        [question("learned", "3/10")],
        [question(objective="invariance")],
        [question(kind="certificate")],
    ],
    ids=["union", "spatial", "no lp ball", "invariance", "certificate alone"],
)
def test_another_threat_than_one_ball_is_refused(tmp_path: Path, asked: list[QuestionRecord]) -> None:
    with filled(tmp_path, *asked) as store, pytest.raises(UsageError, match="one lp ball"):
        model_info(store, "r1")


def test_a_run_without_all_answers_has_no_figure_to_give(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="some of its 4 images have no answer"):
        info(tmp_path, question(), statuses=("survived",))


def test_a_certificate_of_the_same_ball_is_no_second_set(tmp_path: Path) -> None:
    with filled(tmp_path, question(), question(kind="certificate", plan="ibp")) as store:
        store.add_chunk(question().key, [verdict(i) for i in range(4)], [])
        assert model_info(store, "r1")["rbench_acc"] == "100.00"
