"""Who a row is, and its noise: a function of (seed, example, attack, target, restart, step, stream) and of nothing else."""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

_LOW = 0xFFFFFFFF


class Row(NamedTuple):
    """One (example, target, restart) each; fields (rows,), int64. target is −1 where the attack is untargeted."""

    example: Int[Tensor, " rows"]  # index in the data set
    label: Int[Tensor, " rows"]
    target: Int[Tensor, " rows"]
    restart: Int[Tensor, " rows"]
    key: Int[Tensor, " rows"]
    step: Int[Tensor, " rows"]  # cycles done

    def uniform(self, n: int, stream: int) -> Float[Tensor, "rows n"]:
        """In (0, 1), 23 bits (with 24 the largest would round to 1); the same for a row wherever and beside whomever it runs."""
        return (_hashed(self.key, self.step, stream, n) >> 9).float().add_(0.5).mul_(2.0**-23)

    def normal(self, n: int, stream: int) -> Float[Tensor, "rows n"]:
        """Standard normal (Box and Muller 1958)."""
        both = self.uniform(2 * n, stream)
        return (-2 * both[:, :n].log()).sqrt_() * (2 * math.pi * both[:, n:]).cos_()


def row_keys(
    seed: int, attack: str, example: Int[np.ndarray, " rows"], target: Int[np.ndarray, " rows"], restart: Int[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """A 64-bit key per row from all that its noise may depend on but step and stream. attack: its own spec, defaults written out."""
    origin = int.from_bytes(hashlib.sha256(f"{seed}\n{attack}".encode()).digest()[:8], "little")
    key = np.full(example.shape, origin, dtype=np.uint64)
    for part in (example, target, restart):
        key = _splitmix(key ^ part.astype(np.int64).view(np.uint64))
    return key.view(np.int64)


def _splitmix(value: UInt64[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, " rows"] = value ^ (value >> np.uint64(31))
    return mixed


def _mix(value: Tensor, multiplier: int) -> Tensor:
    """One multiply-and-shift round on 32-bit values kept in int64 lanes, where shifts of torch are arithmetic."""
    value = value ^ (value >> 16)
    return (value * multiplier).bitwise_and_(_LOW)


def _hashed(key: Int[Tensor, " rows"], step: Int[Tensor, " rows"], stream: int, n: int) -> Int[Tensor, "rows n"]:
    """32 hashed bits per value: two words per row from (key, step, stream), then one counter per value."""
    low = _mix((key & _LOW) ^ _mix((step * 0x9E3779B1 + stream * 0x85EBCA6B + 1) & _LOW, 0x21F0AAAD), 0x735A2D97)
    high = _mix(((key >> 32) & _LOW) ^ (low >> 3), 0x2C1B3C6D)
    counter = torch.arange(n, device=key.device) * 0x9E3779B1
    value = _mix((low[:, None] + counter).bitwise_and_(_LOW), 0x21F0AAAD)
    value = _mix(value ^ high[:, None], 0x735A2D97)
    return value ^ (value >> 15)
