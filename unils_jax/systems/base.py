"""The stages of training as data: which parent, which windows, which parameters train, which objective.

Losses and noise are of the whole batch, by item: every loss is a sum over items, weighted by their shares in the whole,
so a batch that is cut over devices or worked off in parts gives what it gives in one piece.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unils_jax.face import flame
from unils_jax.models.losses import CodecLossWeights, SampleWeights, mesh_losses, motion_losses, observed_sample_weights
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.quantizer import draw_flips, next_scale_inputs
from unils_jax.models.unils import UniLS
from unils_jax.motion import KIND_MARK, PARTNER_FRAMES, WINDOW_FRAMES
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params
from unils_jax.nn.stack import FLOAT32, Compute
from unils_jax.systems.dualtalk.model import DualTalk, DualTalkNoise, dualtalk_losses
from unils_jax.systems.unitalker.annotations import NUMBERS, Space, lip_errors, talker_losses
from unils_jax.systems.unitalker.model import TalkerNoise, UniTalker

Batch = dict[str, Array]
GradientMask = dict[str, bool | Array]
Metrics = dict[str, Array]


@dataclass(frozen=True)
class NoiseRates:
    """Condition dropout per sample and the largest bit-flip rate, in percent; the defaults are the paper's."""

    style_drop: float = 0.1
    prev_drop: float = 0.1
    audio_drop: float = 0.1
    max_flip_percent: int = 30


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


@dataclass(frozen=True, eq=False)
class TalkerObjective:
    """What UniTalker's objective needs: the space of each kind (without one: its numbers), how often a batch is
    nobody's, and for how many updates the audio encoder stays frozen at first."""

    spaces: Mapping[str, Space] = field(default_factory=dict)
    pivot_rate: float = 0.1
    frozen_steps: int = 0


@dataclass(frozen=True)
class Objective:
    """What an objective needs beside model and batch: loss weights and head of the codec (`mesh_frames` of a window at
    a time, see `mesh_losses`), rates of the generators, UniTalker's settings, and how the model is run."""

    weights: CodecLossWeights = CodecLossWeights()
    noise: NoiseRates = NoiseRates()
    head: flame.FlameAsset | None = None
    compute: Compute = FLOAT32
    mesh_frames: int = 10
    talker: TalkerObjective = TalkerObjective()


@dataclass(frozen=True)
class GlobalBatch:
    """What a part of a batch must know of the whole: its shares in it, and for the codec the whole's `bit_probabilities`."""

    sample_weights: SampleWeights
    bit_probabilities: Array | None = None


@dataclass(frozen=True)
class Stage:
    """`trainable` is a pattern of parameter paths; `windows` names the loader's view, whose items hold `item_frames`
    frames of motion to predict (0: the loader says how many on average). `decodes`: the model decodes long
    conversations while it trains, see `probe`. `model` names what comes out where that is another stage's
    kind of model.

    `loss(model, batch, noise, objective, whole)` gives (loss, metrics), in evaluation mode where `noise` is None; the
    batch is all there is where `whole` is None. `draw(key, batch, model, objective)` draws a whole batch's noise (None:
    the stage has none). `gradient_mask(paths, batch, noise, updates, objective)` says which parameters the step gives a
    gradient, and whether the optimiser is made anew before it, after so many updates (None: all, never).
    `bit_probabilities` is what `GlobalBatch.bit_probabilities` of a batch in parts is summed from (None: not needed).
    """

    name: str
    parent: str | None
    windows: str
    trainable: str
    loss: Callable[[Any, Batch, Any, Objective, GlobalBatch | None], tuple[Array, Metrics]]
    draw: Callable[[RandomKey, Batch, Any, Objective], Any] | None = None
    bit_probabilities: Callable[[UniLS, Batch, Objective, SampleWeights], Array] | None = None
    gradient_mask: Callable[[Iterable[str], Batch, Any, Array, Objective], tuple[GradientMask, Array]] | None = None
    item_frames: int = WINDOW_FRAMES
    decodes: bool = False
    model: str = ""

    @property
    def trained(self) -> str:
        """What kind of model comes out: `ModelConfig.stage` of the run's config."""
        return self.model or self.name

    def split(self, params: Params) -> tuple[Params, Params]:
        """(trainable, frozen) parameters."""
        chosen = {path for path in params if re.fullmatch(self.trainable, path)}
        trainable = {path: value for path, value in params.items() if path in chosen}
        return trainable, {path: value for path, value in params.items() if path not in chosen}


def batch_sample_weights(batch: Batch) -> SampleWeights:
    """The shares of a whole batch's items, from `observed` ([B, M] or [B, 2, M], 1 = counts) where it has that."""
    observed = batch.get("observed")
    if observed is None:
        observed = jnp.ones((*batch["motion"].shape[:-2], batch["motion"].shape[-1]))
    return observed_sample_weights(jnp.asarray(observed))


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


def dualtalk_loss(
    model: DualTalk, batch: Batch, noise: DualTalkNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """DualTalk's regression of own motion, in its 56 channels. Prediction and truth are cut to the shorter one.

    Expression, jaw and head weigh the same, so that a channel of the head weighs 50 / 3 of an expression channel.
    `position` is the loss without velocity, by which the published code validates.
    """
    sample_weights = (whole or GlobalBatch(batch_sample_weights(batch))).sample_weights.items
    pred = model(batch["audio"], batch["partner_audio"], batch["partner_motion"], objective.compute, noise)
    frames = min(pred.shape[1], batch["motion"].shape[1])
    pred, motion = pred[:, :frames], batch["motion"][:, :frames]
    if "observed" in batch:
        pred = jnp.where(batch["observed"][:, None] > 0, pred, motion)
    losses = dualtalk_losses(pred, motion, sample_weights)
    total = sum(losses.values())
    return total, {"loss": total, **losses, "position": total - losses["velocity"]}


def sample_dualtalk_noise(key: RandomKey, batch: Batch, model: DualTalk, objective: Objective) -> DualTalkNoise:
    """Dropout, skipped layers and time masks of a batch."""
    return model.draw(key, *batch["audio"].shape)


def kind_of(batch: Batch) -> str:
    """The annotation kind of a batch of UniTalker: an empty array tells it by its name, so that it is static."""
    return next(name.removeprefix(KIND_MARK) for name in batch if name.startswith(KIND_MARK))


def unitalker_loss(
    model: UniTalker, batch: Batch, noise: TalkerNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """UniTalker's loss of a batch of one kind, in the units of its space; in evaluation lip errors too, per kind."""
    kind, motion, template = kind_of(batch), batch["motion"], batch["template"]
    sample_weights = (whole or GlobalBatch(batch_sample_weights(batch))).sample_weights.items
    space = objective.talker.spaces.get(kind, NUMBERS)
    predicted = model(batch["audio"], template, batch["identity"], kind, motion.shape[1], noise, objective.compute)
    true = model.truth_coefficients(motion, template, kind)
    losses = talker_losses(space, predicted.motion, motion, predicted.coefficients, true, sample_weights)
    metrics = losses | {f"{kind}/loss": losses["loss"]}
    if noise is None and space.lips is not None:
        errors = lip_errors(space, predicted.motion, motion)
        metrics |= {
            f"{kind}/{name}": jnp.sum(sample_weights * e) for name, e in zip(("LVE", "LVD"), errors, strict=True)
        }
    return losses["loss"], metrics


def sample_talker_noise(key: RandomKey, batch: Batch, model: UniTalker, objective: Objective) -> TalkerNoise:
    """Dropout, skipped layers, time masks, and whether the batch is nobody's."""
    return model.draw(key, *batch["audio"].shape, batch["motion"].shape[1], objective.talker.pivot_rate)


def talker_gradient_mask(
    paths: Iterable[str], batch: Batch, noise: TalkerNoise | None, updates: Array, objective: Objective
) -> tuple[GradientMask, Array]:
    """Without gradient are heads of other kinds, skipped layers of the audio encoder, the embedding of masked frames
    where none is, and all of the encoder while it is frozen. Where that ends the optimiser is made anew."""
    frozen_steps, head = objective.talker.frozen_steps, f"heads/{kind_of(batch)}/"
    free, present = updates >= frozen_steps, {}
    for path in paths:
        if path.startswith("heads/"):
            present[path] = path.startswith(head)
        elif path.startswith("speech_encoder/"):
            present[path] = free
            layer = re.match(r"speech_encoder/blocks/(\d+)/", path)
            if noise is not None and layer:
                present[path] = free & ~noise.encoder.skipped[0, int(layer[1])]
            elif path.endswith("/masked_spec_embed"):
                present[path] = False if noise is None else free & noise.encoder.masked.any()
    return present, (updates == frozen_steps) & (frozen_steps > 0)


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
# All but the audio encoders' convolutions.
DUALTALK = Stage(
    "dualtalk",
    None,
    "partners",
    r"(?!(own|partner)_encoder/convs/).*",
    dualtalk_loss,
    sample_dualtalk_noise,
    item_frames=PARTNER_FRAMES,
)
# All but the audio encoder's convolutions and the PCA.
UNITALKER = Stage(
    "unitalker",
    None,
    "speech",
    r"(?!speech_encoder/convs/|pca/).*",
    unitalker_loss,
    sample_talker_noise,
    gradient_mask=talker_gradient_mask,
    item_frames=0,
)
# ARTalk: no audio-free stage, all of it from scratch on a codec. What it listens to stands in the config: the own track
# (ARTalk itself, the people of a pair as people of their own), or the partner's too.
ARTALK = Stage(
    "artalk",
    "codec",
    "pair",
    r"prior/.*",
    generator_loss,
    sample_noise,
    item_frames=2 * WINDOW_FRAMES,
    decodes=True,
    model="dialogue",
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in (CODEC, PRIOR, DIALOGUE, ARTALK, DUALTALK, UNITALKER)}
