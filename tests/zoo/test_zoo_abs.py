"""ABS against the paper's inference written out plainly, and what an evaluation needs of it: fixed starts, no neighbours, no gradient."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rbench_zoo.architectures.abs import ABS, CHUNK, draw
from rbench_zoo.load import content_digest

FACTORS = [1.0, 0.96, 1.001, 1.06, 0.98, 0.96, 1.03, 1.0, 1.0, 1.0]
STARTS = "151fb02735bbe325b747d9835f82802ad68f0a5d232de64885f64d457d2217af"  # SHA-256 of the 8,000 latents


def model(seed: int = 0, **settings: object) -> ABS:
    """A small search over ten random decoders whose batch norms do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ABS(**{"starts": 40, "steps": 8, **settings})  # type: ignore[arg-type]
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.running_mean, part.running_var, part.weight, part.bias):
                    nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
            if isinstance(part, nn.ConvTranspose2d):
                part.weight.data *= 2
    return net.eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def plain(net: ABS, x: Tensor) -> Tensor:
    """The same inference image by image and class by class: batch norm as a layer, torch's own Adam, no cache."""
    if net.threshold is not None:
        x = (x >= net.threshold).float()
    rows = []
    for image in x:
        elbos = []
        for digit in range(10):
            stack = net.get_submodule(f"VAE_{digit}.Decoder")

            def rebuilt(z: Tensor, stack: nn.Module = stack) -> Tensor:
                out = z.view(-1, 8, 1, 1)
                for i, stride in enumerate((1, 2, 2, 1)):
                    conv = stack.get_submodule(f"conv_{i}")
                    out = nn.functional.conv_transpose2d(out, conv.weight, conv.bias, stride=stride)  # type: ignore[arg-type]
                    out = nn.functional.elu(stack.get_submodule(f"bn_{i}")(out)) if i < 3 else out.sigmoid()
                return out

            def elbo(z: Tensor, image: Tensor = image) -> Tensor:
                return ((image - rebuilt(z)).square().flatten(1).sum(1) + z.square().sum(1) / 2) / 784

            with torch.no_grad():
                z = net.starts[elbo(net.starts).argmin()][None].clone()
            z.requires_grad_()
            adam = torch.optim.Adam([z], lr=0.05)
            for _ in range(net.steps - 1):
                adam.zero_grad()
                elbo(z).sum().backward()
                adam.step()
                with torch.no_grad():
                    z *= min(1.0, net.radius / z.norm().item())
            elbos.append(elbo(z).detach())
        rows.append(torch.cat(elbos))
    return -torch.stack(rows) * net.factors


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.5, "factors": FACTORS}])
@pytest.mark.parametrize("radius", [5.0, 1.5])
def test_it_is_the_inference_of_the_paper(settings: dict[str, object], radius: float) -> None:
    net, x = model(**settings), images(3)
    net.radius = radius
    torch.testing.assert_close(net(x), plain(net, x), rtol=1e-4, atol=1e-6)
    assert net(x).argmax(1).tolist() == plain(net, x).argmax(1).tolist()


def test_the_search_lowers_every_elbo() -> None:
    short, long = model(steps=1), model(steps=30)
    assert (long(images(4)) > short(images(4))).all()


def test_starts_are_one_draw_the_same_everywhere() -> None:
    z = draw(8000)
    assert hashlib.sha256(z.tobytes()).hexdigest() == STARTS
    assert z.shape == (8000, 8)
    norms = np.linalg.norm(z, axis=1)
    assert norms.max() < 3.7  # the tenth with the largest norms is gone: chi with 8 degrees of freedom has its 90 % point at 3.66
    assert abs(z.mean()) < 0.02
    assert 0.8 < z.std() < 0.95  # below 1 for the same reason


def test_starts_are_part_of_the_digest_and_not_of_the_state_dict() -> None:
    net = model()
    assert not [key for key in net.state_dict() if "starts" in key or "factors" in key]
    before = content_digest(net, None)
    net.starts[3, 5] += 2**-16
    assert content_digest(net, None) != before
    assert content_digest(model(factors=FACTORS), None) != before


def test_a_row_does_not_depend_on_its_neighbours_its_place_or_the_batch() -> None:
    net, x = model(), images(2 * CHUNK + 5)
    whole, order = net(x), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x[order]), whole[order])
    assert torch.equal(torch.cat([net(x[:1]), net(x[1:20]), net(x[20:])]), whole)


def test_it_works_in_every_mode_and_lets_no_gradient_out() -> None:
    net, x = model(), images(2)
    expected = net(x)
    given = x.clone().requires_grad_()
    assert not net(given).requires_grad
    net.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(net(x), expected)
    with torch.inference_mode():
        assert torch.equal(net(x.clone()), expected)
    assert torch.equal(x, images(2))


def test_weights_that_were_changed_are_seen() -> None:
    net, x = model(), images(2)
    before = net(x)
    net.load_state_dict(model(seed=1).state_dict())
    assert torch.equal(net(x), model(seed=1)(x))
    assert not torch.equal(net(x), before)
