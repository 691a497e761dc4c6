"""Noise is a function of (seed, attack, example, target, restart, step, stream) and of nothing else, and it is noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from laws.entries import entries
from laws.given import given_images, images
from rbench.attacks import noise
from rbench.attacks.noise import Row, row_keys

KEYS = Callable[..., np.ndarray]
N = 20_000
BASE = {"seed": 0, "attack": "pgd(steps=40)", "example": 17, "target": 3, "restart": 1, "step": 5, "stream": 0}
OTHERS = {
    "seed": 1,
    "attack": "pgd(steps=41)",
    "example": 18,
    "target": -1,
    "restart": 2,
    "step": 6,
    "stream": 1,
}


def _row(count: int = 1, keys: KEYS = row_keys, **who: object) -> tuple[Row, int]:
    """count rows, who they are by name, and the stream."""
    at = BASE | who
    parts = [np.atleast_1d(np.asarray(at[name])) + np.zeros(count, dtype=np.int64) for name in ("example", "target", "restart")]
    key = torch.from_numpy(keys(at["seed"], at["attack"], *parts))
    example, target, restart = (torch.from_numpy(part) for part in parts)
    return Row(example, 0 * example, target, restart, key, torch.full((count,), int(str(at["step"])))), int(str(at["stream"]))


def _drawn(n: int = N, kind: str = "uniform", keys: KEYS = row_keys, **who: object) -> np.ndarray:
    row, stream = _row(keys=keys, **who)
    values: Tensor = getattr(row, kind)(n, stream)
    return values[0].double().numpy()


def law_different_rows_have_different_noise(keys: KEYS) -> None:
    """Whatever one thing changes, the noise is another: uncorrelated, at no lag a copy."""
    base = _drawn(keys=keys)
    for name, value in OTHERS.items():
        other = _drawn(keys=keys, **{name: value})
        assert _likeness(base, other) < 6, f"another {name}: the same noise"
    for one, two in (({"restart": 2, "example": 16}, {"restart": 1}), ({"target": 4, "restart": 0}, {}), ({"step": 6, "stream": -1}, {})):
        assert _likeness(_drawn(keys=keys, **one), _drawn(keys=keys, **two)) < 6, f"{one} is like {two}"


def _likeness(one: np.ndarray, two: np.ndarray) -> float:
    """The largest correlation over all cyclic lags, in standard deviations: 4 to 5 for 20,000 independent values."""
    spectra = [np.fft.rfft(part - part.mean()) for part in (one, two)]
    found = np.fft.irfft(spectra[0] * spectra[1].conj(), len(one)) / (one.std() * two.std() * len(one))
    return float(np.abs(found).max() * np.sqrt(len(one)))


def test_different_rows_have_different_noise() -> None:
    law_different_rows_have_different_noise(row_keys)


def _summed(seed: int, attack: str, example: np.ndarray, target: np.ndarray, restart: np.ndarray) -> np.ndarray:
    return row_keys(seed, attack, example + target + restart, 0 * target, 0 * restart)


def _deaf_to_the_attack(seed: int, attack: str, *parts: np.ndarray) -> np.ndarray:
    return row_keys(seed, "", *parts)


def _deaf_to_the_target(seed: int, attack: str, example: np.ndarray, target: np.ndarray, restart: np.ndarray) -> np.ndarray:
    return row_keys(seed, attack, example, 0 * target, restart)


@pytest.mark.parametrize("keys", [_summed, _deaf_to_the_attack, _deaf_to_the_target], ids=lambda keys: keys.__name__)
def test_keys_that_collide_are_caught(keys: KEYS) -> None:
    with pytest.raises(AssertionError):
        law_different_rows_have_different_noise(keys)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_place_batch_size_and_order_do_not_matter(kind: str) -> None:
    row, stream = _row(64, example=np.arange(64))
    together = getattr(row, kind)(100, stream)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for rows in (order, torch.tensor([5]), torch.tensor([9, 9, 3])):
        apart = getattr(Row(*(part[rows] for part in row)), kind)(100, stream)
        assert torch.equal(apart, together[rows])
    assert torch.equal(row.uniform(40, stream), row.uniform(100, stream)[:, :40]), "a longer row begins otherwise"
    assert row.step.unique().tolist() == [5], "drawing moved the row on"


def test_the_row_alone_decides() -> None:
    """No global generator is read or moved."""
    torch.manual_seed(0)
    first, before = _drawn(100), torch.get_rng_state()
    torch.manual_seed(1)
    assert (first == _drawn(100)).all()
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())


def _samples() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    yield "along a row", _drawn(), _drawn(kind="normal")
    for name in ("example", "restart", "target"):  # the first value of many rows
        row, stream = _row(N, **{name: np.arange(N)})
        yield f"over {name}s", row.uniform(1, stream)[:, 0].double().numpy(), row.normal(1, stream)[:, 0].double().numpy()
    steps = [row._replace(step=row.step + step) for step in range(200)]
    yield "over steps", *(torch.cat([getattr(one, kind)(1, 0)[:50, 0] for one in steps]).double().numpy() for kind in ("uniform", "normal"))


@pytest.mark.parametrize(("where", "uniform", "normal"), list(_samples()), ids=lambda part: part if isinstance(part, str) else "")
def test_uniform_and_normal(where: str, uniform: np.ndarray, normal: np.ndarray) -> None:
    assert 0 < uniform.min() <= uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    for sample in (uniform, normal):
        assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 5 / np.sqrt(len(sample))


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
def test_the_ends_are_left_out(monkeypatch: pytest.MonkeyPatch, word: int) -> None:
    """1 in 2²³ draws is the largest word: at 24 bits it rounded to 1, and an l1 start, which takes log1p(−1), became NaN."""
    monkeypatch.setattr(noise, "_hashed", lambda key, step, streams, counts: torch.full((len(key), sum(counts)), float(word >> 9)))
    row, _ = _row(3)
    assert ((row.uniform(4, 0) > 0) & (row.uniform(4, 0) < 1)).all()
    assert row.normal(4, 0).isfinite().all()
    for entry in entries():
        given = given_images(entry.space, images(entry.shape, 4, 0))
        start = entry.space.start(given.ctx, given.row)
        assert start.isfinite().all()
        assert (entry.space.excess(given.ctx, start) <= 0).all()


@pytest.mark.parametrize("step", [-1, 0, 5000, 2**31 + 5, 2**40])
def test_both_ways_to_hash_agree(step: int) -> None:
    """Words of numpy on a CPU, lanes of torch elsewhere: bit for bit."""
    key = torch.from_numpy(row_keys(3, "pgd", *(np.arange(50) * sign for sign in (1, -1, 7))))
    steps, streams, counts = torch.full((50,), step), (0, -1, 7, 2**31), (65, 1, 2, 3)
    parts = [noise._hashed_there(key, steps, stream, n) for stream, n in zip(streams, counts, strict=True)]
    assert torch.equal(noise._hashed_here(key, steps, streams, counts), torch.cat(parts, 1))
    for stream, n, part in zip(streams, counts, parts, strict=True):
        assert torch.equal(noise._hashed_here(key, steps, (stream,), (n,)), part)


def test_several_streams_at_once_are_each_alone() -> None:
    row, _ = _row(20)
    for stream, (n, drawn) in enumerate(zip((2, 1, 5), row.uniforms((2, 1, 5), 4), strict=True), start=4):
        assert torch.equal(drawn, row.uniform(n, stream))


def test_the_noise_of_this_engine_version() -> None:
    """Other noise is another engine: a change here changes verdicts, so `rbench.questions.ENGINE` must change with it."""
    key = row_keys(0, "pgd", np.array([7]), np.array([-1]), np.array([0]))
    assert key.tolist() == [7502862218523039733]
    zero = torch.zeros(1, dtype=torch.long)
    row = Row(zero, zero, zero, zero, torch.from_numpy(key), zero)
    torch.testing.assert_close(row.uniform(4, 0), torch.tensor([[0.0706745, 0.8673446, 0.5373290, 0.1001925]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(row.normal(2, 1), torch.tensor([[-1.6278777, 0.7128821]]), rtol=0, atol=1e-5)
