"""Stored candidates: one prepared image per example, and what people say it shows. θ = (index,): 0 the clean image, 1 the candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rbench_core.errors import DataError, SpecError, UnknownName, UsageError
from rbench_core.files import reason, sha256_bytes
from rbench_threats import released
from rbench_threats.boxes import Linf
from rbench_threats.candidates import Candidates, check_distance, labelled, unpack
from rbench_threats.protocol import PIXEL_TOLERANCE, Fact, Panel, PerturbationSet, Portrait, Row, Scale
from rbench_threats.spec import Call, Exact, Value, parse, written_name

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows 1"]
Images = Float[Tensor, "rows c h w"]
RELEASED_SHAPE = (1, 28, 28)
SHOWN = 8  # candidates on a set's page


@dataclass(frozen=True, slots=True)
class Shown:
    """The context: the clean images and the candidate of each."""

    x: Float[Tensor, "rows c h w"]
    candidate: Float[Tensor, "rows c h w"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Each example's stored candidate, nothing in between (Tramèr et al. 2020). name: a released set, or the path of an .npz file.

    A released set is read when its images are first asked for, a file of one's own at once. Raises UnknownName, DataError.
    """

    name: str
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        known = released.RELEASED.get(self.name)
        if known is None and not self.name.endswith(".npz"):
            raise UnknownName("invariance set", self.name, released.RELEASED, fix="A file of your own is named by its path, NAME.npz.")
        object.__setattr__(self, "sha256", known.sha256 if known is not None else _own_digest(self.name))
        if known is None:
            _loaded(self.name, self.sha256)

    @classmethod
    def from_spec(cls, args: tuple[Value, ...], named: dict[str, Value]) -> Stored:
        """`invariance(NAME)` or `invariance("FILE.npz")`. Raises SpecError."""
        if named or len(args) != 1 or not isinstance(args[0], Call) or args[0].args or args[0].named:
            raise SpecError(
                "invariance: its arguments", expected=f'one of {", ".join(released.RELEASED)}, or a file as in invariance("my.npz")'
            )
        return cls(args[0].name)

    def __str__(self) -> str:
        return f"invariance({written_name(self.name)})"

    @property
    def family(self) -> str:
        return f"invariance:{self.sha256}"

    @property
    def extent(self) -> dict[str, Fraction]:
        """No radius: one stored set is no larger than another."""
        return {}

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"points", "examples", "labels", "portrait", *({"balls"} if self._declared() else ())})

    @property
    def sentence(self) -> str:
        known = released.RELEASED.get(self.name)
        if known is not None:
            return known.sentence
        return f"{len(self._found().adv)} images were changed; people said what each shows now, and the model should say the same."

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse another image size. Raises SpecError."""
        own = RELEASED_SHAPE if self.name in released.RELEASED else self._found().shape
        if shape != own:
            raise SpecError(f"{self}: images of shape {shape}", expected=f"{own}, the shape of its candidates")

    def examples(self) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """The clean images in [0, 1] and the labels of their data set. Raises DataError."""
        found = self._found()
        return _scaled(found.clean), torch.from_numpy(found.label.copy())

    def labels(self) -> Int64[Tensor, " n"]:
        """What people call each candidate."""
        human = self._found().human
        assert human is not None  # a set without labels is refused when it is read
        return torch.from_numpy(human.copy())

    def balls(self) -> dict[str, PerturbationSet]:
        """nominal: the declared ball; strict: the smallest linf ball that holds every candidate, rounded outward by less than 1e-6."""
        declared = self._declared()
        if declared is None:
            return {}
        nominal, levels = _ball(declared, self.name), float(self._found().distance().max())
        written = f"{math.ceil(round(levels * 1e4, 3)) / 1e4:.4f}".rstrip("0").rstrip(".")
        strict = Linf(Exact(f"{written}/255"))
        return {"nominal": nominal, "strict": nominal if strict.extent == nominal.extent else strict}

    def portrait(self, x: Images) -> Portrait:
        """Candidates that people call something else than before, beside their clean images, and the counts. x plays no part."""
        found, human = self._found(), self.labels().numpy()
        changed = np.flatnonzero(human != found.label)
        some = changed[np.linspace(0, len(changed) - 1, min(SHOWN, len(changed))).round().astype(int)]
        pairs = torch.stack([_scaled(found.clean[some]), _scaled(found.adv[some])], 1)
        words = tuple(f"image {found.index[i]}: {found.label[i]}, people read {human[i]}" for i in some)
        panel = Panel(
            "Candidates that people call something else", "clean image and stored candidate", pairs, words, ("clean", "candidate")
        )
        return Portrait((panel,) if len(some) else (), self._facts(found, len(changed)))

    def _facts(self, found: Candidates, changed: int) -> tuple[Fact, ...]:
        n, distance = len(found.adv), found.distance()
        whole = "8-bit candidates: one grey level of slack" if found.eight_bit else "candidates in floats: exact"
        return (
            Fact("candidates", str(n), f"SHA-256 {self.sha256[:16]}…"),
            Fact("people call it something else", f"{changed} of {n}", "one label per image; how many people agreed is not known"),
            Fact("no agreement, left out", str(found.unsettled)),
            Fact("largest linf distance", f"{distance.max() / 255:.4f} = {distance.max():g}/255", whole),
            Fact("declared ball", self._declared() or "none"),
        )

    def context(self, x: Images, row: Row) -> Shown:
        """The candidate of each row's example."""
        return Shown(x, _scaled(self._found().adv)[row.example.cpu()].to(x))

    def start(self, ctx: Shown, row: Row) -> Thetas:
        """The candidate: there is no other place to start from."""
        return ctx.x.new_ones(len(ctx.x), 1)

    def project(self, ctx: Shown, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        """The nearer of the indices 0 and 1; under a scale below 1 only 0 remains."""
        whole = torch.as_tensor(scale, device=theta.device).reshape(-1, 1) >= 1
        return ((theta > 0.5) & whole).to(theta)

    def steepest(self, ctx: Shown, grad: Thetas, share: Tensor | None = None) -> Thetas:
        return (grad > 0).to(grad)

    def gauge(self, ctx: Shown, theta: Thetas) -> Rows:
        return theta.abs().amax(1)

    def excess(self, ctx: Shown, theta: Thetas) -> Rows:
        """The distance to the nearer index: between them there is nothing."""
        return theta.abs().minimum((theta - 1).abs()).amax(1) - PIXEL_TOLERANCE

    def render(self, ctx: Shown, theta: Thetas) -> Images:
        """Exactly the clean image at 0 and the candidate at 1."""
        return torch.lerp(ctx.x, ctx.candidate, theta[:, :, None, None])

    def points(self, ctx: Shown) -> Float[Tensor, "k 1"]:
        """The candidate alone: the clean image is nothing that the adversary did, and its label there is another."""
        return ctx.x.new_ones(1, 1)

    def _found(self) -> Candidates:
        return _loaded(self.name, self.sha256)

    def _declared(self) -> str | None:
        known = released.RELEASED.get(self.name)
        return known.declared if known is not None else self._found().declared


@lru_cache(maxsize=64)
def _loaded(name: str, sha256: str) -> Candidates:
    """A set's file, read and checked once per process. Raises DataError."""
    known = released.RELEASED.get(name)
    data, path = released.read(name) if known is not None else (_bytes(name), Path(name))
    found = labelled(unpack(data, path), path)
    declared = known.declared if known is not None else found.declared
    if declared is not None:
        ball = _ball(declared, path)
        check_distance(found, float(ball.eps), path, ball)
    return found


def _ball(declared: str, where: object) -> Linf:
    """The ball of a file's `declared`. Raises DataError for another than linf."""
    from rbench_threats.catalogue import build

    try:
        ball: Any = build(parse(declared))
    except UsageError as error:
        raise DataError(f"{where}: declared = {declared!r}", expected="a ball such as linf(eps=0.3)") from error
    if getattr(ball, "norm", None) != math.inf:
        raise DataError(f"{where}: declared = {declared!r}", expected="a linf ball such as linf(eps=0.3), or no declaration")
    return ball  # type: ignore[no-any-return]


def _own_digest(name: str) -> str:
    return sha256_bytes(_bytes(name))


def _bytes(name: str) -> bytes:
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{name}: {reason(error)}", expected=f"a file, or one of: {', '.join(released.RELEASED)}") from error


def _scaled(images: Float[np.ndarray, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Grey levels as float32 in [0, 1]."""
    return torch.from_numpy(images) / 255
