"""What a page shows of a learned set: draws, walks along its strongest directions, partners with their best approximations, its quality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rbench_threats import partners
from rbench_threats.learned import Conditioned, conditioned, into_ball, nearest, networks, squared_error, unit
from rbench_threats.networks import CVAE
from rbench_threats.protocol import Fact, Panel, Portrait

if TYPE_CHECKING:
    from rbench_threats.learned import Learned

Images = Float[Tensor, "rows c h w"]
SHOWN = 4  # images, at most
DRAWS, DIRECTIONS, PLACES = 6, 4, 7
NUDGE = 0.1  # of a standard deviation: where the directions are measured
ORDER = ("pgd", "encoder", "reconstruction", "expected", "over", "prior_mean", "identity")
WORDS = {
    "pgd": "PGD approximation error",
    "encoder": "encoder approximation error",
    "reconstruction": "reconstruction error",
    "expected": "expected approximation error",
    "over": "over-approximation error, to the partner",
    "prior_mean": "error of the code 0",
    "identity": "distance of the pair itself",
}


def portrait(space: Learned, x: Images) -> Portrait:
    """The set's page, from a few clean images. Deterministic."""
    x = x[:SHOWN]
    net = networks(space.card, x.device, x.dtype)
    ctx = conditioned(net, x)
    panels = [_draws(space, net, ctx), _walks(space, net, ctx)]
    pairs = space.card.table.get("training", {}).get("pairs", {})
    if pairs.get("kind") in partners.KINDS:
        panels.append(_partners(space, net, ctx, partners.build(pairs, space.card.path)))
    return Portrait(tuple(panels), tuple(_facts(space.card.table)))


@torch.no_grad()
def _shown(net: CVAE, ctx: Conditioned, codes: Float[Tensor, "rows d"]) -> Images:
    return net.generate(ctx.x, ctx.mean + ctx.spread * codes)


def _repeated(ctx: Conditioned, times: int) -> Conditioned:
    """Each row `times` times, one after another."""
    return Conditioned(*(part.repeat_interleave(times, 0) for part in (ctx.x, ctx.mean, ctx.spread)))


def _normal(rows: int, columns: int, seed: int, like: Tensor) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(like)


def _draws(space: Learned, net: CVAE, ctx: Conditioned) -> Panel:
    rows, latent = ctx.mean.shape
    surface = unit(_normal(rows * DRAWS, latent, 0, ctx.mean)) * float(space.radius)
    drawn = _shown(net, _repeated(ctx, DRAWS), into_ball(surface, float(space.radius))).unflatten(0, (rows, DRAWS))
    images = torch.cat([ctx.x[:, None], _shown(net, ctx, torch.zeros_like(ctx.mean))[:, None], drawn], 1)
    return Panel(
        "Draws",
        f"Each clean image, the generator's own picture of it (code 0), and {DRAWS} codes drawn from the surface of the ball, "
        f"length {space.radius}.",
        images.cpu(),
        cols=("clean", "code 0", *["drawn"] * DRAWS),
    )


def _walks(space: Learned, net: CVAE, ctx: Conditioned) -> Panel:
    """Along the right singular vectors of the pixels' Jacobian at code 0, over all shown images together."""
    latent = ctx.mean.shape[1]
    count = min(DIRECTIONS, latent)
    steps = torch.eye(latent).to(ctx.mean).repeat(len(ctx.x), 1) * NUDGE
    wide = _repeated(ctx, latent)
    slope = (_shown(net, wide, steps) - _shown(net, wide, -steps)).flatten(1) / (2 * NUDGE)
    jacobian = slope.unflatten(0, (len(ctx.x), latent)).transpose(1, 2).flatten(0, 1)  # pixels of all images × latents
    directions = torch.linalg.svd(jacobian.double(), full_matrices=False).Vh[:count].to(ctx.mean)
    directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()  # the sign of a singular vector is free
    half = PLACES // 2
    lengths = (torch.arange(PLACES) - half).to(ctx.mean) / half * float(space.radius)
    first = Conditioned(*(part[:1].repeat(count * PLACES, *[1] * (part.ndim - 1)) for part in (ctx.x, ctx.mean, ctx.spread)))
    codes = into_ball((directions[:, None] * lengths[:, None]).flatten(0, 1), float(space.radius))
    return Panel(
        "Walks",
        "The first image along the directions of the code that change the pixels most, from one side of the ball through code 0 to the "
        "other, the strongest first.",
        _shown(net, first, codes).unflatten(0, (count, PLACES)).cpu(),
        rows=tuple(f"direction {place + 1}" for place in range(count)),
        cols=tuple(f"{length:+.3g}" for length in lengths.tolist()),
    )


def _partners(space: Learned, net: CVAE, ctx: Conditioned, kind: partners.Partner) -> Panel:
    rows = len(ctx.x)
    channels, height, width = ctx.x.shape[1:]
    random = torch.Generator().manual_seed(1)
    partner = kind.make(ctx.x, torch.rand(rows, kind.numbers((channels, height, width)), generator=random).to(ctx.x))
    with torch.no_grad():
        code = into_ball((net.encode(ctx.x, partner)[0] - ctx.mean) / ctx.spread, float(space.radius))
    best, error = nearest(net, ctx, partner, code, float(space.radius), squared_error)
    images = _shown(net, ctx, best)
    return Panel(
        "Partners",
        f"Clean images, {kind.sentence} at random, and the nearest that the set comes to it (projected gradient descent in the ball).",
        torch.stack([ctx.x, partner, images, (images - partner).abs()], 1).clamp(0, 1).cpu(),
        rows=tuple(f"squared error {value:.2g}" for value in error.tolist()),
        cols=("clean", "partner", "nearest in the set", "difference"),
    )


def _facts(table: dict[str, Any]) -> list[Fact]:
    """What the card says, in words."""
    radius, quality, training = (table.get(key, {}) for key in ("radius", "quality", "training"))
    facts = []
    if "max" in radius:
        facts.append(
            Fact(
                "validated radius",
                f"{radius['validated']:g}",
                f"{radius['rule']}: {radius['max']:g} over {radius['pairs']:,} pairs of {radius['images']:,} images; mean "
                f"{radius['mean']:g}, quartiles {radius['p25']:g}, {radius['p50']:g}, {radius['p75']:g}; a new pair is covered with "
                f"probability {radius['covers_a_new_pair']:g}",
            )
        )
    if "coverage" in quality:
        cover = quality["coverage"]
        low, high = cover["pgd"]["interval_95"]
        facts.append(
            Fact(
                "coverage",
                f"{100 * cover['pgd']['share']:.1f} % ({100 * low:.1f} – {100 * high:.1f})",
                f"of {cover['n']:,} held-out pairs lie within a mean squared error of {cover['delta_mse']:.3g} of the set at radius "
                f"{quality['radius']:g} ({cover['rule']}); of the clean images themselves {100 * cover['identity']['share']:.1f} %",
            )
        )
        facts += [_smaller(row) for row in cover.get("by_radius", [])]
    facts += [_error(measure, quality) for measure in ORDER if measure in quality.get("mse", {})]
    if "beyond_the_truth" in quality:
        beyond = quality["beyond_the_truth"]
        facts.append(
            Fact(
                "distance to the true set",
                f"{beyond['surface']['median']:.3g}",
                f"median squared error from the ball's surface to the nearest true perturbation of the image, {beyond['pairs']} images; "
                f"{beyond['expected']['median']:.3g} for draws of the prior",
            )
        )
    if training:
        facts.append(Fact("learned by", f"{training['command']}", f"{training['read']}; {training['seconds']:,} s"))
    return facts


def _smaller(row: dict[str, Any]) -> Fact:
    low, high = row["interval_95"]
    return Fact(
        f"coverage at radius {row['radius']:g}", f"{100 * row['share']:.1f} % ({100 * low:.1f} – {100 * high:.1f})", "of the same pairs"
    )


def _error(measure: str, quality: dict[str, Any]) -> Fact:
    found = quality["mse"][measure]
    low, high = found["median_95"]
    return Fact(
        WORDS[measure], f"{found['median']:.3g} ({low:.3g} – {high:.3g})",
        f"median squared error per pixel over {quality['pairs']:,} held-out pairs, 95 % interval; mean {found['mean']:.3g}",
    )  # fmt: skip
