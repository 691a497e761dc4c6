"""Attacks of other libraries behind one small interface: AutoAttack through pyautoattack, foolbox's attacks by class name.

They return images, and the referee judges every one. Both libraries depend on who shares the batch, so they run on blocks: `batch` is
part of the attack.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rbench.attacks.foolbox_classes import DECISIONS, ONE_ROW, STARTS, Argument, kind_of, parameters, starts, typed
from rbench.attacks.sealed import library, origin, raised_inside, reported, sealed
from rbench_core.errors import Failure, ModelError, SpecError, UsageError
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import Call, Exact, Value, whole, written

Images: TypeAlias = Float[Tensor, "rows c h w"]
Labels: TypeAlias = Int[Tensor, " rows"]
Arguments: TypeAlias = tuple[tuple[str, Argument], ...]

BATCH = 200
NORMS = {math.inf: "linf", 2.0: "l2", 1.0: "l1", 0.0: "l0"}


@runtime_checkable
class Foreign(Protocol):
    """An attack of another library. `str(attack)` is the spec that makes it again."""

    @property
    def name(self) -> str:
        """The spec without its arguments."""
        ...

    @property
    def batch(self) -> int:
        """A fixed run of `batch` consecutive data set indices is one block, attacked together and seeded anew."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Capabilities that the set must have."""
        ...

    @property
    def gradient(self) -> bool:
        """Whether it asks the model for its gradient."""
        ...

    def refuses(self, space: PerturbationSet) -> str | None:
        """Why this set cannot be attacked, a predicate in a few words; None: it can."""
        ...

    def record(self) -> dict[str, Any]:
        """The attack by content, for a question's key: its name, every argument, the library and its version."""
        ...

    def attack(self, model: nn.Module, space: PerturbationSet, x: Images, label: Labels, *, seed: int, classes: int) -> Images:
        """x′ for one block. Rows that did not fall may come back as anything of the right shape, NaN included."""
        ...


# --- AutoAttack ---------------------------------------------------------------------------------------------------------------------

LEAST_CLASSES = {"standard": 4, "plus": 4, "rand": 3}  # the targeted DLR loss divides by the fourth logit, DLR by the third


@dataclass(frozen=True, slots=True)
class AutoAttack:
    """Croce & Hein 2020: APGD-CE, targeted APGD, targeted FAB and Square in turn on what still stands; constants are the library's.

    plus: 5 restarts, and untargeted APGD-DLR and FAB too; rand: APGD-CE and APGD-DLR with 20 passes per gradient. Equal, bit for bit,
    to pyautoattack's own driver on the same images as one batch with the same seed. Below 10 classes the library's 9 targets become
    classes − 1, where its own call fails.
    """

    version: str = "standard"
    batch: int = BATCH

    name: ClassVar[str] = "autoattack"
    needs: ClassVar[frozenset[str]] = frozenset({"additive", "norm", "convex"})
    gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.version not in LEAST_CLASSES:
            raise SpecError(f"autoattack: version={self.version}", expected=f"one of: {', '.join(LEAST_CLASSES)}")
        object.__setattr__(self, "batch", whole(self.batch, "autoattack: batch"))

    def __str__(self) -> str:
        return _spec(self.name, {"version": self.version, "batch": self.batch}, {"version": "standard", "batch": BATCH})

    def record(self) -> dict[str, Any]:
        """Name, version, batch, library."""
        return {"attack": self.name, "version": self.version, "batch": self.batch, "library": _installed("pyautoattack")}

    def refuses(self, space: PerturbationSet) -> str | None:
        """Sets other than linf, l2 and l1 balls."""
        return None if NORMS.get(_norm(space), "l0") != "l0" else "knows linf, l2 and l1 balls only"

    def check(self, classes: int) -> None:
        """Refuse a model with too few classes for the DLR losses (auto-attack issue 70). Raises UsageError."""
        if classes < LEAST_CLASSES[self.version]:
            what, least = f"autoattack(version={self.version}) on a model with {classes} classes", LEAST_CLASSES[self.version]
            raise UsageError(what, expected=f"at least {least}, for its DLR losses", fix="Choose another plan, such as apgd.")

    def attack(self, model: nn.Module, space: PerturbationSet, x: Images, label: Labels, *, seed: int, classes: int) -> Images:
        """All rows as one batch. Raises UsageError, ModelError."""
        _accept(self, space)
        self.check(classes)
        if not len(x):
            return x.clone()
        with reported(_who(self, "pyautoattack"), _smaller(self)), sealed(model, seed, x.device):
            images = self.drive(self.adversary(model, space, x, seed=seed, classes=classes), space, x, label)
        return _alike(images, x, self)

    def adversary(self, model: nn.Module, space: PerturbationSet, x: Images, *, seed: int, classes: int) -> Any:
        """The library's driver, ready for images like x."""
        norm = NORMS[_norm(space)].capitalize()
        driver = library("pyautoattack").AutoAttack(model, norm=norm, eps=_radius(space), seed=seed, version=self.version, device=x.device)
        for part in (driver.apgd_targeted, driver.fab):
            part.n_target_classes = min(part.n_target_classes, classes - 1)
        return driver

    def drive(self, adversary: Any, space: PerturbationSet, x: Images, label: Labels) -> Tensor:
        """What the driver returns for all rows as one batch. Raises UsageError for images that its Square cannot tile."""
        norm = NORMS[_norm(space)]
        try:
            return adversary.run_standard_evaluation(x, label, batch_size=len(x))[0]  # type: ignore[no-any-return]
        except (RuntimeError, ZeroDivisionError) as error:
            height, width = x.shape[2:]
            if norm == "linf" or square_fits(height, width) or not raised_inside(error):
                raise
            what = f"autoattack: its Square attack cannot tile images of {height} × {width} pixels under {norm} (auto-attack issue 95)"
            raise UsageError(what, fix="Pad the images, or choose another plan, such as apgd.") from error


def square_fits(height: int, width: int) -> bool:
    """Whether Square's l2 and l1 start fits: squares of side ⌊height / 5⌋ from one offset, down and across (pyautoattack's square.py)."""
    side = height // 5
    offset = (height - 5 * side) // 2
    if side < 2:
        return side == 1  # one pixel that lies beyond the edge is silently dropped
    return all(offset + side * (length // side) <= length for length in (height, width))


# --- foolbox ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Foolbox:
    """One foolbox attack by class name (Rauber et al. 2020), at the set's radius; minimum-norm attacks give their clipped result.

    Aliases and arguments equal to foolbox's defaults are written out of the value, so equal attacks compare equal. Rows for which a
    start is needed and none is found keep their clean image, and so does a row that alone makes the library fail.
    """

    attack_name: str
    arguments: Arguments = ()
    batch: int = BATCH

    needs: ClassVar[frozenset[str]] = frozenset({"additive", "norm"})

    def __post_init__(self) -> None:
        kind = kind_of(self.attack_name)
        object.__setattr__(self, "attack_name", kind.__name__)
        object.__setattr__(self, "batch", whole(self.batch, f"{self.name}: batch"))
        given, known = dict(self.arguments), parameters(kind)
        for key in given:
            if key not in known:
                raise SpecError(f"{self.name}: {key}=...", expected=f"some of: {', '.join([*known, 'batch'])}")
        checked = {key: typed(given[key], hint, f"{self.name}: {key}") for key, (hint, _) in known.items() if key in given}
        missing = [key for key, (_, default) in known.items() if default is inspect.Parameter.empty and key not in given]
        if missing:
            raise SpecError(f"{self.name} without {', '.join(missing)}", expected=f"{self.name}({missing[0]}=...)")
        object.__setattr__(self, "arguments", tuple((key, value) for key, value in checked.items() if value != known[key][1]))
        self._made()

    @property
    def name(self) -> str:
        """foolbox:CLASS."""
        return f"foolbox:{self.attack_name}"

    @property
    def gradient(self) -> bool:
        """No for attacks that look at decisions alone."""
        return self.attack_name not in DECISIONS

    def __str__(self) -> str:
        return _spec(self.name, {**dict(self.arguments), "batch": self.batch}, {"batch": BATCH})

    def record(self) -> dict[str, Any]:
        """Name, every argument with foolbox's defaults, batch, library."""
        defaults = {key: default for key, (_, default) in parameters(kind_of(self.attack_name)).items()}
        return {"attack": self.name, **defaults, **dict(self.arguments), "batch": self.batch, "library": _installed("foolbox")}

    def refuses(self, space: PerturbationSet) -> str | None:
        """Balls of another norm than the one that the attack measures; attacks that take any distance take the set's."""
        norm, own = _norm(space), self._own_norm()
        if norm not in NORMS:
            return "knows lp balls only"
        return None if own in (None, norm) else f"measures {NORMS[own]}, and the set is an {NORMS[norm]} ball"

    def attack(self, model: nn.Module, space: PerturbationSet, x: Images, label: Labels, *, seed: int, classes: int) -> Images:
        """The block together, or in halves where one row's failure would lose it. Raises UsageError, ModelError."""
        _accept(self, space)
        with reported(_who(self, "foolbox"), _smaller(self)), sealed(model, seed, x.device):
            net = library("foolbox").PyTorchModel(model, bounds=(0, 1), device=x.device)
            images, waiting = x.clone(), [torch.arange(len(x), device=x.device)] if len(x) else []
            while waiting:
                rows = waiting.pop(0)
                try:
                    images[rows] = _alike(self._run(net, space, x[rows], label[rows]), x[rows], self)
                except ONE_ROW.get(self.attack_name, ()) as error:
                    if not raised_inside(error) or origin(error).name == "criteria.py":  # there it asserts one row of logits per label
                        raise
                    waiting += rows.chunk(2) if len(rows) > 1 else []
        return images

    def _run(self, net: Any, space: PerturbationSet, x: Tensor, label: Tensor) -> Tensor:
        """What foolbox returns; the rows without a start as they are. Bit for bit foolbox's own call where every row has one."""
        found, starting = torch.ones_like(label, dtype=torch.bool), {}
        if self.attack_name in STARTS:
            begun, found = starts(*STARTS[self.attack_name], net, x, label)
            starting = {"starting_points": begun[found]}
        images, attack, norm = x.clone(), self._made(), _norm(space)
        if self._own_norm() is None:
            attack._distance = library("foolbox").distances.LpDistance(norm)
        if found.any():
            # foolbox cannot clip to an l0 radius, so l0 gets the raw minimum; its l0 counts values, the referee counts pixels
            radius = None if norm == 0 else _radius(space)
            criterion = library("foolbox").Misclassification(label[found])
            images[found] = attack(net, x[found], criterion, epsilons=radius, **starting)[1]
        return images

    def _made(self) -> Any:
        try:
            return kind_of(self.attack_name)(**dict(self.arguments))
        except ModuleNotFoundError as error:
            raise Failure(f"{self.name} needs the package {error.name}, which is not installed", fix=f"pip install {error.name}") from error
        except (ValueError, AssertionError) as error:
            raise SpecError(f"{self.name}: {error}", expected="arguments that foolbox accepts") from error

    def _own_norm(self) -> float | None:
        """The p of the attack's distance; None: it takes any. Of the instance: HopSkipJump's follows its argument, not its class."""
        if issubclass(kind_of(self.attack_name), library("foolbox").attacks.base.FlexibleDistanceMinimizationAttack):
            return None
        return float(self._made().distance.p)


# --- specs --------------------------------------------------------------------------------------------------------------------------


def from_spec(call: Call) -> Foreign | None:
    """The attack that `autoattack(...)` or `foolbox:NAME(...)` names; None for any other name. Raises UsageError, Failure."""
    prefix, _, kind = call.name.partition(":")
    if call.name.lower() == AutoAttack.name:
        given = _given(call)
        for key in set(given) - {"version", "batch"}:
            raise SpecError(f"autoattack: {key}=...", expected="some of: version, batch")
        return AutoAttack(str(given.get("version", "standard")), _batch(call, given))
    if prefix.lower() == "foolbox":
        if not kind:
            raise SpecError(f"{call.name!r} names no attack", expected="foolbox:NAME, such as foolbox:L2DeepFoolAttack(steps=50)")
        given = _given(call)
        batch = _batch(call, given)
        return Foolbox(kind, tuple((key, value) for key, value in given.items() if key != "batch"), batch)
    return None


def _given(call: Call) -> dict[str, Argument]:
    if call.args:
        raise SpecError(f"{call.name}: an argument without a name", expected="key=value, such as batch=200")
    return {key: _plain(value, f"{call.name}: {key}") for key, value in call.named}


def _plain(value: Value, where: str) -> Argument:
    """An exact number as int or float, a bare name as text."""
    if isinstance(value, Exact):
        return int(value) if value.denominator == 1 else float(value)
    if value.args or value.named:
        raise SpecError(f"{where}={value.name}(...)", expected="a number or a name")
    return value.name


def _batch(call: Call, given: dict[str, Argument]) -> int:
    return whole(given.get("batch", BATCH), f"{call.name}: batch")


def _spec(name: str, arguments: dict[str, Argument], defaults: dict[str, Argument]) -> str:
    """The spec with the arguments that are not default."""
    words = {key: str(value).lower() if isinstance(value, bool | None) else value for key, value in arguments.items()}
    said: dict[str, object] = {key: words[key] for key, value in arguments.items() if key not in defaults or value != defaults[key]}
    return written(name, said)


# --- both ---------------------------------------------------------------------------------------------------------------------------


def _norm(space: PerturbationSet) -> float:
    """p of a ball with the capability "norm"; NaN for any other set."""
    return float(getattr(space, "norm", math.nan))


def _radius(space: PerturbationSet) -> float:
    return float(space.radius)  # type: ignore[attr-defined]  # the capability "norm"


def _accept(attack: Foreign, space: PerturbationSet) -> None:
    why = attack.refuses(space)
    if why is not None:
        raise UsageError(f"{attack.name} {why}: {space}", fix="Choose another plan: `rbench plans`.")


def _installed(name: str) -> str:
    return f"{name} {installed_version(name)}"


def _who(attack: Foreign, name: str) -> str:
    return f"{attack} of {_installed(name)}"


def _smaller(attack: Foreign) -> str:
    return f"Memory ran out: try a smaller batch than {attack.batch}, such as batch={max(1, attack.batch // 2)}."


def _alike(images: Tensor, x: Tensor, attack: Foreign) -> Tensor:
    """The images detached, in x's type and on its device. Raises ModelError where the shape is another."""
    if not isinstance(images, Tensor) or images.shape != x.shape:
        raise ModelError(f"{attack} returned {tuple(getattr(images, 'shape', ()))}", expected=f"images of the shape {tuple(x.shape)}")
    return images.detach().to(x)
