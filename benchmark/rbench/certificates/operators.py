"""From torch's operators (ATen, after torch.export) to rules: what each argument means, and what is refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from rbench.certificates.activations import ELU, Clamp, LeakyReLU, MaxPool, ReLU, Sigmoid
from rbench.certificates.affine import BatchNorm, Cat, Conv, Linear, Sum
from rbench.certificates.affine import Constant as WithConstant
from rbench.certificates.call import Call, Constant, Made, Place, Refusal, Symbol
from rbench.certificates.moved import AdaptiveAvgPool, AvgPool, Mean, Pad, Permute, Reshape, Slice
from rbench.certificates.rules import Rule, Shape

Reader = Callable[[Call], Made]


# --- with weights ---------------------------------------------------------------------------------------------------------------------


def _convolution(call: Call) -> Made:
    padding = call["padding"]
    kernel = call.arguments["weight"]
    if isinstance(padding, str):
        padding = _named_padding(padding, kernel, call.pair("dilation"))
    sides = tuple(int(each) for each in padding)
    rule = Conv(call.pair("stride"), sides * 2 if len(sides) == 1 else sides, call.pair("dilation"), int(call["groups"]))
    return Made(rule, [call.place("input")], [call.constant("weight"), call.constant("bias")])


def _named_padding(word: str, kernel: Any, dilation: Shape) -> Shape:
    """Of "valid" and "same"; the latter is refused where the two sides would differ."""
    if word == "valid":
        return (0, 0)
    if not isinstance(kernel, Constant):
        raise Refusal("has a weight that depends on the image")
    frame = [spread * (side - 1) for spread, side in zip(dilation, kernel.fetch(None).shape[-2:], strict=True)]
    if any(each % 2 for each in frame):
        raise Refusal('has padding "same" around an even kernel')
    return tuple(each // 2 for each in frame)


def _linear(call: Call) -> Made:
    return Made(Linear(), [call.place("input")], [call.constant("weight"), call.constant("bias")])


def _product(call: Call, right: str, left: str = "self", bias: Constant | None = None) -> Made:
    matrix = call.arguments[right]
    if isinstance(matrix, Place):
        raise Refusal("multiplies two things that both depend on the image")
    if not isinstance(matrix, Constant) or matrix.fetch(None).ndim != 2:
        raise Refusal("is known with a constant matrix on the right only")
    return Made(Linear(), [call.place(left)], [Constant(lambda dtype: matrix.fetch(dtype).t()), bias])


def _addmm(call: Call) -> Made:
    if call["beta"] != 1 or call["alpha"] != 1:
        raise Refusal("is known with alpha = beta = 1 only")
    bias = call.constant("self")
    if bias is None or bias.fetch(None).ndim > 1:
        raise Refusal("is known with one bias per column only")
    return _product(call, "mat2", "mat1", bias)


def _batch_norm(call: Call) -> Made:
    tensors = [call.constant(key) for key in ("weight", "bias", "running_mean", "running_var")]
    mean = tensors[2]
    if call.arguments.get("training") or mean is None or tensors[3] is None:
        raise Refusal("takes the statistics of its batch")
    return Made(BatchNorm(float(call["eps"]), mean.name.rpartition(".")[0]), [call.place("input")], tensors)


# --- element by element and sums --------------------------------------------------------------------------------------------------------


def _plus(sign: float) -> Reader:
    def read(call: Call) -> Made:
        factor = float(call.arguments.get("alpha", 1)) * sign
        first, second = call.arguments["self"], call.arguments["other"]
        if isinstance(first, Place) and isinstance(second, Place):
            _same_rank(first, second)
            return Made(Sum(factor), [first, second])
        if isinstance(first, Place):
            return _with_constant("add" if sign > 0 else "subtract", first, second, abs(factor) == 1)
        return _with_constant("add" if sign > 0 else "from", call.place("other"), first, abs(factor) == 1)

    return read


def _from(call: Call) -> Made:
    """other − self, of a number or a tensor."""
    if isinstance(call.arguments["other"], Place):
        return _plus(-1.0)(Call({**call.arguments, "self": call.arguments["other"], "other": call.arguments["self"]}, call.out))
    return _with_constant("from", call.place(), call.arguments["other"], call.arguments.get("alpha", 1) == 1)


def _with_constant(kind: str, place: Place, other: Any, plain: bool = True) -> Made:
    if not plain:
        raise Refusal("is known with alpha = 1 only")
    if isinstance(other, Symbol):
        raise Refusal("takes a number from the batch size")
    if not isinstance(other, Constant):
        return Made(WithConstant(kind, float(other)), [place])
    shape = other.fetch(None).shape
    if len(shape) > len(place.shape) + 1 or (len(shape) == len(place.shape) + 1 and shape[0] != 1):
        raise Refusal("has a constant that differs from image to image")
    return Made(WithConstant(kind), [place], [other])


def _same_rank(first: Place, second: Place) -> None:
    if len(first.shape) != len(second.shape):
        raise Refusal("joins nodes of different rank")


def _times(call: Call) -> Made:
    first, second = call.arguments["self"], call.arguments["other"]
    if isinstance(first, Place) and isinstance(second, Place):
        raise Refusal("multiplies two things that both depend on the image")
    return _with_constant("multiply", first, second) if isinstance(first, Place) else _with_constant("multiply", second, first)


def _over(call: Call) -> Made:
    if not isinstance(call.arguments["self"], Place) or isinstance(call.arguments["other"], Place):
        raise Refusal("divides by something that depends on the image")
    if call.arguments.get("rounding_mode") is not None:
        raise Refusal("rounds")
    return _with_constant("divide", call.place(), call.arguments["other"])


def _cat(call: Call) -> Made:
    places = call.arguments["tensors"]
    if not all(isinstance(each, Place) for each in places):
        raise Refusal("joins the image with a constant")
    rank = len(places[0].shape) + 1
    dim = int(call["dim"]) % rank
    if dim == 0 or any(len(each.shape) + 1 != rank for each in places):
        raise Refusal("works along the batch")
    return Made(Cat(dim), places)


# --- activations and pooling ------------------------------------------------------------------------------------------------------------


def _simple(rule: Rule) -> Reader:
    return lambda call: Made(rule, [call.place()])


def _leaky(call: Call) -> Made:
    slope = float(call["negative_slope"])
    if not 0 <= slope <= 1:
        raise Refusal(f"has slope {slope:g}, outside 0 to 1")
    return Made(LeakyReLU(slope), [call.place()])


def _elu(call: Call) -> Made:
    if (call["alpha"], call["scale"], call["input_scale"]) != (1, 1, 1):
        raise Refusal("is known with alpha = 1 only")
    return Made(ELU(), [call.place()])


def _clamp(low: str, high: str) -> Reader:
    def read(call: Call) -> Made:
        ends = [None if call.arguments.get(key) is None else float(call[key]) for key in (low, high)]
        if ends == [None, None]:
            raise Refusal("has tensors as its ends")
        if any(end is not None and math.isinf(end) for end in ends) or (None not in ends and ends[0] > ends[1]):  # type: ignore[operator]
            raise Refusal(f"clamps to {ends[0]} … {ends[1]}")
        return Made(Clamp(*ends), [call.place()])

    return read


def _max_pool(call: Call) -> Made:
    kernel = call.pair("kernel_size")
    rule = MaxPool(kernel, call.pair("stride", kernel), call.pair("padding"), call.pair("dilation"), bool(call["ceil_mode"]))
    return Made(rule, [_image(call)])


def _avg_pool(call: Call) -> Made:
    kernel, divisor = call.pair("kernel_size"), call["divisor_override"]
    if divisor is not None and divisor <= 0:
        raise Refusal("divides by a number that is not positive")
    rest = bool(call["ceil_mode"]), bool(call["count_include_pad"]), divisor
    return Made(AvgPool(kernel, call.pair("stride", kernel), call.pair("padding"), *rest), [_image(call)])


def _image(call: Call) -> Place:
    place = call.place()
    if len(place.shape) != 3:
        raise Refusal(f"is known on images, not on {list(place.shape)} per row")
    return place


def _adaptive(call: Call) -> Made:
    return Made(AdaptiveAvgPool(call.out[-2:]), [_image(call)])


def _mean(summed: bool) -> Reader:
    def read(call: Call) -> Made:
        if call.arguments.get("dtype") is not None:
            raise Refusal("changes the number type")
        dims = call["dim"] or None
        if dims is None:
            raise Refusal("works along the batch")
        return Made(Mean(tuple(sorted(call.counted(int(dim)) for dim in dims)), bool(call["keepdim"]), summed), [call.place()])

    return read


# --- moved ------------------------------------------------------------------------------------------------------------------------------


def _reshape(call: Call) -> Made:
    return Made(Reshape(call.out), [call.place()])


def _permute(call: Call) -> Made:
    rank = len(call.place().shape) + 1
    dims = tuple(int(dim) % rank for dim in call["dims"])
    if dims[0] != 0:
        raise Refusal("moves the batch to another axis")
    return Made(Permute(dims), [call.place()])


def _transpose(call: Call) -> Made:
    dims = list(range(len(call.place().shape) + 1))
    first, second = call.axis("dim0"), call.axis("dim1")
    dims[first], dims[second] = dims[second], dims[first]
    return Made(Permute(tuple(dims)), [call.place()])


def _slice(call: Call) -> Made:
    start, end, step = int(call["start"] or 0), call.arguments["end"], int(call["step"])
    dim = int(call["dim"])
    if dim == 0 and start == 0 and step == 1 and (end is None or end == sys.maxsize):
        return Made(None, [call.place()])
    dim, stop = call.counted(dim), call["end"]
    size = call.place().shape[dim - 1]
    first, last, _ = slice(start, None if stop is None else int(stop)).indices(size)
    return Made(Slice(dim, first, last, step), [call.place()])


def _select(call: Call) -> Made:
    dim = call.axis()
    index = int(call["index"]) % call.place().shape[dim - 1]
    return Made(Slice(dim, index, index + 1, drop=True), [call.place()])


def _pad(call: Call) -> Made:
    fill, widths = float(call["value"]), tuple(int(each) for each in call["pad"])
    if not math.isfinite(fill):
        raise Refusal(f"pads with {fill:g}")
    if len(widths) > 2 * len(call.place().shape):
        raise Refusal("works along the batch")
    return Made(Pad(widths, fill), [call.place()])


# --- left as they are -------------------------------------------------------------------------------------------------------------------


def _same(call: Call) -> Made:
    return Made(None, [call.place("input" if "input" in call.arguments else "self")])


def _dropout(call: Call) -> Made:
    if call["train"]:
        raise Refusal("draws random numbers")
    return Made(None, [call.place("input")])


def _first(call: Call) -> Made:
    """The first of several results; the others (indices, statistics) have no bounds."""
    if call["1"] != 0:
        raise Refusal("takes a second result")
    return Made(None, [call.place("0")])


OPERATORS: dict[str, Reader] = {
    "conv2d": _convolution,
    "linear": _linear,
    "addmm": _addmm,
    "mm": lambda call: _product(call, "mat2"),
    "matmul": lambda call: _product(call, "other"),
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _plus(1.0),
    "sub": _plus(-1.0),
    "rsub": _from,
    "mul": _times,
    "div": _over,
    "neg": lambda call: Made(WithConstant("multiply", -1.0), [call.place()]),
    "cat": _cat,
    "relu": _simple(ReLU()),
    "leaky_relu": _leaky,
    "elu": _elu,
    "sigmoid": _simple(Sigmoid()),
    "tanh": _simple(Sigmoid(tanh=True)),
    "hardtanh": _clamp("min_val", "max_val"),
    "relu6": _simple(Clamp(0.0, 6.0)),
    "clamp": _clamp("min", "max"),
    "clamp_min": _clamp("min", ""),
    "clamp_max": _clamp("", "max"),
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive,
    "_adaptive_avg_pool2d": _adaptive,
    "mean": _mean(summed=False),
    "sum": _mean(summed=True),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "constant_pad_nd": _pad,
    "pad": lambda call: _named_pad(call),
    **dict.fromkeys(("clone", "alias", "detach", "contiguous", "lift_fresh_copy"), _same),
    "dropout": _dropout,
    "getitem": _first,
}


def _named_pad(call: Call) -> Made:
    if call["mode"] != "constant":
        raise Refusal(f"has mode {call['mode']!r}; known is constant")
    return _pad(Call({**call.arguments, "value": call.arguments.get("value") or 0.0}, call.out))
