"""DualTalk's motion of a whole recording at once: no chunks, no sampling, no smoothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.audio import normalize_record
from unils_jax.motion import PARTNER_FRAMES, dualtalk_channels, from_dualtalk
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params, merge, split
from unils_jax.nn.stack import Compute
from unils_jax.systems.base import Batch, GlobalBatch, Metrics, Objective, Stage, batch_sample_weights
from unils_jax.systems.dualtalk.model import DualTalk, DualTalkNoise, dualtalk_losses


def respond(
    model: DualTalk,
    audio: Float[np.ndarray, " N"],
    partner_audio: Float[np.ndarray, " N2"],
    partner_motion: Float[np.ndarray, "T2 108"],
    *,
    dtype: str = "float32",
) -> Float[np.ndarray, "T 108"]:
    """Motion of the person who says `audio` to the one who says and does the other two.

    Audio is 16 kHz mono of whole recordings, each normalised here; motion is as tracked, head rotation not centred, in
    and out. T is `num_frames` of the own audio. Channels that DualTalk lacks are zero. Compiles once a length.
    """
    graphdef, params = split(model)
    tracks = [normalize_record(np.asarray(track, np.float32))[None] for track in (audio, partner_audio)]
    channels = dualtalk_channels(np.asarray(partner_motion, np.float32))[None]
    motion = _respond(graphdef, Compute(jnp.dtype(dtype)), params, *tracks, channels)
    return from_dualtalk(np.asarray(motion[0]))


@partial(jax.jit, static_argnums=(0, 1))
def _respond(graphdef: nnx.GraphDef, compute: Compute, params: Params, *conversation: Array) -> Array:
    return merge(graphdef, params)(*conversation, compute)


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
