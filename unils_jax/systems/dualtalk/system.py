"""DualTalk as a system. Its motion is of a whole recording at once: no chunks, no sampling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.audio import normalize_record
from unils_jax.errors import UserError
from unils_jax.motion import MOTION_DIM, PARTNER_FRAMES, from_56_channels, to_56_channels
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params, merge, split
from unils_jax.nn.stack import Compute
from unils_jax.systems.base import (
    Arrays,
    Card,
    Generated,
    GlobalBatch,
    Inputs,
    Metrics,
    Objective,
    Options,
    Run,
    Stage,
    Start,
    System,
    batch_sample_weights,
)
from unils_jax.systems.dualtalk.layout import LAYOUT
from unils_jax.systems.dualtalk.model import DualTalk, DualTalkConfig, DualTalkNoise, dualtalk_losses


def respond(
    model: DualTalk,
    audio: Float[np.ndarray, " N"],
    partner_audio: Float[np.ndarray, " N2"],
    partner_motion: Float[np.ndarray, "T2 108"],
    *,
    dtype: str = "float32",
) -> Float[np.ndarray, "T 108"]:
    """Generates one person's motion from both tracks and the partner's motion.

    Audio is 16 kHz mono of whole recordings, each normalised here; motion is as tracked, head
    rotation not centred, in and out. T is `num_frames` of the own audio. Channels that DualTalk
    lacks are zero. It compiles once a length.
    """
    graphdef, params = split(model)
    tracks = [normalize_record(np.asarray(track, np.float32))[None] for track in (audio, partner_audio)]
    channels = to_56_channels(np.asarray(partner_motion, np.float32))[None]
    motion = _respond(graphdef, Compute(jnp.dtype(dtype)), params, *tracks, channels)
    return from_56_channels(np.asarray(motion[0]))


@partial(jax.jit, static_argnums=(0, 1))
def _respond(graphdef: nnx.GraphDef, compute: Compute, params: Params, *conversation: Array) -> Array:
    return merge(graphdef, params)(*conversation, compute)


def generate(model: DualTalk, inputs: Inputs, options: Options) -> Generated:
    """Generates motion of one person, or of both, each of whom sees the other's motion.

    Without `other_audio` the partner is silent, without `other_motion` still. Raises UserError
    where both people are asked for and the motion of one is given.
    """
    own, seen = inputs.audio, inputs.other_motion
    other = np.zeros_like(own) if inputs.other_audio is None else inputs.other_audio
    if seen is None:
        seen = np.zeros((1, MOTION_DIM), np.float32)
    motions = seen[None] if seen.ndim == 2 else seen
    if len(motions) < options.people and inputs.other_motion is not None:
        raise UserError("both people see each other; give other_motion of both, [2, T, 108]")
    # With one motion alone it is the partner's, whoever is asked for.
    partners = (motions[-1], motions[0])
    tracks = (own, other)
    people = [respond(model, tracks[p], tracks[1 - p], partners[p], dtype=options.dtype) for p in range(options.people)]
    return Generated(np.stack([person[: min(map(len, people))] for person in people]))


def dualtalk_loss(
    model: DualTalk, batch: Arrays, noise: DualTalkNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """Computes DualTalk's regression of own motion, in its 56 channels.

    Prediction and truth are cut to the shorter one. Expression, jaw and head weigh the same, so
    that a channel of the head weighs 50 / 3 of an expression channel. `position` is the loss
    without velocity, by which the published code validates.
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


def sample_dualtalk_noise(key: RandomKey, batch: Arrays, model: DualTalk, objective: Objective) -> DualTalkNoise:
    """Draws dropout, skipped layers and time masks of a batch."""
    return model.draw(key, *batch["audio"].shape)


def init(config: Run, shapes: Params, data: object, start: Start) -> Params:
    """Returns a published wav2vec2 as the start of both audio encoders.

    Returns nothing where the config names none.
    """
    if not config.audio_encoder:
        return {}
    encoder, params = start.load_encoder(config.audio_encoder, "wav2vec2")
    if encoder != config.model.wav2vec2:
        raise UserError(f"{config.audio_encoder} has other sizes than config.model.wav2vec2: {encoder}")
    return {
        path.replace("audio_encoder/", f"{side}_encoder/", 1): value
        for side in ("own", "partner")
        for path, value in params.items()
    }


# All but the audio encoders' convolutions.
DUALTALK_STAGE = Stage(
    "dualtalk",
    None,
    "partners",
    r"(?!(own|partner)_encoder/convs/).*",
    dualtalk_loss,
    sample_dualtalk_noise,
    item_frames=lambda config: PARTNER_FRAMES,
    init=init,
)


def card(config: DualTalkConfig, expression_basis: str) -> Card:
    """Returns the lines of a model card."""
    encoder = config.wav2vec2
    encoders = f"two wav2vec2 of width {encoder.width} and depth {encoder.depth}, trained along and in this file"
    if config.logmel is not None:
        encoders = "log-mel features instead of two wav2vec2; **the authors' code cannot load it**"
    return Card(
        "DualTalk: own audio, the partner's audio and motion to own facial motion",
        f"56 channels at 25 frames/s in the {expression_basis!r} basis: expression 50, jaw 3, head rotation 3.",
        [f"width {config.width}, {config.depth} layers of interaction; {encoders}"],
    )


DUALTALK = System(
    name="dualtalk",
    title="DualTalk",
    config=DualTalkConfig,
    build=DualTalk,
    stages={DUALTALK_STAGE.name: DUALTALK_STAGE},
    inputs=frozenset({"audio", "other_audio", "other_motion"}),
    draws=False,
    generate=generate,
    layout=LAYOUT,
    card=card,
    protocol={"num_people": 2, "held_out_style": False, "centred": False},
    conditions={"partner": "audio and true motion of the whole sequence, head rotation as tracked"},
)
