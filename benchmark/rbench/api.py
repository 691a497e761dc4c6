"""The Python door: `rbench.evaluate(model, threat=...)` does all that `rbench run` does, and returns a Report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rbench.attacks.catalogue import DEFAULT_PLAN, GRADIENT_FREE_PLAN, Plan, resolve_plan
from rbench.attacks.widths import WIDTHS, WIDTHS_SAID
from rbench.certificates.methods import METHODS
from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.judging import Asked, proved_sets
from rbench.models import Wrapped, attacked, find
from rbench.portraits import store_portraits
from rbench.progress import Progress
from rbench.report import Report
from rbench.runner import Runner, now
from rbench.witnesses import check as known_policy
from rbench_core.errors import UsageError
from rbench_core.files import results_folder
from rbench_core.roots import data_under
from rbench_results.records import DatasetRecord, ModelRecord, RunRecord
from rbench_results.report import run_report
from rbench_results.store import Store
from rbench_threats.catalogue import Threat, resolve
from rbench_threats.protocol import PerturbationSet

SMALL = 1024  # values of an image
SEEDS = 2**63 - 1  # the largest, and the largest number that a database holds


def load_model(name: str) -> nn.Module:
    """A model of the zoo by name (or `FILE.py:FACTORY`, which is executed), in eval mode: float images in [0, 1] to logits."""
    return find(name).module.eval()


def evaluate(
    model: str | nn.Module,
    *,
    threat: str = "union-lp",
    dataset: str | tuple[Tensor, Tensor] | Any = None,
    n: int | str | None = None,
    plan: str | None = None,
    eps: str | float | None = None,
    certify: str = "auto",
    seed: int = 0,
    device: str = "cpu",
    width: int | None = None,
    full: bool = False,
    eps_curve: bool = False,
    witnesses: str = "all",
    results: Path | str | None = None,
    data: Path | str | None = None,
    progress: Progress | None = None,
    site: bool = True,
    name: str | None = None,
    request: Mapping[str, Any] | None = None,
) -> Report:
    """Attack a model under a threat, example by example; store the verdicts; draw the site.

    model: a zoo name, `FILE.py:FACTORY`, or a module on images in [0, 1]. dataset: a name, (x, y) or a DataLoader; default: the card's.
    n: the first n examples, "all", or the data set's default; not for a threat that brings its own examples. certify: "auto" (every
    bound there is, where the set is a box), "none", or one method. plan: `standard`, or `queries` where the card says gradient = false. eps
    replaces the radius of a single ball. eps_curve: also the accuracy at 20 radii around the asked one (docs/eps-curve.md). request: what
    else the run's record says of how it was asked, JSON-able. The same question asked again is answered from the store under `results`
    (default: RBENCH_RESULTS or the user's data folder). Raises RbenchError.
    """
    started = time.perf_counter()
    methods = _methods(certify)
    known_policy(witnesses)
    _check_seed(seed)
    found = find(model, name)
    usual = DEFAULT_PLAN if found.gradient else GRADIENT_FREE_PLAN
    chosen = resolve_plan(usual if plan is None else plan).for_model(found.gradient)
    named = dataset if isinstance(dataset, str) or dataset is not None else found.dataset
    label = named if isinstance(named, str) or named is None else "custom"
    asked_threat = resolve(threat, label, None if eps is None else str(eps))
    own = own_examples(asked_threat.members, asked_threat.name, label, data)
    if own is not None and n not in (None, "all"):
        raise UsageError(f"n={n} with threat {asked_threat.name}", expected=f"no n: it brings its own {own.size} examples")
    if own is None and named is None:
        raise UsageError(
            f"model {found.name} does not say which data it is for",
            expected="a data set",
            fix="Add --dataset NAME (`rbench datasets`) or dataset=(x, y).",
        )
    images, count = (own, own.size) if own is not None else _data(named, n, chosen, data)
    for member in asked_threat.members:
        member.check(images.shape)
        chosen.stages_for(member)
    if certify in METHODS and not any(proved_sets(member) for member in asked_threat.members):
        raise UsageError(
            f"--certify {certify} with threat {asked_threat.name}",
            expected="a set whose limits are given value by value, such as linf or contextual",
            fix="--certify auto proves what can be proved.",
        )
    rows = usual_width(width, images, device)
    folder = Path(results).expanduser() if results is not None else results_folder()
    ready = attacked(found.module, name=found.name, dataset=images, device=device, source=found.source, title=found.title)
    with attack_conditions(images, device), ready as wrapped, _opened(folder, chosen, wrapped) as store:
        run = _run_id(wrapped, asked_threat)
        asked = Asked(
            wrapped,
            images,
            asked_threat.members,
            chosen,
            count,
            seed,
            rows,
            full,
            witnesses,
            run,
            progress.update if progress is not None else _silent,
            methods,
            eps_curve,
        )
        runner = Runner(asked, store)
        words = {key: value for key, value in (("model", model), ("dataset", named)) if isinstance(value, str)}
        shown = label if own is not None and label is not None else images.name
        with recorded(
            runner,
            asked_threat,
            started,
            _command(asked, model, named, threat, eps, own is None, certify),
            {**(request or {}), **words},
            shown,
        ):
            runner.run()
            store_portraits(store.folder, asked_threat.members, images)
        if site:
            from rbench_results.site.build import build_site

            build_site(store)
        return Report(run_report(store, run), store.folder)


def own_examples(members: Sequence[PerturbationSet], name: str, home: str | None, root: Path | str | None = None) -> Dataset | None:
    """The images and labels that a threat brings (capability "examples"), as a data set of its own; None for a threat that has none.

    home: the data set beside which it stands, whose class names it shares. root: where data is looked for first.
    """
    bring = [member for member in members if "examples" in member.capabilities]
    if not bring:
        return None
    if len(members) > 1:
        raise UsageError(f"threat {name}: {bring[0]} brings its own examples", expected="such a set alone, not in a union")
    with data_under(root):
        x, y = bring[0].examples()  # type: ignore[attr-defined]  # the capability
    found = sources.from_tensors(x, y, name=f"{home or name}-candidates")
    classes = sources.find(home).classes if home in sources.names() else found.classes
    return replace(found, classes=classes, split="candidate", of=home, open_classes=home not in sources.names())


def _methods(certify: str) -> tuple[str, ...]:
    """The certificates of a word on the command line, the cheapest first."""
    if certify not in ("auto", "none", *METHODS):
        raise UsageError(f"certify={certify!r}", expected=f"one of: auto, none, {', '.join(METHODS)}")
    return {"auto": METHODS, "none": ()}.get(certify, (certify,))


@contextmanager
def attack_conditions(images: Dataset, device: str) -> Iterator[None]:
    """float32 that is float32, and the number of threads that suits the images: what every verdict is made under."""
    with _float32(), _threads(images, device):
        yield


def load_slice(named: Any, n: int, plan: Plan | None, root: Path | str | None) -> Dataset:
    """At least the first n images of a data set by name, (x, y) or DataLoader; whole blocks where the plan runs in them."""
    return _data(named, n, plan, root)[0]


def _data(named: Any, n: int | str | None, plan: Plan | None, root: Path | str | None) -> tuple[Dataset, int]:
    """The data and how many of its first examples are asked; a plan in blocks needs its last block whole, one with a pilot all there is."""
    block = plan.block if plan is not None else None
    if isinstance(named, str):
        wanted = sources.default_n(named) if n is None else None if n == "all" else _whole(n)
        load = None if wanted is None or (plan is not None and plan.pilot) else wanted if block is None else -(-wanted // block) * block
        found = sources.load(named, root=root, n=load)
    else:
        found = _own(named)
        wanted = None if n in (None, "all") else _whole(n)
    count = found.size if wanted is None else wanted
    if count > found.size:
        raise UsageError(
            f"n={count}", expected=f"at most {found.size}, the {found.split} images of {found.name}", fix="Use --n all for every one."
        )
    return found, count


def _own(given: Any) -> Dataset:
    """A user's own images: a pair of tensors, or whatever yields pairs."""
    if isinstance(given, tuple) and len(given) == 2:
        return sources.from_tensors(*given)
    if isinstance(given, (tuple, Tensor)) or not isinstance(given, Iterable):
        raise UsageError(f"dataset is {type(given).__name__}", expected="a name, a pair (x, y) or a DataLoader")
    return sources.from_loader(given)


def _whole(n: int | str | None) -> int:
    text = str(n)
    if isinstance(n, bool) or not (text.isascii() and text.isdecimal() and int(text[:18])):
        raise UsageError(f"n={text[:40]!r}", expected="a whole number above 0, or all")
    return int(text[:18])  # no data set is that long


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= SEEDS:
        raise UsageError(f"seed={seed}", expected=f"a whole number from 0 to {SEEDS}")


def usual_width(width: int | None, images: Dataset, device: str) -> int:
    """Rows per batch. Small images are bound by the cost of a call, larger ones on a CPU by its cache: docs/performance.md."""
    if width is None:
        return 512 if not device.startswith("cpu") else 256 if images.x[0].numel() <= SMALL else 128
    if width not in WIDTHS:
        raise UsageError(f"width={width}", expected=WIDTHS_SAID)
    return width


@contextmanager
def _threads(images: Dataset, device: str) -> Iterator[None]:
    """One thread for small images on a CPU, unless OMP_NUM_THREADS says otherwise: their kernels are too short to share.

    On a busy machine two threads that wait for each other took several times as long: docs/performance.md.
    """
    before = torch.get_num_threads()
    if device.startswith("cpu") and images.x[0].numel() <= SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _float32() -> Iterator[None]:
    """float32 that is float32: no TF32 and no choice of kernels by the clock on a GPU, where both are torch's defaults."""
    backend, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = backend.allow_tf32, matmul.allow_tf32, backend.deterministic, backend.benchmark
    backend.allow_tf32, matmul.allow_tf32, backend.deterministic, backend.benchmark = False, False, True, False
    try:
        yield
    finally:
        backend.allow_tf32, matmul.allow_tf32, backend.deterministic, backend.benchmark = before


def _opened(folder: Path, plan: Plan, model: Wrapped) -> Store:
    """The store, opened only now: a request that is wrong leaves no trace. Raises UsageError, StoreError."""
    for stage in plan.stages:
        if stage.foreign and hasattr(stage.attack, "check"):
            stage.attack.check(model.classes)
    return Store.open(folder)


def _run_id(wrapped: Wrapped, threat: Threat) -> str:
    """Sorts by time, reads as what it is, and never repeats."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(3).hex()}"


@contextmanager
def recorded(runner: Runner, threat: Threat, started: float, command: str, request: dict[str, Any], shown: str) -> Iterator[None]:
    """The run's own row: begun before the first verdict, ended as done or failed."""
    asked, store = runner.asked, runner.store
    model, data = asked.model, asked.data
    store.put_model(
        ModelRecord(
            digest=model.digest,
            name=model.name,
            title=model.title,
            dataset=data.name,
            card=model.card,
            parameters=model.parameters,
            classes=model.classes,
            probe=[] if any(row["code"] == "random" for row in model.warnings) else model.probe,  # a random model never repeats them
        )
    )
    store.put_dataset(
        DatasetRecord(
            digest=data.digest,
            name=data.name,
            split=data.split,
            size=data.size,
            shape=data.shape,
            classes=data.classes,
            note=data.note,
            of=data.of,
        )
    )
    for record in runner.questions:
        store.put_question(record)
    store.start_run(
        RunRecord(
            id=asked.run,
            started=now(),
            model=model.digest,
            model_name=model.name,
            dataset=data.digest,
            dataset_name=shown,
            threat=threat.name,
            spec=str(threat),
            title=threat.title,
            sentence=threat.sentence,
            n=asked.n,
            first=0,
            plan=asked.plan.name,
            seed=asked.seed,
            full=asked.full,
            command=command,
            questions=[(entry.record.key, entry.spec) for entry in runner.judge.entries],
            card=model.card,
            environment=environment(asked),
            request=request,
        )
    )
    try:
        yield
    except BaseException:
        store.finish_run(asked.run, state="failed", warnings=runner.warnings, seconds=time.perf_counter() - started)
        raise
    store.finish_run(asked.run, state="done", warnings=runner.warnings, seconds=time.perf_counter() - started)


def _command(asked: Asked, model: str | nn.Module, dataset: Any, threat: str, eps: str | float | None, sliced: bool, certify: str) -> str:
    """What makes the run again: a command line, or a call where model or data are objects that no command line can name.

    sliced: False where the threat brings its own examples, all of which are asked.
    """
    radius = [] if eps is None else ["--eps", str(eps)]
    if isinstance(model, str) and (isinstance(dataset, str) or not sliced):
        words = ["rbench", "run", "--model", model, "--threat", threat, *radius]
        words += ["--dataset", dataset] if isinstance(dataset, str) else []
        words += ["--n", str(asked.n)] if sliced else []
        words += ["--plan", asked.plan.name] + (["--certify", certify] if certify != "auto" else [])
        words += ["--seed", str(asked.seed), "--device", str(asked.model.device), "--width", str(asked.width)]
        return shlex.join([*words, *(["--full"] if asked.full else []), *(["--eps-curve"] if asked.curve else [])])
    given = repr(model) if isinstance(model, str) else asked.model.name
    on = repr(dataset) if isinstance(dataset, str) else "(x, y)"
    values = {
        "threat": threat,
        **({} if eps is None else {"eps": str(eps)}),
        **({"n": asked.n} if sliced else {}),
        **({} if certify == "auto" else {"certify": certify}),
        "plan": asked.plan.name,
        "seed": asked.seed,
        "full": asked.full,
        **({"eps_curve": True} if asked.curve else {}),
    }
    return f"rbench.evaluate({given}, dataset={on}, {', '.join(f'{key}={value!r}' for key, value in values.items())})"


def environment(asked: Asked) -> dict[str, Any]:
    """Where and how a run's verdicts are made."""
    device = torch.cuda.get_device_name(asked.model.device) if asked.model.device.type == "cuda" else platform.machine()
    return {**environment_of(), "device": f"{asked.model.device} ({device})", "width": asked.width}


def environment_of() -> dict[str, Any]:
    """The versions and the machine, whatever is asked."""
    return {
        "rbench": importlib.metadata.version("rbench"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _silent(stage: str, done: int, total: int) -> None:
    return
