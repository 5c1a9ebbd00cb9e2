"""Writes the decode program of one conversation as an ONNX file, and compares both."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from jax import Array

from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.onnx.graph import Graph, constant
from unils_jax.checkpoints.onnx.translate import translate
from unils_jax.errors import UserError
from unils_jax.files import atomic_output
from unils_jax.inference.program import Program, StepInputs, decode_chunk, make_program
from unils_jax.inference.sampling import Controls, Sampling, make_controls
from unils_jax.models.unils import UniLS
from unils_jax.motion import FPS, MOTION_DIM, SAMPLE_RATE, channel_names
from unils_jax.nn.params import Params, merge

MAX_BYTES = (2 << 30) - (1 << 20)  # of a protobuf message
MOTION_TOLERANCE = 1e-3  # between the runtimes: radians, or units of coefficient
OUTPUTS = ("motion", "bits")


@dataclass(frozen=True)
class Written:
    """An exported decode program, and how it compares with ours on one window of noise."""

    nodes: int
    bytes: int
    bits: int  # that were compared: greedy and sampled ones
    different: int
    motion_error: float  # the largest difference where the bits are equal
    frames_per_s: float  # of all people together, by onnxruntime on this machine's processor
    our_frames_per_s: float  # by JAX, on its device


def step_inputs(program: Program) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the names, shapes and types of what one window is decoded from."""
    people, frames = program.people, program.window.context_frames
    clip = ((people, frames, MOTION_DIM), "float32")
    audio = {"audio": ((2, program.window.num_samples), "float32")} if program.takes_audio else {}
    uniform = ((people, sum(program.scales), program.constants.features.shape[-1]), "float32")
    by_scale = dict.fromkeys(("tau", "cfg"), ((len(program.scales),), "float32"))
    sampling = {**by_scale, "one_minus_top_p": ((), "float32")}
    return {**audio, "style": clip, "prev": clip, "uncond_prev": clip, "uniforms": uniform, **sampling}


def decode_step(program: Program, params: Params, given: dict[str, Array]) -> tuple[Array, Array]:
    """Decodes one window of one conversation from motion and audio: its motion and its bits."""
    model: UniLS = merge(program.graphdef, params)
    clips = jnp.stack([given[name] for name in ("style", "prev", "uncond_prev")])
    features = model.codec.features(clips.reshape(-1, *clips.shape[2:])).reshape(*clips.shape[:3], -1)
    style, prev, uncond_prev = features[:, None]
    none = np.zeros(1, np.uint32)
    settings = [given[name][None] for name in ("tau", "cfg", "one_minus_top_p")]
    audio = given["audio"][None] if program.takes_audio else None
    inputs = StepInputs(audio, style, prev, uncond_prev, Controls(*settings, none, none), None, given["uniforms"][None])
    chunk, _ = decode_chunk(model, program.constants, inputs, guided=True, dtype="float32")
    return chunk.motion[0], chunk.bits[0]


def export_onnx(checkpoint: Checkpoint, path: Path, *, people: int = 2) -> Written:
    """Writes the program that decodes a window of one conversation, and runs it.

    Inputs and outputs are those of `step_inputs` and `OUTPUTS`; how windows follow one another is
    in the file's metadata. Raises UserError for a model that this program does not decode, for one
    of more than 2 GiB, and where onnxruntime's motion is another than ours.
    """
    model = checkpoint.merged().model
    if not isinstance(model, UniLS) or model.prior is None:
        raise UserError(
            f"an .onnx holds UniLS' and ARTalk's decode program, {checkpoint.source['checkpoint']} is a "
            f"{checkpoint.config.stage}; give a prior or a dialogue"
        )
    program = make_program(model, people=people if model.encoder is not None else 1, guided=True)
    if sum(value.nbytes for value in program.params.values()) > MAX_BYTES:
        raise UserError("an .onnx file holds at most 2 GiB, and this model's parameters are more; export .safetensors")
    notes = _notes(program, checkpoint.expression_basis)
    with atomic_output(path) as partial:
        proto = build_onnx(program, notes)
        onnx.save(proto, partial)
        return _compare(program, partial, len(proto.graph.node))


def build_onnx(program: Program, notes: dict[str, str]) -> onnx.ModelProto:
    """Translates `decode_step` of a program.

    Raises UserError where it has an operation that has no rule.
    """
    expected = step_inputs(program)
    graph = Graph()
    inputs = [graph.add_input(name, *of) for name, of in expected.items()]
    shapes = {name: jax.ShapeDtypeStruct(*of) for name, of in expected.items()}
    params = jax.tree.map(np.asarray, program.params)
    leaves, tree = jax.tree.flatten((params, shapes))
    traced = jax.make_jaxpr(lambda *values: decode_step(program, *jax.tree.unflatten(tree, values)))(*leaves)
    by_name = dict(zip(expected, inputs, strict=True))
    given = jax.tree.leaves((jax.tree.map(constant, params), {name: by_name[name] for name in shapes}))
    try:
        outputs = translate(graph, traced, given)
    except NotImplementedError as error:
        raise UserError(f"this model has an operation that has no ONNX form here: {error}") from None
    for name, tensor, aval in zip(OUTPUTS, outputs, traced.out_avals, strict=True):
        graph.add_output(name, tensor, aval.shape)
    return graph.model("unils_decode_step", notes)


def _notes(program: Program, expression_basis: str) -> dict[str, str]:
    """Returns what an engine must know besides names and shapes."""
    window = program.window
    return {
        "frames": str(window.frames),
        "context_frames": str(window.context_frames),
        "past_audio_frames": str(window.past_audio_frames),
        "lookahead_frames": str(window.lookahead_frames),
        "fps": str(FPS),
        "sample_rate": str(SAMPLE_RATE),
        "expression_basis": expression_basis,
        "channels": json.dumps(channel_names(expression_basis)),
        "use": "audio: own track, other track, of the window with past and lookahead; style, prev, uncond_prev: zeros "
        "at first; then prev and uncond_prev are the last context_frames of motion; uniforms: numbers in [0, 1); "
        "tau and cfg: one for each scale; tau 0 is greedy",
    }


def _compare(program: Program, path: Path, nodes: int) -> Written:
    """Decodes one window of noise by both, greedy and sampled."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ours = jax.jit(lambda params, given: decode_step(program, params, given))
    bits = different = 0
    error = 0.0
    for sampling in (Sampling(tau=0.0), Sampling()):
        given = example(program, sampling)
        motion, chosen = (np.asarray(x) for x in ours(program.params, given))
        found, taken = session.run(list(OUTPUTS), given)
        bits, different = bits + chosen.size, different + int((chosen != taken).sum())
        if (chosen == taken).all():
            error = max(error, float(np.abs(found - motion).max()))
    # A tie may turn a bit by rounding; more than one in a thousand is another program.
    if different > bits / 1000 or error > MOTION_TOLERANCE:
        raise UserError(
            f"onnxruntime decodes {different} of {bits} bits otherwise, motion by {error:.1e}; no file was written, "
            "report this with the versions that `unils doctor` lists"
        )
    runs = (lambda: session.run(list(OUTPUTS), given), lambda: jax.block_until_ready(ours(program.params, given)))
    speeds = [program.people * program.window.frames / best for best in _fastest(runs)]
    return Written(nodes, path.stat().st_size, bits, different, error, *speeds)


def _fastest(runs: Sequence[Callable[[], object]], rounds: int = 3) -> list[float]:
    """Returns the seconds of each run's fastest round; they take turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return [min(found) for found in seconds]


def example(program: Program, sampling: Sampling, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns inputs of one window: noise as audio, small motion, uniform numbers."""
    rng = np.random.default_rng(seed)
    given = {}
    for name, (shape, _) in step_inputs(program).items():
        draw = rng.random if name == "uniforms" else rng.standard_normal
        given[name] = (draw(shape) * (1.0 if name == "uniforms" else 0.1)).astype(np.float32)
    controls = make_controls([sampling], [0], [0], len(program.scales))
    return given | {name: np.asarray(getattr(controls, name)[0]) for name in ("tau", "cfg", "one_minus_top_p")}
