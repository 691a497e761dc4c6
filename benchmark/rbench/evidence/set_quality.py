"""How good a learned set is: its radius, and how far its images lie from partners that it has not seen.

Names and definitions of Wong & Kolter 2021, sec. 5, without the mistakes of the released code (docs/learned-sets.md): the encoding is
divided by the prior's standard deviation, the ball is one per pair, PGD keeps its best iterate and runs once per metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from rbench.data.pairs import Part
from rbench_threats import partners
from rbench_threats.learned import Conditioned, Metric, conditioned, cross_entropy, into_ball, nearest, squared_error
from rbench_threats.networks import CVAE, divergence

Images = Float[Tensor, "rows c h w"]
Array = Float[np.ndarray, " n"]
METRICS: dict[str, Metric] = {"mse": squared_error, "bce": cross_entropy}
DRAWS = 5  # of the truncated prior, per pair
BATCH = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """Pairs with what the networks say of them, rows first. mean: the encoding (μ_q − μ_p) / σ_p; spread: σ_q / σ_p; kl in nats."""

    ctx: Conditioned
    partner: Float[Tensor, "rows c h w"]
    mean: Float[Tensor, "rows d"]
    spread: Float[Tensor, "rows d"]
    kl: Float[Tensor, " rows"]


@torch.no_grad()
def encoded(net: CVAE, x: Images, partner: Images) -> Encoded:
    """The pair in units of the prior: N(0, I) is the prior there, N(mean, diag spread²) the recognition."""
    ctx = conditioned(net, x)
    mean, spread = net.encode(x, partner)
    kl = divergence(mean.double(), 2 * spread.double().log(), ctx.mean.double(), 2 * ctx.spread.double().log())
    return Encoded(ctx, partner, (mean - ctx.mean) / ctx.spread, spread / ctx.spread, kl)


def batches(net: CVAE, part: Part, turn: int, device: str, limit: int | None = None) -> Iterator[Encoded]:
    """The pairs of one turn, encoded, at most `limit` of them, in their order."""
    for rows in torch.arange(min(len(part.x), limit or len(part.x))).split(BATCH):
        yield encoded(net, part.x[rows].to(device), part.partners(rows, turn).to(device))


def radius(net: CVAE, part: Part, passes: int, device: str = "cpu") -> dict[str, Any]:
    """The radius rule: the largest ‖m‖₂ over `passes` fresh partners of every validation image, rounded up to a whole number.

    The maximum of n exchangeable norms covers one more pair with probability n / (n + 1); partners of one image are not independent of
    one another, so n counts images where several passes share them.
    """
    norms = np.concatenate(
        [batch.mean.double().norm(dim=1).cpu().numpy() for turn in range(passes) for batch in batches(net, part, turn, device)]
    )
    points = {f"p{point:g}".replace(".", "_"): short(np.percentile(norms, point)) for point in (25, 50, 75, 99, 99.9)}
    return {
        "validated": max(1, ceil(float(norms.max()))),
        "rule": "the largest norm of an encoding over the validation pairs, rounded up to a whole number",
        "pairs": len(norms), "images": len(part.x), "mean": short(norms.mean()), "std": short(norms.std()), **points,
        "max": short(norms.max()), "covers_a_new_pair": short(len(part.x) / (len(part.x) + 1)),
    }  # fmt: skip


def errors(net: CVAE, part: Part, eps: float, *, turn: int, seed: int, device: str = "cpu", limit: int | None = None) -> dict[str, Array]:
    """Every measure for every pair, as "measure_metric": identity, prior_mean, reconstruction, encoder, pgd, expected (EAE), over (OAE).

    Also "norm" (of the encoding), "code" (largest norm of a code that any measure used) and "t1": ‖m‖² / (2 KL), at most 1 by theory.
    """
    random = np.random.default_rng([seed, turn])
    found: list[dict[str, Array]] = []
    for batch in batches(net, part, turn, device, limit):
        row = {"norm": _array(batch.mean.double().norm(dim=1)), "t1": _array(batch.mean.double().square().sum(1) / (2 * batch.kl))}
        used = [row["norm"].clip(max=eps)]
        for name, metric in METRICS.items():
            measured, codes = _measured(net, batch, eps, metric, random)
            row |= {f"{measure}_{name}": value for measure, value in measured.items()}
            used += [_array(code.double().norm(dim=1)) for code in codes]
        found.append(row | {"code": np.max(used, axis=0)})
    return {key: np.concatenate([row[key] for row in found]) for key in found[0]}


def _measured(
    net: CVAE, batch: Encoded, eps: float, metric: Metric, random: np.random.Generator
) -> tuple[dict[str, Array], list[Float[Tensor, "rows d"]]]:
    ctx, partner, (rows, latent) = batch.ctx, batch.partner, batch.mean.shape
    inside = into_ball(batch.mean, eps)
    noise = [torch.from_numpy(random.standard_normal((rows, latent))).to(batch.mean) for _ in range(DRAWS)]
    drawn = [torch.from_numpy(truncated_normal(rows, latent, eps, random)).to(batch.mean) for _ in range(DRAWS)]
    drawn = [into_ball(code, eps) for code in drawn]  # float32 rounding
    close, nearest_ = nearest(net, ctx, partner, inside, eps, metric)
    far, furthest = nearest(net, ctx, partner, drawn[0], eps, metric, away=True)

    def at(code: Tensor) -> Tensor:
        with torch.no_grad():
            return metric(net.generate(ctx.x, ctx.mean + ctx.spread * code), partner)

    values = {
        "identity": metric(ctx.x, partner),
        "prior_mean": at(torch.zeros_like(inside)),
        "reconstruction": torch.stack([at(batch.mean + batch.spread * z) for z in noise]).mean(0),
        "encoder": at(inside),
        "pgd": nearest_,
        "expected": torch.stack([at(code) for code in drawn]).mean(0),
        "over": furthest,
    }
    return {name: _array(value) for name, value in values.items()}, [inside, close, far, *drawn]


def truncated_normal(rows: int, d: int, eps: float, random: np.random.Generator) -> Float[np.ndarray, "rows d"]:
    """Draws of N(0, I) given ‖u‖₂ ≤ eps, exact up to rounding: a uniform direction, and a length whose square is a cut χ²_d.

    By inversion; where the ball holds so little of the prior that the χ² underflows, by rejection from a power law (law r^(k−1), k = d −
    eps², of the same slope at the surface), which ends whatever d and eps are.
    """
    direction = random.standard_normal((rows, d))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    mass = stats.chi2.cdf(eps * eps, d)
    inverted = mass > 1e-200
    lengths = np.sqrt(stats.chi2.ppf(random.random(rows) * mass, d)) if inverted else _thin_shell(rows, d, eps, random)
    return direction * np.minimum(lengths, eps)[:, None]


def _thin_shell(rows: int, d: int, eps: float, random: np.random.Generator) -> Array:
    """Lengths with density r^(d−1) exp(−r²/2) on [0, eps], eps² far below d; accepted with (r/eps)^(eps²) exp((eps² − r²)/2) ≤ 1."""
    found = np.empty(0)
    while len(found) < rows:
        share = random.random(2 * rows) ** (1 / (d - eps * eps))
        log_accept = eps * eps * (np.log(share) + (1 - share * share) / 2)
        found = np.concatenate([found, eps * share[np.log(random.random(2 * rows)) <= log_accept]])
    return found[:rows]


def coverage(net: CVAE, validation: dict[str, Array], test: dict[str, Array]) -> dict[str, Any]:
    """δ is the 95th percentile of the validation pairs' PGD error (MSE); then the share of test pairs within it, and of the identity."""
    delta = float(np.percentile(validation["pgd_mse"], 95))
    shares = {name: share(test[f"{name}_mse"] <= delta) for name in ("pgd", "encoder", "prior_mean", "identity")}
    rule = "the 95th percentile of the validation pairs' PGD error"
    return {"delta_mse": short(delta), "rule": rule, "n": len(test["pgd_mse"]), **shares}


def covered(
    net: CVAE, part: Part, eps: float, delta: float, *, turn: int = 0, device: str = "cpu", limit: int | None = None
) -> dict[str, Any]:
    """The share of the pairs within δ of the set at another radius: what a smaller ball gives away."""
    hits = []
    for batch in batches(net, part, turn, device, limit):
        error = nearest(net, batch.ctx, batch.partner, into_ball(batch.mean, eps), eps, squared_error)[1]
        hits.append(_array(error) <= delta)
    return {"radius": eps, **share(np.concatenate(hits))}


def summary(values: Array) -> dict[str, Any]:
    """Median with its order-statistics interval, mean with its normal one, both 95 %."""
    ordered, n = np.sort(values), len(values)
    low, high = int(stats.binom.ppf(0.025, n, 0.5)), int(stats.binom.ppf(0.975, n, 0.5))
    half = 1.96 * float(values.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    mean = float(values.mean())
    return {
        "median": short(np.median(values)), "median_95": [short(ordered[max(low - 1, 0)]), short(ordered[min(high, n - 1)])],
        "mean": short(mean), "mean_95": [short(mean - half), short(mean + half)],
    }  # fmt: skip


def beyond_the_truth(
    net: CVAE, part: Part, kind: partners.Warp, eps: float, *, seed: int, device: str = "cpu", limit: int = 100
) -> dict[str, Array]:
    """True over-approximation, where the true set is known: the MSE from what the set draws to the nearest true perturbation of x.

    "expected": of draws from the truncated prior; "surface": of uniform points on the ball's surface; "floor": of the pairs' own partners,
    which are in it: the search's error. By a grid of 4,375 warps, then descent on the warp's parameters.
    """
    random = np.random.default_rng([seed, 7])
    found: dict[str, list[Array]] = {"expected": [], "surface": [], "floor": []}
    for batch in batches(net, part, 0, device, limit):
        rows, latent = batch.mean.shape
        drawn = into_ball(torch.from_numpy(truncated_normal(rows, latent, eps, random)).to(batch.mean), eps)
        direction = torch.from_numpy(random.standard_normal((rows, latent))).to(batch.mean)
        surface = into_ball(direction / direction.norm(dim=1, keepdim=True) * (eps * (1 + 1e-5)), eps)
        with torch.no_grad():
            images = {name: net.generate(batch.ctx.x, batch.ctx.mean + batch.ctx.spread * code) for name, code in
                      (("expected", drawn), ("surface", surface))}  # fmt: skip
        for name, shown in {**images, "floor": batch.partner}.items():
            found[name].append(_array(to_the_truth(batch.ctx.x, shown, kind)))
    return {name: np.concatenate(values) for name, values in found.items()}


def to_the_truth(x: Images, shown: Images, kind: partners.Warp) -> Float[Tensor, " rows"]:
    """The smallest MSE between each image and a warp of its x."""
    axes = [torch.linspace(0, 1, count, device=x.device) for count in (25, 7, 5, 5)]
    grid = kind.parameters(torch.cartesian_prod(*axes))
    begin = torch.stack([_closest(image, wanted, grid) for image, wanted in zip(x, shown, strict=True)])
    low, high = grid.amin(0), grid.amax(0)
    at, best = begin, torch.full((len(x),), torch.inf, device=x.device)
    for step in range(40):
        asked = at.detach().requires_grad_()
        with torch.enable_grad():
            error = squared_error(partners.warped(x, asked), shown)
            (slope,) = torch.autograd.grad(error.sum(), asked)
        best = torch.minimum(best, error.detach())
        scaled = slope * (high - low)
        stride = 0.05 * 0.93**step * (high - low) / scaled.norm(dim=1, keepdim=True).clamp_min(1e-12)
        at = (at - stride * scaled).minimum(high).maximum(low)
    return best


def _closest(image: Float[Tensor, "c h w"], wanted: Float[Tensor, "c h w"], grid: Float[Tensor, "k 4"]) -> Float[Tensor, "4"]:
    """The grid's warp that comes nearest."""
    found = []
    for part in grid.split(1024):
        shown = partners.warped(image.expand(len(part), *image.shape), part)
        found.append(squared_error(shown, wanted.expand_as(shown)))
    return grid[torch.cat(found).argmin()]


def share(hits: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """A share with its 95 % Wilson interval."""
    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="wilson")
    return {"share": short(hits.mean()), "interval_95": [short(interval.low), short(interval.high)]}


def _array(value: Tensor) -> Array:
    return value.detach().double().cpu().numpy()


def short(value: Any) -> float:
    """Five significant digits: what a card shows."""
    return float(f"{float(value):.5g}")
