"""The same evaluation on a GPU: as many fall there as on the CPU, up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rbench

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("threat", ["union-lp", "l0", "rotation-translation"])
def test_a_gpu_gives_the_verdicts_of_the_cpu(threat: str, tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        report = rbench.evaluate("digits-linf-at", threat=threat, device=device, results=tmp_path / device, site=False)
        found[device] = [row["status"] for row in report.data["verdicts"]]
    agree = sum(cpu == cuda for cpu, cuda in zip(found["cpu"], found["cuda"], strict=True))
    assert agree >= 0.99 * len(found["cpu"])


@gpu
@pytest.mark.gpu
def test_a_gpu_repeats_itself(tmp_path: Path) -> None:
    runs = [rbench.evaluate("digits-linf-at", threat="linf", device="cuda", results=tmp_path / name, site=False) for name in ("a", "b")]
    assert runs[0].data["verdicts"] == runs[1].data["verdicts"]
