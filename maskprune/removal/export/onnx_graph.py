"""From a JAX function to an ONNX graph: walks the jaxpr; `onnx_rules` knows the primitives.

Small on purpose: it covers what image networks are made of, folds everything that is constant, and names what it does
not cover. Sizes may be symbols; they are then computed inside the graph.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from maskprune.masks.groups import leaf_path
from maskprune.masks.jaxpr.internals import Literal, opened
from maskprune.masks.jaxpr.lines import source_line
from maskprune.masks.network import on_device
from maskprune.removal.export.errors import Uncovered
from maskprune.removal.export.onnx_rules import INLINE, RULES


OPSET = 18
IR_VERSION = 9  # of the same age as the opset, so that older runtimes read the file

Known = np.ndarray
Name = str


class Graph:
    """An ONNX graph under construction. A value is a NumPy array while it is known, then the name of a tensor."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[Name, Any] = {}
        self.symbols: dict[str, Name] = {}
        self._shared: dict[Any, Name] = {}

    def name(self, value: Known | Name) -> Name:
        """The tensor of a value; a known one becomes a constant of the graph, once for equal ones."""
        if isinstance(value, str):
            return value
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._shared:
            self._shared[key] = f"constant_{len(self.weights)}"
            array = np.array(value, order="C")
            self.weights[self._shared[key]] = numpy_helper.from_array(array, self._shared[key])
        return self._shared[key]

    def op(self, kind: str, *inputs: Known | Name, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node. Returns its output, or a list of them."""
        first = len(self.nodes)
        names = [f"{kind.lower()}_{first}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, [self.name(value) for value in inputs], names, **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *numbers: Any) -> Known | Name:
        """An int64 vector of sizes, some of which may be symbols."""
        if all(isinstance(number, (int, np.integer)) for number in numbers):
            return np.array(numbers, np.int64)
        parts = [self.op("Reshape", self.size(number), np.array([1])) for number in numbers]
        return self.op("Concat", *parts, axis=0)

    def size(self, number: Any) -> Known | Name:
        """An int64 scalar: a number, or an expression in symbols, computed from the sizes of the inputs."""
        if isinstance(number, (int, np.integer)):
            return np.array(number, np.int64)
        key = str(number)
        if ("size", key) not in self._shared:
            self._shared["size", key] = self._evaluate(ast.parse(key.replace("^", "**"), mode="eval").body)
        return self._shared["size", key]

    def symbol(self, expression: Any, tensor: Name, axis: int) -> None:
        """Learns a symbol from a size of an input, such as `h` from one that is written `8*h`."""
        tree = ast.parse(str(expression), mode="eval").body
        factor = 1
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult) and isinstance(tree.left, ast.Constant):
            factor, tree = int(tree.left.value), tree.right  # type: ignore[arg-type]
        if isinstance(tree, ast.Name) and tree.id not in self.symbols:
            shape = self.op("Shape", tensor)
            size = self.op("Gather", shape, np.array(axis, np.int64), axis=0)
            self.symbols[tree.id] = size if factor == 1 else self.op("Div", size, np.array(factor, np.int64))

    def _evaluate(self, tree: ast.AST) -> Any:
        if isinstance(tree, ast.Constant):
            return np.array(tree.value, np.int64)
        if isinstance(tree, ast.Name):
            return self.symbols[tree.id]
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return self.op("Neg", self._evaluate(tree.operand))
        kinds = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
        if isinstance(tree, ast.BinOp):
            return self.op(kinds[type(tree.op)], self._evaluate(tree.left), self._evaluate(tree.right))
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
            left, right = (self._evaluate(argument) for argument in tree.args)
            if tree.func.id == "floordiv":  # ONNX cuts towards zero; its Mod has the sign of the divisor, as Python's
                return self.op("Div", self.op("Sub", left, self.op("Mod", left, right)), right)
            if tree.func.id in ("mod", "max", "min"):
                return self.op(tree.func.id.capitalize(), left, right)
        raise Uncovered(f"the size `{ast.unparse(tree)}`")

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Adds the equations of a jaxpr; its inputs and outputs are values."""
        known: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= {var: _known(const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

        def get(atom: Any) -> Any:
            return np.asarray(atom.val, jnp.result_type(atom.aval)) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            known.update(
                zip(equation.outvars, self._equation(equation, [get(a) for a in equation.invars]), strict=True)
            )
        return [get(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name = equation.primitive.name
        if name in INLINE:
            inner = equation.params[INLINE[name]]
            return self.run(*opened(inner), inputs)
        if name != "dim_as_value" and all(isinstance(v, np.ndarray) for v in inputs) and _fixed(equation.outvars):
            found = equation.primitive.bind(*map(on_device, inputs), **equation.params)
            return [_known(array) for array in (found if equation.primitive.multiple_results else [found])]
        try:
            if name not in RULES:
                raise Uncovered(f"the primitive `{name}`")
            found = RULES[name](self, equation, *inputs)
        except Uncovered as error:
            raise Uncovered(f"{error} (at {source_line(equation)})") from None
        return found if isinstance(found, list) else [found]


def to_onnx(function: Callable[..., Any], structs: Sequence[Any]) -> onnx.ModelProto:
    """Converts `function(*inputs) -> output`.

    Args:
        function: Pure, with its parameters closed over.
        structs: Pytrees of `jax.ShapeDtypeStruct`s, whose sizes may be symbols. Their leaf paths name the inputs.

    Raises:
        Uncovered: A primitive, or a use of one, that is not covered.
    """
    jaxpr, output = jax.make_jaxpr(function, return_shape=True)(*structs)
    graph = Graph()
    inputs = [helper.make_tensor_value_info(n, _kind(s), _dims(s)) for n, s in _named("input", tuple(structs))]
    for info, struct in zip(inputs, jax.tree.leaves(structs), strict=True):
        for axis, size in enumerate(struct.shape):
            if not isinstance(size, int):
                graph.symbol(size, info.name, axis)
    found = graph.run(jaxpr.jaxpr, jaxpr.consts, [info.name for info in inputs])
    outputs = []
    for (name, struct), value in zip(_named("output", output), found, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.name(value)], [name]))
        outputs.append(helper.make_tensor_value_info(name, _kind(struct), _dims(struct)))
    built = helper.make_graph(graph.nodes, "maskprune", inputs, outputs, list(graph.weights.values()))
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="maskprune")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def _named(word: str, tree: Any) -> list[tuple[str, Any]]:
    """Leaves with names: the word alone for a single one, else with the path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if len(leaves) == 1:
        return [(word, leaves[0][1])]
    return [(f"{word}_{leaf_path(path)}", leaf) for path, leaf in leaves]


def _kind(struct: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(struct.dtype))


def _dims(struct: Any) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in struct.shape]


def _known(array: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(array), jax.dtypes.extended):
        return array  # a random key: fails by name where it is used
    return np.asarray(array)


def _fixed(outputs: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for var in outputs for size in var.aval.shape)
