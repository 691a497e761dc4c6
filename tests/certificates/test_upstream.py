"""Agreement with auto_LiRPA (Zhang, Xu et al.), where somebody has installed 0.7 or newer: its own metadata resolve on no current torch."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from certificates.nets import IMAGE, Residual, Said, ready
from rbench.certificates import crown, ibp
from rbench.certificates.graph import trace


def library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = import_module("auto_LiRPA")
        except ImportError as reason:
            pytest.skip(f"auto_LiRPA is not installed: {reason}")
    version = tuple(int(part) for part in found.__version__.split(".")[:2])
    if version < (0, 7):
        pytest.skip(f"auto_LiRPA {found.__version__} is older than 0.7")
    return found


def conv_net() -> nn.Module:
    parts = [nn.Conv2d(2, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))


def smooth_net() -> nn.Module:
    return Said(lambda x, a, b: b(a(x).relu()).relu() + 0.5, nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3))


@pytest.mark.parametrize(("build", "methods"), [(conv_net, ("IBP", "CROWN-IBP")), (smooth_net, ("IBP", "CROWN-IBP")), (Residual, ("IBP",))])
def test_margins_are_those_of_auto_lirpa(build: Any, methods: tuple[str, ...]) -> None:
    """Without merging the last layer theirs are C·z of the same boxes; residual joins fail in its CROWN-IBP."""
    lirpa = library()
    net = ready(build()).float()
    noise = torch.Generator().manual_seed(0)
    x = torch.rand((3, *IMAGE), generator=noise)
    width = 0.02 * torch.rand(x.shape, generator=noise)
    graph = trace(net, IMAGE)
    label = torch.arange(3) % graph.classes
    specs = ibp.differences(label, graph.classes, x)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        bounded = lirpa.BoundedModule(net, x, bound_opts={"conv_mode": "matrix"})
        point = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=torch.inf, x_L=x - width, x_U=x + width))
        for method, ours in zip(methods, (ibp, crown), strict=False):
            theirs, _ = bounded.compute_bounds(x=(point,), C=specs, method=method, bound_upper=False)
            torch.testing.assert_close(ours.margins(graph, x - width, x + width, label), theirs, rtol=1e-4, atol=1e-4)
