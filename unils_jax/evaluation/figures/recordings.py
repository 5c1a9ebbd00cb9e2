"""Scores decoded motion on a folder of recordings without a store: real voices, tracked or not.

The folder is laid out as `unils decode` reads it: NAME_speaker1.EXT and NAME_speaker2.EXT are the
two tracks of a conversation, every other audio file is one person alone. An .npz of the same stem
as a track is that person's tracked motion, in a layout of `outputs.trackers`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.resampling import at_our_rate
from unils_jax.audio import frame_loudness, read_audio, speaking_frames
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.errors import UserError
from unils_jax.evaluation.behaviour_metrics import NAN, SHUT, blinks, border_jumps
from unils_jax.evaluation.figures.speech import jaw_loudness, silent_frames, spread_in_silence
from unils_jax.evaluation.metrics import mean_figures
from unils_jax.evaluation.statistics import correlation
from unils_jax.inference.finishing import finish
from unils_jax.inference.recordings import Recording, find_recordings
from unils_jax.motion import FPS, JAW, MOTION_KIND, SAMPLE_RATE, STANDIN_SHAPES, WINDOW_FRAMES
from unils_jax.outputs.trackers import read_tracker
from unils_jax.systems.base import Inputs, Options, window_of

log = logging.getLogger(__name__)

# The stand-in's jaw, radians, while synthetic people speak: means of the 5th and the 95th
# percentile of the eight people of four conversations.
STANDIN_REST, STANDIN_WIDE = 0.036, 0.213
BEYOND = 1.05  # of fully expressed: what no shape should be
# What a table on a terminal shows of each track.
COLUMNS = {
    "jaw_loudness": "jaw to loudness",
    "jaw_shuffled_loudness": "shuffled",
    "jaw_to_tracked_jaw": "jaw to tracked",
    "jaw_spread_silence_over_speech": "spread, silence / speech",
    "mouth_closed_in_silence": "closed in silence",
    "blinks_per_minute": "blinks a minute",
    "border_jump_head": "border step, head",
    "shapes_beyond_full": "beyond full",
}


@dataclass(frozen=True)
class Track:
    """One person of a recording: the own voice, and the motion that was tracked."""

    name: str  # of the audio file, without its suffix
    audio: Float[np.ndarray, " N"]
    speaking: Bool[np.ndarray, " T"]
    tracked: Float[np.ndarray, "T2 108"] | None  # None: there is none


def score_recordings(
    folder: Path, checkpoint: Checkpoint, *, seeds: int = 2, dtype: str = "float32", finished: bool = False
) -> dict[str, Any]:
    """Decodes every recording of a folder and scores each person's motion against the voice.

    Returns `tracks` (name, seconds of speech, figures as means over seeds), `mean` (figures as
    means over the tracks that define them) and what was scored. Seeds are 0, 1, ..., so that
    `unils decode --seed --raw` gives the motion that was scored. Undefined figures are NaN. Raises
    UserError where a file cannot be read and where a tracked motion does not belong to its track.

    Args:
        folder: The recordings.
        checkpoint: A system that decodes audio.
        seeds: Decodes of each recording, for systems that draw.
        dtype: Of the decode.
        finished: Scores motion as it is drawn and exported, not as it was decoded.
    """
    checkpoint = checkpoint.select(MOTION_KIND)
    basis, rows, frames = checkpoint.expression_basis, [], window_of(checkpoint.config).frames
    numbers = range(seeds if checkpoint.system.draws else 1)
    recordings = find_recordings(folder, quiet=True)
    for recording in recordings:
        people = read_people(recording)
        by_seed: list[list[dict[str, float]]] = []
        for seed in numbers:
            motion = decode(checkpoint, [person.audio for person in people], seed, dtype)
            motion = finish(motion, basis, window_frames=frames).motion if finished else motion
            by_seed.append([track_figures(m, p, basis, frames) for m, p in zip(motion, people, strict=True)])
        for person, figures in zip(people, zip(*by_seed, strict=True), strict=True):
            seconds = {"speech_s": float(person.speaking.sum() / FPS), "seconds": len(person.audio) / SAMPLE_RATE}
            rows.append({"name": person.name, **seconds, "figures": mean_figures(figures)})
        log.info("scored %s: %d person(s)", recording.name, len(people))
    return {
        "mean": mean_figures([row["figures"] for row in rows]),
        "tracks": rows,
        "settings": {
            "recordings": str(folder),
            "motion_from": str(checkpoint.source["checkpoint"]),
            "motion": "finished" if finished else "raw",
            "expression_basis": basis,
            "seeds": list(numbers),
            "dtype": dtype,
            **vars(checkpoint.sampling),
        },
    }


def read_people(recording: Recording) -> list[Track]:
    """Reads the tracks of a recording, who speaks when, and tracked motion that lies next to it."""
    audio = [read_audio(path) for path in recording.tracks]
    speaking = speaking_frames(audio)
    tracked = [_tracked(path.with_suffix(".npz")) for path in recording.tracks]
    return [Track(path.stem, *of) for path, *of in zip(recording.tracks, audio, speaking, tracked, strict=True)]


def _tracked(path: Path) -> Float[np.ndarray, "T 108"] | None:
    if not path.is_file():
        return None
    motion, rate = read_tracker(path)
    return at_our_rate(motion[None], rate, str(path))[0]


def decode(
    checkpoint: Checkpoint, audio: Sequence[Float[np.ndarray, " _"]], seed: int, dtype: str
) -> Float[np.ndarray, "P T 108"]:
    """Decodes the people of a recording, as `unils decode` does without further flags."""
    system, (own, *others) = checkpoint.system, audio
    held = {"other_audio": others[0] if others else None, "annotation": MOTION_KIND}
    read = {name: value for name, value in held.items() if name in system.inputs}
    options = Options(checkpoint.sampling, seed, len(audio), dtype)
    return system.generate(checkpoint.model, Inputs(audio=own, **read), options).values


def track_figures(
    motion: Float[np.ndarray, "T 108"], track: Track, expression_basis: str, window_frames: int = WINDOW_FRAMES
) -> dict[str, float]:
    """Returns one person's figures; NaN where they are not defined.

    `window_frames` are of the model that made the motion.
    """
    frames = min(len(motion), len(track.speaking))
    motion, speaking = motion[:frames], track.speaking[:frames]
    everywhere = np.ones(frames, bool)
    loudness = frame_loudness(track.audio)
    loudness = np.pad(loudness[:frames], (0, max(0, frames - len(loudness))), constant_values=loudness.min())
    figures = {
        "jaw_loudness": jaw_loudness(motion, loudness, speaking),
        "jaw_shuffled_loudness": jaw_loudness(motion, loudness, speaking, shuffled=True),
        "jaw_to_tracked_jaw": _to_tracked(motion, track, speaking),
        "jaw_spread_silence_over_speech": spread_in_silence(motion, speaking),
        "mouth_closed_in_silence": closed_in_silence(motion, speaking, expression_basis),
        "blinks_per_minute": NAN,
        "blink_duration_s": NAN,
        "shapes_beyond_full": NAN,
    }
    if expression_basis == "standin":
        figures["blinks_per_minute"], figures["blink_duration_s"] = blinks(motion, everywhere)
        parts = motion[:, : len(STANDIN_SHAPES)] / np.array(list(STANDIN_SHAPES.values()))
        figures["shapes_beyond_full"] = float((np.abs(parts) > BEYOND).any(axis=1).mean())
    jumps = border_jumps(motion, everywhere, window_frames)
    return figures | {f"border_jump_{group}": value for group, value in jumps.items()}


def closed_in_silence(
    motion: Float[np.ndarray, "T 108"], speaking: Bool[np.ndarray, " T"], expression_basis: str
) -> float:
    """Returns the share of silent frames, 0..1, whose jaw is nearer than a quarter to rest.

    As `mouth_shut_in_silence`, where there is no truth to say what rest and wide open are: silent
    are frames at least 0.2 s away from own speech; the scale is that of synthetic people in the
    stand-in basis (closed is a jaw below 0.08 rad), and the motion's own 5th and 95th percentile
    while speaking in FLAME's, whose trackers differ in where a closed jaw is. NaN without silence,
    and in FLAME's basis without speech.
    """
    jaw, silent = motion[:, JAW][:, 0], silent_frames(speaking)
    if not silent.any():
        return NAN
    rest, wide = STANDIN_REST, STANDIN_WIDE
    if expression_basis != "standin":
        if not speaking.any():
            return NAN
        rest, wide = np.percentile(jaw[speaking], [5, 95])
    return float((jaw[silent] < rest + SHUT * (wide - rest)).mean())


def _to_tracked(motion: np.ndarray, track: Track, speaking: np.ndarray) -> float:
    if track.tracked is None:
        return NAN
    if abs(len(track.tracked) - len(motion)) > FPS:
        raise UserError(
            f"{track.name}.npz holds {len(track.tracked)} frames, its audio {len(motion)}: more than a second apart; "
            "give motion of the same clip or take it away"
        )
    frames = min(len(track.tracked), len(motion))
    spoken = np.flatnonzero(speaking[:frames])
    return correlation(motion[spoken, JAW][:, 0], track.tracked[spoken, JAW][:, 0])


def table(scores: dict[str, Any]) -> str:
    """Returns the scores as lines of aligned text, a track a line and their mean last."""
    rows = [["track", "speech s", *COLUMNS.values()]]
    for row in [*scores["tracks"], {"name": "mean", "speech_s": NAN, "figures": scores["mean"]}]:
        rows.append([row["name"], _number(row["speech_s"]), *(_number(row["figures"][name]) for name in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"
