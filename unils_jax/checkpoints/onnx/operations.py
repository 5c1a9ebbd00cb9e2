"""JAX's operations in ONNX: one function for each kind that the decode program has."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from unils_jax.checkpoints.onnx.graph import DTYPES, Graph, Shape, Tensor, constant

Rule = Callable[[Graph, JaxprEqn, list[Tensor]], list[Tensor]]

# Operations of one ONNX node on tensors that it broadcasts itself.
_NODES = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "max": "Max",
    "min": "Min",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "erf": "Erf",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "sin": "Sin",
    "cos": "Cos",
    "gt": "Greater",
    "lt": "Less",
    "ge": "GreaterOrEqual",
    "le": "LessOrEqual",
    "eq": "Equal",
    "and": "And",
    "or": "Or",
    "not": "Not",
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


def _broadcast(inputs: list[Tensor]) -> Shape:
    return np.broadcast_shapes(*(x.shape for x in inputs))


def _elementwise(kind: str, graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    return [graph.node(kind, inputs, _broadcast(inputs), eqn.outvars[0].aval.dtype.name)]


def _square(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    return [graph.node("Mul", [inputs[0], inputs[0]], inputs[0].shape, inputs[0].dtype)]


def _integer_pow(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    if eqn.params["y"] == 2:
        return _square(graph, eqn, inputs)
    exponent = constant(np.array(eqn.params["y"], inputs[0].dtype))
    return [graph.node("Pow", [inputs[0], exponent], inputs[0].shape, inputs[0].dtype)]


def _rsqrt(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    root = graph.node("Sqrt", inputs, inputs[0].shape, inputs[0].dtype)
    return [graph.node("Reciprocal", [root], root.shape, root.dtype)]


def _erfc(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    x = graph.node("Erf", inputs, inputs[0].shape, inputs[0].dtype)
    return [graph.node("Sub", [constant(np.float32(1)), x], x.shape, x.dtype)]


def _is_finite(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    size = graph.node("Abs", inputs, inputs[0].shape, inputs[0].dtype)
    return [graph.node("Less", [size, constant(np.float32(np.inf))], size.shape, "bool")]  # NaN is not less


def _not_equal(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    same = graph.node("Equal", inputs, _broadcast(inputs), "bool")
    return [graph.node("Not", [same], same.shape, "bool")]


def _select(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    which, if_false, if_true = inputs
    if if_true.dtype == "bool":  # onnxruntime has no Where of these
        other = graph.node("Not", [which], which.shape, "bool")
        pairs = [(which, if_true), (other, if_false)]
        taken = [graph.node("And", list(pair), _broadcast(list(pair)), "bool") for pair in pairs]
        return [graph.node("Or", taken, _broadcast(taken), "bool")]
    return [graph.node("Where", [which, if_true, if_false], _broadcast(inputs), if_true.dtype)]


def _clamp(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    low, x, high = inputs
    raised = graph.node("Max", [low, x], _broadcast([low, x]), x.dtype)
    return [graph.node("Min", [raised, high], _broadcast([raised, high]), x.dtype)]


def _same(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    return inputs


def _convert(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    dtype = eqn.params["new_dtype"].name
    if dtype == inputs[0].dtype:
        return inputs
    return [graph.node("Cast", inputs, inputs[0].shape, dtype, to=DTYPES[dtype])]


def _broadcast_in_dim(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    """Gives a tensor its new axes, each of size one: what reads it broadcasts."""
    shape = [1] * len(eqn.params["shape"])
    for size, axis in zip(inputs[0].shape, eqn.params["broadcast_dimensions"], strict=True):
        shape[axis] = size
    return [graph.reshape(inputs[0], tuple(shape))]


def _squeeze(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    shape = tuple(size for axis, size in enumerate(inputs[0].shape) if axis not in eqn.params["dimensions"])
    return [graph.reshape(inputs[0], shape)]


def _transpose(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    return [graph.transpose(inputs[0], list(eqn.params["permutation"]))]


def _reshape(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    return [graph.reshape(inputs[0], eqn.params["new_sizes"])]


def _slice(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    bounds = [constant(np.array(values, np.int64)) for values in (starts, limits, range(len(starts)), strides)]
    return [graph.node("Slice", [inputs[0], *bounds], eqn.outvars[0].aval.shape, inputs[0].dtype)]


def _concatenate(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    shape = eqn.outvars[0].aval.shape
    # Edges of no width are left out: ONNX reads a zero in a shape as "as it was".
    pieces = [x for x in inputs if 0 not in x.shape]
    return [graph.node("Concat", pieces, shape, inputs[0].dtype, axis=eqn.params["dimension"])]


def _stack(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    shape = eqn.outvars[0].aval.shape
    axis = eqn.params["axis"] % len(shape)
    rows = [graph.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in inputs]
    return [graph.node("Concat", rows, shape, inputs[0].dtype, axis=axis)]


def _split(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    return graph.split(inputs[0], eqn.params["axis"], [int(size) for size in eqn.params["sizes"]])


def _unstack(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    axis, shape = eqn.params["axis"], eqn.outvars[0].aval.shape
    return [graph.reshape(x, shape) for x in graph.split(inputs[0], axis, [1] * len(eqn.outvars))]


def _tile(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    reps = constant(np.array(eqn.params["reps"], np.int64))
    return [graph.node("Tile", [inputs[0], reps], eqn.outvars[0].aval.shape, inputs[0].dtype)]


def _reduce(kind: str, graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    axes = constant(np.array(eqn.params["axes"], np.int64))
    return [graph.node(kind, [inputs[0], axes], eqn.outvars[0].aval.shape, inputs[0].dtype, keepdims=0)]


def _sort(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    if len(inputs) > 1:
        raise NotImplementedError("sort of several arrays")
    axis = eqn.params["dimension"]
    count = constant(np.array([inputs[0].shape[axis]], np.int64))
    values = graph.node("TopK", [inputs[0], count], inputs[0].shape, inputs[0].dtype, axis=axis, largest=0)
    graph.nodes[-1].output.append(f"{values.value}_order")  # TopK has two outputs, the second unused
    return [values]


def _dot(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    """Multiplies matrices, with batches where there are some."""
    (contracted, batch), sides = eqn.params["dimension_numbers"], []
    for x, summed, batched, is_left in zip(inputs, contracted, batch, (True, False), strict=True):
        free = [axis for axis in range(len(x.shape)) if axis not in summed and axis not in batched]
        order = [*batched, *free, *summed] if is_left else [*batched, *summed, *free]
        sizes = [tuple(x.shape[axis] for axis in axes) for axes in (batched, free, summed)]
        inner = int(np.prod(sizes[1])), int(np.prod(sizes[2]))
        matrix = (int(np.prod(sizes[0])),) if batched else ()
        turned = graph.transpose(x, order)
        sides.append((graph.reshape(turned, (*matrix, *(inner if is_left else inner[::-1]))), sizes))
    (left, sizes), (right, right_sizes) = sides
    shape = (*left.shape[:-1], right.shape[-1])
    product = graph.node("MatMul", [left, right], shape, left.dtype)
    return [graph.reshape(product, (*sizes[0], *sizes[1], *right_sizes[1]))]


def _conv(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    p = eqn.params
    if p["batch_group_count"] != 1 or set(p["lhs_dilation"]) != {1}:
        raise NotImplementedError("a convolution with dilated input or batch groups")
    lhs, rhs, out = p["dimension_numbers"]
    x, kernel = graph.transpose(inputs[0], list(lhs)), graph.transpose(inputs[1], list(rhs))
    pads = [pad[0] for pad in p["padding"]] + [pad[1] for pad in p["padding"]]
    shape = tuple(eqn.outvars[0].aval.shape[axis] for axis in out)
    result = graph.node(
        "Conv",
        [x, kernel],
        shape,
        x.dtype,
        group=p["feature_group_count"],
        strides=list(p["window_strides"]),
        dilations=list(p["rhs_dilation"]),
        pads=pads,
    )
    return [graph.transpose(result, np.argsort(out).tolist())]


def _places(eqn: JaxprEqn, arrays: list[np.ndarray | np.generic]) -> np.ndarray:
    """Runs an operation that only moves elements on their numbers."""
    return np.asarray(eqn.primitive.bind(*arrays, **eqn.params))


def _numbers(shape: Shape, first: int = 0) -> np.ndarray:
    return np.arange(first, first + int(np.prod(shape)), dtype=np.int32).reshape(shape)


def _indices(inputs: list[Tensor]) -> list[np.ndarray]:
    if any(x.constant is None for x in inputs):
        raise NotImplementedError("places that depend on the input")
    return [x.constant for x in inputs]


def _move(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    """Takes elements from places that are known: gather, dynamic_slice, rev."""
    return [graph.take(inputs[0], _places(eqn, [_numbers(inputs[0].shape), *_indices(inputs[1:])]))]


def _pad(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    flat = [graph.reshape(x, (int(np.prod(x.shape)),)) for x in inputs]
    both = graph.node("Concat", flat, (flat[0].shape[0] + 1,), inputs[0].dtype, axis=0)
    places = _places(eqn, [_numbers(inputs[0].shape), np.int32(flat[0].shape[0])])
    return [graph.take(both, places)]


def _scatter(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    """Puts updates at places that are known; with `scatter-add` it adds them there."""
    operand, indices, updates = inputs
    adds = eqn.primitive.name == "scatter-add"
    base = constant(np.zeros(operand.shape, operand.dtype)) if adds else operand
    flat = [graph.reshape(x, (int(np.prod(x.shape)),)) for x in (base, updates)]
    both = graph.node("Concat", flat, (flat[0].shape[0] + flat[1].shape[0],), operand.dtype, axis=0)
    put = partial(jax.lax.scatter, dimension_numbers=eqn.params["dimension_numbers"], mode=eqn.params["mode"])
    numbers = _numbers(operand.shape), _numbers(updates.shape, flat[0].shape[0])
    if adds and not eqn.params["unique_indices"]:
        raise NotImplementedError("adding several values at one place")
    placed = graph.take(both, np.asarray(put(numbers[0], _indices([indices])[0], numbers[1])))
    return [graph.node("Add", [operand, placed], operand.shape, operand.dtype) if adds else placed]


def _spectrum(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    """Returns a real spectrum as [2, ...]: its real parts, then its imaginary parts."""
    lengths = eqn.params["fft_lengths"]
    if eqn.params["fft_type"] != jax.lax.FftType.RFFT or len(lengths) != 1:
        raise NotImplementedError("a Fourier transform other than that of real frames")
    angles = 2 * np.pi * np.outer(np.arange(lengths[0]), np.arange(lengths[0] // 2 + 1)) / lengths[0]
    tables = constant(np.stack([np.cos(angles), -np.sin(angles)]).astype(np.float32))
    frames = graph.reshape(inputs[0], (1, int(np.prod(inputs[0].shape[:-1])), lengths[0]))
    parts = graph.node("MatMul", [frames, tables], (2, frames.shape[1], angles.shape[1]), "float32")
    shape = (2, *inputs[0].shape[:-1], angles.shape[1])
    return [Tensor(graph.reshape(parts, shape).value, shape, "complex64")]


def absolute(graph: Graph, spectrum: Tensor) -> Tensor:
    """Returns the sizes of the complex numbers of `_spectrum`."""
    axis = constant(np.array([0], np.int64))
    return graph.node("ReduceL2", [spectrum, axis], spectrum.shape[1:], "float32", keepdims=0)


# Operations that broadcast by themselves, or leave axes of size one as they are.
LAZY: dict[str, Rule] = {
    **{name: partial(_elementwise, kind) for name, kind in _NODES.items()},
    "square": _square,
    "integer_pow": _integer_pow,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "is_finite": _is_finite,
    "ne": _not_equal,
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _convert,
    **dict.fromkeys(("stop_gradient", "optimization_barrier", "copy", "copy_p"), _same),
    "broadcast_in_dim": _broadcast_in_dim,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
# Operations on tensors of the traced shapes.
STRICT: dict[str, Rule] = {
    "reshape": _reshape,
    "slice": _slice,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "unstack": _unstack,
    "tile": _tile,
    **{name: partial(_reduce, kind) for name, kind in _REDUCTIONS.items()},
    "sort": _sort,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    **dict.fromkeys(("gather", "dynamic_slice", "rev"), _move),
    "pad": _pad,
    **dict.fromkeys(("scatter", "scatter-add"), _scatter),
    "fft": _spectrum,
}
