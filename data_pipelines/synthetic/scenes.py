"""Single persons in other situations than a conversation: the scenes of the unpaired set.

They are for codec and prior. People in a scene speak to no partner; there is no audio, and the eyes
rest on the viewer where they would rest on the partner. Events are those of `behaviour`, and
laughter.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data_pipelines.synthetic.behaviour import Gaze, Laugh
from data_pipelines.synthetic.conversation import Phrase, SynthConfig

Range = tuple[float, float]


class Scene(NamedTuple):
    """The behaviour of a person alone; ranges are (low, high)."""

    phrase_s: Range | None  # length of phrases; None: never speaks
    pause_s: Range
    smiles_per_min: Range
    look_at_viewer: float  # share of fixations on the viewer
    laughs_per_min: float
    reads: bool  # follows lines of text below instead of the viewer
    sway: float  # gain on what the head does by itself; every record has its own around it
    drift: float  # the same for the face


SCENES: dict[str, Scene] = {
    "monologue": Scene((1.5, 5.0), (0.2, 1.2), (1.0, 4.0), 0.6, 0.0, False, 1.1, 1.0),
    "idle": Scene(None, (1.0, 1.0), (0.5, 2.0), 0.35, 0.0, False, 0.8, 1.3),
    "laughing": Scene((0.6, 2.0), (1.0, 4.0), (3.0, 8.0), 0.7, 6.0, False, 1.3, 1.2),
    "reading": Scene((2.0, 6.0), (0.3, 0.6), (0.2, 0.8), 0.0, 0.0, True, 0.6, 0.7),
}
LAUGH_S, LAUGH_HZ, LAUGH_SIZE = (1.0, 3.5), (4.2, 5.5), (0.5, 1.0)
READING_FIXATION_S, LINE_S, LINES_A_PAGE = (0.2, 0.35), (2.0, 3.5), 12


def scene_config(config: SynthConfig, scene: Scene) -> SynthConfig:
    """Returns the settings of the persons of a scene; the viewer takes the partner's place."""
    return replace(
        config,
        smiles_per_min=scene.smiles_per_min,
        look_at_partner_speaking=scene.look_at_viewer,
        look_at_partner_listening=scene.look_at_viewer,
    )


def draw_laughs(config: SynthConfig, scene: Scene, rng: np.random.Generator) -> list[Laugh]:
    """Draws bouts of laughter one after another; at least one where the scene has any."""
    laughs: list[Laugh] = []
    if not scene.laughs_per_min:
        return laughs
    start = rng.uniform(0.5, 2.0)
    while start < config.duration_s - LAUGH_S[1] or not laughs:
        laugh = Laugh(start, rng.uniform(*LAUGH_S), rng.uniform(*LAUGH_HZ), rng.uniform(*LAUGH_SIZE))
        laughs.append(laugh)
        start += laugh.length_s + 1.0 + rng.exponential(max(60 / scene.laughs_per_min - 3.0, 1.0))
    return laughs


def draw_phrases(config: SynthConfig, scene: Scene, laughs: list[Laugh], rng: np.random.Generator) -> list[Phrase]:
    """Draws what is said in a scene, not while laughing."""
    phrases: list[Phrase] = []
    start = rng.uniform(0.2, 0.8)
    while scene.phrase_s is not None and start < config.duration_s - 0.5:
        end = min(start + rng.uniform(*scene.phrase_s), config.duration_s - 0.2)
        silent = all(end < laugh.start_s or laugh.start_s + laugh.length_s < start for laugh in laughs)
        if silent:
            phrases.append(Phrase(start, end, bool(rng.random() < config.rising_probability), False))
        start = end + rng.uniform(*scene.pause_s)
    return phrases


def draw_reading(config: SynthConfig, rng: np.random.Generator) -> list[Gaze]:
    """Draws eyes that follow lines of text.

    They go to the right in small steps, back in one, a little lower with every line.
    """
    gazes: list[Gaze] = []
    start, line = 0.0, 0
    width, top = rng.uniform(0.14, 0.24), rng.uniform(0.1, 0.25)
    while start < config.duration_s:
        line_s = rng.uniform(*LINE_S)
        pitch, end = top + 0.02 * (line % LINES_A_PAGE), start + line_s
        while start < end:
            place = 1 - (end - start) / line_s
            gazes.append(Gaze(start, width * (1 - 2 * place) + rng.normal(0, 0.01), pitch + rng.normal(0, 0.005)))
            start += rng.uniform(*READING_FIXATION_S)
        line += 1
    return gazes
