"""The yardstick: pyautoattack's own driver, version standard, all images as one batch, its four attacks told apart.

The driver runs untouched; what stands in place of its attacks' entries calls them and looks at the clock, so the verdicts are those of a
plain call with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rbench.attacks.evaluate import Passes, clean_logits
from rbench.attacks.external import AutoAttack
from rbench.attacks.referee import judge
from rbench.attacks.sealed import library, reported, sealed
from rbench.attacks.search import Examples
from rbench.attacks.stage import plain_context
from rbench.bench.meter import Meter
from rbench.bench.sides import AUTOATTACK, REST, Row, Side
from rbench.models import Wrapped
from rbench_core.errors import UsageError
from rbench_threats.protocol import PerturbationSet

PARTS = {"apgd-ce": "apgd", "apgd-t": "apgd_targeted", "fab-t": "fab", "square": "square"}  # of its version standard, in its order


def check_knows(members: tuple[PerturbationSet, ...]) -> None:
    """Refuse what AutoAttack cannot attack. Raises UsageError, and Failure where it is not installed."""
    library("pyautoattack")
    for member in members:
        if AutoAttack.needs - member.capabilities or AutoAttack().refuses(member) is not None:
            raise UsageError(f"threat {member}: AutoAttack knows linf, l2 and l1 balls only", expected="one of those, or a union of them")


def run_autoattack(model: Wrapped, members: tuple[PerturbationSet, ...], x: Tensor, y: Tensor, round: int, seed: int, meter: Meter) -> Side:
    """AutoAttack on every member, each on all images; an example falls where one of them breaks it. The meter must be watching."""
    side = Side(AUTOATTACK, round, seed, len(x))
    for member in members:
        attack = AutoAttack(batch=len(x))
        attack.check(model.classes)
        meter.lap()
        with reported(f"{attack} of pyautoattack", "Memory ran out: try a smaller --n."), sealed(model.module, seed, x.device):
            driver = attack.adversary(model.module, member, x, seed=seed, classes=model.classes)
            watch = _Watch(driver, str(member), y, meter, side)
            images = attack.drive(driver, member, x, y)
            watch.file(REST)
        _referee(model.module, member, x, y, images, watch.broken, side)
    return side


class _Watch:
    """Stands between the driver and its attacks and notes what each got, broke and spent. Verdicts are the driver's own."""

    def __init__(self, driver: Any, member: str, y: Tensor, meter: Meter, side: Side) -> None:
        self.member, self.y, self.meter, self.side = member, y, meter, side
        self.running: str | None = None
        self.broken: list[int] = []
        self.alive: list[int] = []  # what the driver holds for robust, by index; from its clean pass on
        self._logits: Callable[[Tensor], Tensor] = driver.get_logits
        driver.get_logits = self._seen
        for attack, part in PARTS.items():
            held = getattr(driver, part)
            held.perturb = self._entry(attack, held.perturb)

    def _entry(self, attack: str, perturb: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The attack's own entry, with a lap before it."""

        def entered(x: Tensor, y: Tensor) -> Tensor:
            self.file(REST)
            self.running = attack
            return perturb(x, y)

        return entered

    def _seen(self, x: Tensor) -> Tensor:
        """What the driver asks after an attack is that attack's verdict; before all attacks it asks about the clean images."""
        logits = self._logits(x)
        rows = torch.arange(len(self.y)) if self.running is None else torch.tensor(self.alive)
        right = (logits.max(dim=1)[1] == self.y[rows]).tolist()
        stands = [index for index, still in zip(rows.tolist(), right, strict=True) if still]
        if self.running is None:
            self.side.wrong = [index for index in rows.tolist() if index not in set(stands)]
        else:
            fell = [index for index in self.alive if index not in set(stands)]
            self.broken += fell
            for index in fell:
                self.side.fell.setdefault(index, f"{self.running} in {self.member}")
            self.file(self.running, len(self.alive), len(fell))
            self.running = None
        self.alive = stands
        return logits

    def file(self, attack: str, entered: int = 0, broken: int = 0) -> None:
        """A row with all that was spent since the last one."""
        spent = self.meter.lap()
        self.side.rows.append(Row(self.member, attack, entered, broken, spent.forward, spent.backward, spent.cpu, spent.wall))


def _referee(model: nn.Module, space: PerturbationSet, x: Tensor, y: Tensor, images: Tensor, broken: list[int], side: Side) -> None:
    """Note the falls that our referee would not have counted; AutoAttack's own verdict stays."""
    if not broken:
        return
    rows, spent = torch.tensor(broken, device=x.device), Passes()
    logits = [row for row in clean_logits(model, x[rows], len(rows), spent)[0] if row is not None]
    examples = Examples(x[rows], y[rows], rows, torch.stack(logits))
    judged = judge(model, space, plain_context(space, examples, 0), (images[rows] - x[rows]).flatten(1), y[rows], spent)
    side.refused.update({index: f"{space}: {reason}" for index, reason in zip(broken, judged.reason, strict=True) if reason})
