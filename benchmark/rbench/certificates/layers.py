"""The quick way into a graph: a chain of layers of torch's own classes, read off without running torch.export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rbench.certificates.activations import ELU, Clamp, LeakyReLU, MaxPool, ReLU, Sigmoid
from rbench.certificates.affine import BatchNorm, Constant, Conv, Linear
from rbench.certificates.graph import Node, live
from rbench.certificates.moved import AvgPool, Reshape
from rbench.certificates.rules import Rule, Shape
from rbench_zoo.architectures import Normalise

Read = tuple[Rule, tuple[str | None, ...]]  # the rule and the names of the layer's tensors


def chain(module: nn.Module, shape: Shape) -> list[Node] | None:
    """The nodes of a chain of known layers; None where anything is not plain: another class, a hook, a parametrisation, another mode."""
    layers = _layers(module, "")
    if layers is None:
        return None
    nodes = [Node(Rule(), (), (), shape)]
    for name, layer in layers:
        for rule, tensors in _read(layer, nodes[-1].shape):
            if isinstance(rule, BatchNorm):
                rule = BatchNorm(rule.eps, name)
            own = tuple(None if each is None else live(module, f"{name}.{each}" if name else each) for each in tensors)
            size = _size(rule, own, nodes[-1].shape)
            nodes.append(Node(rule, (len(nodes) - 1,), own, size))
    return nodes


def _layers(module: nn.Module, name: str) -> list[tuple[str, nn.Module]] | None:
    """The layers in order with their full names."""
    if not _plain(module):
        return None
    if type(module) in READERS:
        return [(name, module)] if READERS[type(module)][0](module) else None
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return None
    found: list[tuple[str, nn.Module]] = []
    for key, child in module.named_children():
        inner = _layers(child, f"{name}.{key}" if name else key)
        if inner is None:
            return None
        found += inner
    return found if len(list(module.named_children())) == len(module) else None


def _plain(module: nn.Module) -> bool:
    """Whether calling it does what its class says: no hooks, no forward of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module) and type(module).__call__ is nn.Module.__call__


def _read(layer: nn.Module, shape: Shape) -> list[Read]:
    return READERS[type(layer)][1](layer, shape)


@torch.no_grad()
def _size(rule: Rule, own: tuple[Any, ...], shape: Shape) -> Shape:
    weights = tuple(None if fetch is None else fetch(None) for fetch in own)
    like = next((each for each in weights if each is not None), torch.zeros(()))
    return tuple(rule.value(weights, like.new_zeros((2, *shape))).shape[1:])


def _pair(value: int | Shape) -> Shape:
    """A setting that torch takes as one number or as one per axis."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv(layer: Any, shape: Shape) -> list[Read]:
    rule = Conv(_pair(layer.stride), _pair(layer.padding), _pair(layer.dilation), layer.groups)
    return [(rule, ("weight", None if layer.bias is None else "bias"))]


def _linear(layer: Any, shape: Shape) -> list[Read]:
    return [(Linear(), ("weight", None if layer.bias is None else "bias"))]


def _batch_norm(layer: Any, shape: Shape) -> list[Read]:
    own = ("weight", "bias") if layer.affine else (None, None)
    return [(BatchNorm(layer.eps), (*own, "running_mean", "running_var"))]


def _max_pool(layer: Any, shape: Shape) -> list[Read]:
    kernel, stride, padding, dilation = map(_pair, (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
    return [(MaxPool(kernel, stride, padding, dilation, layer.ceil_mode), ())]


def _avg_pool(layer: Any, shape: Shape) -> list[Read]:
    kernel, stride, padding = map(_pair, (layer.kernel_size, layer.stride, layer.padding))
    return [(AvgPool(kernel, stride, padding, layer.ceil_mode, layer.count_include_pad, layer.divisor_override), ())]


def _flatten(layer: Any, shape: Shape) -> list[Read]:
    flat = torch.zeros(1, *shape, device="meta").flatten(layer.start_dim, layer.end_dim)
    return [(Reshape(tuple(flat.shape[1:])), ())]


def _normalise(layer: Any, shape: Shape) -> list[Read]:
    return [(Constant("subtract"), ("mean",)), (Constant("divide"), ("std",))]


def _one(make: Callable[[Any], Rule]) -> Callable[[Any, Shape], list[Read]]:
    return lambda layer, shape: [(make(layer), ())]


def _always(layer: Any) -> bool:
    return True


READERS: dict[type, tuple[Callable[[Any], bool], Callable[[Any, Shape], list[Read]]]] = {
    nn.Conv2d: (lambda layer: layer.padding_mode == "zeros" and not isinstance(layer.padding, str), _conv),
    nn.Linear: (_always, _linear),
    nn.BatchNorm1d: (lambda layer: layer.running_mean is not None, _batch_norm),
    nn.BatchNorm2d: (lambda layer: layer.running_mean is not None, _batch_norm),
    nn.ReLU: (_always, _one(lambda layer: ReLU())),
    nn.LeakyReLU: (lambda layer: 0 <= layer.negative_slope <= 1, _one(lambda layer: LeakyReLU(layer.negative_slope))),
    nn.ELU: (lambda layer: layer.alpha == 1, _one(lambda layer: ELU())),
    nn.Hardtanh: (_always, _one(lambda layer: Clamp(layer.min_val, layer.max_val))),
    nn.ReLU6: (_always, _one(lambda layer: Clamp(0.0, 6.0))),
    nn.Sigmoid: (_always, _one(lambda layer: Sigmoid())),
    nn.Tanh: (_always, _one(lambda layer: Sigmoid(tanh=True))),
    nn.MaxPool2d: (lambda layer: not layer.return_indices, _max_pool),
    nn.AvgPool2d: (_always, _avg_pool),
    nn.Flatten: (lambda layer: layer.start_dim >= 1, _flatten),
    nn.Identity: (_always, lambda layer, shape: []),
    nn.Dropout: (_always, lambda layer, shape: []),
    Normalise: (_always, _normalise),
}
