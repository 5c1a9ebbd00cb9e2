"""Speech made longer or shorter without another pitch: overlap-add of similar waveforms."""

import numpy as np
from jaxtyping import Float32

from unils_jax.motion import SAMPLE_RATE

# Frames of 40 ms with half overlap; each is taken within 8 ms of its place, where it continues the
# frame before best (WSOLA, Verhelst and Roelands 1993). Every second sample is compared.
FRAME = round(0.040 * SAMPLE_RATE)
HOP = FRAME // 2
SEARCH = round(0.008 * SAMPLE_RATE)


def stretch(samples: Float32[np.ndarray, " N"], num_samples: int) -> Float32[np.ndarray, " M"]:
    """Returns the samples as `num_samples` samples of the same pitch; times scale evenly.

    An event is moved by at most 8 ms from its scaled time.
    """
    if num_samples == len(samples):
        return samples
    count = -(-num_samples // HOP) + 1
    padded = np.pad(samples, (HOP + SEARCH, 2 * FRAME + HOP + SEARCH))
    window = np.hanning(FRAME + 1)[:FRAME].astype(np.float32)
    out = np.zeros((count + 1) * HOP, np.float32)
    factor, last = len(samples) / num_samples, None
    for k in range(count):
        place = SEARCH + min(round(k * HOP * factor), len(samples))
        if last is not None:
            # What would follow the frame before is compared with what is near the place.
            natural = padded[last + HOP : last + HOP + FRAME : 2]
            near = padded[place - SEARCH : place + SEARCH + FRAME : 2]
            place += 2 * int(np.argmax(np.correlate(near, natural))) - SEARCH
        out[k * HOP : k * HOP + FRAME] += window * padded[place : place + FRAME]
        last = place
    return out[HOP : HOP + num_samples]
