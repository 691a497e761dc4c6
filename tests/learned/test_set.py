"""The set learned(...): one ball per image whatever its neighbours, its own canvas, and one clear line for what does not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rbench
from command import rbench as run_rbench
from laws.given import given_images, images, rows
from rbench.attacks.evaluate import Passes
from rbench.attacks.lockstep import lockstep
from rbench.attacks.pgd import PGD
from rbench.data import sources
from rbench_core.errors import CardError, FileError, RbenchError, SpecError, UnknownName
from rbench_core.files import sha256_bytes
from rbench_threats import networks
from rbench_threats.cards import load
from rbench_threats.catalogue import build, resolve
from rbench_threats.learned import Learned, into_ball, length, validated
from rbench_threats.learned import networks as networks_of
from rbench_threats.spec import parse

SPACE = Learned("digits-rts", 4)
EPS = 28.0


def sizes(batch: int) -> Tensor:
    """Norms {3ε, 0, ε, ε/2} by turns."""
    return torch.tensor([3 * EPS, 0.0, EPS * (1 - 1e-6), EPS / 2]).repeat(-(-batch // 4))[:batch]


def law_one_ball_per_row(project: object, batch: int, shape: tuple[int, ...]) -> None:
    """Feasible rows unchanged, infeasible ones at norm ε (in float64, and never above), a row's result the same beside anybody."""
    raw = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)).flatten(1)
    code = (functional.normalize(raw.double(), dim=1) * sizes(batch)[:, None]).float()
    feasible = sizes(batch) < EPS
    found = project(code)  # type: ignore[operator]
    norm = found.double().norm(dim=1)
    assert torch.equal(found[feasible], code[feasible])
    assert (norm <= EPS).all()
    assert (norm[~feasible] >= EPS * (1 - 1e-5)).all()
    for row in range(0, batch, max(1, batch // 7)):
        assert torch.equal(project(code[row : row + 1])[0], found[row])  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(512,), (6272,), (128, 7, 7)], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 128, 1000])
def test_projection_is_a_ball_per_row(batch: int, shape: tuple[int, ...]) -> None:
    law_one_ball_per_row(lambda code: into_ball(code, EPS), batch, shape)


@pytest.mark.parametrize("batch", [1, 2, 128, 1000])
def test_the_released_projection_is_caught(batch: int) -> None:
    """`renorm(2, 1, ε)` bounds each latent coordinate over the batch: small batches stay outside, large ones shrink feasible rows."""
    with pytest.raises(AssertionError):
        law_one_ball_per_row(lambda code: torch.renorm(code, 2, 1, EPS), batch, (512,))


def test_float32_rounding_without_the_margin_is_caught() -> None:
    with pytest.raises(AssertionError):
        law_one_ball_per_row(lambda code: torch.renorm(code, 2, 0, EPS), 1000, (6272,))


def test_attacks_stay_in_the_ball_in_float64() -> None:
    data = sources.load("digits", n=64)
    net = networks_of(SPACE.card, torch.device("cpu"), torch.float32)
    given = given_images(SPACE, data.x)
    theta = SPACE.start(given.ctx, given.row)
    for turn in range(5):
        theta = SPACE.project(given.ctx, theta + torch.randn(theta.shape, generator=torch.Generator().manual_seed(turn)) * 3)
        assert float(length(theta).max()) <= 4
    shown = net.generate(given.ctx.x, given.ctx.mean + given.ctx.spread * theta)
    assert torch.equal(shown, SPACE.render(given.ctx, theta))


class Constant(nn.Module):
    """Always class 3, whatever the image, with a gradient of 0."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.one_hot(torch.full((len(x),), 3), 10).float() + 0 * x.sum((1, 2, 3))[:, None]


def test_a_gradient_of_zero_gives_no_nan_and_no_fall(tmp_path: Path) -> None:
    data = sources.load("digits", n=60)
    mine = (data.x[data.y == 3], data.y[data.y == 3])
    found = lockstep(Constant(), SPACE, PGD(steps=5, rate=0.2), *mine, spec="pgd", seed=0, passes=Passes())
    assert found.isfinite().all()
    report = rbench.evaluate(Constant(), threat="cvae-rts", dataset="digits", n=60, plan="pgd(steps=5)", results=tmp_path, site=False)
    statuses = {row["status"] for row in report.data["verdicts"] if data.y[row["index"]] == 3}
    assert statuses == {"survived"}


def test_verdicts_do_not_depend_on_the_batch_or_the_order() -> None:
    """Contexts and images, bit for bit: one at a time, permuted, in halves."""
    data = sources.load("digits", n=50)
    ctx = SPACE.context(data.x, rows(50))
    theta = SPACE.start(ctx, rows(50))
    whole = SPACE.render(ctx, theta)
    for order in (torch.tensor([7]), torch.randperm(50, generator=torch.Generator().manual_seed(0)), torch.arange(25)):
        part = SPACE.context(data.x[order], rows(len(order)))
        assert torch.equal(part.mean, ctx.mean[order])
        assert torch.equal(part.spread, ctx.spread[order])
        assert torch.equal(SPACE.render(part, theta[order]), whole[order])


def test_networks_are_frozen_and_in_eval_mode() -> None:
    net = networks_of(SPACE.card, torch.device("cpu"), torch.float32)
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert networks_of(SPACE.card, torch.device("cpu"), torch.float32) is net


class Unfolded(nn.Module):
    """A localisation as published: z → pixels → hidden, with nothing between the two maps."""

    def __init__(self, latent: int, pixels: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(latent, pixels), nn.Linear(pixels, hidden)

    def folded(self) -> nn.Linear:
        one = nn.Linear(self.first.in_features, self.second.out_features)
        one.weight.data = self.second.weight @ self.first.weight
        one.bias.data = self.second.weight @ self.first.bias + self.second.bias
        return one


def test_the_folded_transformer_equals_the_published_one() -> None:
    torch.manual_seed(0)
    stn = networks.Transformers((1, 28, 28), latent=16, hidden=64, count=3, mixed=4)
    for branch in stn.localise:
        branch[-1].weight.data.normal_(std=0.05)
    x, z = images((1, 28, 28), 8, 0), torch.randn(8, 16)
    wide = [Unfolded(16, 784, 64) for _ in range(3)]
    for branch, pair in zip(stn.localise, wide, strict=True):
        branch[0] = nn.Sequential(pair.first, pair.second)
    unfolded = stn(x, z)
    for branch, pair in zip(stn.localise, wide, strict=True):
        branch[0] = pair.folded()
    torch.testing.assert_close(stn(x, z), unfolded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28)], ids=str)
def test_at_first_every_warp_is_the_image(shape: tuple[int, int, int]) -> None:
    stn = networks.Transformers(shape, latent=8, hidden=16, count=3, mixed=4)
    x = images(shape, 5, 0)
    torch.testing.assert_close(stn.warps(x, torch.randn(5, 8)), x.repeat(1, 3, 1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "fc", "latent": 5, "hidden": 16},
        {"kind": "conv", "latent": 5, "channels": 4, "hidden": 16},
        {"kind": "stn", "latent": 5, "channels": 4, "hidden": 16, "count": 2, "mixed": 3, "local": 8},
    ],
    ids=lambda table: table["kind"],
)
def test_networks_draw_images_and_bound_their_variances(table: dict[str, object]) -> None:
    net = networks.build((1, 12, 8), table, "a card").eval()
    x = images((1, 12, 8), 6, 0)
    for scale in (1.0, 1e6):  # weights that run away: no overflow, no NaN
        for parameter in net.parameters():
            parameter.data.mul_(scale)
        mean, spread = net.condition(x)
        assert mean.shape == spread.shape == (6, 5)
        assert (spread >= 0.0316).all()
        assert (spread <= 3.163).all()
    shown = net.generate(x, torch.randn(6, 5))
    assert shown.shape == x.shape
    assert shown.min() >= 0
    assert shown.max() <= 1


# --- what is said and refused ---------------------------------------------------------------------------------------------------------


def test_a_radius_beyond_the_validated_one_is_said_in_the_run(tmp_path: Path) -> None:
    limit = validated(SPACE.card)
    assert Learned("digits-rts", limit).notes == ()
    beyond = Learned("digits-rts", limit + 1)
    assert str(limit) in beyond.notes[0]
    report = rbench.evaluate("digits-standard", threat=str(beyond), n=3, plan="pgd(steps=2)", results=tmp_path, site=False)
    assert any(str(beyond) in row["text"] and "validated" in row["text"] for row in report.data["warnings"])
    quiet = rbench.evaluate("digits-standard", threat="cvae-rts", n=3, plan="pgd(steps=2)", results=tmp_path, site=False)
    assert not any("validated" in row["text"] for row in quiet.data["warnings"])


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("learned(digits-rts, radius=0)", SpecError, "0 < radius"),
        ("learned(digits-rts, radius=-1)", SpecError, "0 < radius"),
        ("learned(digits-rts)", SpecError, "validated up to 4"),
        ("learned(digits-rts, radius=large)", SpecError, "a number"),
        ("learned(radius=2)", SpecError, "no name"),
        ("learned()", SpecError, "no name"),
        ("learned(digits-rts, radius=2, eps=1)", SpecError, "arguments"),
        ("learned(digits-rts, 2, radius=2)", SpecError, "arguments"),
        ("learned(digit-rts, radius=2)", UnknownName, "digits-rts"),
        ('learned("/nowhere/set.toml", radius=2)', CardError, "/nowhere/set.toml"),
    ],
)
def test_specs_that_say_what_is_wrong(spec: str, error: type[RbenchError], words: str) -> None:
    with pytest.raises(error) as caught:
        build(parse(spec))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_canvas_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"learned\(digits-rts\).*1x28x28.*1x8x8"):
        SPACE.check((1, 28, 28))
    SPACE.check((1, 8, 8))
    done = run_rbench("run", "--model", "mnist-standard", "--threat", "learned(digits-rts, radius=2)", "--results", str(tmp_path))
    if "mnist: " not in done.stderr:  # MNIST itself may be absent
        assert done.returncode == 2
        assert "1x8x8, the canvas that the set was learned on" in done.stderr


def copied(folder: Path, **changes: str) -> Path:
    """The shipped set as a user's file, with some text of the card replaced."""
    card = SPACE.card
    text = card.path.read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    shutil.copy(card.path.parent.parent / "weights" / "digits-rts.safetensors", folder)
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


def test_a_set_is_equal_by_content_and_prints_as_its_own_spec(tmp_path: Path) -> None:
    mine = Learned(str(copied(tmp_path)), 4)
    assert mine == SPACE
    assert mine.family == SPACE.family
    assert build(parse(str(mine))) == mine
    assert replace(mine, radius=5) != mine
    assert resolve("cvae-rts", "digits").members[0].family == SPACE.family


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("latent = 8", "latent = 9"), CardError, "not those of network"),
        (('kind = "stn"', 'kind = "gan"'), CardError, "one of: fc, conv, stn"),
        (("count = 1", 'count = "1"'), CardError, "network count"),
        (("local = 64", "width = 64"), CardError, "expected latent, channels, hidden, count, mixed, local"),
        (("validated = 4", "validated = nan"), CardError, "validated"),
        (('sha256 = "', 'sha256 = "0'), FileError, "SHA-256"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_cards_that_do_not_fit_are_refused(change: tuple[str, str], error: type[RbenchError], words: str, tmp_path: Path) -> None:
    path = copied(tmp_path, change=change)
    with pytest.raises(error) as caught:
        Learned(str(path), 2).notes  # noqa: B018
    assert words in str(caught.value)


def test_weights_of_nan_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.half() for name, tensor in load("learned", "digits-rts").tensors.items()}
    tensors["prior.mean.bias"][0] = torch.nan
    path = copied(tmp_path)
    data = save(tensors)
    (tmp_path / "digits-rts.safetensors").write_bytes(data)
    path.write_text(path.read_text().replace(SPACE.card.table["weights"]["sha256"], sha256_bytes(data)))
    with pytest.raises(CardError, match="NaN"):
        Learned(str(path), 2)


def test_the_portrait_is_the_same_twice_and_shows_what_it_says() -> None:
    x = sources.load("digits", n=6).x
    first, again = SPACE.portrait(x), SPACE.portrait(x)
    assert [panel.title for panel in first.panels] == ["Draws", "Walks", "Partners"]
    for panel, other in zip(first.panels, again.panels, strict=True):
        assert torch.equal(panel.images, other.images)
        assert panel.images.shape[2:] == (1, 8, 8)
        assert panel.images.min() >= 0
        assert panel.images.max() <= 1
        assert panel.cols == () or len(panel.cols) == panel.images.shape[1]
        assert panel.rows == () or len(panel.rows) == panel.images.shape[0]
    draws, walks, partners = (panel.images for panel in first.panels)
    assert torch.equal(draws[:, 0], x[:4])
    middle = walks.shape[1] // 2
    torch.testing.assert_close(walks[:, middle], draws[:1, 1].expand(len(walks), -1, -1, -1), rtol=0, atol=1e-6)
    moved = (walks - walks[:, middle : middle + 1]).abs().flatten(2).amax(2)
    assert (moved[:, 0] > 0.1).all(), "a strongest direction changes nothing"
    assert ((partners[:, 1] - partners[:, 2]).square().flatten(1).mean(1) < 0.01).all()
    assert {"validated radius", "coverage", "PGD approximation error", "distance to the true set"} <= {fact.name for fact in first.facts}
