"""The three stages of training as data: which parent, which windows, which parameters train, which objective."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unils_jax.losses import CodecLossWeights, motion_losses, vertex_losses
from unils_jax.models import flame
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.quantizer import draw_flips, next_scale_inputs
from unils_jax.models.unils import UniLS
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params

Batch = dict[str, Array]
Metrics = dict[str, Array]


@dataclass(frozen=True)
class NoiseRates:
    """Condition dropout per sample and the largest bit-flip rate, in percent; the defaults are the paper's."""

    style_drop: float = 0.1
    prev_drop: float = 0.1
    audio_drop: float = 0.1
    max_flip_percent: int = 30


@dataclass(frozen=True)
class Noise:
    """One draw of a generator step's noise. Drops are bool [B, 1, 1] (True removes), flips bool [B, F, C]."""

    drop_style: Array
    drop_prev: Array
    drop_own: Array
    drop_other: Array
    flips: Array


jax.tree_util.register_dataclass(Noise, ["drop_style", "drop_prev", "drop_own", "drop_other", "flips"], [])


@dataclass(frozen=True)
class Objective:
    """What an objective needs beside model and batch: loss weights and head of the codec, rates of the generators."""

    weights: CodecLossWeights = CodecLossWeights()
    noise: NoiseRates = NoiseRates()
    head: flame.FlameAsset | None = None


@dataclass(frozen=True)
class Stage:
    """`trainable` is a pattern of parameter paths; `windows` says whether a training item is one person or a pair;
    `loss(model, batch, key, objective)` gives (loss, metrics), in evaluation mode where the key is None."""

    name: str
    parent: str | None
    windows: str
    trainable: str
    loss: Callable[[UniLS, Batch, RandomKey | None, Objective], tuple[Array, Metrics]]

    def split(self, params: Params) -> tuple[Params, Params]:
        """(trainable, frozen) parameters."""
        chosen = {path for path in params if re.fullmatch(self.trainable, path)}
        trainable = {path: value for path, value in params.items() if path in chosen}
        return trainable, {path: value for path, value in params.items() if path not in chosen}


def codec_loss(model: UniLS, batch: Batch, key: RandomKey | None, objective: Objective) -> tuple[Array, Metrics]:
    """Reconstruction, quantiser and, with a head, mesh and lip terms. The codec has no dropout: the key is unused."""
    motion = batch["motion"]
    pred, quantized = model.codec(motion)
    weights = objective.weights
    losses = {"vq": weights.vq * quantized.losses.mean(), **motion_losses(pred, motion, weights)}
    if objective.head is not None:
        with jax.named_scope("mesh"):
            vertices = [flame.vertices(objective.head, m, head_rotation=False) for m in (pred, motion)]
            losses |= vertex_losses(*vertices, objective.head.lips, weights)
    total = sum(losses.values())
    return total, {"loss": total, **losses, "l1": jnp.abs(pred - motion).mean()}


def generator_loss(model: UniLS, batch: Batch, key: RandomKey | None, objective: Objective) -> tuple[Array, Metrics]:
    """Cross-entropy of a window's bits, for prior and dialogue: with noise and dropout where a key is given."""
    noise = layer_key = None
    if key is not None:
        noise_key, layer_key = jax.random.split(key)
        num_people = math.prod(batch["motion"].shape[:-2])
        noise = draw_noise(noise_key, num_people, model, objective.noise)
    logits, bits = generator_logits(model, batch, noise, layer_key)
    loss = bit_cross_entropy(logits, bits).mean()
    accuracy = jnp.mean((logits[..., 1] > logits[..., 0]) == bits)
    return loss, {"loss": loss, "bit_accuracy": accuracy.astype(jnp.float32)}


def generator_logits(
    model: UniLS, batch: Batch, noise: Noise | None = None, key: RandomKey | None = None
) -> tuple[Array, Array]:
    """Teacher-forced logits [B, L, C, 2] and target bits [B, L, C] of a batch.

    A batch of pairs ([B, 2, ...]) becomes 2B people: first all first speakers, then all second ones, with own and
    other audio swapped. The audio encoder runs once a track. Style and previous motion are dropped as motion, before
    the codec encodes them; audio after its encoder.
    """
    pairs = batch["motion"].ndim == 4
    people = {name: _stack_people(batch[name]) if pairs else batch[name] for name in ("motion", "prev", "style")}
    own = other = None
    if model.audio_encoder is not None:
        tracks = jax.lax.stop_gradient(model.audio_encoder(_stack_people(batch["audio"])))
        first, second = jnp.split(tracks, 2)
        own, other = tracks, jnp.concatenate([second, first])
    if noise is not None:
        people["style"] = _drop(people["style"], noise.drop_style)
        people["prev"] = _drop(people["prev"], noise.drop_prev)
        if own is not None:
            own, other = _drop(own, noise.drop_own), _drop(other, noise.drop_other)
    codec = model.codec
    quantized = jax.lax.stop_gradient(codec.quantize(people["motion"], None if noise is None else noise.flips))
    inputs = next_scale_inputs(quantized.flipped_bits, codec.scales)
    style, prev = codec.features(people["style"]), codec.features(people["prev"])
    return model.prior(style, prev, inputs, own, other, key), quantized.bits


def draw_noise(key: RandomKey, num_people: int, model: UniLS, rates: NoiseRates) -> Noise:
    """Independent drops for every person of the batch, and bit flips."""
    *drop_keys, flip_key = jax.random.split(key, 5)
    drop_rates = (rates.style_drop, rates.prev_drop, rates.audio_drop, rates.audio_drop)
    drops = [jax.random.bernoulli(k, rate, (num_people, 1, 1)) for k, rate in zip(drop_keys, drop_rates, strict=True)]
    flips = draw_flips(flip_key, num_people, model.prior.code_dim, model.codec.scales, rates.max_flip_percent)
    return Noise(*drops, flips)


def _stack_people(x: Array) -> Array:
    """[B, P, ...] -> [P*B, ...]: all first people, then all second ones."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def _drop(x: Array, drop: Array) -> Array:
    return jnp.where(drop, jnp.zeros_like(x), x)


CODEC = Stage("codec", None, "solo", r"codec/(encoder|decoder)/.*", codec_loss)
PRIOR = Stage("prior", "codec", "solo", r"prior/.*", generator_loss)
DIALOGUE = Stage(
    "dialogue", "prior", "pair", r"prior/(.*/)?lora_[ab]|prior/blocks/\d+/\w+_audio_attn/.*", generator_loss
)
STAGES: dict[str, Any] = {stage.name: stage for stage in (CODEC, PRIOR, DIALOGUE)}
