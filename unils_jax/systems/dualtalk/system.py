"""DualTalk's motion of a whole recording at once: no chunks, no sampling, no smoothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.audio import normalize_record
from unils_jax.motion import dualtalk_channels, from_dualtalk
from unils_jax.nn.params import Params, merge, split
from unils_jax.nn.stack import Compute
from unils_jax.systems.dualtalk.model import DualTalk


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
