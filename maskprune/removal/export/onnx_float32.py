"""The same ONNX model, computed in float32 inside: for types of which a runtime has no kernels.

Weights, inputs and outputs keep their types, and are cast where they come in or go out. What the model itself casts to
a small type is still rounded to it.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper


SMALL = {
    number: name
    for name, number in TensorProto.DataType.items()
    if name in ("BFLOAT16", "FLOAT16") or name.startswith("FLOAT8")
}


def small_types(model: onnx.ModelProto) -> list[str]:
    """The names of the floating-point types below 32 bits in a model."""
    graph = model.graph
    values = [*graph.input, *graph.output]
    kinds = {value.type.tensor_type.elem_type for value in values} | {each.data_type for each in graph.initializer}
    kinds |= {_target(node) for node in graph.node if node.op_type == "Cast"}
    return sorted(SMALL[kind].lower() for kind in kinds & set(SMALL))


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that takes and gives the same, and computes in float32 in between."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    sources = [(value.name, value.type.tensor_type.elem_type) for value in graph.input]
    sources += [(each.name, each.data_type) for each in graph.initializer]
    small = {name for name, kind in sources if kind in SMALL}
    ends = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    nodes = [_cast(name, f"{name}_float32", TensorProto.FLOAT) for name in sorted(small)]
    for node in model.graph.node:
        nodes += _widened(node, small, ends)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(found)
    return found


def _widened(node: Any, small: set[str], ends: dict[str, int]) -> list[Any]:
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    wide.input[:] = [f"{name}_float32" if name in small else name for name in node.input]
    if node.op_type == "Cast" and _target(node) in SMALL:
        rounded = f"{node.output[0]}_rounded"
        return [
            _cast(wide.input[0], rounded, _target(node)),
            _cast(rounded, node.output[0], TensorProto.FLOAT),
        ]
    if node.output[0] in ends and ends[node.output[0]] in SMALL:  # the last `Identity`
        return [_cast(wide.input[0], node.output[0], ends[node.output[0]])]
    return [wide]


def _cast(source: str, target: str, kind: int) -> Any:
    return helper.make_node("Cast", [source], [target], to=kind)


def _target(node: Any) -> int:
    return next(each.i for each in node.attribute if each.name == "to")
