"""UniTalker on audio of any length: windows of 25 s every 20 s, run alone and cross-faded.

Source: the release's demo. Shorter audio is one window.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from unils_jax.models.unitalker import frames_of, prepare_audio
from unils_jax.motion import SAMPLE_RATE

WINDOW_S, STRIDE_S = 25, 20
# (audio [1, N], number of frames) -> motion [1, T, D].
Predict = Callable[[np.ndarray, int], np.ndarray]


def window_bounds(num_samples: int) -> list[tuple[int, int]]:
    """First and last sample of every window; the last is longer than the 5 s that it shares with the one before."""
    window, stride = WINDOW_S * SAMPLE_RATE, STRIDE_S * SAMPLE_RATE
    more = max(0, -(-(num_samples - window) // stride))
    return [(i * stride, min(i * stride + window, num_samples)) for i in range(more + 1)]


def cross_fade(pieces: Sequence[Float[np.ndarray, "_ D"]], fps: int) -> Float[np.ndarray, "T D"]:
    """Windows as one sequence, blended linearly over the frames that two of them share."""
    shared = (WINDOW_S - STRIDE_S) * fps
    fall = np.linspace(1, 0, shared)[:, None]
    merged = [np.asarray(pieces[0])]
    for piece in pieces[1:]:
        blended = fall * merged[-1][-shared:] + (1 - fall) * piece[:shared]
        merged[-1] = merged[-1][:-shared]
        merged += [np.concatenate([blended.astype(piece.dtype), piece[shared:]])]
    return np.concatenate(merged)


def talk(predict: Predict, audio: Float[np.ndarray, " N"], fps: int, *, normalize: bool) -> Float[np.ndarray, "T D"]:
    """Motion of 16 kHz audio at 25 or 30 fps; `normalize` as the encoder wants it, see `prepare_audio`: the whole, then
    every window again."""
    whole = prepare_audio(audio, normalize=normalize)
    pieces = []
    for first, last in window_bounds(len(whole)):
        window = prepare_audio(whole[first:last], normalize=normalize)
        pieces.append(np.asarray(predict(window[None], frames_of(len(window), float(fps))))[0])
    return cross_fade(pieces, fps)
