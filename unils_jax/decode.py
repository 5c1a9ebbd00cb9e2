"""From audio to motion: chunks of 100 frames, guidance between two branches, nucleus sampling over bits.

Source: the paper's section on inference and the release's inference code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.models.quantizer import full_features, next_scale_inputs, scale_slices
from unils_jax.models.unils import UniLS
from unils_jax.motion import SAMPLES_PER_FRAME, WINDOW_FRAMES, WINDOW_SAMPLES
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params, merge, split

Choose = Callable[[Array, RandomKey], tuple[Array, Array]]


@dataclass(frozen=True)
class Sampling:
    """How bits are chosen: temperature (0 is greedy), guidance (<= 1 skips the unconditional branch), nucleus."""

    tau: float = 1.0
    cfg: float = 1.5
    top_p: float = 0.97

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.tau < math.inf:
            problems.append(f"tau must be 0 (greedy) or positive, got {self.tau}")
        if not 0 <= self.cfg < math.inf:
            problems.append(f"cfg must be 0 or positive, got {self.cfg}")
        if not 0.5 <= self.top_p <= 1:
            problems.append(f"top_p must be from 0.5 to 1, got {self.top_p}")
        if problems:
            raise UserError("; ".join(problems))


@dataclass(frozen=True)
class Conditions:
    """One chunk's conditions of a branch: audio features [B, A, E] or None, style and prev as full features."""

    own: Array | None
    other: Array | None
    style: Array
    prev: Array


jax.tree_util.register_dataclass(Conditions, ["own", "other", "style", "prev"], [])


@dataclass(frozen=True)
class Chunk:
    """100 decoded frames: `motion [P, 100, 108]`, the `bits [P, L, C]` it was made of, and the `logits [P, L, C, 2]`
    (after temperature and guidance) that chose them."""

    motion: Array
    bits: Array
    logits: Array


jax.tree_util.register_dataclass(Chunk, ["motion", "bits", "logits"], [])


def decode(
    model: UniLS,
    audio: Float[np.ndarray, " N"],
    other_audio: Float[np.ndarray, " N2"] | None = None,
    *,
    style: Float[np.ndarray, "S 100 108"] | None = None,
    prev: Float[np.ndarray, "R 100 108"] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "P T 108"]:
    """Motion of one person (P = 1, no `other_audio`: the other track is silence) or of both (P = 2).

    Audio is 16 kHz mono; the shorter track is padded, T = ceil(samples / 640). `style` and `prev` are clips of 100
    frames a person (one serves both); without them they are zero motion. The same seed gives the same motion.
    """
    if model.audio_encoder is None:
        raise UserError("the model has no audio encoder: decode needs a dialogue checkpoint, not a codec or a prior")
    num_samples = max(len(audio), 0 if other_audio is None else len(other_audio))
    if num_samples == 0:
        raise UserError("audio holds no samples; at least one is needed")
    num_people = 1 if other_audio is None else 2
    tracks = np.zeros((2, -(-num_samples // WINDOW_SAMPLES) * WINDOW_SAMPLES), np.float32)
    tracks[0, : len(audio)] = audio
    if other_audio is not None:
        tracks[1, : len(other_audio)] = other_audio
    chunks = tracks.reshape(2, -1, WINDOW_SAMPLES).swapaxes(0, 1)
    clips = [_clip(name, clip, num_people) for name, clip in (("style", style), ("prev", prev))]
    motion = _decode_chunks(model, chunks, *clips, None, num_people, sampling or Sampling(), seed)
    return motion[:, : -(-num_samples // SAMPLES_PER_FRAME)]


def decode_prior(
    model: UniLS,
    style: Float[np.ndarray, "P 100 108"],
    num_chunks: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "P T 108"]:
    """Motion of nobody's audio, `num_chunks` * 100 frames: the style clip is the first previous motion, too."""
    style = np.asarray(style, np.float32)
    return _decode_chunks(model, [None] * num_chunks, style, style, style, len(style), sampling or Sampling(), seed)


def _clip(name: str, clip: np.ndarray | None, num_people: int) -> np.ndarray | None:
    if clip is None:
        return None
    if clip.shape[0] not in (1, num_people) or clip.shape[1:] != (WINDOW_FRAMES, 108):
        raise UserError(f"{name} must be [1 or {num_people}, {WINDOW_FRAMES}, 108], got {list(clip.shape)}")
    return np.broadcast_to(clip, (num_people, *clip.shape[1:])).astype(np.float32)


def _decode_chunks(model, chunks, style, prev, free_prev, num_people, sampling, seed) -> np.ndarray:
    """Runs the chunks; `free_prev` is the unconditional branch's first previous motion (None: zero motion)."""
    graphdef, params = split(model)
    zero = np.zeros((num_people, WINDOW_FRAMES, 108), np.float32)
    style, prev, free_prev = (zero if clip is None else clip for clip in (style, prev, free_prev))
    key = jax.random.key(seed)
    motion = []
    for index, audio in enumerate(chunks):
        chunk = decode_chunk(
            graphdef,
            params,
            audio,
            style,
            prev,
            free_prev,
            jax.random.fold_in(key, index),
            jnp.float32(sampling.tau or 1.0),
            jnp.float32(sampling.cfg),
            sampling.top_p,
            guided=sampling.cfg > 1,
            greedy=sampling.tau == 0,
        )
        prev = free_prev = chunk.motion
        motion.append(chunk.motion)
    return np.concatenate([np.asarray(window) for window in motion], axis=1)


@partial(jax.jit, static_argnames=("graphdef", "top_p", "guided", "greedy"))
def decode_chunk(
    graphdef: nnx.GraphDef,
    params: Params,
    audio: Float[Array, "2 N"] | None,
    style: Float[Array, "P 100 108"],
    prev: Float[Array, "P 100 108"],
    free_prev: Float[Array, "P 100 108"],
    key: RandomKey,
    tau: Float[Array, ""],
    cfg: Float[Array, ""],
    top_p: float,
    *,
    guided: bool,
    greedy: bool,
) -> Chunk:
    """One chunk. Both branches of the guidance run as one batch; nothing is cached between scales."""
    model: UniLS = merge(graphdef, params)
    num_people = style.shape[0]
    own = other = None
    if audio is not None:
        tracks = model.audio_encoder(jnp.asarray(audio))
        own, other = tracks[:num_people], tracks[::-1][:num_people]
    style_features, prev_features = model.codec.features(style), model.codec.features(prev)
    branches = Conditions(own, other, style_features, prev_features)
    if guided:
        free = Conditions(
            *(None if x is None else jnp.zeros_like(x) for x in (own, other)),
            model.codec.features(jnp.zeros_like(style)),
            model.codec.features(free_prev),
        )
        branches = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), branches, free)

    def choose(scale_logits: Array, scale_key: RandomKey) -> tuple[Array, Array]:
        scale_logits = scale_logits / tau
        if guided:
            cond, uncond = jnp.split(scale_logits, 2)
            scale_logits = cfg * cond + (1 - cfg) * uncond
        if greedy:
            return scale_logits[..., 1] > scale_logits[..., 0], scale_logits
        return jax.random.bernoulli(scale_key, top_p_probability(scale_logits, top_p)), scale_logits

    bits, logits = sample_scales(model, branches, choose, key)
    return Chunk(model.codec.decode(full_features(bits, model.codec.scales)), bits, logits)


def sample_scales(model: UniLS, branches: Conditions, choose: Choose, key: RandomKey) -> tuple[Array, Array]:
    """Bits [P, L, C] and the logits [P, L, C, 2] that chose them, scale by scale.

    `choose(logits of the scale, key)` gives the scale's bits [P, n, C], bool, and the logits it chose by. What it is
    handed holds as many branches as the conditions, stacked over the batch; all branches read the same bits.
    """
    scales, code_dim = model.codec.scales, model.prior.code_dim
    num_branches = branches.style.shape[0]
    inputs = jnp.zeros((num_branches, 0, code_dim))
    bits, chosen_by = None, []
    for tokens, scale_key in zip(scale_slices(scales), jax.random.split(key, len(scales)), strict=True):
        with jax.named_scope(f"scale_{tokens.stop - tokens.start}"):
            logits = model.prior(branches.style, branches.prev, inputs, branches.own, branches.other)
            chosen, scale_logits = choose(logits[:, tokens], scale_key)
            chosen_by.append(scale_logits)
            bits = chosen if bits is None else jnp.concatenate([bits, chosen], axis=1)
            if tokens.stop < sum(scales):
                inputs = next_scale_inputs(bits, scales)
                inputs = jnp.tile(inputs, (num_branches // inputs.shape[0], 1, 1))
    return bits, jnp.concatenate(chosen_by, axis=1)


def top_p_probability(logits: Float[Array, "*B 2"], top_p: float) -> Float[Array, "*B"]:
    """The probability of bit 1 after nucleus filtering: an outcome of probability <= 1 - top_p is dropped."""
    p = jax.nn.sigmoid(logits[..., 1] - logits[..., 0])
    rare = 1 - top_p
    return jnp.where(p <= rare, 0.0, jnp.where(1 - p <= rare, 1.0, p))
