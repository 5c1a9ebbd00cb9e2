"""An ONNX graph under construction, and the tensors in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
DTYPES = {
    "float32": TensorProto.FLOAT,
    "bool": TensorProto.BOOL,
    "int32": TensorProto.INT32,
    "uint32": TensorProto.UINT32,
    "int64": TensorProto.INT64,
}
Shape = tuple[int, ...]
SHARED_BYTES = 1 << 12  # constants up to this size are looked up and not stored twice


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph: a constant, or the name of what a node or an input gives.

    Its shape may have ones where the traced program has a larger axis: a broadcast is left to the
    operation that needs it, and most broadcast by themselves.
    """

    value: np.ndarray | str
    shape: Shape
    dtype: str

    @property
    def constant(self) -> np.ndarray | None:
        """The array of a constant; None for what is computed."""
        return self.value if isinstance(self.value, np.ndarray) else None


def constant(array: np.ndarray | np.generic) -> Tensor:
    """Makes a tensor of an array."""
    array = np.asarray(array)
    return Tensor(array, array.shape, array.dtype.name)


class Graph:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[Any, str] = {}
        self._arrays: list[np.ndarray] = []  # kept alive, because their ids are keys

    def add_input(self, name: str, shape: Shape, dtype: str) -> Tensor:
        """Adds an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], shape))
        return Tensor(name, shape, dtype)

    def add_output(self, name: str, tensor: Tensor, shape: Shape) -> None:
        """Adds an output of the graph."""
        self.nodes.append(helper.make_node("Identity", [self.name(self.full(tensor, shape))], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, DTYPES[tensor.dtype], shape))

    def name(self, tensor: Tensor) -> str:
        """Returns a tensor's name; a constant is stored the first time."""
        array = tensor.constant
        if array is None:
            return tensor.value
        small = array.nbytes <= SHARED_BYTES
        key = (array.dtype.name, array.shape, array.tobytes()) if small else id(array)
        if key not in self._names:
            self._names[key] = f"constant_{len(self.initializers)}"
            self._arrays.append(array)
            stored = np.ascontiguousarray(array).reshape(array.shape)
            self.initializers.append(numpy_helper.from_array(stored, self._names[key]))
        return self._names[key]

    def node(self, kind: str, inputs: list[Tensor], shape: Shape, dtype: str, **attributes: object) -> Tensor:
        """Adds a node of one output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.name(x) for x in inputs], [name], **attributes))
        return Tensor(name, tuple(shape), dtype)

    def split(self, x: Tensor, axis: int, sizes: list[int]) -> list[Tensor]:
        """Cuts a tensor along an axis."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(len(sizes))]
        given = [self.name(x), self.name(constant(np.array(sizes, np.int64)))]
        self.nodes.append(helper.make_node("Split", given, names, axis=axis))
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        return [Tensor(name, shape, x.dtype) for name, shape in zip(names, shapes, strict=True)]

    def full(self, x: Tensor, shape: Shape) -> Tensor:
        """Broadcasts a tensor to its shape in the traced program."""
        if x.shape == tuple(shape):
            return x
        if x.constant is not None:
            return constant(np.broadcast_to(x.constant, shape))
        return self.node("Expand", [x, constant(np.array(shape, np.int64))], shape, x.dtype)

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """Reshapes a tensor, whose values stay in their order."""
        if x.shape == tuple(shape):
            return x
        if x.constant is not None:
            return constant(x.constant.reshape(shape))
        return self.node("Reshape", [x, constant(np.array(shape, np.int64))], shape, x.dtype)

    def transpose(self, x: Tensor, order: list[int]) -> Tensor:
        """Permutes a tensor's axes."""
        if list(order) == list(range(len(order))):
            return x
        if x.constant is not None:
            return constant(np.ascontiguousarray(x.constant.transpose(order)))
        return self.node("Transpose", [x], tuple(x.shape[i] for i in order), x.dtype, perm=list(order))

    def take(self, x: Tensor, places: np.ndarray) -> Tensor:
        """Returns the elements at places of the flattened tensor, in the shape of `places`."""
        flat = self.reshape(x, (int(np.prod(x.shape)),))
        if flat.constant is not None:
            return constant(flat.constant[places])
        return self.node("Gather", [flat, constant(places.astype(np.int32))], places.shape, x.dtype, axis=0)

    def model(self, name: str, notes: dict[str, str]) -> onnx.ModelProto:
        """Returns the model of what its outputs need, with notes as metadata."""
        needed, nodes = {value.name for value in self.outputs}, []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
        stored = [array for array in self.initializers if array.name in needed]
        graph = helper.make_graph(nodes[::-1], name, self.inputs, self.outputs, stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="unils_jax")
        model.ir_version = 10  # what runtimes of opset 18 and later read
        helper.set_model_props(model, notes)
        return model
