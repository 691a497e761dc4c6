"""Passes as the model itself sees them, and the seconds between two looks at the clock: one meter for both sides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Spent:
    """Rows forward and backward through the model, CPU seconds of the process (all its threads) and wall seconds."""

    forward: int = 0
    backward: int = 0
    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        sums = (self.forward + other.forward, self.backward + other.backward, self.cpu + other.cpu, self.wall + other.wall)
        return Spent(*sums)


class Meter:
    """Counts by hooks on the model and on its logits, so that padding, clean passes, probes and the referee count as well."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forward = self.backward = 0
        self._last = self._now()

    @contextmanager
    def watching(self) -> Iterator[Meter]:
        """Count while the block runs; the first lap begins here."""
        handle = self.model.register_forward_hook(self._went)
        self.lap()
        try:
            yield self
        finally:
            handle.remove()

    def lap(self) -> Spent:
        """What was spent since the last lap."""
        before, self._last = self._last, self._now()
        now = self._last
        return Spent(now.forward - before.forward, now.backward - before.backward, now.cpu - before.cpu, now.wall - before.wall)

    def _now(self) -> Spent:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return Spent(self.forward, self.backward, time.process_time(), time.perf_counter())

    def _went(self, module: nn.Module, given: tuple[Tensor, ...], logits: object) -> None:
        if torch.compiler.is_exporting():
            return  # a certificate reads the graph: symbols, no images
        self.forward += len(given[0])
        if isinstance(logits, Tensor) and logits.requires_grad:
            logits.register_hook(self._came_back)

    def _came_back(self, gradient: Tensor) -> None:
        self.backward += len(gradient)
