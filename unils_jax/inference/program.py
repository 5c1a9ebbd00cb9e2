"""The decode program: one chunk of 100 frames for a fixed number of slots, everything within it in one jit.

A slot holds a conversation of one or two people. The audio encoder runs once a track for all people; prefix, finished
scales and audio keys are cached (`models/cached_prior.py`); what a model makes of zero audio and zero motion is
computed once per model; the chunk's motion is encoded on the device for the chunk that follows. Source: the paper's
section on inference and the release's inference code, which caches nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float

from unils_jax.errors import UserError
from unils_jax.inference.sampling import DTYPES, Controls, Input, choose_bits, sample_scales, uniforms
from unils_jax.models.prior_cache import hear, silent_constants
from unils_jax.models.quantizer import Scales
from unils_jax.models.unils import UniLS
from unils_jax.motion import MOTION_DIM, WINDOW_FRAMES
from unils_jax.nn.block import AudioCache
from unils_jax.nn.params import Params, merge, split
from unils_jax.nn.stack import Compute


@dataclass(frozen=True)
class Chunk:
    """100 decoded frames: `motion [S, P, 100, 108]`, the `bits [S, P, L, C]` it was made of, and the `logits
    [S, P, L, C, 2]` (after temperature and guidance) that chose them."""

    motion: Array
    bits: Array
    logits: Array


@dataclass(frozen=True)
class Constants:
    """What a model makes of nothing: `features [T, C]` of zero motion, and `silent [Z, J, D]`, what each block's J
    cross-attentions add where all audio features are zero (None without audio)."""

    features: Input
    silent: Input | None


jax.tree_util.register_dataclass(Chunk, ["motion", "bits", "logits"], [])
jax.tree_util.register_dataclass(Constants, ["features", "silent"], [])


@dataclass(frozen=True)
class Program:
    """A model made ready to decode `slots` conversations of `people` at a time; make it with `make_program`.

    Not `guided`, it computes the conditional branch alone. `dtype` is that of prior and audio encoder; the codec (whose
    signs are bits), norms, softmax, logits and sampling stay float32. Over the devices of `mesh` the slots are shared
    out, parameters copied. At one shape a slot's result depends on neither its number nor its neighbours, not in a bit.
    """

    graphdef: nnx.GraphDef
    params: Params
    constants: Constants
    scales: Scales
    slots: int
    people: int
    guided: bool
    dtype: str
    mesh: Mesh | None

    @property
    def hears(self) -> bool:
        """Whether chunks are decoded from audio."""
        return self.constants.silent is not None

    def features(self, clips: Float[np.ndarray, "P 100 108"]) -> Float[Array, "P 100 C"]:
        """Motion of a slot's people as style and previous motion condition on it."""
        return _features(self.graphdef, self.params, clips)

    def encode(self, audio: Float[Array, "S 2 N"] | Float[np.ndarray, "S 2 N"]) -> Float[Array, "S K A E"]:
        """Features, for `chunk`, of what the people hear of one window of both tracks (see `UniLS.encode_audio`)."""
        settings = {"people": self.people, "dtype": self.dtype, "mesh": self.mesh}
        return _encode(self.graphdef, self.params, self._place(audio), **settings)

    def chunk(
        self,
        sound: Array | np.ndarray | None,
        style: Float[Array, "S P 100 C"],
        prev: Float[Array, "S P 100 C"],
        uncond_prev: Float[Array, "S P 100 C"],
        controls: Controls,
        bits: Bool[Array, "S P L C"] | None = None,
    ) -> tuple[Chunk, Float[Array, "S P 100 C"]]:
        """Decodes a chunk; also the features of its motion, the previous motion of the next chunk in both branches.

        With `bits` none are chosen: the logits are those of a teacher's.

        `sound` is audio [S, 2, 64000] at 16 kHz, own track first, or `encode`'s features of it, or None for a prior.
        `style`, `prev` and `uncond_prev` (previous motion of the unconditional branch) are `features`; `prev` is donated.
        """
        inputs = self._place((sound, style, prev, uncond_prev, controls, bits))
        settings = {"guided": self.guided, "dtype": self.dtype, "mesh": self.mesh}
        return _chunk(self.graphdef, self.params, self.constants, *inputs, **settings)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """What `chunk` would run for such arguments, lowered: to compile apart, for its memory and its time."""
        settings = {"guided": self.guided, "dtype": self.dtype, "mesh": self.mesh}
        return _chunk.lower(self.graphdef, self.params, self.constants, *self._place(arguments), **settings)

    def _place(self, tree):
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec("slot")))


def make_program(
    model: UniLS,
    *,
    slots: int = 1,
    people: int = 1,
    guided: bool = True,
    dtype: str = "float32",
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Raises UserError where the model has no prior, or slots, people, dtype or devices do not fit."""
    problems = []
    if model.prior is None:
        problems.append("a codec does not decode; give a prior or a dialogue")
    if slots < 1 or people < 1 or (model.audio_encoder is not None and people > 2):
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
    return Program(graphdef, params, constants, model.codec.scales, slots, people, guided, dtype, mesh)


def _is_cast(path: str) -> bool:
    """Whether a parameter is held in the compute dtype: the products' weights outside codec and head."""
    inside = path.startswith(("audio_encoder/", "prior/blocks/", "prior/token_embed/"))
    return inside and "norm" not in path and path.endswith(("/kernel", "/bias", "/lora_a", "/lora_b"))


@partial(jax.jit, static_argnames=("graphdef", "dtype"))
def _constants(graphdef: nnx.GraphDef, params: Params, *, dtype: str) -> Constants:
    model: UniLS = merge(graphdef, params)
    features = model.codec.features(jnp.zeros((1, WINDOW_FRAMES, MOTION_DIM)))[0]
    return Constants(features, silent_constants(model.prior, dtype) if model.prior.has_audio else None)


@partial(jax.jit, static_argnames="graphdef")
def _features(graphdef: nnx.GraphDef, params: Params, clips: Array) -> Array:
    return merge(graphdef, params).codec.features(jnp.asarray(clips))


def _by_slot(function: Callable, mesh: Mesh | None, num_shared: int, num_slotted: int) -> Callable:
    """`function` of shared and then of slotted arguments, on every device for the slots that it holds."""
    if mesh is None:
        return function
    specs = (PartitionSpec(),) * num_shared + (PartitionSpec("slot"),) * num_slotted
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("slot"), check_vma=False)


@partial(jax.jit, static_argnames=("graphdef", "people", "dtype", "mesh"))
def _encode(
    graphdef: nnx.GraphDef, params: Params, audio: Array, *, people: int, dtype: str, mesh: Mesh | None
) -> Array:
    def run(params: Params, audio: Array) -> Array:
        return encode_tracks(merge(graphdef, params), audio, people, dtype)

    return _by_slot(run, mesh, 1, 1)(params, audio)


@partial(jax.jit, static_argnames=("graphdef", "guided", "dtype", "mesh"), donate_argnames="prev")
def _chunk(
    graphdef: nnx.GraphDef,
    params: Params,
    constants: Constants,
    sound: Array | None,
    style: Array,
    prev: Array,
    uncond_prev: Array,
    controls: Controls,
    bits: Array | None = None,
    *,
    guided: bool,
    dtype: str,
    mesh: Mesh | None,
) -> tuple[Chunk, Array]:
    def run(params: Params, constants: Constants, *slotted) -> tuple[Chunk, Array]:
        return decode_chunk(merge(graphdef, params), constants, *slotted, guided=guided, dtype=dtype)

    return _by_slot(run, mesh, 2, 6)(params, constants, sound, style, prev, uncond_prev, controls, bits)


def encode_tracks(model: UniLS, audio: Float[Array, "S 2 N"], people: int, dtype: str) -> Float[Array, "S K A E"]:
    """`UniLS.encode_audio` in a dtype."""
    return model.encode_audio(jnp.asarray(audio), people, Compute(dtype=jnp.dtype(dtype)))


def decode_chunk(
    model: UniLS,
    constants: Constants,
    sound: Float[Array, "S 2 N"] | Float[Array, "S K A E"] | None,
    style: Float[Array, "S P T C"],
    prev: Float[Array, "S P T C"],
    uncond_prev: Float[Array, "S P T C"],
    controls: Controls,
    bits: Bool[Array, "S P L C"] | None = None,
    *,
    guided: bool,
    dtype: str,
) -> tuple[Chunk, Float[Array, "S P T C"]]:
    """The whole of a chunk; see `Program.chunk`."""
    by_slot = style.shape[:2]
    heard = listen(model, constants, sound, by_slot[1], dtype)
    style, prev, uncond_prev = (x.reshape(-1, *x.shape[2:]) for x in (style, prev, uncond_prev))
    if guided:
        # Rows of the unconditional branch follow those of the conditional one.
        style = jnp.concatenate([style, jnp.broadcast_to(constants.features, style.shape)])
        prev = jnp.concatenate([prev, uncond_prev])

    drawn = uniforms(controls, by_slot[1], (sum(model.prior.scales), model.prior.code_dim))

    def choose(tokens: slice, logits: Array) -> tuple[Array, Array]:
        chosen, logits = choose_bits(logits, drawn[:, tokens], controls, by_slot)
        return (chosen if bits is None else bits.reshape(-1, *bits.shape[2:])[:, tokens]), logits

    taken, logits, features = sample_scales(model.prior, style.astype(dtype), prev.astype(dtype), heard, choose)
    motion = model.codec.decode(features)
    after = model.codec.features(motion)
    chunk = Chunk(*(x.reshape(*by_slot, *x.shape[1:]) for x in (motion, taken, logits)))
    return chunk, after.reshape(*by_slot, *after.shape[1:])


def listen(
    model: UniLS, constants: Constants, sound: Array | None, people: int, dtype: str
) -> Sequence[AudioCache | None]:
    """Per block what the people of all slots need of the audio: keys and values of what they listen to."""
    if sound is None:
        return [None] * len(model.prior.blocks)
    features = encode_tracks(model, sound, people, dtype) if sound.ndim == 3 else sound
    return hear(model.prior, model.audio_of_people(features, people), constants.silent)
