"""Computes every metric of one person's motion against truth, and their means over a split.

`score_person` turns a prediction into named figures. `ScoreTable` gathers them: first the mean over
the people of a conversation, then over seeds, then over conversations with a bootstrap interval;
each mean ignores undefined values. Fréchet distances are of a split as a whole; their intervals
resample conversations, too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.phones import PhoneTracks
from unils_jax.errors import UserError
from unils_jax.evaluation import behaviour_metrics as behaviour
from unils_jax.evaluation.dualtalk_metrics import WITH_PARTNER, dualtalk_metrics
from unils_jax.evaluation.figures.speech import Voice, speech_figures
from unils_jax.evaluation.figures.units import missing_groups, needed_groups, unit
from unils_jax.evaluation.statistics import Moments, bootstrap_interval, frechet_distance, merge, moments
from unils_jax.evaluation.unils_metrics import MESH_METRICS, ROLES, Mesh, role_masks, unils_metrics
from unils_jax.face.flame import FlameAsset, vertices
from unils_jax.face.flame_file import load_flame
from unils_jax.face.standin import standin_asset
from unils_jax.motion import EXPRESSION, GROUPS, HEAD, JAW, WINDOW_FRAMES, to_56_channels

Figures = dict[str, float]  # by path: family/role or metric/name
FID_CHANNELS = {"expression_fid": EXPRESSION, "pose_fid": HEAD}
FID_DRAWS = 200
BINS = np.linspace(-4, 4, 65)  # of the distributions, in deviations of the training split
NAN = float("nan")


def mesh_of(asset: FlameAsset) -> Mesh:
    """Returns the mesh of a head to measure on."""
    return Mesh(jax.jit(partial(_without_head_rotation, asset)), asset.lips, asset.upper_face)


def find_mesh(flame: str | None, expression_basis: str) -> tuple[Mesh | None, list[str]]:
    """Returns the mesh that fits the basis, or None, and notes on what is left out."""
    if expression_basis == "standin":
        if flame:
            raise UserError(f"--flame {flame} measures FLAME's basis, the store is of 'standin'; leave --flame away")
        return mesh_of(standin_asset()), [
            "Vertices are of the stand-in head: millimetres of another face than FLAME's."
        ]
    notes = [f"Blinks are left out: {behaviour.NO_LIDS}."]
    if flame is None:
        return None, [*notes, "LVE, MHD and FDD are left out: they need vertices; give --flame generic_model.pkl."]
    return mesh_of(load_flame(flame)), notes


def _without_head_rotation(asset: FlameAsset, motion: Float[Array, "t 108"]) -> Float[Array, "t V 3"]:
    return vertices(asset, motion, head_rotation=False)


@dataclass(frozen=True)
class Person:
    """One person of one conversation to score: prediction, truth and the partner's truth.

    Head rotation is centred as the protocol says. In channels that one of them lacks, truth and
    prediction are zero, and figures that rest on a group without any of its channels are undefined.
    """

    prediction: Float[np.ndarray, "T 108"]
    truth: Float[np.ndarray, "T 108"]
    partner: Float[np.ndarray, "T 108"]  # the partner's truth
    speaking: Bool[np.ndarray, " T"]
    loudness_db: Float[np.ndarray, " T"] | None  # of the own track; None where there is no audio
    head_offset: float  # mean head rotation in radians that centring took from the prediction
    channel_mask: Bool[np.ndarray, "108"] | None = None  # channels that both have; None: all
    partner_channel_mask: Bool[np.ndarray, "108"] | None = None  # those of the partner's truth
    window_frames: int = WINDOW_FRAMES  # of the model's windows, at whose borders steps are compared
    first_frame: int = 0  # number of the first scored frame in the recording
    phones: PhoneTracks | None = None  # the own ones, when lips say them; None where not known
    vertices: Float[np.ndarray, "T V 3"] | None = None  # of the prediction, metres; None: by its channels


def score_person(person: Person, mesh: Mesh | None, expression_basis: str) -> tuple[Figures, Figures]:
    """Returns all figures of a person, and those of the truth that need one motion alone."""
    figures, true = {}, {}
    motions = (person.prediction, person.truth, person.speaking)
    for role, values in unils_metrics(*motions, mesh, person.vertices).items():
        figures |= {f"unils/{role}/{name}": value for name, value in values.items()}
    channels = [to_56_channels(x) for x in (person.prediction, person.truth, person.partner)]
    for name, groups in dualtalk_metrics(*channels).items():
        target = true if name.startswith("true_") else figures
        name = name.removeprefix("true_")
        target |= {f"dualtalk/{name}/{group}": value for group, value in groups.items()}
    for target, motion in ((figures, person.prediction), (true, person.truth)):
        target |= _behaviour(motion, person, expression_basis)
    for role in ROLES:
        for what, pair in role_spectra(person, role).items():
            figures[f"behaviour/{role}/{what}_spectrum"] = behaviour.spectral_distance(*pair)
    figures["behaviour/both/head_offset"] = person.head_offset
    return _without_missing(figures, person), _without_missing(true, person)


def _without_missing(figures: Figures, person: Person) -> Figures:
    """Returns the figures with NaN for those that rest on channels which the truth lacks.

    Figures against the partner's motion also need the partner's channels, those of vertices need
    none where the prediction gives vertices.
    """
    of_vertices = MESH_METRICS if person.vertices is not None else ()
    own, partner = missing_groups(person.channel_mask), missing_groups(person.partner_channel_mask)
    if not own and not partner:
        return figures
    return {
        name: NAN
        if needed_groups(name) & (own | partner if name.startswith(WITH_PARTNER) else own)
        and name.rpartition("/")[2] not in of_vertices
        else value
        for name, value in figures.items()
    }


def _behaviour(motion: np.ndarray, person: Person, expression_basis: str) -> Figures:
    figures: Figures = {}
    masks = role_masks(person.speaking)
    for role, mask in masks.items():
        named: Figures = {f"jitter_{group}": value for group, value in behaviour.jitter(motion, mask).items()}
        if expression_basis == "standin":
            named["blinks_per_minute"], named["blink_duration_s"] = behaviour.blinks(motion, mask)
        if role == "both":
            jumps = behaviour.border_jumps(motion, mask, person.window_frames, person.first_frame)
            named |= {f"border_jump_{group}": value for group, value in jumps.items()}
            silence = behaviour.mouth_shut_in_silence(motion, person.truth, person.speaking, mask)
            named["mouth_shut_in_silence"] = silence
        if role == "speaking":  # a record without audio has the figures, too, undefined
            lag = (
                (math.nan, math.nan)
                if person.loudness_db is None
                else behaviour.mouth_lag(motion, person.loudness_db, mask)
            )
            named["mouth_lag_s"], named["mouth_correlation"] = lag
        figures |= {f"behaviour/{role}/{name}": value for name, value in named.items()}
    voice = Voice(person.speaking, person.loudness_db, person.phones)
    spoken = speech_figures(motion, person.truth, voice, expression_basis)
    return figures | {f"behaviour/{name}": value for name, value in spoken.items()}


def role_spectra(person: Person, role: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns spectra of gaze and head in a role, prediction's and truth's, in rad^2/Hz."""
    mask = role_masks(person.speaking)[role]
    tracks = {"gaze": behaviour.gaze, "head": lambda motion: motion[:, HEAD]}
    return {
        what: (behaviour.spectrum(cut(person.prediction), mask), behaviour.spectrum(cut(person.truth), mask))
        for what, cut in tracks.items()
    }


def _nanmean(values: list[float] | np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else NAN


def mean_figures(rows: Sequence[Figures]) -> Figures:
    """Returns the mean of each figure over the rows that define it; NaN where none does."""
    return {name: _nanmean([row[name] for row in rows]) for name in rows[0]} if rows else {}


@dataclass
class ConversationScores:
    """The scores of one conversation, as a `ScoreTable` gathers them; picklable."""

    name: str
    frames: int  # of all scored people
    seeds: list[Figures] = field(default_factory=list)
    mean: Figures = field(default_factory=dict)  # over seeds
    truth: Figures = field(default_factory=dict)
    predicted: list[dict[str, Moments]] = field(default_factory=list)  # a seed each, by "role/fid"
    true: dict[str, Moments] = field(default_factory=dict)
    # Of all people and seeds, prediction and truth: counts in BINS by group; spectra by role/what.
    counts: dict[str, Int[np.ndarray, "2 bins"]] = field(default_factory=dict)
    spectra: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    trace: dict[str, np.ndarray] = field(default_factory=dict)  # jaw and head of the first person


def _united_moments(people: list[Person], which: str) -> dict[str, Moments]:
    """Returns the moments of the people's frames by role and Fréchet distance.

    People who lack the channels do not count.
    """

    def of_person(person: Person, role: str, name: str, channels: slice) -> Moments:
        counts = not needed_groups(name) & missing_groups(person.channel_mask)
        return moments(getattr(person, which)[role_masks(person.speaking)[role] & counts, channels])

    return {
        f"{role}/{name}": merge([of_person(person, role, name, channels) for person in people])
        for role in ROLES
        for name, channels in FID_CHANNELS.items()
    }


class ScoreTable:
    """The scores of a split, gathered conversation by conversation.

    `mean` and `std` are the training split's, for the distributions.
    """

    def __init__(
        self,
        mesh: Mesh | None,
        expression_basis: str,
        mean: Float[np.ndarray, "108"],
        std: Float[np.ndarray, "108"],
    ):
        self.mesh, self.expression_basis = mesh, expression_basis
        self.mean, self.std = mean, std
        self.conversations: list[ConversationScores] = []

    def add(self, name: str, people_by_seed: list[list[Person]]) -> None:
        """Scores a conversation and takes it in."""
        self.take(self.score(name, people_by_seed))

    def score(self, name: str, people_by_seed: list[list[Person]]) -> ConversationScores:
        """Scores a conversation: for every seed, the people that the protocol scores."""
        conversation = ConversationScores(name, sum(len(person.truth) for person in people_by_seed[0]))
        for people in people_by_seed:
            rows = [score_person(person, self.mesh, self.expression_basis) for person in people]
            conversation.seeds.append(mean_figures([row for row, _ in rows]))
            conversation.truth = mean_figures([row for _, row in rows])
            conversation.predicted.append(_united_moments(people, "prediction"))
            conversation.true = _united_moments(people, "truth")
            for person in people:
                self._add_pictures(conversation, person)
        conversation.mean = mean_figures(conversation.seeds)
        conversation.trace = _trace(people_by_seed[0][0])
        return conversation

    def take(self, conversation: ConversationScores) -> None:
        """Takes in the next conversation of the split."""
        self.conversations.append(conversation)
        # Traces are large: those of conversations that are neither best nor worst are let go.
        kept = set(self.extremes().values())
        for other in self.conversations:
            if other.name not in kept:
                other.trace = {}

    def _add_pictures(self, conversation: ConversationScores, person: Person) -> None:
        for group, channels in GROUPS.items():
            if group in missing_groups(person.channel_mask):
                continue
            counts = conversation.counts.setdefault(group, np.zeros((2, len(BINS) - 1), np.int64))
            for row, motion in zip(counts, (person.prediction, person.truth), strict=True):
                scaled = (motion[:, channels] - self.mean[None, channels]) / (self.std[None, channels] + 1e-8)
                row += np.histogram(scaled.clip(BINS[0], BINS[-1]), BINS)[0]
        for role in ("speaking", "listening"):
            for what, pair in role_spectra(person, role).items():
                if np.isfinite(pair).all() and not needed_groups(f"{what}_spectrum") & missing_groups(
                    person.channel_mask
                ):
                    conversation.spectra.setdefault(f"{role}/{what}", []).append(pair)

    @property
    def frames(self) -> int:
        """The scored frames of all people."""
        return sum(conversation.frames for conversation in self.conversations)

    @property
    def ranking(self) -> str:
        """The figure by which clips are ranked."""
        return "unils/both/LVE" if self.mesh is not None else "dualtalk/mse/expression"

    def extremes(self) -> dict[str, str]:
        """Returns the names of the best and the worst conversation.

        Empty where the ranking figure is undefined everywhere.
        """
        ranked = [(c.mean[self.ranking], c.name) for c in self.conversations]
        ranked = sorted(pair for pair in ranked if np.isfinite(pair[0]))
        return {"best": ranked[0][1], "worst": ranked[-1][1]} if ranked else {}

    def traces(self) -> dict[str, dict[str, Any]]:
        """Returns the frames of the best and the worst clip.

        Each has columns of prediction and truth, and the speech mask.
        """
        traces = {conversation.name: conversation.trace for conversation in self.conversations}
        return {which: {"name": name, **traces[name]} for which, name in self.extremes().items()}

    def metrics(self) -> dict[str, dict[str, object]]:
        """Returns every figure of the split: mean, interval, spread over seeds, truth.

        The interval is at 95 %; `conversations` counts those that define the figure.
        """
        rows = [conversation.mean for conversation in self.conversations]
        true = [conversation.truth for conversation in self.conversations]
        results = {}
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            by_seed = [
                _nanmean([conversation.seeds[seed][name] for conversation in self.conversations])
                for seed in range(len(self.conversations[0].seeds))
            ]
            results[name] = _entry(name, values, by_seed)
            if name in true[0]:
                truth = _nanmean([row[name] for row in true])
                results[name] |= {"truth": truth, "over_truth": results[name]["mean"] / truth if truth else NAN}
        return results | self._fids()

    def _fids(self) -> dict[str, dict[str, object]]:
        rng = np.random.default_rng(0)
        count = len(self.conversations)
        draws = rng.multinomial(count, np.full(count, 1 / count), FID_DRAWS) if count > 1 else np.zeros((0, count))
        results = {}
        for name in self.conversations[0].true:
            true = [conversation.true[name] for conversation in self.conversations]
            by_seed, spread = [], []
            for seed in range(len(self.conversations[0].predicted)):
                predicted = [conversation.predicted[seed][name] for conversation in self.conversations]
                by_seed.append(frechet_distance(merge(predicted), merge(true)))
                spread.append([frechet_distance(merge(predicted, w), merge(true, w)) for w in draws])
            value = _nanmean(by_seed)
            entry = _entry(f"fid/{name}", np.array([value]), by_seed)
            over_seeds = np.mean(spread, axis=0)
            over_seeds = over_seeds[np.isfinite(over_seeds)]
            if over_seeds.size > 1 and np.isfinite(value):
                # Fewer distinct frames make a resampled distance larger on average: the spread is
                # centred on the value.
                low, high = np.quantile(over_seeds - over_seeds.mean(), [0.025, 0.975])
                entry["interval"] = [max(0.0, value + float(low)), value + float(high)]
            entry["conversations"] = sum(part.count > 0 for part in true)
            results[f"fid/{name}"] = entry
        return results

    def per_conversation(self) -> list[dict[str, object]]:
        """Returns each conversation's figures, the mean over people and seeds."""
        return [{"name": conversation.name, **conversation.mean} for conversation in self.conversations]

    def pictures(self) -> dict[str, object]:
        """Returns distributions (counts per bin) and mean spectra of both sides, for plots."""
        counts = {group: np.zeros((2, len(BINS) - 1), np.int64) for group in GROUPS}
        spectra: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for conversation in self.conversations:
            for group, more in conversation.counts.items():
                counts[group] += more
            for name, pairs in conversation.spectra.items():
                spectra.setdefault(name, []).extend(pairs)
        return {
            "distributions": {
                "bins": BINS.tolist(),
                **{
                    group: dict(zip(("prediction", "truth"), both.tolist(), strict=True))
                    for group, both in counts.items()
                },
            },
            "spectra": {
                "frequencies_hz": behaviour.FREQUENCIES.tolist(),
                **{
                    name: dict(zip(("prediction", "truth"), np.mean(pairs, axis=0).tolist(), strict=True))
                    for name, pairs in spectra.items()
                },
            },
        }


def _trace(person: Person) -> dict[str, np.ndarray]:
    shown = np.stack([person.prediction, person.truth], axis=-1)
    if person.channel_mask is not None:
        shown = np.where(person.channel_mask[:, None], shown, np.float32(NAN))  # a gap, not a line at zero
    return {"jaw": shown[:, JAW.start], "head pitch": shown[:, HEAD.start], "speaking": person.speaking}


def _entry(name: str, values: np.ndarray, by_seed: list[float]) -> dict[str, object]:
    defined = values[np.isfinite(values)]
    interval = list(bootstrap_interval(defined)) if len(defined) > 1 else None
    seed_std = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 and np.isfinite(by_seed).all() else None
    return {
        "mean": _nanmean(values),
        "interval": interval,
        "conversations": len(defined),
        "seed_std": seed_std,
        "unit": unit(name),
    }


def jsonable(value: object) -> object:
    """Returns plain values with eight significant digits; undefined numbers become null."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.8g}") if np.isfinite(value) else None
    return value
