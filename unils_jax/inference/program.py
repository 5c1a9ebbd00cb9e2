"""The decode program: one window of motion for a fixed number of slots, all in one jit.

A slot holds a conversation of one or two people. The audio encoder runs once a track for all
people. The keys and values of prefix, finished scales and audio are cached
(`models/prior_cache.py`). What a model computes from zero audio and zero motion is computed once
per model. The chunk's motion is encoded on the device for the chunk that follows. Source: the
paper's section on inference and the release's inference code, which caches nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Float, PyTree

from unils_jax.errors import UserError
from unils_jax.inference.sampling import (
    DTYPES,
    Controls,
    Input,
    Placeholder,
    Sampling,
    choose_bits,
    make_controls,
    sample_scales,
    uniforms,
)
from unils_jax.models.prior_cache import cache_audio, null_outputs
from unils_jax.models.quantizer import Scales, scale_slices
from unils_jax.models.unils import UniLS
from unils_jax.motion import MOTION_DIM, Window
from unils_jax.nn.block import AudioCache
from unils_jax.nn.params import Params, abstract, merge, split
from unils_jax.nn.stack import Compute

# Features of style or previous motion for every person of every slot.
SlotFeatures = Float[Array, "S P F C"] | Float[np.ndarray, "S P F C"] | Placeholder


@dataclass(frozen=True)
class StepInputs:
    """What one chunk is decoded from, for all S slots of P people each."""

    # Audio [S, 2, N] at 16 kHz of the window's `num_samples`, own track first, or
    # `Program.encode`'s features [S, K, A, E] of it; None for a prior.
    audio: Input | None
    style: SlotFeatures  # `Program.features` of the style clips
    prev: SlotFeatures | None  # features of the previous motion; `Program.chunk` donates them
    uncond_prev: SlotFeatures  # the previous motion of the unconditional branch
    controls: Controls
    # Bits [S, P, L, C] to take as they are, as a teacher forces them; None: bits are chosen.
    bits: Input | None = None
    # Uniform numbers [S, P, L, C] that choose the bits; None: they are drawn by the controls.
    drawn: Input | None = None


@dataclass(frozen=True)
class Chunk:
    """One decoded window of T frames of all S slots of P people each."""

    motion: Array  # [S, P, T, 108]
    bits: Array  # [S, P, L, C], what the motion was decoded from
    logits: Array  # [S, P, L, C, 2] after temperature and guidance, which chose the bits


@dataclass(frozen=True)
class Constants:
    """What a model computes from no input, once per model."""

    features: Input  # [F, C] of zero motion, of as many frames as style and previous motion have
    # [Z, J, D]: what each of Z blocks' J cross-attentions adds where all audio features are zero;
    # None for a model without audio.
    null_outputs: Input | None


jax.tree_util.register_dataclass(StepInputs, ["audio", "style", "prev", "uncond_prev", "controls", "bits", "drawn"], [])
jax.tree_util.register_dataclass(Chunk, ["motion", "bits", "logits"], [])
jax.tree_util.register_dataclass(Constants, ["features", "null_outputs"], [])


@dataclass(frozen=True)
class _Settings:
    """The static part of a chunk's program: another value compiles another program."""

    graphdef: nnx.GraphDef
    guided: bool
    dtype: str
    mesh: Mesh | None


@dataclass(frozen=True)
class Program:
    """A model made ready to decode many conversations at a time; `make_program` makes it.

    The bits are sampled and the motion decoded in float32 whatever `dtype` is. At one shape, a
    slot's result depends bit for bit neither on its number nor on its neighbours.
    """

    graphdef: nnx.GraphDef
    params: Params
    constants: Constants
    scales: Scales
    window: Window  # what is decoded at a time, and from how much audio and motion
    slots: int  # conversations at a time
    people: int  # decoded people of each conversation
    guided: bool  # False: only the conditional branch is computed
    dtype: str  # of prior and audio encoder; codec (whose bits must not change) and sampling: float32
    mesh: Mesh | None  # slots are divided over its devices, parameters copied; None: one device

    @property
    def takes_audio(self) -> bool:
        """Whether chunks are decoded from audio."""
        return self.constants.null_outputs is not None

    def features(self, clips: Float[np.ndarray, "P F 108"]) -> Float[Array, "P F C"]:
        """Encodes clips of a slot's people to the features that style and previous motion are.

        Clips are whole windows, `context_frames` for a style or a previous motion.
        """
        return _features(self.graphdef, self.params, clips)

    def encode(self, audio: Float[Array, "S 2 N"] | Float[np.ndarray, "S 2 N"]) -> Float[Array, "S K A E"]:
        """Encodes both tracks of one window's audio of each slot; see `UniLS.encode_audio`."""
        settings = {"people": self.people, "dtype": self.dtype, "mesh": self.mesh}
        return _encode(self.graphdef, self.params, self._place(audio), **settings)

    def chunk(self, inputs: StepInputs) -> tuple[Chunk, Float[Array, "S P F C"]]:
        """Decodes a chunk; also returns the previous motion of the next one, in both branches.

        That is the features of the chunk's motion, and before them what `prev` holds of newer
        windows than the oldest. With `bits` in the inputs none are chosen, and the logits are those
        of a teacher-forced pass.
        """
        return _chunk(*self._chunk_arguments(inputs))

    def lower(self, inputs: StepInputs) -> jax.stages.Lowered:
        """Lowers what `chunk` would run: to compile it apart, for its memory and its time."""
        return _chunk.lower(*self._chunk_arguments(inputs))

    def trace(self, inputs: StepInputs, devices: Sequence[jax.Device]) -> jax.stages.Traced:
        """Traces what `chunk` would run on devices that need not be there.

        Program and inputs are shapes, see `planned_program`.
        """
        settings, *arguments = self._chunk_arguments(inputs, place=False)
        if self.mesh is None:
            shared = by_slot = SingleDeviceSharding(devices[0])
        else:
            shared, by_slot = (NamedSharding(self.mesh, spec) for spec in (PartitionSpec(), PartitionSpec("slot")))
        where = (shared, shared, by_slot, by_slot)
        return _chunk.trace(settings, *map(_laid, arguments, where))

    def _chunk_arguments(self, inputs: StepInputs, *, place: bool = True) -> tuple:
        settings = _Settings(self.graphdef, self.guided, self.dtype, self.mesh)
        inputs = self._place(inputs) if place else inputs
        # Only `prev` is donated, so it is an argument by itself: callers use the others again.
        return settings, self.params, self.constants, inputs.prev, replace(inputs, prev=None)

    def _place(self, tree: PyTree) -> PyTree:
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec("slot")))


def make_program(
    model: UniLS,
    *,
    slots: int = 1,
    people: int = 1,
    guided: bool = True,
    dtype: str = "float32",
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Makes a model ready to decode.

    Raises UserError where the model has no prior, or slots, people, dtype or devices do not fit.

    Args:
        model: A prior or a dialogue.
        slots: Conversations that are decoded at a time.
        people: Decoded people of each conversation; at most 2 for a dialogue.
        guided: Whether the unconditional branch is computed too, which guidance needs.
        dtype: Compute dtype of prior and audio encoder, one of `sampling.DTYPES`.
        devices: Devices that the slots are divided over; None: the default device.
    """
    problems = []
    if model.prior is None:
        problems.append("a codec does not decode; give a prior or a dialogue")
    if slots < 1 or people < 1 or (model.encoder is not None and people > 2):
        problems.append(f"slots and people must be at least 1, people of a dialogue at most 2, got {slots}, {people}")
    if dtype not in DTYPES:
        problems.append(f"dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
    if devices is not None and slots % len(devices):
        problems.append(f"slots must be a multiple of the {len(devices)} devices, got {slots}")
    if problems:
        raise UserError("; ".join(problems))
    graphdef, params = split(model)
    params = {path: value.astype(dtype) if _is_cast(path) else value for path, value in params.items()}
    constants = _constants(graphdef, params, dtype=dtype)
    mesh = None if devices is None else Mesh(np.array(devices), ("slot",))
    if mesh is not None:
        params, constants = jax.device_put((params, constants), NamedSharding(mesh, PartitionSpec()))
    scales, window = model.codec.scales, model.prior.window
    return Program(graphdef, params, constants, scales, window, slots, people, guided, dtype, mesh)


def planned_program(
    build: Callable[[nnx.Rngs], UniLS], *, slots: int, people: int, dtype: str, devices: Sequence[jax.Device]
) -> tuple[Program, StepInputs]:
    """Returns a guided program of shapes alone, and its inputs: to be traced, not to be run.

    Args:
        build: Builds a dialogue.
        slots: Conversations that are decoded at a time, a multiple of the devices.
        people: Decoded people of each conversation.
        dtype: Compute dtype of prior and audio encoder.
        devices: Where it would run; they need not be there.
    """
    graphdef, params = abstract(build)
    params = {
        path: jax.ShapeDtypeStruct(shape.shape, dtype if _is_cast(path) else shape.dtype)
        for path, shape in params.items()
    }
    constants = jax.eval_shape(partial(_constants, graphdef, dtype=dtype), params)
    mesh = None if len(devices) == 1 else Mesh(np.array(devices), ("slot",))
    model = merge(graphdef, params)
    scales, window = model.codec.scales, model.prior.window
    program = Program(graphdef, params, constants, scales, window, slots, people, True, dtype, mesh)
    features = jax.ShapeDtypeStruct((slots, people, *constants.features.shape), jnp.float32)
    audio = jax.ShapeDtypeStruct((slots, 2, window.num_samples), jnp.float32)
    controls = make_controls([Sampling()] * slots, range(slots), [0] * slots, len(model.prior.scales))
    return program, StepInputs(audio, features, features, features, controls)


def _laid(tree: PyTree, sharding: Sharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _is_cast(path: str) -> bool:
    """Returns True for parameters that are held in the compute dtype.

    Those are the weights of the products outside the codec and the prior's head.
    """
    inside = path.startswith(("audio_encoder/", "prior/blocks/", "prior/token_embed/"))
    is_weight = path.endswith(("/kernel", "/bias", "/lora_a", "/lora_b"))
    return inside and "norm" not in path and is_weight


@partial(jax.jit, static_argnames=("graphdef", "dtype"))
def _constants(graphdef: nnx.GraphDef, params: Params, *, dtype: str) -> Constants:
    model: UniLS = merge(graphdef, params)
    window = model.prior.window
    features = jnp.tile(model.codec.features(jnp.zeros((1, window.frames, MOTION_DIM)))[0], (window.context_windows, 1))
    return Constants(features, null_outputs(model.prior, dtype) if model.prior.has_audio else None)


@partial(jax.jit, static_argnames="graphdef")
def _features(graphdef: nnx.GraphDef, params: Params, clips: Array) -> Array:
    return merge(graphdef, params).codec.features(jnp.asarray(clips))


def _over_slots(
    function: Callable[[PyTree, PyTree], PyTree], mesh: Mesh | None, shared: PyTree, by_slot: PyTree
) -> PyTree:
    """Returns `function(shared, by_slot)`, computed by every device for the slots that it holds."""
    if mesh is None:
        return function(shared, by_slot)
    specs = (PartitionSpec(), PartitionSpec("slot"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("slot"), check_vma=False)
    return mapped(shared, by_slot)


@partial(jax.jit, static_argnames=("graphdef", "people", "dtype", "mesh"))
def _encode(
    graphdef: nnx.GraphDef, params: Params, audio: Array, *, people: int, dtype: str, mesh: Mesh | None
) -> Array:
    def run(params: Params, audio: Array) -> Array:
        return encode_tracks(merge(graphdef, params), audio, people, dtype)

    return _over_slots(run, mesh, params, audio)


@partial(jax.jit, static_argnames="settings", donate_argnames="prev")
def _chunk(
    settings: _Settings, params: Params, constants: Constants, prev: Array, inputs: StepInputs
) -> tuple[Chunk, Array]:
    def run(shared: tuple[Params, Constants], inputs: StepInputs) -> tuple[Chunk, Array]:
        params, constants = shared
        model = merge(settings.graphdef, params)
        return decode_chunk(model, constants, inputs, guided=settings.guided, dtype=settings.dtype)

    return _over_slots(run, settings.mesh, (params, constants), replace(inputs, prev=prev))


def encode_tracks(model: UniLS, audio: Float[Array, "S 2 N"], people: int, dtype: str) -> Float[Array, "S K A E"]:
    """Runs `UniLS.encode_audio` in a dtype."""
    return model.encode_audio(jnp.asarray(audio), people, Compute(dtype=jnp.dtype(dtype)))


def decode_chunk(
    model: UniLS, constants: Constants, inputs: StepInputs, *, guided: bool, dtype: str
) -> tuple[Chunk, Float[Array, "S P F C"]]:
    """Decodes one chunk of all slots; see `Program.chunk`."""
    by_slot = inputs.style.shape[:2]
    audio_cache = window_audio_cache(model, constants, inputs.audio, by_slot[1], dtype)
    clips = (inputs.style, inputs.prev, inputs.uncond_prev)
    style, prev, uncond_prev = (x.reshape(-1, *x.shape[2:]) for x in clips)
    kept = prev[:, model.prior.window.frames :]
    if guided:
        # Rows of the unconditional branch follow those of the conditional one.
        style = jnp.concatenate([style, jnp.broadcast_to(constants.features, style.shape)])
        prev = jnp.concatenate([prev, uncond_prev])

    # Drawn for all bits of the chunk at once: a bit's number depends on no other scale.
    bits_shape = (sum(model.prior.scales), model.prior.code_dim)
    if inputs.drawn is None:
        drawn = uniforms(inputs.controls, by_slot[1], bits_shape)
    else:
        drawn = inputs.drawn.reshape(-1, *bits_shape)
    given = None if inputs.bits is None else inputs.bits.reshape(-1, *inputs.bits.shape[2:])

    def choose(tokens: slice, logits: Array) -> tuple[Array, Array]:
        scale = scale_slices(model.prior.scales).index(tokens)
        forced = None if given is None else given[:, tokens]
        controls, chain = inputs.controls.at_scale(scale), model.prior.chain(scale)
        return choose_bits(logits, drawn[:, tokens], controls, by_slot, chain, forced)

    style, prev = style.astype(dtype), prev.astype(dtype)
    bits, logits, features = sample_scales(model.prior, style, prev, audio_cache, choose)
    motion = model.codec.decode(features)
    # The decoded motion is encoded again: its own bits, and not those that were sampled, condition
    # the next chunk.
    next_prev = jnp.concatenate([kept, model.codec.features(motion)], axis=1)
    chunk = Chunk(*(x.reshape(*by_slot, *x.shape[1:]) for x in (motion, bits, logits)))
    return chunk, next_prev.reshape(*by_slot, *next_prev.shape[1:])


def window_audio_cache(
    model: UniLS, constants: Constants, audio: Array | None, people: int, dtype: str
) -> Sequence[AudioCache | None]:
    """Caches one window's audio for every block, for the people of all slots."""
    if audio is None:
        return [None] * len(model.prior.blocks)
    # Three axes are samples, four are features that `Program.encode` has made.
    features = encode_tracks(model, audio, people, dtype) if audio.ndim == 3 else audio
    tracks = model.audio_of_people(features, people)
    return cache_audio(model.prior, tracks, constants.null_outputs)
