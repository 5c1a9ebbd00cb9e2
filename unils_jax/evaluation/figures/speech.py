"""Measures whether a face follows its voice, and whether it stays alive.

All are pure functions of one person's motion at 25 fps. Undefined values are NaN. Correlations are
Pearson's. The paper has none of these figures.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from scipy.ndimage import binary_dilation

from data_pipelines.phones import Phone, PhoneTracks, Speech, phone_tracks
from data_pipelines.synthetic.faces import JAW_PER_OPENING, LATENTS, NAMED_MIX
from unils_jax.evaluation.behaviour_metrics import MARGIN_FRAMES, NAN, Mask, Motion, jaw_voice_correlation
from unils_jax.evaluation.statistics import correlation
from unils_jax.motion import GROUPS, JAW, STANDIN_SHAPES

LEAD_FRAMES = 1  # lips lead the sound that they make by 40 to 80 ms
SHUFFLES = 20
QUARTERS = 4
# Of a frame. Vowels: the frame is mostly one. Speech: most of the frame is no silence.
MOSTLY = 0.5


@dataclass(frozen=True)
class Voice:
    """What a person's motion is judged by, frame by frame."""

    speaking: Mask
    loudness_db: Float[np.ndarray, " T"] | None  # of the own track; None where there is no audio
    phones: PhoneTracks | None  # when lips say them, see `lip_phones`; None where not known


def lip_phones(speech: Speech, num_frames: int) -> PhoneTracks:
    """Returns a person's phones frame by frame, earlier than the sound by the lips' lead."""
    lead_s = speech.lead_s
    return phone_tracks([Phone(p.label, p.start_s - lead_s, p.end_s - lead_s) for p in speech.phones], num_frames)


def cut_phones(phones: PhoneTracks, frames: slice) -> PhoneTracks:
    """Returns the phones of some frames."""
    return PhoneTracks(*(track[frames] for track in phones))


def silent_frames(speaking: Mask) -> Mask:
    """Returns the frames at least 0.2 s away from own speech."""
    return ~binary_dilation(speaking, iterations=MARGIN_FRAMES) if speaking.any() else ~speaking


def speech_figures(motion: Motion, truth: Motion, voice: Voice, expression_basis: str) -> dict[str, float]:
    """Returns the figures of speech and liveliness by role and name.

    They are: jaw against loudness while speaking, and against shuffled loudness; jaw against the
    true jaw while speaking; spread of the jaw in silence over that in speech; vowels' openness and
    closure of lips; spread of each group of channels over all frames and in each quarter.
    """
    jaw, speaking = motion[:, JAW][:, 0], voice.speaking
    figures = {
        "both/jaw_spread_silence_over_speech": spread_in_silence(motion, speaking),
        "speaking/jaw_loudness": jaw_loudness(motion, voice.loudness_db, speaking),
        "speaking/jaw_shuffled_loudness": jaw_loudness(motion, voice.loudness_db, speaking, shuffled=True),
        "speaking/jaw_to_true_jaw": correlation(jaw[speaking], truth[speaking, JAW][:, 0]),
    }
    figures |= {f"speaking/{name}": value for name, value in phone_figures(motion, voice, expression_basis).items()}
    figures |= {f"both/spread_{group}": value for group, value in spread(motion).items()}
    for number, part in enumerate(np.array_split(motion, QUARTERS), 1):
        figures |= {f"both/spread_quarter{number}_{group}": value for group, value in spread(part).items()}
    return figures


def jaw_loudness(
    motion: Motion, loudness_db: Float[np.ndarray, " T"] | None, speaking: Mask, *, shuffled: bool = False
) -> float:
    """Returns the correlation of the jaw with the loudness a frame later, in dB, while speaking.

    With `shuffled` it is the mean over 20 random orders of the loudness of those frames (the same
    every time): what is left is chance. NaN without audio, and below two frames of speech.
    """
    if loudness_db is None:
        return NAN
    frames = np.flatnonzero(speaking)
    frames = frames[frames >= LEAD_FRAMES]
    if not shuffled:
        return jaw_voice_correlation(motion, loudness_db, frames, -LEAD_FRAMES)
    rng, jaw = np.random.default_rng(0), motion[frames - LEAD_FRAMES, JAW][:, 0]
    return float(np.mean([correlation(jaw, rng.permutation(loudness_db[frames])) for _ in range(SHUFFLES)]))


def spread_in_silence(motion: Motion, speaking: Mask) -> float:
    """Returns the jaw's deviation in silence over that in speech.

    Silence is at least 0.2 s away from own speech. NaN without two frames of either.
    """
    jaw, silent = motion[:, JAW][:, 0].astype(np.float64), silent_frames(speaking)
    if min(silent.sum(), speaking.sum()) < 2 or not jaw[speaking].std() > 0:
        return NAN
    return float(jaw[silent].std() / jaw[speaking].std())


def spread(motion: Motion) -> dict[str, float]:
    """Returns the deviation over time per group of channels, root mean square over channels."""
    variance = motion.astype(np.float64).var(axis=0) if len(motion) else np.full(motion.shape[1], NAN)
    return {group: float(np.sqrt(variance[channels].mean())) for group, channels in GROUPS.items()}


def phone_figures(motion: Motion, voice: Voice, expression_basis: str) -> dict[str, float]:
    """Returns how well the mouth does what phones ask for; all NaN where they are not known.

    `vowel_openness`: jaw against the openness of the vowel (0 close to 1 open in the IPA chart),
    over frames that are mostly vowel. `bilabial_closure`: closed lips against the share of the
    frame that is m, b or p, over frames that are mostly speech. `labiodental_closure`: lip at teeth
    against the share that is f or v, over those of them that hold no m, b or p.

    In the stand-in basis closed lips and lip at teeth are read from the named shapes and the jaw,
    see `articulation`. FLAME's coefficients have no such meaning: there both are a closed jaw.
    """
    phones = voice.phones
    if phones is None:
        return dict.fromkeys(("vowel_openness", "bilabial_closure", "labiodental_closure"), NAN)
    jaw = motion[:, JAW][:, 0]
    closed = toothed = -jaw
    if expression_basis == "standin":
        lips = articulation(motion)
        closed, toothed = lips["close"], lips["close"] + lips["teeth"]
    vowels, speech = phones.vowel > MOSTLY, phones.silence < MOSTLY
    others = speech & (phones.bilabial == 0)
    return {
        "vowel_openness": correlation(jaw[vowels], phones.openness[vowels]),
        "bilabial_closure": correlation(closed[speech], phones.bilabial[speech]),
        "labiodental_closure": correlation(toothed[others], phones.labiodental[others]),
    }


def articulation(motion: Motion) -> dict[str, Float64[np.ndarray, " T"]]:
    """Reads the articulators `open`, `close` and `teeth` from motion in the stand-in basis.

    Shapes mix several articulators (a smile also raises the cheeks): this is the least squares fit
    of all of them to the 24 named shapes and the jaw, by how synthetic faces mix them. So a jaw
    that closes is no lips that press. 1 is an articulator fully there; offsets of a person remain.
    """
    names = len(STANDIN_SHAPES)
    observed = np.concatenate(
        [motion[:, :names] / np.array(list(STANDIN_SHAPES.values())), motion[:, JAW] / JAW_PER_OPENING], axis=1
    ).astype(np.float64)
    readout = _readout()
    return {name: observed @ readout[LATENTS.index(name)] for name in ("open", "close", "teeth")}


@functools.cache
def _readout() -> Float64[np.ndarray, "L n"]:
    """Returns the weights of named shapes and jaw for each latent."""
    mix = np.array([[NAMED_MIX[name].get(latent, 0.0) for latent in LATENTS] for name in STANDIN_SHAPES])
    return np.linalg.pinv(np.vstack([mix, [latent == "open" for latent in LATENTS]]))
