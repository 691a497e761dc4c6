"""Who a row is, and its noise: a function of (seed, example, attack, target, restart, step, stream) and of nothing else."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt32, UInt64
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
        return _hashed(self.key, self.step, (stream,), (n,)).add_(0.5).mul_(2.0**-23)

    def uniforms(self, counts: tuple[int, ...], stream: int) -> tuple[Float[Tensor, "rows _"], ...]:
        """uniform(counts[0], stream), uniform(counts[1], stream + 1), …: the same bits, at little more than the cost of one."""
        streams = tuple(range(stream, stream + len(counts)))
        parts: tuple[Tensor, ...] = _hashed(self.key, self.step, streams, counts).add_(0.5).mul_(2.0**-23).split(counts, 1)
        return parts

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


def _hashed(
    key: Int[Tensor, " rows"], step: Int[Tensor, " rows"], streams: tuple[int, ...], counts: tuple[int, ...]
) -> Float[Tensor, "rows n"]:
    """23 hashed bits per value, as a whole number, counts[0] values of streams[0] first.

    Two words per row and stream from (key, step, stream), then one counter per value. Written twice: numpy has 32-bit words that wrap
    around by themselves, and is 3 (n = 1) to 17 times (n = 784) faster than torch, which has none.
    """
    if not key.is_cuda:
        return _hashed_here(key, step, streams, counts)
    return torch.cat([_hashed_there(key, step, stream, n) for stream, n in zip(streams, counts, strict=True)], 1)


def _hashed_here(
    key: Int[Tensor, " rows"], step: Int[Tensor, " rows"], streams: tuple[int, ...], counts: tuple[int, ...]
) -> Float[Tensor, "rows n"]:
    """On a CPU."""
    keys, (offset, of, counter) = key.numpy()[:, None], _layout(streams, counts)
    low = _mixed(keys.astype(np.uint32) ^ _mixed((step.numpy() * 0x9E3779B1).astype(np.uint32)[:, None] + offset, 0x21F0AAAD), 0x735A2D97)
    high = _mixed((keys >> 32).astype(np.uint32) ^ (low >> np.uint32(3)), 0x2C1B3C6D)
    value = _mixed((low if of is None else low[:, of]) + counter, 0x21F0AAAD)
    value ^= high if of is None else high[:, of]
    value = _mixed(value, 0x735A2D97)
    value ^= value >> np.uint32(15)
    value >>= np.uint32(9)
    return torch.from_numpy(value.astype(np.float32))


@lru_cache(maxsize=64)
def _layout(
    streams: tuple[int, ...], counts: tuple[int, ...]
) -> tuple[UInt32[np.ndarray, " streams"], Int[np.ndarray, " n"] | None, UInt32[np.ndarray, " n"]]:
    """What each stream adds to the step's word, and per value which stream it is of (None: there is but one) and its counter."""
    offset = np.array([(stream * 0x85EBCA6B + 1) & _LOW for stream in streams], dtype=np.uint32)
    of = np.repeat(np.arange(len(streams)), counts) if len(streams) > 1 else None
    counter = np.concatenate([np.arange(n, dtype=np.uint32) for n in counts]) * np.uint32(0x9E3779B1)
    return offset, of, counter


def _mixed(value: UInt32[np.ndarray, "..."], multiplier: int) -> UInt32[np.ndarray, "..."]:
    """One multiply-and-shift round."""
    mixed: UInt32[np.ndarray, "..."] = value ^ (value >> np.uint32(16))
    mixed *= np.uint32(multiplier)
    return mixed


def _hashed_there(key: Int[Tensor, " rows"], step: Int[Tensor, " rows"], stream: int, n: int) -> Float[Tensor, "rows n"]:
    """On any device."""
    low = _mix((key & _LOW) ^ _mix((step * 0x9E3779B1 + stream * 0x85EBCA6B + 1) & _LOW, 0x21F0AAAD), 0x735A2D97)
    high = _mix(((key >> 32) & _LOW) ^ (low >> 3), 0x2C1B3C6D)
    counter = torch.arange(n, device=key.device) * 0x9E3779B1
    value = _mix((low[:, None] + counter).bitwise_and_(_LOW), 0x21F0AAAD)
    value = _mix(value ^ high[:, None], 0x735A2D97)
    return ((value ^ (value >> 15)) >> 9).float()


def _mix(value: Tensor, multiplier: int) -> Tensor:
    """One multiply-and-shift round on 32-bit values kept in int64 lanes, where shifts of torch are arithmetic."""
    value = value ^ (value >> 16)
    return (value * multiplier).bitwise_and_(_LOW)
