"""UniLS: the losses and noise of its three training stages."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unils_jax.errors import UserError
from unils_jax.face import flame
from unils_jax.inference import conversations
from unils_jax.models.codec_losses import SampleWeights, mesh_losses, motion_losses
from unils_jax.models.ear import EarConfig
from unils_jax.models.mimi import MimiConfig
from unils_jax.models.prior import bit_cross_entropy
from unils_jax.models.quantizer import draw_flips, next_scale_inputs
from unils_jax.models.unils import UniLS, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.motion import MOTION_DIM, Window
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.lora import merge_lora
from unils_jax.nn.params import Params
from unils_jax.nn.stack import FLOAT32, Compute
from unils_jax.systems.base import (
    Arrays,
    Card,
    Generated,
    GlobalBatch,
    Inputs,
    Loaded,
    Metrics,
    Objective,
    Options,
    PublishedEncoder,
    Run,
    Stage,
    Start,
    System,
    WindowData,
    batch_sample_weights,
)
from unils_jax.systems.unils.ear import EAR, draw_gains, ear_of
from unils_jax.systems.unils.hearing import heard_features
from unils_jax.systems.unils.layout import LAYOUT

DEFAULT_ENCODER = "facebook/wav2vec2-xls-r-300m"
MIMI = "kyutai/mimi"
TITLES = {
    "ear": "UniLS ear: the audio of one person to the articulators of the mouth",
    "codec": "UniLS motion codec: {frames} frames of facial motion to bits and back",
    "prior": "UniLS motion prior: facial motion without audio, over the codec's bits",
    "dialogue": "UniLS dialogue: the audio of a conversation to the facial motion of both people",
}


@dataclass(frozen=True)
class StepNoise:
    """One draw of a generator step's noise; the leading axes are the batch's, [B] or [B, 2].

    Drops are bool [..., 1, 1] (True removes), flips bool [..., F, C], `keys` one key a person for
    drop-path and LoRA dropout (None: neither). Where there is one audio alone, `drop_own` is its
    drop. `gains` [B, 2, 1] are factors of the tracks (None: as recorded). `coded_prev`, as the
    drops, is where the previous motion passes the codec (None: nowhere).
    """

    drop_style: Array
    drop_prev: Array
    drop_own: Array
    drop_other: Array
    flips: Array
    keys: Array | None = None
    gains: Array | None = None
    coded_prev: Array | None = None


PARTS = ["drop_style", "drop_prev", "drop_own", "drop_other", "flips", "keys", "gains", "coded_prev"]
jax.tree_util.register_dataclass(StepNoise, PARTS, [])


def codec_loss(
    model: UniLS, batch: Arrays, noise: StepNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """Computes reconstruction, quantiser and, with a head, mesh and lip terms.

    The codec has no noise. In channels that were not observed the truth replaces the prediction,
    and no term counts them. Where `coarse` has a weight, the terms on motion count once more for
    what the first scales decode to.
    """
    whole = whole or GlobalBatch(batch_sample_weights(batch))
    motion, sample_weights, weights = batch["motion"], whole.sample_weights, objective.weights
    pred, quantized = model.codec(motion, objective.compute, sample_weights.items, whole.bit_probabilities)

    def of_observed(pred: Array) -> Array:
        return jnp.where(batch["observed"][:, None] > 0, pred, motion) if "observed" in batch else pred

    pred = of_observed(pred)
    losses = {"vq": weights.vq * quantized.losses.mean(), **motion_losses(pred, motion, weights, sample_weights)}
    if weights.coarse:
        coarse = of_observed(model.codec.decode(quantized.partial[weights.coarse_scales - 1], objective.compute))
        losses["coarse"] = weights.coarse * sum(motion_losses(coarse, motion, weights, sample_weights).values())
    if objective.head is not None:
        vertices = functools.partial(flame.vertices, objective.head, head_rotation=False)
        with jax.named_scope("mesh"):
            losses |= mesh_losses(
                vertices, objective.head.lips, pred, motion, weights, sample_weights.items, objective.mesh_frames
            )
    total = sum(losses.values())
    return total, {"loss": total, **losses, "l1": jnp.sum(sample_weights.channels * jnp.abs(pred - motion).mean(1))}


def codec_bit_probabilities(model: UniLS, batch: Arrays, objective: Objective, sample_weights: SampleWeights) -> Array:
    """Computes a part's share [K, 2, C] of the whole batch's `bit_probabilities`."""
    return model.codec.quantize(batch["motion"], None, objective.compute, sample_weights.items).means


def generator_loss(
    model: UniLS, batch: Arrays, noise: StepNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """Computes the cross-entropy of a window's bits, for prior and dialogue.

    People without any observed motion do not count; their audio conditions the other person all the
    same.
    """
    sample_weights = (whole or GlobalBatch(batch_sample_weights(batch))).sample_weights.items
    logits, bits = generator_logits(model, batch, noise, objective.compute)
    loss = jnp.sum(sample_weights * bit_cross_entropy(logits, bits).mean((-2, -1)))
    right = ((logits[..., 1] > logits[..., 0]) == bits).astype(jnp.float32)
    return loss, {"loss": loss, "bit_accuracy": jnp.sum(sample_weights * right.mean((-2, -1)))}


def generator_logits(
    model: UniLS, batch: Arrays, noise: StepNoise | None = None, compute: Compute = FLOAT32
) -> tuple[Array, Array]:
    """Computes teacher-forced logits [B, L, C, 2] and target bits [B, L, C]; of pairs [B, 2, ...].

    The people of a pair become 2B people side by side, so that a batch that is spread over devices
    stays where it is. Each is conditioned on the audio that the prior takes: own and other, the own
    alone, or both mixed. The audio encoder runs once a track. Style and previous motion are dropped
    as motion, before the codec encodes them; audio after its encoder, and mixed audio for each
    person apart. The codec computes in float32 whatever `compute` says: bits are signs, and where a
    latent is near zero less precision would change targets and inputs. Where the prior has a chain
    of bits, each bit also knows the target bits before it in its token.
    """
    people_shape = batch["motion"].shape[:-2]
    rank = len(people_shape)

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[rank:])

    people = {name: flat(batch[name]) for name in ("motion", "prev", "style")}
    heard: tuple[Array, ...] = ()
    if model.encoder is not None:
        gains = None if noise is None else noise.gains
        heard = model.audio_of_people(heard_features(model, batch, gains, compute))
    codec, exactly = model.codec, compute.in_float32()
    if noise is not None:
        noise = jax.tree.map(flat, replace(noise, gains=None))
        if noise.coded_prev is not None:
            coded = jax.lax.stop_gradient(codec.reconstruct(people["prev"], exactly))
            people["prev"] = jnp.where(noise.coded_prev, coded, people["prev"])
        people["style"] = _drop(people["style"], noise.drop_style)
        people["prev"] = _drop(people["prev"], noise.drop_prev)
        heard = tuple(_drop(x, drop) for x, drop in zip(heard, (noise.drop_own, noise.drop_other), strict=False))
    flips = None if noise is None else noise.flips
    quantized = jax.lax.stop_gradient(codec.quantize(people["motion"], flips, exactly))
    inputs = next_scale_inputs(quantized.flipped_bits, codec.scales)
    style, prev = codec.features(people["style"], exactly), codec.features(people["prev"], exactly)
    keys = None if noise is None else noise.keys
    logits = model.prior(style, prev, inputs, *heard, key=keys, compute=compute)
    logits = model.prior.chained(logits, quantized.bits)
    return tuple(x.reshape(*people_shape, *x.shape[1:]) for x in (logits, quantized.bits))


def sample_noise(key: RandomKey, batch: Arrays, model: UniLS, objective: Objective) -> StepNoise:
    """Draws independent drops for every person of the batch, bit flips, and every person's key.

    Where the rates say so, the factor of every track's level and the pasts to code, too.
    """
    people_shape, rates = batch["motion"].shape[:-2], objective.noise
    noise_key, layer_key = jax.random.split(key)
    *drop_keys, flip_key = jax.random.split(noise_key, 5)
    drop_rates = (rates.style_drop, rates.prev_drop, rates.audio_drop, rates.audio_drop)
    drops = [
        jax.random.bernoulli(k, rate, (*people_shape, 1, 1)) for k, rate in zip(drop_keys, drop_rates, strict=True)
    ]
    flips = draw_flips(flip_key, people_shape, model.prior.code_dim, model.codec.scales, rates.max_flip_percent)
    moves_level = "audio" in batch and model.encoder is not None and rates.level_db[0] != rates.level_db[1]
    # From a key that nothing else is drawn from: without it the other draws are the same.
    gains = draw_gains(jax.random.fold_in(layer_key, 1), batch, rates.level_db) if moves_level else None
    coded_prev = None
    if rates.prev_coded:
        coded_prev = jax.random.bernoulli(jax.random.fold_in(noise_key, 1), rates.prev_coded, drops[0].shape)
    return StepNoise(*drops, flips, jax.random.split(layer_key, people_shape), gains, coded_prev)


def _drop(x: Array, drop: Array) -> Array:
    return jnp.where(drop, jnp.zeros_like(x), x)


def init(config: Run, shapes: Params, data: WindowData, start: Start) -> Params:
    """Returns what a new run does not draw.

    That is the data's statistics, the parent's parameters and those of the ear that the config
    names. Raises UserError where parent or ear have other sizes than the config, then the shapes
    may fit and the model be another, or another expression basis.
    """
    mean, std = data.mixture.statistics(centred=config.data.centre_head)
    given = {"codec/motion_mean": mean, "codec/motion_std": std}
    inherited = {} if start.parent is None else _inherited(config, start.parent)
    return given | inherited | ear_of(config, start)


def _inherited(config: Run, parent: Loaded) -> Params:
    ours, theirs = config.model, parent.config
    parts = [("codec", theirs.codec, ours.codec)]
    if theirs.prior is not None:
        parts.append(("prior", theirs.prior, ours.prior.without_audio()))
    problems = [
        f"{part}.{name} is {getattr(old, name)} in it and {getattr(new, name)} in the config"
        for part, old, new in parts
        for name in vars(new)
        if getattr(old, name) != getattr(new, name)
    ]
    if parent.expression_basis != config.expression_basis:
        problems.append(f"its motion is of the {parent.expression_basis!r} basis, the config's of another")
    centred = (parent.run or {}).get("data", {}).get("centre_head", True)
    if parent.run is not None and centred != config.data.centre_head:
        problems.append(f"data.centre_head is {centred} in it and {config.data.centre_head} in the config")
    if problems:
        name = parent.source["checkpoint"]
        raise UserError(f"parent {name} does not fit: {'; '.join(problems)}; use the config of the same family")
    return parent.params


def frames_of_pair(config: UniLSConfig) -> int:
    """Returns the frames that a window of a pair predicts."""
    return 2 * config.window.frames


CODEC = Stage(
    "codec",
    None,
    "solo",
    r"codec/(encoder|decoder)/.*",
    codec_loss,
    bit_probabilities=codec_bit_probabilities,
    uses_head=True,
    without_head="no head is given: the codec trains without mesh and lip losses",
    init=init,
)

PRIOR = Stage("prior", "codec", "solo", r"prior/.*", generator_loss, sample_noise, decodes=True, init=init)

DIALOGUE = Stage(
    "dialogue",
    "prior",
    "pair",
    r"prior/(.*/)?lora_[ab]|prior/blocks/\d+/(\w+_)?audio_attn/.*",
    generator_loss,
    sample_noise,
    item_frames=frames_of_pair,
    decodes=True,
    init=init,
)


def card(config: UniLSConfig, expression_basis: str) -> Card:
    """Returns the lines of a model card."""
    data = "108 channels at 25 frames/s in FLAME's basis: expression 100, head rotation 3, jaw 1, eyes 4."
    if expression_basis != "flame":
        data = (
            "108 channels at 25 frames/s in the basis of our procedural stand-in head, **not FLAME's**: the expression "
            "channels mean nothing on a FLAME head; jaw, gaze and head rotation do."
        )
    codec, prior, ear = config.codec, config.prior, config.ear
    if config.stage == "ear":
        return Card(TITLES["ear"], data, [_ear_fact(ear)])
    facts = [f"codec: width {codec.width}, depth {codec.depth}, {codec.code_dim} bits, scales {list(codec.scales)}"]
    if prior is not None:
        facts.append(f"prior: width {prior.width}, depth {prior.depth}, {prior.num_heads} heads")
        if prior.audio_condition != "pair":
            track = "the own track alone" if prior.audio_condition == "own" else "the sum of both tracks"
            facts.append(f"one audio cross-attention, to {track}; **the release's code has two** and cannot load it")
    if prior is not None and prior.bit_chain:
        facts.append("the bits of a token depend on each other; **the release's code** does not know that")
    if config.logmel is not None:
        facts.append(
            f"audio: our log-mel front end, {config.logmel.num_mels} bands. **The release's code has no such "
            "encoder**: there the file loads, but speech means nothing to it"
        )
    elif ear is not None:
        facts.append(f"{_ear_fact(ear)}. **The release's code has no such encoder** and does not read its keys")
    elif config.stage == "dialogue":
        name = "wav2vec2-xls-r-300m" if config.mimi is None else f"Mimi, its {config.mimi.features!r} features"
        facts.append(f"audio: {name}, frozen; not in this file")
    if config.window != Window():
        facts.append(_live_fact(config.window))
    return Card(TITLES[config.stage].format(frames=config.window.frames), data, facts)


def _live_fact(window: Window) -> str:
    counts = f"{window.frames} frames, after {window.context_windows} windows of previous motion"
    audio = f"{window.past_audio_frames} frames of audio before it and {window.lookahead_frames} after it"
    return f"window: {counts}; it hears {audio}. **The release's code knows windows of 100 frames alone**"


def _ear_fact(ear: EarConfig) -> str:
    return (
        f"audio: our ear, {ear.num_mels} bands and {ear.reach_frames} frames of 20 ms on either side, width "
        f"{ear.width}, to the channels {list(ear.channels)}"
    )


def merge(config: UniLSConfig, params: Params) -> tuple[UniLSConfig, Params]:
    """Merges the adapters into the kernels."""
    lora = config.lora
    if lora is None:
        return config, params
    return replace(config, lora=None), merge_lora(params, lora.alpha / lora.rank)


def lacks(config: UniLSConfig, params: Params, source: str) -> str:
    """Says what a dialogue needs whose published audio encoder was not given."""
    if not ENCODER.needed(config) or any(path.startswith("audio_encoder/") for path in params):
        return ""
    name = DEFAULT_ENCODER if config.mimi is None else MIMI
    return (
        f"{source} needs its audio encoder, {name}; give --audio_encoder {name} where there is a network, or the "
        f"folder that `hf download {name} --local-dir DIR` wrote"
    )


def problems(config: UniLSConfig) -> list[str]:
    """Lists what is wrong with a config that is to be trained."""
    found = []
    if config.stage == "dialogue" and config.audio_encoder is None:
        found.append("a dialogue model needs an audio encoder: model.wav2vec2, mimi, logmel or ear")
    return found


def put_encoder(config: UniLSConfig, encoder: Wav2Vec2Config | MimiConfig | None) -> UniLSConfig:
    """Returns the config with the sizes of a published encoder.

    A Mimi's are part of the model's own config, without its weights too, and the choice of features
    is in no published file.
    """
    if config.mimi is None:
        return replace(config, wav2vec2=encoder)
    return config if encoder is None else replace(config, mimi=replace(encoder, features=config.mimi.features))


ENCODER = PublishedEncoder(
    needed=lambda config: config.stage == "dialogue" and config.logmel is None and config.ear is None,
    get=lambda config: config.wav2vec2 or config.mimi,
    put=put_encoder,
    family=lambda config: "wav2vec2" if config.mimi is None else "mimi",
)
INPUTS = frozenset({"audio", "other_audio", "style", "prev"})


def generate(model: UniLS, inputs: Inputs, options: Options) -> Generated:
    """Generates motion of one person or both.

    A dialogue does from audio, a prior from the style clip alone. A prior's style is its first
    previous motion, too, and `num_frames` its length.
    """
    sampling, seed, people = options.sampling, options.seed, options.people
    if model.prior is not None and model.encoder is None:
        window, style = model.prior.window, inputs.style
        style = np.zeros((people, window.context_frames, MOTION_DIM), np.float32) if style is None else style
        num_frames = inputs.num_frames or window.frames
        chunks = -(-num_frames // window.frames)
        motion = conversations.decode_prior(model, style[:people], chunks, sampling=sampling, seed=seed)
        return Generated(motion[:, :num_frames])
    settings = {"style": inputs.style, "prev": inputs.prev, "sampling": sampling, "seed": seed}
    settings |= {"people": people, "dtype": options.dtype}
    return Generated(conversations.decode(model, inputs.audio, inputs.other_audio, **settings))


UNILS = System(
    name="unils",
    title="UniLS",
    config=UniLSConfig,
    build=UniLS,
    stages={stage.name: stage for stage in (CODEC, PRIOR, DIALOGUE, EAR)},
    inputs=INPUTS,
    draws=True,
    generate=generate,
    layout=LAYOUT,
    card=card,
    encoder=ENCODER,
    merge=merge,
    lacks=lacks,
    problems=problems,
)
