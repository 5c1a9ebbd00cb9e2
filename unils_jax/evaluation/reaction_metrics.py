"""Measures whether a listener reacts: nods and smiles within a second of a cause, against chance.

For the stand-in basis and synthetic conversations, whose events say what caused what. Onsets are
frames at 25 fps. The detectors find more than three of four true nods and smiles. The paper has
none of these figures.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, hilbert, sosfiltfilt

from data_pipelines.synthetic.behaviour import Phrase, invites_nod
from data_pipelines.synthetic.faces import NAMED_MIX
from unils_jax.motion import FPS, HEAD, STANDIN_SHAPES

WITHIN_FRAMES = 25
NOD_HZ, NOD_SIZE = (1.5, 5.0), 0.04  # radians
SMILE_RISE, SMILE_RISE_FRAMES = 0.2, 15  # of a full smile, within 0.6 s


class Reactions(NamedTuple):
    """Counts of reactions, which add up over people."""

    answered: int  # causes followed by an onset within a second
    causes: int
    chance: int  # moments followed by an onset within a second
    moments: int  # frames at which nothing need have happened


def nod_onsets(motion: Float[np.ndarray, "T 108"]) -> Int[np.ndarray, " N"]:
    """Returns frames at which the head begins to swing up and down at 1.5-5 Hz by over 0.04 rad."""
    band = butter(2, NOD_HZ, "bandpass", fs=FPS, output="sos")
    swing = np.abs(hilbert(sosfiltfilt(band, motion[:, HEAD][:, 0].astype(np.float64))))
    return _crossings(gaussian_filter1d(swing, 2), NOD_SIZE, 0.6 * NOD_SIZE)


def smile_onsets(motion: Float[np.ndarray, "T 108"]) -> Int[np.ndarray, " N"]:
    """Returns frames at which a smile begins that rises by a fifth of a full one within 0.6 s.

    Corners of the mouth also drift; cheeks drift less than they smile: the difference leaves only
    the smile.
    """
    mouth = ("smile_left", "smile_right")
    corners, cheeks = (_shape(motion, names) for names in (mouth, ("cheek_raise",)))
    steadier = NAMED_MIX[mouth[0]]["drift0"] / NAMED_MIX["cheek_raise"]["drift0"]
    full = steadier * NAMED_MIX["cheek_raise"]["smile"] - NAMED_MIX[mouth[0]]["smile"]
    smile = gaussian_filter1d((steadier * cheeks - corners) / full, 2)
    rise = np.zeros(len(smile))
    rise[SMILE_RISE_FRAMES:] = smile[SMILE_RISE_FRAMES:] - smile[:-SMILE_RISE_FRAMES]
    starts = []
    # The threshold is crossed on the way up: walk back to where the rise began.
    for frame in _crossings(rise, SMILE_RISE, SMILE_RISE / 2):
        while frame > 0 and rise[frame - 1] > SMILE_RISE / 5:
            frame -= 1
        starts.append(frame)
    return np.array(starts, np.int64)


def nod_causes(phrases: Iterable[list], own_phrases: Iterable[list]) -> Float[np.ndarray, " N"]:
    """Returns the seconds at which those phrases of the other person end that invite a nod.

    Both arguments are lists of a record's events.
    """
    own = [Phrase(*phrase) for phrase in own_phrases]
    others = [Phrase(*phrase) for phrase in phrases]
    return np.array([phrase.end_s for phrase in others if invites_nod(phrase, own)], np.float64)


def count_reactions(
    onsets: Int[np.ndarray, " N"], causes_s: Float[np.ndarray, " M"], moments: Bool[np.ndarray, " T"]
) -> Reactions:
    """Counts the causes that were answered within a second, and how often chance would answer.

    Chance is how often the second after any of the `moments` holds an onset. Causes and moments
    with less than a second to come do not count.
    """
    last = len(moments) - WITHIN_FRAMES
    before = np.zeros(len(moments) + 1, np.int64)
    before[onsets + 1] = 1
    before = np.cumsum(before)  # onsets before each frame
    frames = np.round(causes_s * FPS).astype(np.int64)
    frames = frames[(frames >= 0) & (frames < last)]
    free = np.flatnonzero(moments[: max(last, 0)])

    def followed(frame: np.ndarray) -> int:
        return int((before[frame + WITHIN_FRAMES + 1] > before[frame + 1]).sum())

    return Reactions(followed(frames), len(frames), followed(free), len(free))


def _shape(motion: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Returns the mean of named shapes, as a part of fully expressed."""
    columns = [list(STANDIN_SHAPES).index(name) for name in names]
    return (motion[:, columns].astype(np.float64) / [STANDIN_SHAPES[name] for name in names]).mean(axis=1)


def _crossings(track: np.ndarray, high: float, low: float) -> np.ndarray:
    """Returns frames at which the track reaches `high`, each after it was below `low`."""
    # Two thresholds: a track that trembles around `high` is one onset.
    frames, armed = [], True
    for frame in range(1, len(track)):
        if armed and track[frame - 1] < high <= track[frame]:
            frames.append(frame)
            armed = False
        armed = armed or track[frame] < low
    return np.array(frames, np.int64)
