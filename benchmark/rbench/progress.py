"""Who wants to know how far a run or a training is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Takes reports: `done` of `total` units of `stage`. Called per chunk, epoch or refill, never per step of an attack."""

    def update(self, stage: str, done: int, total: int) -> None:
        """One report."""
        ...
