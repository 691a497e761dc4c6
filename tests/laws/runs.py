"""Whole runs for the laws: a model, a threat and a plan in; statuses out, by example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rbench
from laws.nets import digit_net
from rbench.api import Report
from rbench_results.store import Store

Statuses = dict[int, str]


class Answering(nn.Module):
    """The digit net with something done to its images or its logits; `what` tells one such model from another."""

    def __init__(self, what: str, after: Any = None, before: Any = None) -> None:
        super().__init__()
        self.what, self.net = what, digit_net()
        self.__dict__["after"], self.__dict__["before"] = after, before
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.__dict__["before"], self.__dict__["after"]
        logits = self.net(x if before is None else before(x))
        return logits if after is None else after(x, logits)  # type: ignore[no-any-return]


def run(folder: Path, model: nn.Module | None = None, *, threat: str, plan: str, n: int = 40, width: int = 64, **rest: Any) -> Report:
    """One evaluation on the digits, without a site and, unless asked for, without certificates: what is proved is not attacked."""
    asked: dict[str, Any] = {"threat": threat, "plan": plan, "n": n, "width": width, "results": folder, "certify": "none", **rest}
    with torch.random.fork_rng(devices=[]):
        return rbench.evaluate(model or digit_net(), dataset="digits", site=False, name="net", **asked)


def statuses(report: Report) -> Statuses:
    """The union's status by example."""
    return {row["index"]: row["status"] for row in report.data["verdicts"]}


def of_members(report: Report) -> dict[str, Statuses]:
    """Each member's status by example, where it was asked."""
    found: dict[str, Statuses] = {}
    for row in report.data["verdicts"]:
        for spec, status in row["members"].items():
            found.setdefault(spec, {})[row["index"]] = status
    return found


def warned(report: Report) -> set[str]:
    """The codes of a run's warnings."""
    return {row["code"] for row in report.data["warnings"]}


def stored(folder: Path) -> Store:
    return Store.open(folder, create=False)
