"""A report's doors to what lies in the results folder: images, one example, other shapes; a file that is lost is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rbench.report import Report
from rbench_core.errors import FileError, UsageError
from results.test_example import images
from stored import filled, question, verdict

LINF, L2 = question(), question("l2", "1/2")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Run r1 of two sets: image 1 breaks under linf without a kept witness, 2 under both, 3 under l2 alone; row i - 2 of one file."""
    with filled(tmp_path, LINF, L2) as store:
        file = images(tmp_path)
        kept = {index: {"witness": file, "row": index - 2, "predicted": 0} for index in (2, 3)}
        store.add_chunk(LINF.key, [verdict(0), verdict(1, "broken", predicted=0), verdict(2, "broken", **kept[2]), verdict(3)], [])
        store.add_chunk(L2.key, [verdict(0), verdict(1), verdict(2, "broken", **kept[2]), verdict(3, "broken", **kept[3])], [])
    return tmp_path


def test_the_images_that_were_kept_come_back_each_under_the_first_member_that_broke_it(results: Path) -> None:
    found = Report.stored("r1", results).adversarial()
    assert found.indices.tolist() == [2, 3]  # image 1 fell, and its witness was not kept
    assert (found.label.tolist(), found.predicted.tolist(), found.member) == ([1, 1], [0, 0], [LINF.spec, L2.spec])
    assert found.x[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.3])
    assert (found.x_adv - found.x)[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.2])


def test_a_run_that_kept_none_gives_none(tmp_path: Path) -> None:
    with filled(tmp_path, LINF) as store:
        store.add_chunk(LINF.key, [verdict(i, "broken", predicted=0) for i in range(4)], [])
    found = Report.stored("r1", tmp_path).adversarial()
    assert (len(found.indices), len(found.x), found.member) == (0, 0, [])


def _row(results: Path, row: int | None) -> None:
    from rbench_results.store import Store

    with Store.open(results, create=False) as store:
        store.add_chunk(LINF.key, [verdict(2, "broken", witness="witnesses/a.safetensors", row=row, predicted=0)], [])


LOST: dict[str, tuple[Any, str]] = {
    "missing": (lambda results: (results / "witnesses" / "a.safetensors").unlink(), "No such file"),
    "truncated": (lambda results: (results / "witnesses" / "a.safetensors").write_bytes(b"\x10"), "a.safetensors"),
    "html": (lambda results: (results / "witnesses" / "a.safetensors").write_text("<html>" * 9), "a.safetensors"),
    "other examples": (lambda results: images(results, indices=(8, 9)), "holds example 8; expected 2"),
    "too few rows": (lambda results: images(results, indices=(2,)), "no row 1, which should hold example 3"),
    "no row": (lambda results: _row(results, None), "no row None"),
    "negative row": (lambda results: _row(results, -2), "no row -2"),
}


@pytest.mark.parametrize(("harm", "words"), LOST.values(), ids=LOST)
def test_a_witness_that_is_lost_is_one_line_that_names_the_file(results: Path, harm: Any, words: str) -> None:
    harm(results)
    report = Report.stored("r1", results)
    with pytest.raises(FileError) as caught:
        report.adversarial()
    line = str(caught.value)
    assert words in line
    assert "a.safetensors" in line
    assert "its verdicts are not" in line
    assert report.example(2).data["status"] == "broken"  # the history stands


def test_an_example_and_robustbench_s_shape_are_reached_from_python(results: Path) -> None:
    report = Report.stored("r1", results)
    example = report.example(3)
    assert [row["spec"] for row in example.data["history"]] == [LINF.spec, L2.spec]
    assert example._repr_png_() == example.to_png()
    assert str(example).splitlines()[0].startswith("image 3 of digits")
    with pytest.raises(UsageError, match="0 to 3"):
        report.example(4)
    with pytest.raises(UsageError, match="one lp ball"):
        report.to_robustbench()


def test_a_report_s_images_are_floats_in_0_1(results: Path) -> None:
    found = Report.stored("r1", results).adversarial()
    assert found.x.dtype == found.x_adv.dtype == torch.float32
    assert found.x_adv.shape == (2, 1, 8, 8)
