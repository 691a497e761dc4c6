"""The general way into a graph: torch.export's operators, each either known by a rule or refused by name and place."""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from rbench.certificates.call import Call, Constant, Place, Refusal, Symbol
from rbench.certificates.graph import Fetch, Node, live
from rbench.certificates.operators import OPERATORS
from rbench.certificates.rules import Rule, Shape
from rbench_core.errors import Unsupported

ROWS = 2  # of the example that is traced: a batch of one would be taken for a constant
IGNORED = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")
_FOREIGN = re.compile(r"[/\\](torch|jaxtyping|beartype)[/\\]|^<")  # frames of these packages are not the author's


def exported(module: nn.Module, shape: Shape) -> list[Node]:
    """The nodes of any net that torch.export can trace with a free number of rows. Raises Unsupported."""
    return _Reader(module, shape, _program(module, shape)).nodes


def _program(module: nn.Module, shape: Shape) -> ExportedProgram:
    """The net in eval mode as ATen operators without side effects; its modes are put back."""
    modes = [(part, part.training) for part in module.modules()]
    like = next(iter(module.parameters()), torch.zeros(()))
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own internals warn of each other
            example = torch.zeros((ROWS, *shape), dtype=like.dtype, device=like.device)
            program: ExportedProgram = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("rows")},))
            flat: ExportedProgram = program.run_decompositions({})
            return flat
    except Exception as error:
        raise Unsupported(f"torch.export cannot trace the net{_where(error)}: {_said(error)}") from error
    finally:
        for part, mode in modes:
            part.training = mode


class _Reader:
    """Walks a program once: constants become fetches, operators on the image become nodes."""

    def __init__(self, module: nn.Module, shape: Shape, program: ExportedProgram) -> None:
        self.nodes = [Node(Rule(), (), (), shape)]
        self.known: dict[str, Constant | Place | Symbol] = {}  # by the names of the program
        self.module, self.program, self.shape = module, program, shape
        self._inputs()
        for node in program.graph.nodes:
            if node.op == "call_function":
                self.known[node.name] = self._call(node)
        self._output()

    def _inputs(self) -> None:
        for spec in self.program.graph_signature.input_specs:
            name, target = spec.arg.name, str(spec.target)
            if spec.kind == InputKind.USER_INPUT:
                self.known[name] = Place(0, self.shape)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self.known[name] = Constant(live(self.module, target), target)
            else:
                self.known[name] = Constant(_fixed(self.program.constants[target]))

    def _output(self) -> None:
        """One tensor, made of the image; what comes after it in the program has no use."""
        specs = self.program.graph_signature.output_specs
        changed = next((spec.target for spec in specs if spec.kind != OutputKind.USER_OUTPUT), None)
        if changed is not None:
            raise Unsupported(f"the net changes its buffer {changed} when it is called")
        found = [self.known.get(getattr(spec.arg, "name", "")) for spec in specs]
        last = found[0]
        if len(found) != 1 or not isinstance(last, Place) or last.at == 0:
            raise Unsupported("the net does not return one tensor that it computes from the image")
        self.nodes = self.nodes[: last.at + 1]

    def _call(self, node: Any) -> Constant | Place | Symbol:
        name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        inputs = [self.known[each.name] for each in node.all_input_nodes]
        if isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat, int, float)) or name in IGNORED:
            return Symbol(node.name)
        try:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and name != "dropout":
                raise Refusal("draws random numbers")
            return self._known(node, name) if any(isinstance(each, Place) for each in inputs) else self._constant(node, inputs)
        except Refusal as reason:
            raise self._refused(node, str(reason)) from None

    def _constant(self, node: Any, inputs: list[Constant | Place | Symbol]) -> Constant:
        """An operator on constants alone: computed in the net's own type whenever it is asked for, as the net does."""
        if any(isinstance(each, Symbol) for each in inputs):
            raise Refusal("depends on the number of images")

        def fetch(dtype: torch.dtype | None) -> Tensor:
            args, kwargs = (torch.fx.map_arg(each, self._own) for each in (node.args, node.kwargs))
            result = node.target(*args, **kwargs)
            return result.to(dtype) if dtype is not None and isinstance(result, Tensor) and result.is_floating_point() else result

        return Constant(fetch)

    def _own(self, node: Any) -> Any:
        constant = self.known[node.name]
        assert isinstance(constant, Constant)
        return constant.fetch(None)

    def _known(self, node: Any, name: str) -> Place:
        """A new node, or the place of the input where the operator changes nothing."""
        if name not in OPERATORS:
            raise Refusal("has no known bounds")
        shape = _row(node.meta["val"])
        rule, inputs, tensors = OPERATORS[name](Call(self._arguments(node), shape or ()))
        if shape is None:
            raise Refusal("mixes the images of a batch")
        if rule is None:
            return inputs[0]
        self.nodes.append(
            Node(rule, tuple(each.at for each in inputs), tuple(None if each is None else each.fetch for each in tensors), shape)
        )
        return Place(len(self.nodes) - 1, shape)

    def _arguments(self, node: Any) -> dict[str, Any]:
        """By the names of the operator's schema, or by position where it has none; nodes replaced by what is known of them."""
        schema = node.target._schema.arguments if hasattr(node.target, "_schema") else None
        if schema is None:
            found = {str(i): value for i, value in enumerate(node.args)}
        else:
            found = {each.name: each.default_value for each in schema}
            found |= {each.name: value for each, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
        replaced: Any = torch.fx.map_arg(found, lambda each: self.known[each.name])  # type: ignore[arg-type, return-value]
        return dict(replaced)

    def _refused(self, node: Any, reason: str) -> Unsupported:
        stack = node.meta.get("nn_module_stack") or {}
        path = next((str(entry[0]) for entry in reversed(stack.values()) if not str(entry[0]).startswith("_empty")), "")
        part = f"submodule {path}" if path else "the net itself"
        line = _line(_frames(node.meta.get("stack_trace") or ""))
        return Unsupported(f"operator {str(node.target).removesuffix('.default')} {reason}, in {part}{line}")


def _row(value: Any) -> Shape | None:
    """The shape of one row of a result (of the first, where there are several); None where rows are not axis 0 any more."""
    first = value[0] if isinstance(value, (tuple, list)) else value
    if not first.ndim or isinstance(first.shape[0], int) or not all(isinstance(side, int) for side in first.shape[1:]):
        return None
    return tuple(first.shape[1:])


def _fixed(tensor: Tensor) -> Fetch:
    return lambda dtype: tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


# --- where it stands ------------------------------------------------------------------------------------------------------------------


def _frames(stack: str) -> list[tuple[str, str]]:
    return re.findall(r'File "([^"]+)", line (\d+)', stack)


def _where(error: BaseException) -> str:
    frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
    return _line([each for each in frames if Path(each[0]) != Path(__file__)], else_last=False)


def _line(frames: list[tuple[str, str]], else_last: bool = True) -> str:
    """File and line of the innermost frame that is not torch's, else of torch's own, after a comma."""
    own = [each for each in frames if not _FOREIGN.search(each[0])] or (frames if else_last else [])
    return f", {Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def _said(error: BaseException) -> str:
    """The kind of an error and the first sentence of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].split('. ')[0][:160]}" if lines else type(error).__name__
