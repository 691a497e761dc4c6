"""Plans: ordered lists of attacks with budgets, as data. A plan is a name, one attack's spec, or `plan(first, second, ...)`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbench_core.catalogue import Entry, entries, only, read_toml
from rbench_core.errors import CardError, NoAttack, UnknownName, UsageError
from rbench_threats.spec import Call, Exact, parse, written

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rbench.attacks.external import Foreign
    from rbench.attacks.protocol import Attack
    from rbench_threats.protocol import PerturbationSet

DEFAULT_PLAN = "standard"
GRADIENT_FREE_PLAN = "queries"  # the default for a model whose card says that it has no gradient
NO_GRADIENT = "needs a gradient, which the model's card says it has not"
PLAN_KEYS = ("name", "title", "summary", "source", "pilot", "opens", "attacks")
STAGE_KEYS = ("spec", "unless", "only", "start", "after", "rows", "close", "skip", "family", "package")
ROWS = ("all", "close", "masked", "audit")
TEXTS = ("spec", "only", "start", "after", "rows", "family", "package")  # of a stage's keys


@dataclass(frozen=True, slots=True)
class Stage:
    """One attack of a plan and when it applies."""

    attack: Attack | Foreign
    spec: str  # with every argument
    label: str  # as the plan writes it
    unless: tuple[str, ...] = ()  # skipped for sets that have one of these capabilities
    start: str = "random"  # "best": from the smallest margin that earlier attacks of the plan saw
    after: str | None = None  # only if an attack of this name ran before
    only: str | None = None  # for sets that have this capability alone
    part: int | None = None  # of a combination: the search is in this part alone, the others at rest
    rows: str = "all"  # who meets it: all, the "close" ones, all on a "masked" model, the pilot's alone ("audit")
    close: float = 1.0  # with rows "close": the quantile of the pilot's margins up to which an example is close
    skip: int = 0  # of a targeted attack: so many of the nearest classes were aimed at before
    family: str = ""  # under which the pilot counts it

    @property
    def foreign(self) -> bool:
        """Whether another library runs it."""
        return hasattr(self.attack, "batch")

    @property
    def aims(self) -> bool:
        """Whether it has targets, so that the order of the classes matters."""
        import torch

        return not self.foreign and bool((self.attack.targets(torch.zeros(1, 1, dtype=torch.long)) >= 0).any())  # type: ignore[union-attr]

    @property
    def gradient(self) -> bool:
        """Whether it needs the model's gradient."""
        return self.attack.gradient if self.foreign else "gradient" in self.attack.cycle  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is tried, in which order. Its record is part of every question that it answers.

    `stages` is what may run; `without` those that were left out because the model gives no gradient, which makes it another question.
    """

    name: str
    stages: tuple[Stage, ...]
    without: tuple[Stage, ...] = ()
    pilot: int = 0  # images that get everything and decide for the others; 0: every image meets every stage
    opens: bool = True  # whether a fall that the ordinary way would have missed opens the gate for everybody

    def for_model(self, gradient: bool) -> Plan:
        """The plan for a model that has a usable gradient, or has none."""
        if gradient:
            return self
        parts = {needed: tuple(stage for stage in self.stages if stage.gradient == needed) for needed in (False, True)}
        return Plan(self.name, parts[False], parts[True], self.pilot, self.opens)

    def left_out(self, spaces: Iterable[PerturbationSet]) -> list[str]:
        """The attacks that would have tried one of these sets, had the model a gradient."""
        fitting = [stage.label for stage in self.without if any(self._why_not(stage, space) is None for space in spaces)]
        return list(dict.fromkeys(fitting))

    def record(self) -> list[dict[str, Any]]:
        """The expanded list: every argument of every attack."""
        from rbench.attacks.build import record

        rows = []
        for stage in self.stages:
            row = stage.attack.record() if stage.foreign else record(stage.attack)  # type: ignore[union-attr]
            only = {} if stage.only is None else {"only": stage.only}
            gate = {} if stage.rows == "all" else {"rows": stage.rows, "family": stage.family, "pilot": self.pilot}
            gate |= {"close": stage.close} if stage.rows == "close" else {}
            gate |= {"skip": stage.skip} if stage.skip else {}
            gate |= {"opens": False} if gate and not self.opens else {}
            unless = list(stage.unless) if len(stage.unless) > 1 else next(iter(stage.unless), None)
            rows.append({**row, "unless": unless, "start": stage.start, "after": stage.after, **only, **gate})
        return rows

    def stages_for(self, space: PerturbationSet) -> tuple[Stage, ...]:
        """The stages whose needs the set meets, in order. Raises NoAttack when there is none.

        Each stage tries the parts of a combination first, one by one and each just as if it were asked alone: so no combination is reported
        more robust than one of its parts.
        """
        parts: tuple[PerturbationSet, ...] = space.parts if "blocks" in space.capabilities else ()  # type: ignore[attr-defined]
        chosen: list[Stage] = []
        for stage in self.stages:
            for part, one in [*enumerate(parts), (None, space)]:
                ran = {earlier.attack.name for earlier in chosen if earlier.part == part}  # type: ignore[union-attr]
                if self._why_not(stage, one) is None and (stage.after is None or stage.after in ran):
                    chosen.append(stage if part is None else replace(stage, part=part, label=f"{stage.label} in {one}"))
        if not any(stage.part is None for stage in chosen):
            raise NoAttack(f"plan {self.name} has no attack for {space}: {self._reasons(space)}", fix=self._instead(space))
        return tuple(chosen)

    def pilots(self, space: PerturbationSet) -> bool:
        """Whether a pilot decides which of the set's stages an example meets.

        Never for a combination: its parts must meet all that they may meet alone, whatever their own pilots find.
        """
        return bool(self.pilot) and "blocks" not in space.capabilities and any(stage.rows != "all" for stage in self.stages_for(space))

    def _reasons(self, space: PerturbationSet) -> str:
        """Why no attack of the plan tries the set, each once."""
        told = [(stage, self._why_not(stage, space) or f"comes after {stage.after}") for stage in self.stages]
        reasons = [f"{stage.spec.partition('(')[0]} {reason}" for stage, reason in told]
        lacking = ", ".join(self.left_out([space]))
        return "; ".join(dict.fromkeys(reasons + ([f"{lacking} {NO_GRADIENT}"] if lacking else [])))

    def _instead(self, space: PerturbationSet) -> str:
        """What to take, where only the gradient is lacking."""
        other = self.name != GRADIENT_FREE_PLAN and self.left_out([space])
        return f"Take --plan {GRADIENT_FREE_PLAN}, whose attacks need none." if other else "Choose another plan: `rbench plans`."

    def _why_not(self, stage: Stage, space: PerturbationSet) -> str | None:
        lacking = stage.attack.needs - space.capabilities
        if lacking:
            return f"needs {', '.join(sorted(lacking))}"
        if stage.only is not None and stage.only not in space.capabilities:
            return f"is for {stage.only} sets"
        if back := [one for one in stage.unless if one in space.capabilities]:
            return f"stands back for {back[0]} sets"
        return stage.attack.refuses(space) if stage.foreign else None  # type: ignore[union-attr]

    @property
    def block(self) -> int | None:
        """The block length of a plan with a batch-dependent attack: the unit of running and of resuming."""
        lengths = {stage.attack.batch for stage in self.stages if stage.foreign}  # type: ignore[union-attr]
        if len(lengths) > 1:
            raise UsageError(f"plan {self.name}: batches {sorted(lengths)}", expected="one batch for all external attacks of a plan")
        return lengths.pop() if lengths else None


def plan_files() -> dict[str, Entry]:
    """Every plan file by name. Raises CardError for a broken one."""
    found = entries([("built in", Path(str(resources.files("rbench.attacks") / "plans")))])
    for entry in found.values():
        _check_plan(entry)
    return found


def _check_plan(entry: Entry) -> None:
    only(entry.table, PLAN_KEYS, entry.path)
    pilot, stages = entry.table.get("pilot", 0), entry.table.get("attacks", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise CardError(f"{entry.path}: attacks = {stages!r}"[:200], expected="tables, each under [[attacks]]")
    if not isinstance(pilot, int) or pilot < 0 or not stages or not isinstance(entry.table.get("opens", True), bool):
        what = f"{entry.path}: {len(stages)} attacks, pilot = {pilot!r}, opens = {entry.table.get('opens', True)!r}"
        raise CardError(what, expected="[[attacks]], a whole number of pilot images, true or false")
    for stage in stages:
        only(stage, STAGE_KEYS, entry.path)
        _check_stage(stage, entry)


def _check_stage(stage: dict[str, Any], entry: Entry) -> None:
    where = f"{entry.path}: stage {stage}"
    texts = all(isinstance(stage[key], str) for key in TEXTS if key in stage) and stage.get("package", "a").isidentifier()
    skip, quantile = stage.get("skip", 0), stage.get("close", 1)
    if not texts or type(skip) is not int or skip < 0 or type(quantile) not in (int, float):
        raise CardError(where, expected=f"texts for {', '.join(TEXTS)}, a whole number from 0 for skip, a number for close")
    if "spec" not in stage or stage.get("start", "random") not in ("random", "best"):
        raise CardError(where, expected='a spec, and start "random" or "best"')
    rows, close, pilot = stage.get("rows", "all"), stage.get("close"), entry.table.get("pilot", 0)
    if rows not in ROWS or (rows == "close") != (close is not None) or not 0 < (1 if close is None else close) <= 1:
        raise CardError(
            where, expected=f"rows as one of: {', '.join(ROWS)}; with close, a share of the survivors, exactly for rows = close"
        )
    if rows != "all" and not pilot:
        raise CardError(where, expected="a pilot, the number of images that decide who meets the stage")


def listing() -> list[dict[str, Any]]:
    """One object per plan, then one per attack that a spec may name. No torch."""
    from rbench.attacks.build import attack_names

    plans = [
        {
            "name": e.name,
            "kind": "plan",
            "title": e.table.get("title", e.name),
            "summary": e.table.get("summary", ""),
            "source": e.table.get("source", ""),
            "attacks": [stage["spec"] for stage in e.table["attacks"]],
        }
        for e in plan_files().values()
    ]
    taken = {plan["name"] for plan in plans}
    single = [name for name in [*attack_names(), "foolbox:NAME"] if name not in taken]
    return plans + [
        {"name": name, "kind": "attack", "title": name, "summary": "one attack as a plan", "source": "", "attacks": [name]}
        for name in single
    ]


def resolve_plan(text: str) -> Plan:
    """The plan that a name, a file `FILE.toml` or a spec means. Raises SpecError, UnknownName, CardError."""
    if text.strip().endswith(".toml"):
        return _of_file(Path(text.strip()).expanduser())
    call = parse(text.strip())
    files = plan_files()
    if call.name in files and not (call.args or call.named):
        return _of_table(call.name, files[call.name].table)
    if call.name == "plan":
        return _of_parts(call, files)
    from rbench.attacks.build import attack_names

    if call.name.lower() not in attack_names() and not _is_foreign(call):
        raise UnknownName(
            "plan", call.name, {*files, *attack_names()}, fix="`rbench plans` lists them; an attack's spec such as pgd(steps=40) works too."
        )
    stage = _built(call)
    return Plan(stage.label, (stage,))


def _of_file(path: Path) -> Plan:
    """A user's own plan; its name is the path, so that the run's command makes it again."""
    entry = Entry(str(path), read_toml(path), path, "file")
    _check_plan(entry)
    return _of_table(entry.name, entry.table)


def _of_table(name: str, table: dict[str, Any]) -> Plan:
    """A stage whose `package` is not installed is left out, which makes the plan's questions others."""
    there = [stage for stage in table["attacks"] if "package" not in stage or find_spec(stage["package"]) is not None]
    stages = tuple(_stage(**{key: value for key, value in stage.items() if key != "package"}) for stage in there)
    return Plan(name, stages, pilot=table.get("pilot", 0), opens=table.get("opens", True))


def _of_parts(call: Call, files: dict[str, Entry]) -> Plan:
    """`plan(first, second, ...)`: attacks, or names of plans, whose stages stand there in order."""
    parts = [part for part in call.args if isinstance(part, Call)]
    if call.named or not parts or len(parts) < len(call.args):
        raise UsageError("plan(...) with other than attacks", expected="attacks or plans, such as plan(exhaustive, slide(restarts=5))")
    inner = [
        _of_table(part.name, files[part.name].table) if part.name in files and not (part.args or part.named) else None for part in parts
    ]
    whole = [plan.stages if plan is not None else (_built(part),) for plan, part in zip(inner, parts, strict=True)]
    labels = [plan.name if plan is not None else stages[0].label for plan, stages in zip(inner, whole, strict=True)]
    pilot = max((plan.pilot for plan in inner if plan is not None), default=0)
    opens = all(plan.opens for plan in inner if plan is not None)
    return Plan(f"plan({', '.join(labels)})", tuple(stage for stages in whole for stage in stages), pilot=pilot, opens=opens)


def _is_foreign(call: Call) -> bool:
    """Whether another library runs it: `autoattack(...)`, `foolbox:NAME(...)`."""
    return call.name.partition(":")[0] in ("autoattack", "foolbox")


def _stage(spec: str, unless: str | list[str] | None = None, family: str | None = None, **rest: Any) -> Stage:
    built, back = _built(parse(spec)), [unless] if isinstance(unless, str) else unless or []
    return replace(built, unless=tuple(back), family=family or built.family, **rest)


def _built(call: Call) -> Stage:
    from rbench.attacks.build import build_attack, spec_of

    if _is_foreign(call):
        from rbench.attacks.external import from_spec

        foreign = from_spec(call)
        if foreign is None:
            raise UnknownName("attack", call.name, ["autoattack", "foolbox:NAME"])
        return Stage(foreign, str(foreign), str(foreign), family=foreign.name)
    attack = build_attack(call)
    label = written(call.name, {key: value if isinstance(value, Exact) else value.name for key, value in call.named})
    return Stage(attack, spec_of(attack), label, family=attack.name)  # type: ignore[attr-defined]  # every attack has one
