"""How good a learned set is: the order of its errors, the encoding divided by a standard deviation, an exact truncated prior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from rbench.data import sources
from rbench.data.pairs import Drawn
from rbench.evidence import set_quality as quality
from rbench_threats import partners
from rbench_threats.cards import built_in, load
from rbench_threats.learned import Learned, cross_entropy, networks, squared_error
from rbench_threats.networks import CVAE

SHIPPED = [name for name, entry in built_in().items() if entry.table["kind"] == "learned"]
Errors = dict[str, np.ndarray]


def held_out(name: str) -> tuple[CVAE, Drawn, float]:
    """The networks of a shipped set, pairs from its data set's test images that nothing was fitted to, its validated radius."""
    card = load("learned", name)
    dataset = card.table["dataset"]
    if not sources.present(dataset) and dataset != "digits":
        pytest.skip(f"no {dataset} here: set RBENCH_DATA")
    x = sources.load(dataset, n=200 if dataset == "digits" else 40).x
    kind = partners.build(card.table["training"]["pairs"], card.path)
    part = Drawn(x, np.arange(len(x)), kind, seed=11, split="test")
    return networks(card, torch.device("cpu"), torch.float32), part, float(card.table["radius"]["validated"])


@pytest.fixture(scope="module", params=SHIPPED)
def measured(request: pytest.FixtureRequest) -> tuple[Errors, float]:
    net, part, eps = held_out(request.param)
    return quality.errors(net, part, eps, turn=3, seed=0), eps


def test_both_shipped_sets_are_tested() -> None:
    assert set(SHIPPED) == {"digits-rts", "mnist-rts"}


def test_the_medians_obey_the_paper_s_order(measured: tuple[Errors, float]) -> None:
    """PGD ≤ encoder ≤ expected ≤ over-approximation, each in the metric that PGD optimised."""
    errors, _ = measured
    for metric in quality.METRICS:
        order = [float(np.median(errors[f"{name}_{metric}"])) for name in ("pgd", "encoder", "expected", "over")]
        assert order == sorted(order), metric
        assert order[0] < 0.7 * float(np.median(errors[f"prior_mean_{metric}"])), "the code 0 is as good"


def test_pgd_is_never_worse_than_its_start(measured: tuple[Errors, float]) -> None:
    errors, _ = measured
    for metric in quality.METRICS:
        assert (errors[f"pgd_{metric}"] <= errors[f"encoder_{metric}"]).all(), "the best iterate counts, and the start is one"
        assert all((errors[f"{name}_{metric}"] >= 0).all() for name in ("pgd", "encoder", "expected", "over", "reconstruction"))
        assert (errors[f"over_{metric}"] > errors[f"pgd_{metric}"]).all()


def test_every_code_that_was_used_lies_in_the_ball(measured: tuple[Errors, float]) -> None:
    errors, eps = measured
    assert (errors["code"] <= eps).all()


def test_an_encoding_is_short_where_the_divergence_is_small(measured: tuple[Errors, float]) -> None:
    """‖m‖² ≤ 2 KL(q ‖ p), for every pair."""
    errors, _ = measured
    assert (errors["t1"] <= 1).all()


def test_dividing_by_the_log_variance_is_caught() -> None:
    """As the released evaluation does: the law breaks, and the encoder's error is far above the reconstruction's."""
    net, part, eps = held_out("digits-rts")
    batch = next(quality.batches(net, part, 3, "cpu"))
    log_variance = 2 * batch.ctx.spread.log()
    wrong = replace(batch, mean=batch.mean * batch.ctx.spread / log_variance)
    assert (wrong.mean.square().sum(1) > 2 * batch.kl).any()
    random = np.random.default_rng(0)
    right, _ = quality._measured(net, batch, eps, squared_error, random)
    released, _ = quality._measured(net, wrong, eps, squared_error, random)
    assert right["encoder"].mean() <= 1.1 * right["reconstruction"].mean()
    assert released["encoder"].mean() > 1.1 * right["reconstruction"].mean()


def test_the_card_says_what_is_measured_again() -> None:
    """The radius rule, from validation pairs alone, and the coverage at the δ that they fixed."""
    card = load("learned", "digits-rts")
    assert card.table["radius"]["max"] <= card.table["radius"]["validated"] < card.table["radius"]["max"] + 1
    cover = card.table["quality"]["coverage"]
    net, part, eps = held_out("digits-rts")
    errors = quality.errors(net, part, eps, turn=5, seed=1)
    share = float((errors["pgd_mse"] <= cover["delta_mse"]).mean())
    low, high = cover["pgd"]["interval_95"]
    assert low - 0.05 <= share <= high + 0.05
    assert cover["identity"]["share"] < 0.1, "δ is so wide that no transformation at all would pass"


@pytest.mark.parametrize(("d", "eps"), [(8, 4.0), (8, 1.0), (128, 14.0), (256, 17.0), (512, 28.0), (784, 20.0), (6272, 29.0), (1, 0.3)])
def test_the_truncated_prior(d: int, eps: float) -> None:
    """Norms at most ε with the law of a cut χ²_d, whatever share of the prior the ball holds; directions without a preferred side."""
    drawn = quality.truncated_normal(4000, d, eps, np.random.default_rng(d))
    norms = np.linalg.norm(drawn, axis=1)
    assert (norms <= eps * (1 + 1e-12)).all()
    grid = np.linspace(0, eps, 200_001)[1:]
    density = (d - 1) * np.log(grid / eps) - (grid**2 - eps**2) / 2
    weights = np.exp(density - density.max())
    known = np.cumsum(weights) / weights.sum()
    assert stats.kstest(norms, lambda at: np.interp(at, grid, known)).pvalue > 1e-3
    assert abs(drawn.mean(0)).max() * 4000**0.5 < 6 * drawn.std()


def test_cutting_each_coordinate_is_caught() -> None:
    """The released "truncated normal": the norm stays untruncated."""
    drawn = np.clip(np.random.default_rng(0).standard_normal((1000, 6272)), -29, 29)
    assert (np.linalg.norm(drawn, axis=1) > 29).all()


def test_the_true_set_is_found_from_inside() -> None:
    """Partners are true perturbations: their distance to the true set is 0 up to the search; blank images are far."""
    net, part, eps = held_out("digits-rts")
    card = load("learned", "digits-rts")
    kind = partners.build(card.table["training"]["pairs"], card.path)
    assert isinstance(kind, partners.Warp)
    beyond = quality.beyond_the_truth(net, part, kind, eps, seed=0, limit=12)
    assert beyond["floor"].max() < 1e-4
    assert np.median(beyond["surface"]) < 0.2 * squared_error(part.x, part.partners(torch.arange(len(part.x)), 0)).median()
    blank = quality.to_the_truth(part.x[:2], 1 - part.x[:2], kind)
    assert (blank > 0.05).all()


def test_summaries_hold_the_truth() -> None:
    """The median's interval covers in 95 % of samples, by binomial order statistics."""
    random = np.random.default_rng(0)
    told = [quality.summary(random.exponential(size=200)) for _ in range(400)]
    hits = sum(row["median_95"][0] <= np.log(2) <= row["median_95"][1] for row in told)
    assert hits >= 368
    assert sum(row["mean_95"][0] <= 1 <= row["mean_95"][1] for row in told) >= 360


def test_binary_cross_entropy_has_a_floor_above_zero() -> None:
    grey = torch.full((2, 1, 4, 4), 0.5)
    assert cross_entropy(grey, grey).tolist() == pytest.approx([np.log(2)] * 2)
    assert squared_error(grey, grey).tolist() == [0, 0]


def test_the_preset_s_radius_is_one_that_was_validated() -> None:
    for dataset in ("digits", "mnist"):
        from rbench_threats.catalogue import resolve

        (space,) = resolve("cvae-rts", dataset).members
        assert isinstance(space, Learned)
        assert space.notes == ()
