"""UniLS: the losses and noise of its three training stages."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unils_jax.face import flame
from unils_jax.models.losses import SampleWeights, mesh_losses, motion_losses
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.quantizer import draw_flips, next_scale_inputs
from unils_jax.inference import conversations
from unils_jax.models.unils import ModelConfig, UniLS
from unils_jax.motion import MOTION_DIM, WINDOW_FRAMES
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.stack import FLOAT32, Compute
from unils_jax.systems.base import (
    Batch,
    Generated,
    GlobalBatch,
    Inputs,
    Metrics,
    Objective,
    Options,
    Stage,
    System,
    batch_sample_weights,
)


@dataclass(frozen=True)
class StepNoise:
    """One draw of a generator step's noise; the leading axes are the batch's, [B] or, for pairs, [B, 2].

    Drops are bool [..., 1, 1] (True removes), flips bool [..., F, C], `keys` one key a person for drop-path and LoRA
    dropout (None: neither). Where there is one audio alone, `drop_own` is its drop.
    """

    drop_style: Array
    drop_prev: Array
    drop_own: Array
    drop_other: Array
    flips: Array
    keys: Array | None = None


jax.tree_util.register_dataclass(StepNoise, ["drop_style", "drop_prev", "drop_own", "drop_other", "flips", "keys"], [])


def codec_loss(
    model: UniLS, batch: Batch, noise: StepNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """Reconstruction, quantiser and, with a head, mesh and lip terms. The codec has no noise.

    In channels that were not observed the truth stands in for the prediction, and no term counts them.
    """
    whole = whole or GlobalBatch(batch_sample_weights(batch))
    motion, sample_weights, weights = batch["motion"], whole.sample_weights, objective.weights
    pred, quantized = model.codec(motion, objective.compute, sample_weights.items, whole.bit_probabilities)
    if "observed" in batch:
        pred = jnp.where(batch["observed"][:, None] > 0, pred, motion)
    losses = {"vq": weights.vq * quantized.losses.mean(), **motion_losses(pred, motion, weights, sample_weights)}
    if objective.head is not None:
        vertices = functools.partial(flame.vertices, objective.head, head_rotation=False)
        with jax.named_scope("mesh"):
            losses |= mesh_losses(
                vertices, objective.head.lips, pred, motion, weights, sample_weights.items, objective.mesh_frames
            )
    total = sum(losses.values())
    return total, {"loss": total, **losses, "l1": jnp.sum(sample_weights.channels * jnp.abs(pred - motion).mean(1))}


def codec_bit_probabilities(model: UniLS, batch: Batch, objective: Objective, sample_weights: SampleWeights) -> Array:
    """A part's contribution [K, 2, C] to the whole batch's `bit_probabilities`."""
    return model.codec.quantize(batch["motion"], None, objective.compute, sample_weights.items).means


def generator_loss(
    model: UniLS, batch: Batch, noise: StepNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """Cross-entropy of a window's bits, for prior and dialogue. People without any observed motion do not count; what
    they say is heard all the same."""
    sample_weights = (whole or GlobalBatch(batch_sample_weights(batch))).sample_weights.items
    logits, bits = generator_logits(model, batch, noise, objective.compute)
    loss = jnp.sum(sample_weights * bit_cross_entropy(logits, bits).mean((-2, -1)))
    right = ((logits[..., 1] > logits[..., 0]) == bits).astype(jnp.float32)
    return loss, {"loss": loss, "bit_accuracy": jnp.sum(sample_weights * right.mean((-2, -1)))}


def generator_logits(
    model: UniLS, batch: Batch, noise: StepNoise | None = None, compute: Compute = FLOAT32
) -> tuple[Array, Array]:
    """Teacher-forced logits [B, L, C, 2] and target bits [B, L, C] of a batch; of pairs [B, 2, ...].

    The people of a pair stand side by side as 2B people, so that a batch which lies spread over devices stays where it
    is; each hears what the prior listens to: the other's audio as the other's, the own alone, or both mixed. The audio
    encoder runs once a track. Style and previous motion are dropped as motion, before the codec encodes them; audio
    after its encoder, and mixed audio for each person apart. The codec computes in float32 whatever `compute` says:
    bits are signs, and where a latent is near zero less precision would change targets and inputs.
    """
    people_shape = batch["motion"].shape[:-2]
    rank = len(people_shape)

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[rank:])

    people = {name: flat(batch[name]) for name in ("motion", "prev", "style")}
    noise = None if noise is None else jax.tree.map(flat, noise)
    heard: tuple[Array, ...] = ()
    if model.audio_encoder is not None:
        features = jax.lax.stop_gradient(model.encode_audio(jnp.asarray(batch["audio"]), compute=compute))
        heard = model.audio_of_people(features)
    if noise is not None:
        people["style"] = _drop(people["style"], noise.drop_style)
        people["prev"] = _drop(people["prev"], noise.drop_prev)
        heard = tuple(_drop(x, drop) for x, drop in zip(heard, (noise.drop_own, noise.drop_other), strict=False))
    codec = model.codec
    quantized = jax.lax.stop_gradient(codec.quantize(people["motion"], None if noise is None else noise.flips))
    inputs = next_scale_inputs(quantized.flipped_bits, codec.scales)
    style, prev = codec.features(people["style"]), codec.features(people["prev"])
    keys = None if noise is None else noise.keys
    logits = model.prior(style, prev, inputs, *heard, key=keys, compute=compute)
    return tuple(x.reshape(*people_shape, *x.shape[1:]) for x in (logits, quantized.bits))


def sample_noise(key: RandomKey, batch: Batch, model: UniLS, objective: Objective) -> StepNoise:
    """Independent drops for every person of the batch, bit flips, and every person's key."""
    people_shape, rates = batch["motion"].shape[:-2], objective.noise
    noise_key, layer_key = jax.random.split(key)
    *drop_keys, flip_key = jax.random.split(noise_key, 5)
    drop_rates = (rates.style_drop, rates.prev_drop, rates.audio_drop, rates.audio_drop)
    drops = [
        jax.random.bernoulli(k, rate, (*people_shape, 1, 1)) for k, rate in zip(drop_keys, drop_rates, strict=True)
    ]
    flips = draw_flips(flip_key, people_shape, model.prior.code_dim, model.codec.scales, rates.max_flip_percent)
    return StepNoise(*drops, flips, jax.random.split(layer_key, people_shape))


def _drop(x: Array, drop: Array) -> Array:
    return jnp.where(drop, jnp.zeros_like(x), x)


CODEC = Stage(
    "codec", None, "solo", r"codec/(encoder|decoder)/.*", codec_loss, bit_probabilities=codec_bit_probabilities
)


PRIOR = Stage("prior", "codec", "solo", r"prior/.*", generator_loss, sample_noise, decodes=True)


DIALOGUE = Stage(
    "dialogue",
    "prior",
    "pair",
    r"prior/(.*/)?lora_[ab]|prior/blocks/\d+/(\w+_)?audio_attn/.*",
    generator_loss,
    sample_noise,
    item_frames=2 * WINDOW_FRAMES,
    decodes=True,
)


INPUTS = frozenset({"audio", "other_audio", "style", "prev"})


def generate(model: UniLS, inputs: Inputs, options: Options) -> Generated:
    """Generates motion of one person or both: of a dialogue from audio, of a prior from the style clip alone.

    A prior's style is its first previous motion, too, and `num_frames` its length.
    """
    sampling, seed, people = options.sampling, options.seed, options.people
    if model.prior is not None and model.audio_encoder is None:
        style = np.zeros((people, WINDOW_FRAMES, MOTION_DIM), np.float32) if inputs.style is None else inputs.style
        num_frames = inputs.num_frames or WINDOW_FRAMES
        chunks = -(-num_frames // WINDOW_FRAMES)
        motion = conversations.decode_prior(model, style[:people], chunks, sampling=sampling, seed=seed)
        return Generated(motion[:, :num_frames])
    settings = {"style": inputs.style, "prev": inputs.prev, "sampling": sampling, "seed": seed}
    settings |= {"people": people, "dtype": options.dtype}
    return Generated(conversations.decode(model, inputs.audio, inputs.other_audio, **settings))


UNILS = System(
    name="unils",
    title="UniLS",
    config=ModelConfig,
    build=UniLS,
    stages={stage.name: stage for stage in (CODEC, PRIOR, DIALOGUE)},
    inputs=INPUTS,
    draws=True,
    generate=generate,
)
