"""Contextual budgets: uniform ones are linf bit for bit, ε(x) is a function of the image alone, figures of volume, refused files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from laws.given import images, rows
from laws.nets import linear_net
from rbench import evaluate
from rbench.attacks.build import build_attack, spec_of
from rbench.attacks.lockstep import lockstep
from rbench_core.errors import CardError, FileError, SpecError, UnknownName
from rbench_threats import volume
from rbench_threats.catalogue import build
from rbench_threats.contextual import Contextual
from rbench_threats.generator import Generator, OneMap
from rbench_threats.lp import Linf
from rbench_threats.normaliser import Range
from rbench_threats.spec import parse

HOUSE = Range(0.15, 0.075, 0.3)
SHAPE = (1, 8, 8)


def contextual(spec: str) -> Contextual:
    made = build(parse(spec))
    assert isinstance(made, Contextual)
    return made


def written(array: object, folder: Path, name: str = "my.npy") -> str:
    np.save(folder / name, np.asarray(array, dtype=np.float32))
    return f'"{folder / name}"'


def net() -> nn.Module:
    inner = linear_net(SHAPE, 16, seed=1, size=0.3)
    return nn.Sequential(inner, nn.Tanh(), linear_net((16, 1, 1), 6, seed=2)).requires_grad_(False)


@pytest.mark.parametrize("eps", ["0.3", "0.15", "8/255"])
def test_uniform_budgets_are_linf_bit_for_bit(eps: str) -> None:
    x, row = images(SHAPE, 24, 0), rows(24)
    one, other = contextual(f"contextual(uniform(eps={eps}))"), Linf(eps)
    a, b = one.context(x, row), other.context(x, row)
    theta = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    share = torch.full((24,), 0.3)
    for mine, theirs in (
        (one.start(a, row), other.start(b, row)), (one.project(a, theta), other.project(b, theta)),
        (one.project(a, theta, 0.3), other.project(b, theta, 0.3)), (one.project(a, theta, share), other.project(b, theta, share)),
        (one.steepest(a, theta), other.steepest(b, theta)), (one.gauge(a, theta), other.gauge(b, theta)),
        (one.excess(a, theta), other.excess(b, theta)), (one.opening(a, row), other.opening(b, row)),
        (one.move(a, theta, share, row), other.move(b, theta, share, row)),
        (one.box(a)[0], other.box(b)[0]), (one.box(a)[1], other.box(b)[1]),
    ):  # fmt: skip
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("attack", ["apgd(steps=20)", "pgd(steps=10)", "square(queries=60)"])
def test_an_attack_in_uniform_budgets_is_that_in_linf_bit_for_bit(attack: str) -> None:
    x, made = images(SHAPE, 24, 1), build_attack(parse(attack))
    label = net()(x).argmax(1)
    spaces = (contextual("contextual(uniform(eps=0.15))"), Linf("0.15"))
    one, other = (lockstep(net(), space, made, x, label, spec=spec_of(made), seed=0) for space in spaces)
    assert torch.equal(one, other)
    assert (one != x).any()


def test_steps_scale_with_the_budget_of_each_pixel(tmp_path: Path) -> None:
    eps = np.linspace(0.01, 0.4, 64).reshape(SHAPE)
    space, x = contextual(f"contextual({written(eps, tmp_path)})"), 0.5 + torch.zeros(4, *SHAPE)
    ctx = space.context(x, rows(4))
    step = space.steepest(ctx, torch.ones(4, 64))
    torch.testing.assert_close(step, torch.from_numpy(eps).float().view(1, 64).expand(4, -1))
    start = space.start(ctx, rows(4)) / step
    assert start.abs().amax(1).max() <= 1 + 1e-6
    assert start.abs().mean() > 0.3, "a start fills narrow pixels as it does wide ones"


@pytest.fixture(scope="module")
def generator() -> Generator:
    made = Generator(HOUSE, 1).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made.requires_grad_(False)


def test_a_generator_keeps_volume_and_range_and_sees_the_image_alone(generator: Generator) -> None:
    x = images(SHAPE, 40, 2).double()
    eps = generator(x).float()
    assert ((eps.double().log().flatten(1).mean(1) - math.log(0.15)).abs() < 1e-6).all()
    assert eps.min() >= torch.tensor(0.075)
    assert eps.max() <= torch.tensor(0.3)
    assert volume.contextual_share(eps) > 0.05
    again = generator.train()(x).float()
    assert torch.equal(eps, again), "train mode changes nothing"


def test_the_shipped_budgets_do_not_depend_on_batch_or_mode() -> None:
    space, x = contextual("contextual(digits-budgets)"), images(SHAPE, 33, 3)
    together = space.context(x, rows(33)).reach
    for part in (slice(0, 1), slice(5, 8), slice(16, 33)):
        assert torch.equal(space.context(x[part], rows(len(x[part]))).reach, together[part])
    other = rows(33)._replace(label=torch.arange(33) % 10, restart=torch.ones(33, dtype=torch.long))
    assert torch.equal(space.context(x, other).reach, together), "the label is nothing to them"
    assert not space.context(x.clone().requires_grad_(), rows(33)).reach.requires_grad
    assert ((together.double().log().mean(1) - math.log(0.15)).abs() < 1e-6).all()


def test_one_map_is_one_map() -> None:
    module = OneMap(HOUSE, 8, 8)
    module.map.data += torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    eps = module(images((3, 8, 8), 5, 0)).detach()
    assert eps.shape == (5, 3, 8, 8)
    assert (eps == eps[:1, :1]).all()
    assert volume.contextual_share(eps) < 1e-12
    assert float(volume.nominal(eps).mean or 0) == pytest.approx(0.15, abs=1e-6)


def test_arrays_as_they_are_by_pixel_by_channel_and_by_index(tmp_path: Path) -> None:
    x, random = images((3, 8, 8), 6, 0), np.random.default_rng(0)
    flat, full, many = random.uniform(0, 0.3, (1, 8, 8)), random.uniform(0, 0.3, (3, 8, 8)), random.uniform(0, 0.3, (6, 3, 8, 8))
    for i, array in enumerate((flat, full, many)):
        space = contextual(f"contextual({written(array, tmp_path, f'{i}.npy')})")
        expected = torch.from_numpy(np.broadcast_to(array, x.shape).astype(np.float32))
        assert torch.equal(space.context(x, rows(6)).reach.view_as(x), expected)
    back = torch.tensor([5, 2])
    assert torch.equal(space.context(x[back], rows(6)._replace(example=back)).reach.view(2, 3, 8, 8), expected[back])
    with pytest.raises(SpecError, match="budgets of 6 images"):
        space.context(x[:1], rows(1)._replace(example=torch.tensor([6])))
    with pytest.raises(SpecError, match="without a place"):
        space.context(x[:1], rows(1)._replace(example=torch.tensor([-1])))


def test_a_projected_array_has_the_volume_that_was_asked(tmp_path: Path) -> None:
    file = written(np.random.default_rng(0).uniform(0, 1, (4, 1, 8, 8)), tmp_path)
    space = contextual(f"contextual(projected({file}, volume=0.15, low=0.075, high=0.3))")
    reach = space.context(images(SHAPE, 4, 0), rows(4)).reach
    assert ((reach.double().log().mean(1) - math.log(0.15)).abs() < 1e-6).all()
    assert build(parse(str(space))) == space


def test_equal_content_is_one_set_whatever_the_file_is_called(tmp_path: Path) -> None:
    array = np.random.default_rng(0).uniform(0.1, 0.2, SHAPE).astype(np.float32)
    save_file({"eps": array}, tmp_path / "b.safetensors")
    np.savez(tmp_path / "c.npz", array)
    named = [written(array, tmp_path, "a.npy"), *(f'"{tmp_path / name}"' for name in ("b.safetensors", "c.npz"))]
    sets = [contextual(f"contextual({name})") for name in named]
    assert sets[0] == sets[1] == sets[2]
    assert len({space.family for space in sets}) == 1
    written(array + 0.01, tmp_path, "a.npy")
    assert contextual(f"contextual({named[0]})").family != sets[1].family


def test_zero_budgets_are_legal_and_their_volume_is_said_to_be_undefined(tmp_path: Path) -> None:
    array = np.full(SHAPE, 0.2)
    array[0, :2] = 0
    space, x = contextual(f"contextual({written(array, tmp_path)})"), images(SHAPE, 8, 0)
    ctx = space.context(x, rows(8))
    theta = space.project(ctx, torch.ones(8, 64))
    assert (theta[:, :16] == 0).all()
    assert (space.gauge(ctx, theta) <= 1 + 1e-6).all()
    assert (space.gauge(ctx, torch.full((8, 64), 1e-3)) == torch.inf).all()
    facts = {fact.name: fact.value for fact in space.portrait(x).facts}
    assert facts["Volume"] == "undefined, 128 values have budget 0"
    assert "nan" not in str(facts).lower()


def test_volume_by_hand() -> None:
    x, eps = torch.tensor([0.0, 0.5, 1.0, 0.9]).view(1, 1, 2, 2), torch.tensor([0.2, 0.2, 0.4, 0.3]).view(1, 1, 2, 2)
    assert volume.nominal(eps).mean == pytest.approx((0.2 * 0.2 * 0.4 * 0.3) ** 0.25)
    assert volume.clipped(eps, x).mean == pytest.approx((0.1 * 0.2 * 0.2 * 0.2) ** 0.25)
    assert volume.at_bounds(eps, Range(0.25, 0.2, 0.4)) == (0.5, 0.25)


def test_the_probe_reads_what_is_there_and_nothing_else() -> None:
    random = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (600,), generator=random)
    told = torch.randn(600, 1, 4, 4, generator=random) + 3 * nn.functional.one_hot(label, 16).view(600, 1, 4, 4)
    noise = torch.randn(600, 1, 4, 4, generator=random)
    assert volume.probe(told[:400], label[:400], told[400:], label[400:], 3) > 0.9
    assert volume.probe(noise[:400], label[:400], noise[400:], label[400:], 3) < 0.5


def test_the_portrait_shows_the_map_beside_the_image() -> None:
    space, x = contextual("contextual(digits-budgets)"), images(SHAPE, 12, 0)
    drawn = space.portrait(x)
    (panel,) = drawn.panels
    assert panel.images.shape == (4, 8, *SHAPE)
    assert torch.equal(panel.images[0], x[:8])
    assert 0 <= float(panel.images.min()) <= float(panel.images.max()) <= 1
    assert (panel.images[2] <= panel.images[0]).all()
    assert (panel.images[0] <= panel.images[3]).all()
    facts = {fact.name: fact.value for fact in drawn.facts}
    assert facts["Volume"] == "0.15"
    assert facts["Play"] == "0.50"
    assert float(facts["Clipped volume"]) < 0.15


def _bad(array: Tensor | np.ndarray, tmp_path: Path) -> str:
    return f"contextual({written(array, tmp_path)})"


def test_bad_arrays_are_one_clear_line(tmp_path: Path) -> None:
    ok = np.full(SHAPE, 0.1)
    cases = [
        (np.where(np.arange(64).reshape(SHAPE) == 3, -0.1, ok), SpecError, "negative, -0.1"),
        (np.where(np.arange(64).reshape(SHAPE) == 3, np.nan, ok), SpecError, "NaN or infinite"),
        (np.where(np.arange(64).reshape(SHAPE) == 3, np.inf, ok), SpecError, "NaN or infinite"),
        (np.ones((8, 8)), SpecError, r"shape \(8, 8\)"),
        (np.ones((0, 1, 8, 8)), SpecError, "shape"),
    ]
    for array, error, told in cases:
        with pytest.raises(error, match=told) as caught:
            build(parse(_bad(array, tmp_path)))
        assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="are for images of 1 x 8 x 8, not 1 x 28 x 28"):
        build(parse(_bad(ok, tmp_path))).check((1, 28, 28))
    with pytest.raises(SpecError, match="1 x 8 x 8"):
        contextual("contextual(digits-budgets)").check((1, 28, 28))


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        ("contextual()", SpecError, "BUDGETS"),
        ("contextual(0.3)", SpecError, "uniform"),
        ("contextual(uniform(eps=0))", SpecError, "0 < eps"),
        ("contextual(uniform(volume=0.3))", SpecError, "eps"),
        ("contextual(uniform(eps=0.3), scale=0)", SpecError, "0 < scale"),
        ("contextual(uniform(eps=0.3), radius=2)", SpecError, "scale"),
        ("contextual(uniform(eps=0.3), 1, 2)", SpecError, "scale"),
        ("contextual(digit-budgets)", UnknownName, "digits-budgets"),
        ("contextual(linf(eps=0.3))", SpecError, "uniform"),
        ('contextual("none.npy")', FileError, "none.npy"),
        ('contextual("none.toml")', CardError, "none.toml"),
        ('contextual(projected("none.npy"))', SpecError, "volume, low, high"),
        ("contextual(projected(0.3, volume=0.3, low=0.1, high=1))", SpecError, "a file"),
        ('contextual(projected("none.npy", volume=0.3, low=0.4, high=1))', SpecError, "impossible"),
    ],
)
def test_bad_specs_are_one_clear_line(spec: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        build(parse(spec))
    assert "\n" not in str(caught.value)


def test_broken_files_and_cards_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "no.npy").write_bytes(b"nothing")
    np.savez(tmp_path / "two.npz", np.ones(3), np.ones(3))
    for name, told in (("no.npy", "cannot be read"), ("two.npz", "2 arrays")):
        with pytest.raises(FileError, match=told):
            build(parse(f'contextual("{tmp_path / name}")'))
    from rbench_threats import cards

    built_in = cards.built_in()["digits-budgets"].path
    weights = built_in.parent.parent / "weights" / "digits-budgets.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    text = built_in.read_text()
    for old, new, told in (
        ("high = 0.3", "high = 0.1", "impossible"), ('form = "generator"', 'form = "oracle"', "form"),
        ("width = 16", "width = 8", "size mismatch"), ("volume = 0.15\nlow", "low", "volume"),
    ):  # fmt: skip
        assert old in text
        (tmp_path / "card.toml").write_text(text.replace(old, new))
        with pytest.raises(CardError, match=told) as caught:
            build(parse(f'contextual("{tmp_path / "card.toml"}")'))
        assert "\n" not in str(caught.value)
    (tmp_path / "card.toml").write_text(text)
    assert build(parse(f'contextual("{tmp_path / "card.toml"}")')) == contextual("contextual(digits-budgets)")


def test_a_run_in_uniform_budgets_answers_as_one_in_linf_does(tmp_path: Path) -> None:
    """Certificates, engine and referee from end to end: every status, attack and count of passes."""
    reports = [
        json.loads(evaluate("digits-ibp", threat=threat, n=40, plan="apgd", results=tmp_path).to_json())
        for threat in ("linf(eps=0.2)", "contextual(uniform(eps=0.2))")
    ]
    told = ("index", "label", "status", "attack", "predicted")
    one, other = ([{key: row[key] for key in told} for row in report["verdicts"]] for report in reports)
    assert one == other
    assert {row["status"] for row in one} >= {"certified", "broken"}
    assert reports[0]["cost"]["forward"] == reports[1]["cost"]["forward"] > 0
