"""One look: the model at the θ that an attack asks for. Shared by both drivers; counts every row that the model saw, and what it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench.attacks.losses import margin
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Attack, Phase, Seen
from rbench.attacks.widths import at_most
from rbench_core.errors import ModelError
from rbench_threats.protocol import Context, PerturbationSet

Model: TypeAlias = Callable[[Tensor], Tensor]


HUGE = 1e30  # an infinite gradient, where the arithmetic of a step still holds


class Crash(Exception):
    """The model raised, or returned no logits; the words are its own, in one line."""


class OutOfMemory(Exception):
    """The batch does not fit: half of it may."""


@dataclass(slots=True)
class Passes:
    """What the model saw, in rows: padding counts in forward and backward, not in useful. And wall seconds, on a CPU.

    model_seconds: in the model, backward passes included; step_seconds: in what attack and set compute. The rest of a stage is the
    engine's. On another device nobody waits for the end of a call, and both are 0.
    """

    forward: int = 0
    backward: int = 0
    useful: int = 0
    model_seconds: float = 0.0
    step_seconds: float = 0.0
    timed: bool = field(default=True, repr=False, compare=False)
    _since: float = field(default=0.0, repr=False, compare=False)

    def add(self, other: Passes) -> None:
        """Sum up."""
        self.forward += other.forward
        self.backward += other.backward
        self.useful += other.useful
        self.model_seconds += other.model_seconds
        self.step_seconds += other.step_seconds

    def lap(self, spent: Literal["model", "step"] | None = None) -> None:
        """What has passed since the last lap was spent so; None: by the engine, which nobody sums up."""
        if self.timed:
            now = perf_counter()
            if spent == "model":
                self.model_seconds += now - self._since
            elif spent == "step":
                self.step_seconds += now - self._since
            self._since = now


def look(
    model: Model,
    space: PerturbationSet,
    attack: Attack,
    ctx: Context,
    row: Row,
    theta: Tensor,
    kind: Phase,
    passes: Passes,
    checked: bool = False,
) -> Seen:
    """Logits, margin, loss and, in a "gradient" phase, d loss / d θ at theta (rows, P). checked: trust no attack to stay inside."""
    passes.forward += theta.shape[0]
    passes.lap()
    asked = theta.detach().requires_grad_(kind == "gradient")
    with torch.set_grad_enabled(kind == "gradient"):
        images = space.render(ctx, asked)
        passes.lap("step")
        logits = called(model, images)
        passes.lap("model")
        loss = attack.loss(logits, row)
        passes.lap("step")
        grad = None
        if kind == "gradient":
            passes.backward += theta.shape[0]
            (grad,) = gradient(loss, asked)
            passes.lap("model")
    logits, loss = logits.detach(), loss.detach()
    inside = None if attack.stays_inside and not checked else space.excess(ctx, theta) <= 0
    passes.lap("step")
    lead = margin(logits, row.label)
    if grad is None:
        return Seen(logits, lead, loss, inside, grad, lead.isfinite())
    # the sign of NaN is 0: an attack that followed it would stand still, and one that kept it would poison what it remembers
    sound = (lead + grad.sum(1)).isfinite()
    return Seen(logits, lead, loss, inside, grad.nan_to_num_(0.0, HUGE, -HUGE), sound)


def called(model: Model, images: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows classes"]:
    """The model's float32 logits. Raises Crash or OutOfMemory, never the model's own exception."""
    try:
        logits = model(images)
    except Exception as error:
        raise _named(error) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != images.shape[0]:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise Crash(f"the model returned {shape} for {len(images)} images")
    return logits.float()


def gradient(loss: Float[Tensor, " rows"], theta: Tensor) -> tuple[Tensor]:
    """d Σ loss / d θ; a model that cuts the graph is named as such. Raises ModelError, Crash, OutOfMemory."""
    try:
        return torch.autograd.grad(loss, theta, torch.ones_like(loss))  # type: ignore[return-value]
    except Exception as error:
        if "does not require grad" in str(error) or "not have been used" in str(error):
            raise ModelError(
                "the model gives no gradient to its input",
                expected="a differentiable model",
                fix="Take --plan queries, whose attacks need none, or say gradient = false in its card.",
            ) from error
        raise _named(error) from error


def _named(error: Exception) -> Exception:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "can't allocate memory" in text:
        return OutOfMemory(text)
    return Crash(f"the model raised {type(error).__name__}: {text}")


def clean_logits(model: Model, x: Float[Tensor, "n c h w"], width: int, passes: Passes) -> tuple[list[Tensor | None], dict[int, str]]:
    """Logits of clean images, each (classes,), in batches of one width; None where the model crashed on that image, with the reason."""
    found: list[Tensor | None] = [None] * len(x)
    reasons: dict[int, str] = {}
    pending = [(part, width) for part in torch.arange(len(x)).split(width)]
    while pending:
        rows, batch = pending.pop(0)
        passes.forward += batch
        try:
            passes.lap()
            with torch.no_grad():
                logits = called(model, x[padded(rows, batch).to(x.device)]).cpu()
            passes.lap("model")
        except OutOfMemory as error:
            half = at_most(batch // 2)
            pending = [(part, half) for part in rows.split(half)] + pending if half < batch else pending
            reasons.update({int(row): f"out of memory at {batch} rows: {error}" for row in rows} if half == batch else {})
        except Crash as error:
            pending = [(part, batch) for part in rows.split((len(rows) + 1) // 2)] + pending if len(rows) > 1 else pending
            reasons.update({int(rows[0]): str(error)} if len(rows) == 1 else {})
        else:
            passes.useful += len(rows)
            for place, row in enumerate(rows.tolist()):
                found[row] = logits[place]
    return found, reasons


def padded(indices: Int[Tensor, " k"], width: int) -> Int[Tensor, " width"]:
    """Indices repeated from the first up to a whole batch: no network ever sees a batch of three."""
    return torch.cat([indices, indices[:1].expand(width - len(indices))]) if len(indices) < width else indices
