"""The scores of one system of the miniature: every figure, answers to the partner, liveliness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import uniform_filter1d

from data_pipelines.record import Record
from unils_jax.evaluation import reaction_metrics as reactions
from unils_jax.evaluation.metrics import Mesh, Person, ScoreTable, jsonable
from unils_jax.evaluation.protocols import PROTOCOLS, conversation_of, people_to_score
from unils_jax.evaluation.reaction_metrics import Reactions
from unils_jax.motion import FPS

PROTOCOL = PROTOCOLS["unils-clean"]
BLINKS = "behaviour/both/blinks_per_minute"
LIVELY_CHANNELS = slice(0, 50)  # of the expression, those that every system has
LIVELY_FRAMES = 25


def score(
    records: Sequence[Record],
    motions: Sequence[Sequence[Float[np.ndarray, "2 T 108"]]],
    mesh: Mesh,
    mean: Float[np.ndarray, "108"],
    std: Float[np.ndarray, "108"],
    window_frames: int | None = None,
) -> dict[str, Any]:
    """Scores a system; returns its figures as plain values.

    `motions` holds for every record one motion a training seed; `mean` and `std` are the training
    split's; `window_frames` are the system's, None: the protocol's. The result has `metrics` as in
    a report of `unils evaluate`, `values` of every record by seed, `reactions` (rate of answers,
    chance, 95 % interval of the rate less chance), and `liveliness` of the system's listeners over
    time (see there) and of the truth's.
    """
    tally = ScoreTable(mesh, "standin", mean, std)
    answers: dict[str, list[Reactions]] = {"nods": [], "smiles": []}
    curves = {"system": Curve(), "truth": Curve()}
    for record, by_seed in zip(records, motions, strict=True):
        conversation = conversation_of(record, PROTOCOL)
        people_by_seed = [people_to_score(conversation, motion, PROTOCOL, window_frames) for motion in by_seed]
        tally.add(record.name, people_by_seed)
        for name, counts in answers.items():
            counts.append(_sum([_answers(record, p, people[p])[name] for people in people_by_seed for p in range(2)]))
        for person in (person for people in people_by_seed for person in people):
            curves["system"].add(liveliness(person.prediction, std), ~person.speaking)
            curves["truth"].add(liveliness(person.truth, std), ~person.speaking)
    metrics = tally.metrics()
    own = [name for name, entry in metrics.items() if not name.startswith("fid/")]
    values = {
        name: [[seed[name] for seed in conversation.seeds] for conversation in tally.conversations] for name in own
    }
    rates = {name: _rate(counts) for name, counts in answers.items()}
    lively = {name: curve.mean() for name, curve in curves.items()}
    return jsonable({"metrics": metrics, "values": values, "reactions": rates, "liveliness": lively})


def liveliness(motion: Float[np.ndarray, "T 108"], std: Float[np.ndarray, "108"]) -> Float[np.ndarray, " T"]:
    """Measures how much a face moves at each frame.

    It is the standard deviation over the second around the frame, in deviations of the training
    split, mean over the first 50 expression channels.
    """
    scaled = motion[:, LIVELY_CHANNELS].astype(np.float64) / std[None, LIVELY_CHANNELS]
    mean, square = (uniform_filter1d(x, LIVELY_FRAMES, axis=0) for x in (scaled, scaled**2))
    return np.sqrt(np.maximum(square - mean**2, 0)).mean(axis=1)


class Curve:
    """Mean over people of a value over time, at the frames of their masks."""

    def __init__(self):
        self.total = self.count = np.zeros(0)

    def add(self, values: Float[np.ndarray, " T"], mask: Bool[np.ndarray, " T"]) -> None:
        """Adds a person's values at the frames of the mask."""
        if not len(self.total):
            self.total, self.count = np.zeros(len(values)), np.zeros(len(values))
        frames = min(len(self.total), len(values))
        self.total[:frames] += np.where(mask, values, 0)[:frames]
        self.count[:frames] += mask[:frames]

    def mean(self) -> list[float]:
        """Returns the mean over people; NaN at frames of no mask."""
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan).tolist()


def _answers(record: Record, person: int, scored: Person) -> dict[str, Reactions]:
    own, other = record.events["people"][person], record.events["people"][1 - person]
    first_s = PROTOCOL.first_frame / FPS
    nodding = reactions.nod_causes(other["phrases"], own["phrases"]) - first_s
    smiling = np.array([smile[0] for smile in other["smiles"]], np.float64) - first_s
    anywhere = np.ones(len(scored.speaking), bool)
    return {
        "nods": reactions.count_reactions(reactions.nod_onsets(scored.prediction), nodding, ~scored.speaking),
        "smiles": reactions.count_reactions(reactions.smile_onsets(scored.prediction), smiling, anywhere),
    }


def _sum(counts: Sequence[Reactions]) -> Reactions:
    return Reactions(*(sum(column) for column in zip(*counts, strict=True)))


def _rate(counts: list[Reactions]) -> dict[str, Any]:
    """Computes rate and chance over all conversations, and the interval of their difference.

    Conversations are resampled for the interval.
    """
    columns = np.array(counts, np.float64)
    draws = np.random.default_rng(0).integers(len(columns), size=(2000, len(columns)))

    def rates(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answered, causes, chance, moments = np.moveaxis(sums, -1, 0)
        return answered / np.maximum(causes, 1), chance / np.maximum(moments, 1)

    rate, chance = (float(x[0]) for x in rates(columns.sum(axis=0, keepdims=True)))
    above = np.subtract(*rates(columns[draws].sum(axis=1)))
    return {
        "rate": rate,
        "chance": chance,
        "above_chance": np.quantile(above, [0.025, 0.975]).tolist(),
        "causes": int(columns[:, 1].sum()),
    }
