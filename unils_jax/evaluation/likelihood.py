"""Measures what a trained stage has learnt, on held-out data, against the simplest baseline.

The functions return values per window and per person, so that the caller chooses means and
intervals. Batches are those of the loader: dicts of float32 arrays.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool

from unils_jax.inference.program import StepInputs, make_program
from unils_jax.inference.sampling import Sampling, make_controls
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.quantizer import scale_slices
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import Params, merge, split
from unils_jax.systems.unils.system import generator_logits

Batch = dict[str, np.ndarray]


def articulator_errors(model: UniLS, batch: Batch) -> tuple[float, float]:
    """Returns the mean squared error of an ear's articulators on pairs, and that of their mean."""
    graphdef, params = split(model)
    error, truth = _articulator_errors(graphdef, params, batch["audio"], batch["motion"])
    return float(error.mean()), float(truth.var(axis=(0, 1, 2)).mean())


@partial(jax.jit, static_argnums=0)
def _articulator_errors(graphdef: nnx.GraphDef, params: Params, audio: Array, motion: Array) -> tuple[Array, Array]:
    ear = merge(graphdef, params).ear
    truth = ear.standardized(jnp.asarray(motion))
    pred = ear.articulators(jnp.asarray(audio).reshape(-1, audio.shape[-1]), motion.shape[-2])
    return jnp.square(pred.reshape(truth.shape) - truth), truth


def codec_error(model: UniLS, batch: Batch) -> tuple[float, float]:
    """Returns the codec's mean absolute error on `motion`, and that of the training mean."""
    graphdef, params = split(model)
    motion = jnp.asarray(batch["motion"])
    error = jnp.abs(_reconstruct(graphdef, params, motion) - motion).mean()
    baseline = jnp.abs(motion - model.codec.motion_mean[...][None, None]).mean()
    return float(error), float(baseline)


@partial(jax.jit, static_argnums=0)
def _reconstruct(graphdef: nnx.GraphDef, params: Params, motion: Array) -> Array:
    return merge(graphdef, params).codec(motion)[0]


def window_cross_entropy(model: UniLS, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns each window's teacher-forced cross-entropy [W], nats per bit, and its bits [W, L, C].

    For batches of pairs, W counts people; the two people of a pair are neighbours.
    """
    graphdef, params = split(model)
    tensors = {name: batch[name] for name in ("motion", "prev", "style", "audio") if name in batch}
    cross_entropy, bits = _cross_entropy(graphdef, params, tensors)
    return np.asarray(cross_entropy), np.asarray(bits)


@partial(jax.jit, static_argnums=0)
def _cross_entropy(graphdef: nnx.GraphDef, params: Params, batch: dict[str, Array]) -> tuple[Array, Array]:
    logits, bits = generator_logits(merge(graphdef, params), batch)
    cross_entropy = bit_cross_entropy(logits, bits).mean((-2, -1))
    return cross_entropy.reshape(-1), bits.reshape(-1, *bits.shape[-2:])


def bits_changed(model: UniLS, batch: Batch, dtype: str = "bfloat16", sampling: Sampling | None = None) -> float:
    """Returns the share of bits whose likelier value differs between `dtype` and float32 decoding.

    The batch holds windows of pairs; the decode program uses its guidance. Each scale gets the true
    bits of the lower ones.
    """
    sampling = sampling or Sampling()
    pairs, people = batch["motion"].shape[:2]
    # Both programs see the same features: only the decoding's precision differs.
    programs = [
        make_program(model, slots=pairs, people=people, guided=sampling.guided, dtype=name)
        for name in ("float32", dtype)
    ]

    def features(name: str) -> Array:
        clips = programs[0].features(np.asarray(batch[name]).reshape(-1, *batch[name].shape[2:]))
        return clips.reshape(pairs, people, *clips.shape[1:])

    graphdef, params = split(model)
    # Teacher forcing: a bit that flips must not change what later scales are decoded from.
    bits = _bits(graphdef, params, jnp.asarray(batch["motion"]))
    controls = make_controls([sampling] * pairs, [0] * pairs, [0] * pairs, len(programs[0].scales))
    style, prev = features("style"), features("prev")
    chunks = [p.chunk(StepInputs(batch["audio"], style, jnp.array(prev), prev, controls, bits))[0] for p in programs]
    first, second = (np.asarray(chunk.logits[..., 1] > chunk.logits[..., 0]) for chunk in chunks)
    return float((first != second).mean())


@partial(jax.jit, static_argnums=0)
def _bits(graphdef: nnx.GraphDef, params: Params, motion: Array) -> Array:
    bits = merge(graphdef, params).codec.quantize(motion.reshape(-1, *motion.shape[2:])).bits
    return bits.reshape(*motion.shape[:2], *bits.shape[1:])


def marginal_cross_entropy(bits: Bool[np.ndarray, "W L C"], scales: tuple[int, ...]) -> float:
    """Returns the nats per bit of the best model without context.

    That model predicts each scale's bit by its frequency in these very bits.
    """
    total = 0.0
    for tokens in scale_slices(scales):
        # A bit that never changes has no entropy, and a logarithm of zero.
        p = bits[:, tokens].mean((0, 1)).clip(1e-9, 1 - 1e-9)
        entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
        total += entropy * (tokens.stop - tokens.start)
    return float(total / sum(scales))


def with_other_audio(batch: Batch) -> Batch:
    """Returns the batch of pairs with the audio of each pair taken from its neighbour in the batch.

    Both tracks move together, so that the audio is still a conversation. It is a different one
    where the batch holds each conversation once.
    """
    return {**batch, "audio": np.roll(batch["audio"], 1, axis=0)}


def mean_over(batches: list[Batch], measure: Callable[[Batch], tuple[float, float]]) -> tuple[float, float]:
    """Returns the means of a pair of figures over equally large batches."""
    first, second = np.mean([measure(batch) for batch in batches], axis=0)
    return float(first), float(second)
