"""Record -> training window of DualTalk: 200 frames of one person, with the other's as input.

Windows follow each other from the first frame on; frames left over at the end and records of at
most 200 frames are not used. Motion is as tracked, nothing is centred. Audio is normalised by the
whole record's mean and variance, each person's by their own, before windows are cut: a window has
neither zero mean nor unit variance.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from data_pipelines.windows import WindowSource
from unils_jax.audio import record_scale
from unils_jax.errors import UserError
from unils_jax.motion import PARTNER_FRAMES, SAMPLES_PER_FRAME, to_56_channels

# (mean, deviation) of every person's audio, each [P, 1].
Scale = tuple[Float32[np.ndarray, "P 1"], Float32[np.ndarray, "P 1"]]


def partner_index(lengths: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "items 2"]:
    """Lists the items `(record, first frame)` of records with `lengths` frames."""
    frames = np.asarray(lengths, np.int64)
    counts = np.where(frames > PARTNER_FRAMES, frames // PARTNER_FRAMES, 0)
    records = np.repeat(np.arange(len(frames)), counts)
    first_item = np.cumsum(counts) - counts
    return np.stack([records, (np.arange(len(records)) - first_item[records]) * PARTNER_FRAMES], axis=1)


def audio_scale(source: WindowSource) -> Scale:
    """Returns mean and deviation that the audio of a source is normalised by.

    All of its audio is read.
    """
    return record_scale(source.audio(0, source.num_samples))


def cut_partners(source: WindowSource, person: int, first: int, scale: Scale) -> dict[str, np.ndarray]:
    """Cuts the window of 200 frames from frame `first` on in which `person` is to be generated.

    Returns `motion` and `partner_motion [200, 56]` in the stored dtype, `audio` and `partner_audio
    [128000]` float32. Raises UserError where the record has not so many frames.
    """
    last = first + PARTNER_FRAMES
    if last > source.num_frames:
        raise UserError(
            f"record {source.name!r} has {source.num_frames} frames, a window at {first} needs {last}; leave it out"
        )
    mean, deviation = scale
    audio = (source.audio(first * SAMPLES_PER_FRAME, last * SAMPLES_PER_FRAME) - mean) / deviation
    cuts = source.frames([(p, first, last) for p in (person, 1 - person)], centred=False)
    own, partner = (to_56_channels(motion) for motion, _ in cuts)
    return {"motion": own, "partner_motion": partner, "audio": audio[person], "partner_audio": audio[1 - person]}
