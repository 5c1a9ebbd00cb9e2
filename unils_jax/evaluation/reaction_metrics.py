"""Whether a listener answers: nods and smiles that begin within a second of what causes them, against chance.

For the stand-in basis and synthetic conversations, whose events say what caused what. Onsets are frames at 25 fps; more
than three of four true nods and smiles are found.
Nothing here is of the paper.
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
    """Counts that add up over people: of `causes` so many were `answered`; of `moments`, frames at which nothing need
    have happened, so many were followed by an onset by `chance`."""

    answered: int
    causes: int
    chance: int
    moments: int


def nod_onsets(motion: Float[np.ndarray, "T 108"]) -> Int[np.ndarray, " N"]:
    """Frames at which the head begins to swing up and down between 1.5 and 5 Hz by more than 0.04 rad."""
    band = butter(2, NOD_HZ, "bandpass", fs=FPS, output="sos")
    swing = np.abs(hilbert(sosfiltfilt(band, motion[:, HEAD][:, 0].astype(np.float64))))
    return _crossings(gaussian_filter1d(swing, 2), NOD_SIZE, 0.6 * NOD_SIZE)


def smile_onsets(motion: Float[np.ndarray, "T 108"]) -> Int[np.ndarray, " N"]:
    """Frames at which a smile begins that rises by a fifth of a full one within 0.6 s.

    Corners of the mouth also drift; cheeks drift less than they smile: in the difference only the smile is left.
    """
    mouth = ("smile_left", "smile_right")
    corners, cheeks = (_shape(motion, names) for names in (mouth, ("cheek_raise",)))
    steadier = NAMED_MIX[mouth[0]]["drift0"] / NAMED_MIX["cheek_raise"]["drift0"]
    full = steadier * NAMED_MIX["cheek_raise"]["smile"] - NAMED_MIX[mouth[0]]["smile"]
    smile = gaussian_filter1d((steadier * cheeks - corners) / full, 2)
    rise = np.zeros(len(smile))
    rise[SMILE_RISE_FRAMES:] = smile[SMILE_RISE_FRAMES:] - smile[:-SMILE_RISE_FRAMES]
    starts = []
    for frame in _crossings(rise, SMILE_RISE, SMILE_RISE / 2):
        while frame > 0 and rise[frame - 1] > SMILE_RISE / 5:
            frame -= 1
        starts.append(frame)
    return np.array(starts, np.int64)


def nod_causes(phrases: Iterable[list], own_phrases: Iterable[list]) -> Float[np.ndarray, " N"]:
    """Seconds at which the other's phrases end that invite a nod; both are lists of a record's events."""
    own = [Phrase(*phrase) for phrase in own_phrases]
    heard = [Phrase(*phrase) for phrase in phrases]
    return np.array([phrase.end_s for phrase in heard if invites_nod(phrase, own)], np.float64)


def count_reactions(
    onsets: Int[np.ndarray, " N"], causes_s: Float[np.ndarray, " M"], moments: Bool[np.ndarray, " T"]
) -> Reactions:
    """Answers within a second, and what chance would give: how often a second after any of the `moments` holds an
    onset. Causes and moments with less than a second to come do not count."""
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
    """Mean of named shapes, in parts of fully expressed."""
    columns = [list(STANDIN_SHAPES).index(name) for name in names]
    return (motion[:, columns].astype(np.float64) / [STANDIN_SHAPES[name] for name in names]).mean(axis=1)


def _crossings(track: np.ndarray, high: float, low: float) -> np.ndarray:
    """Frames at which the track reaches `high`, each after it was below `low`."""
    frames, armed = [], True
    for frame in range(1, len(track)):
        if armed and track[frame - 1] < high <= track[frame]:
            frames.append(frame)
            armed = False
        armed = armed or track[frame] < low
    return np.array(frames, np.int64)
