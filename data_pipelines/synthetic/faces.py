"""Events and lips of the synthetic conversation -> motion, and what a tracker makes of it."""

import numpy as np
from jaxtyping import Float16, Float64
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from data_pipelines.synthetic.behaviour import EXPRESSION_STD, Dropout, Habits, Laugh, Movements, Nod, Pulse
from data_pipelines.synthetic.conversation import SynthConfig
from unils_jax.motion import EXPRESSION, EYES, FPS, HEAD, JAW, MOTION_DIM, STANDIN_SHAPES

# Time grid on which movements are drawn: four points a frame.
GRID_HZ = 100
NUM_DRIFTS = 6

# The deviation of each latent, measured over an hour; it scales the fixed mix only.
LATENT_STD = {
    "open": 0.354,
    "round": 0.266,
    "spread": 0.257,
    "close": 0.125,
    "teeth": 0.113,
    "smile": 0.158,
    "brow": 0.082,
    "lid": 0.176,
}
# Deviations of the other channels, radians.
HEAD_STD, JAW_STD, EYES_STD = (0.12, 0.17, 0.12), 0.058, 0.145
JAW_PER_OPENING = 0.155
LATENTS = (*LATENT_STD, *(f"drift{i}" for i in range(NUM_DRIFTS)))

# The named shapes of the stand-in head as weights of latents, in units of "fully expressed".
NAMED_MIX: dict[str, dict[str, float]] = {
    "smile_left": {"smile": 1.0, "drift0": 0.32},
    "smile_right": {"smile": 1.0, "drift0": 0.32},
    "lip_pucker": {"round": 1.15, "drift1": 0.2},
    "lip_stretch": {"spread": 1.15, "drift2": 0.2},
    "upper_lip_raise": {"open": 0.5, "teeth": 1.0, "close": -0.8, "drift3": 0.2},
    "lower_lip_drop": {"open": 0.75, "teeth": 0.8, "close": -1.0, "drift4": 0.15},
    "blink_left": {"lid": 1.0},
    "blink_right": {"lid": 1.0},
    "brow_up_left": {"brow": 1.0, "drift5": 0.33},
    "brow_up_right": {"brow": 1.0, "drift5": 0.33},
    "brow_inner_up": {"brow": 0.6, "drift5": 0.15, "drift1": 0.2},
    "brow_down": {"brow": -0.4, "drift2": -0.25, "drift5": -0.15},
    "squint": {"smile": 0.6, "drift2": 0.2, "drift0": 0.1},
    "eye_wide": {"brow": 0.8, "drift2": -0.25},
    "lip_press": {"close": 1.5, "open": -0.2, "drift3": 0.22},
    "lip_roll": {"close": 1.2, "drift3": 0.2, "drift4": -0.15},
    "mouth_corner_down": {"smile": -0.5, "drift0": -0.25},
    "cheek_raise": {"smile": 0.9, "drift0": 0.2},
    "cheek_puff": {"close": 1.0, "round": 0.2, "drift4": 0.25},
    "nose_wrinkle": {"teeth": 0.3, "drift3": 0.3},
    "mouth_left": {"drift1": 0.3},
    "mouth_right": {"drift1": -0.3},
    "chin_raise": {"close": 1.0, "drift4": 0.3},
    "sneer": {"teeth": 0.5, "drift3": 0.3},
}


def _fixed_mix() -> tuple[np.ndarray, np.ndarray]:
    """Returns the basis of all people: a mix `[latents, 100]` and a neutral face `[100]`.

    It comes from a constant seed. Channels without a name mix all latents at random, scaled to
    their deviation; their neutral is of its size. (A blink moves them all a little, as in tracked
    data, where the expression takes what no other parameter can.) Named shapes are neutral near
    zero, so that the stand-in head rests with its eyes open.
    """
    rng = np.random.default_rng(20251209)
    spread = np.array([LATENT_STD.get(name, 1.0) for name in LATENTS])
    mix = rng.standard_normal((len(LATENTS), 100))
    mix *= EXPRESSION_STD / np.linalg.norm(mix, axis=0) / spread[:, None]
    neutral = EXPRESSION_STD * rng.standard_normal(100)
    for channel, (name, full) in enumerate(STANDIN_SHAPES.items()):
        mix[:, channel] = [full * NAMED_MIX[name].get(latent, 0.0) for latent in LATENTS]
        neutral[channel] = 0.0
    return mix, neutral


MIX, NEUTRAL = _fixed_mix()


def _walk(num_points: int, columns: int, corner_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Draws correlated random walks `[G, columns]` of deviation one.

    Their spectrum is flat to `corner_hz`, then falls as 1/f^2. They are smoothed over 60 ms, as
    necks do, so that it falls faster above about 3 Hz.
    """
    keep = np.exp(-2 * np.pi * corner_hz / GRID_HZ)
    kicks = rng.standard_normal((num_points, columns))
    kicks[1:] *= np.sqrt(1 - keep**2)
    return gaussian_filter1d(lfilter([1.0], [1.0, -keep], kicks, axis=0), 0.06 * GRID_HZ, axis=0, mode="nearest")


def _rise_and_fall(pulses: list[Pulse], num_points: int) -> np.ndarray:
    """Sums symmetric raised cosines `[G]`, bounded by 1."""
    track = np.zeros(num_points)
    for pulse in pulses:
        _add(track, pulse.start_s, pulse.size * np.hanning(max(3, round(pulse.length_s * GRID_HZ))))
    return np.minimum(track, 1.0)


def _lids(blinks: list[Pulse], num_points: int) -> np.ndarray:
    """Returns how far the lids are closed, 0..1 `[G]`.

    They go down in a third of the blink, are shut for a moment, and go up more slowly.
    """
    track = np.zeros(num_points)
    for blink in blinks:
        place = (np.arange(round(blink.length_s * GRID_HZ)) + 0.5) / round(blink.length_s * GRID_HZ)
        closed = np.interp(place, [0, 0.3, 0.5, 1], [0, 1, 1, 0])
        _add(track, blink.start_s, closed**2 * (3 - 2 * closed))
    return np.minimum(track, 1.0)


def _nodding(nods: list[Nod], num_points: int) -> np.ndarray:
    """Returns the head pitch of all nods `[G]`, radians, down first."""
    track = np.zeros(num_points)
    for nod in nods:
        length = max(4, round(nod.cycles / nod.rate_hz * GRID_HZ))
        time = np.arange(length) / GRID_HZ
        _add(track, nod.start_s, nod.size * np.sin(2 * np.pi * nod.rate_hz * time) * np.sqrt(np.hanning(length)))
    return track


def _add(track: np.ndarray, start_s: float, shape: np.ndarray) -> None:
    first = round(start_s * GRID_HZ)
    skip = max(0, -first)
    piece = shape[skip : skip + max(0, len(track) - max(first, 0))]
    track[max(first, 0) : max(first, 0) + len(piece)] += piece


def _laughter(laughs: list[Laugh], num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mouth opening and head pitch of all laughs, each `[G]`.

    Bursts fade; the head goes back and shakes with them.
    """
    opening, pitch = np.zeros(num_points), np.zeros(num_points)
    for laugh in laughs:
        time = np.arange(round(laugh.length_s * GRID_HZ)) / GRID_HZ
        envelope = np.sqrt(np.hanning(len(time))) * np.exp(-time / laugh.length_s)
        bursts = 0.5 - 0.5 * np.cos(2 * np.pi * laugh.rate_hz * time)
        _add(opening, laugh.start_s, laugh.size * envelope * (0.4 + 1.2 * bursts))
        _add(pitch, laugh.start_s, laugh.size * envelope * (0.04 * bursts - 0.25))
    return opening, pitch


def compose(
    habits: Habits, lips: dict[str, np.ndarray], movements: Movements, rng: np.random.Generator
) -> Float64[np.ndarray, "T 108"]:
    """Composes the true motion of one person from events and lips.

    Lips are those of `voice.articulation`, on a grid of 100 points a second.
    """
    num_points = len(lips["open"])
    laughing, thrown_back = _laughter(movements.laughs, num_points)
    amused = [Pulse(laugh.start_s - 0.3, laugh.length_s + 1.5, 1.0) for laugh in movements.laughs]
    drifts = _walk(num_points, NUM_DRIFTS, 0.08, rng) * movements.drift
    latents = {
        **lips,
        "open": lips["open"] + laughing,
        "smile": _rise_and_fall(movements.smiles + amused, num_points),
        "brow": _rise_and_fall(movements.brows, num_points),
        "lid": _lids(movements.blinks, num_points),
        **{f"drift{i}": drifts[:, i] for i in range(NUM_DRIFTS)},
    }
    motion = np.zeros((num_points, MOTION_DIM))
    motion[:, EXPRESSION] = NEUTRAL + np.stack([latents[name] for name in LATENTS], axis=1) @ MIX
    motion[:, HEAD], motion[:, EYES] = _head_and_eyes(movements, num_points, rng)
    motion[:, HEAD.start] += thrown_back
    motion[:, JAW] = JAW_PER_OPENING * latents["open"][:, None]
    motion = motion * habits.gain + habits.offset
    # A frame shows the middle of its 40 ms.
    return motion[2 :: GRID_HZ // round(FPS)]


def tracked(
    config: SynthConfig, motion: Float64[np.ndarray, "T 108"], dropouts: list[Dropout], rng: np.random.Generator
) -> Float16[np.ndarray, "T 108"]:
    """Returns what a tracker makes of a true motion.

    There is a little noise in every frame, and the last frame is held in dropouts.
    """
    scale = np.concatenate([EXPRESSION_STD, HEAD_STD, [JAW_STD], np.full(4, EYES_STD)])
    frames = motion + config.jitter * scale * rng.standard_normal(motion.shape)
    for start, length in dropouts:
        frames[start : start + length] = frames[start - 1]
    return frames.astype(np.float16)


def _head_and_eyes(movements: Movements, num_points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns head rotation `[G, 3]` (pitch, yaw, roll) and both eyes `[G, 4]`, radians.

    The eyes lead, the head follows.
    """
    starts = np.array([round(g.start_s * GRID_HZ) for g in movements.gazes])
    fixation = np.searchsorted(starts, np.arange(num_points), side="right") - 1
    target = np.array([(g.pitch, g.yaw) for g in movements.gazes])[fixation]
    follow = 0.4 * gaussian_filter1d(_delayed(target, 0.2), 0.15 * GRID_HZ, axis=0, mode="nearest")
    posture = _walk(num_points, 3, 0.03, rng) * [0.078, 0.118, 0.10]
    sway = _walk(num_points, 3, 0.3, rng) * [0.066, 0.094, 0.078]
    head = (posture + sway) * movements.sway
    head[:, :2] += follow
    head[:, 0] += _nodding(movements.nods, num_points)
    tremor = _walk(num_points, 2, 1.0, rng) * 0.01
    gaze = gaussian_filter1d(target, 0.02 * GRID_HZ, axis=0, mode="nearest") - follow + tremor
    return head, np.tile(gaze, 2)


def _delayed(track: np.ndarray, delay_s: float) -> np.ndarray:
    shift = round(delay_s * GRID_HZ)
    return np.concatenate([np.repeat(track[:1], shift, axis=0), track[: len(track) - shift]])
