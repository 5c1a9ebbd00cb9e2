"""How much of the motion own and other audio explain, while a person speaks and while they listen.

The imbalance that UniLS is built for: a voice explains its speaker's face well and its listener's
hardly. Two regressions, a ridge and a small network of scikit-learn, predict each channel group
from log-mel frames around a frame; both are tested on people that they have not seen.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.record import SPLITS, Record
from data_pipelines.store.reader import Store
from unils_jax.audio import speaking_frames
from unils_jax.errors import UserError, install_hint
from unils_jax.models.logmel import LogMel, LogMelConfig
from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW, SAMPLES_PER_FRAME, center_head

GROUPS = {"expression": EXPRESSION, "jaw": JAW, "head": HEAD, "eyes": EYES}
ROLES = ("speaking", "listening")
SOURCES = ("own", "other")
REGRESSIONS = ("ridge", "network")

NUM_MELS = 20
# Frames around the predicted one whose audio is known: close ones for lips, far ones in the past
# for reactions, which come half a second to two seconds late.
OFFSETS = (*range(-50, -8, 6), *range(-6, 7, 2))
FOLDS = 5
MIN_PEOPLE = 2
DRAWS = 2000  # of people, for an interval


@dataclass(frozen=True)
class Settings:
    """What is measured, and on how much."""

    frames: int = 40_000  # drawn over all people, at most; more take longer
    pictured: int = 2_000  # frames in the t-SNE picture, at most; 0: no picture
    seed: int = 0  # of the draws and of the network


@dataclass(frozen=True)
class Frames:
    """Frames drawn from a store, N in all."""

    motion: Float[np.ndarray, "N 108"]  # less the person's mean in that role
    audio: dict[str, Float[np.ndarray, "N F"]]  # by source: own and other
    person: Int[np.ndarray, " N"]
    speaking: Bool[np.ndarray, " N"]  # false: listening

    def of(self, role: str) -> "Frames":
        """Returns the frames in which the person has a role."""
        keep = self.speaking == (role == "speaking")
        audio = {source: features[keep] for source, features in self.audio.items()}
        return Frames(self.motion[keep], audio, self.person[keep], self.speaking[keep])


def measure(store: Store, settings: Settings, progress: Callable[[str], None] = lambda line: None) -> dict[str, object]:
    """Returns the report: the share of variance that each audio explains, by role and group.

    `explained[role][source][regression][group]` holds `value`, 1 less the squared error over the
    squared deviation from a person's mean, over all people that were not trained on (below 0: worse
    than their mean), and `interval`, 95 % under resampling of people, of the mean of their own
    shares. Raises UserError for a store without dialogues, with fewer than two people, and where
    scikit-learn is missing.
    """
    try:
        import sklearn  # noqa: F401, PLC0415 - an optional extra
    except ImportError:
        raise UserError(f"the regressions are scikit-learn's: {install_hint('analysis')}") from None
    frames = draw_frames(store, settings)
    explained = {}
    for role in ROLES:
        chosen = frames.of(role)
        explained[role] = {}
        for source in SOURCES:
            progress(f"{role}, {source} audio: {len(chosen.motion)} frames of {len(np.unique(chosen.person))} people")
            explained[role][source] = {
                name: explain(chosen, source, name, settings.seed) if len(np.unique(chosen.person)) > 1 else None
                for name in REGRESSIONS
            }
    return {
        "store": str(store.path),
        "settings": asdict(settings),
        "features": {"mels": NUM_MELS, "frames": list(OFFSETS)},
        "frames": {role: int(len(frames.of(role).motion)) for role in ROLES},
        "people": int(len(np.unique(frames.person))),
        "explained": explained,
        "picture": embed(frames, settings) if settings.pictured else None,
    }


def draw_frames(store: Store, settings: Settings) -> Frames:
    """Draws frames of all dialogues of a store in which exactly one of the two people speaks.

    Every record gives the same number. Raises UserError as `measure`.
    """
    records = [(split, i) for split in SPLITS for i in range(len(store.lengths(split)))]
    dialogues = [(split, i) for split, i in records if store.index(split).people[i] == 2]
    rng, parts, people = np.random.default_rng(settings.seed), [], {}
    quota = max(1, settings.frames // max(1, 2 * len(dialogues)))
    for split, i in dialogues:
        record = store.read(split, i)
        if record.audio is not None and (record.observed is None or record.observed.all()):
            parts += frames_of(record, quota, rng, people)
    if len(people) < MIN_PEOPLE:
        raise UserError(
            f"{store.path} has {len(people)} people in dialogues with audio and all channels; what audio explains is "
            f"tested on people who were not trained on, so at least {MIN_PEOPLE} are needed"
        )
    joined = {source: np.concatenate([part.audio[source] for part in parts]) for source in SOURCES}
    return Frames(
        np.concatenate([part.motion for part in parts]),
        joined,
        np.concatenate([part.person for part in parts]),
        np.concatenate([part.speaking for part in parts]),
    )


def frames_of(record: Record, quota: int, rng: np.random.Generator, people: dict[str, int]) -> list[Frames]:
    """Draws `quota` frames of each person of a dialogue, half of each role where there are as many.

    New people get the next number in `people`.
    """
    num_frames = record.num_frames
    audio = record.audio.astype(np.float32) / (32768 if record.audio.dtype == np.int16 else 1)
    mask = speaking_frames(list(audio)) if record.speech_mask is None else record.speech_mask
    mask = np.pad(mask[:, :num_frames], ((0, 0), (0, max(0, num_frames - mask.shape[1]))))
    features = audio_features(audio, num_frames)
    parts = []
    for p in range(2):
        name = record.identities[p] if record.identities else f"{record.name}/{p}"
        person = people.setdefault(name, len(people))
        motion = center_head(record.motion[p]).astype(np.float32)
        for speaks in (True, False):
            # Frames in which both or neither speak have no clear role.
            at = np.flatnonzero((mask[p] == speaks) & (mask[1 - p] != speaks))
            if not at.size:
                continue
            centred = motion - motion[at].mean(axis=0)
            at = np.sort(rng.choice(at, min(quota // 2 + 1, at.size), replace=False))
            sources = {"own": features[p, at], "other": features[1 - p, at]}
            parts.append(Frames(centred[at], sources, np.full(at.size, person), np.full(at.size, speaks)))
    return parts


def audio_features(audio: Float[np.ndarray, "P N"], num_frames: int) -> Float[np.ndarray, "P T F"]:
    """Returns log-mel frames around each motion frame, the edges repeated."""
    encoder = LogMel(LogMelConfig(num_mels=NUM_MELS, context_frames=0))
    num_samples = num_frames * SAMPLES_PER_FRAME
    samples = np.pad(audio, ((0, 0), (0, max(0, num_samples - audio.shape[1]))))[:, :num_samples]
    mels = np.asarray(encoder.at_frames(jnp.asarray(samples), num_frames))
    index = np.clip(np.arange(num_frames)[:, None] + np.array(OFFSETS), 0, num_frames - 1)
    return mels[:, index].reshape(len(audio), num_frames, -1)


def explain(frames: Frames, source: str, regression: str, seed: int) -> dict[str, dict[str, object]]:
    """Returns each group's explained share by one audio, cross-validated over people."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - an optional extra
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415

    features, scale = frames.audio[source], frames.motion.std(axis=0) + 1e-8
    predicted = np.zeros_like(frames.motion)
    folds = GroupKFold(min(FOLDS, len(np.unique(frames.person))))
    for train, test in folds.split(features, groups=frames.person):
        model = make_regression(regression, seed)
        with warnings.catch_warnings():
            # The network is small and stops early by design.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features[train], frames.motion[train] / scale)
        predicted[test] = model.predict(features[test]).reshape(len(test), -1) * scale
    return {name: share(frames, predicted, channels, seed) for name, channels in GROUPS.items()}


def make_regression(name: str, seed: int) -> object:
    """Returns an untrained regression of scikit-learn on standardised features."""
    from sklearn.linear_model import RidgeCV  # noqa: PLC0415 - an optional extra
    from sklearn.neural_network import MLPRegressor  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if name == "ridge":
        return make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 6)))
    network = MLPRegressor(
        hidden_layer_sizes=(64,),
        alpha=1e-2,
        learning_rate_init=1e-3,
        max_iter=12,
        early_stopping=True,
        random_state=seed,
    )
    return make_pipeline(StandardScaler(), network)


def share(frames: Frames, predicted: Float[np.ndarray, "N 108"], channels: slice, seed: int) -> dict[str, object]:
    """Returns the share of a group's variance that a prediction explains, with its interval."""
    # The person's mean over the drawn frames, so that a share of 0 is exactly "no better than it".
    truth, guess = frames.motion[:, channels].astype(np.float64), predicted[:, channels].astype(np.float64)
    errors, spreads = [], []
    for person in np.unique(frames.person):
        at = frames.person == person
        errors.append(((truth[at] - guess[at]) ** 2).sum())
        spreads.append(((truth[at] - truth[at].mean(axis=0)) ** 2).sum())
    errors, spreads = np.array(errors), np.array(spreads)
    if not spreads.sum() > 0:
        return {"value": None, "interval": None}
    # People are drawn again with all their frames: the interval is of the same share as the value.
    drawn = np.random.default_rng(seed).integers(len(errors), size=(DRAWS, len(errors)))
    shares = 1 - errors[drawn].sum(axis=1) / np.maximum(spreads[drawn].sum(axis=1), 1e-12)
    return {"value": float(1 - errors.sum() / spreads.sum()), "interval": np.quantile(shares, (0.025, 0.975)).tolist()}


def embed(frames: Frames, settings: Settings) -> dict[str, object]:
    """Returns t-SNE positions of the same frames by their own audio and by their motion, by role.

    `loudness` is the mean log-mel of the own track where the person speaks, of the other's where
    they listen: it is the colour in which a picture shows whether like audio means like motion.
    """
    from sklearn.decomposition import PCA  # noqa: PLC0415 - an optional extra
    from sklearn.manifold import TSNE  # noqa: PLC0415

    rng, positions = np.random.default_rng(settings.seed), {}
    for role, source in zip(ROLES, SOURCES, strict=True):
        chosen = frames.of(role)
        at = np.sort(rng.permutation(len(chosen.motion))[: settings.pictured // 2])
        if len(at) < 50:
            continue
        motion = chosen.motion[at] / (chosen.motion.std(axis=0) + 1e-8)
        placed = {}
        for name, values in (("audio", chosen.audio[source][at]), ("motion", motion)):
            reduced = PCA(min(20, *values.shape), random_state=settings.seed).fit_transform(values)
            embedding = TSNE(perplexity=min(30, len(at) / 4), init="pca", random_state=settings.seed)
            placed[name] = np.round(embedding.fit_transform(reduced).astype(np.float64), 3).tolist()
        centre = len(OFFSETS) - 4  # the frame itself among OFFSETS
        loudness = chosen.audio[source][at].reshape(len(at), len(OFFSETS), NUM_MELS)[:, centre].mean(axis=1)
        positions[role] = placed | {"loudness": np.round(loudness.astype(np.float64), 3).tolist()}
    return positions


def table(report: dict[str, object]) -> list[list[str]]:
    """Returns the rows of the report's table, the first its heads: shares in per cent."""
    rows = [["", *GROUPS]]
    for role in ROLES:
        for source in SOURCES:
            for name, groups in report["explained"][role][source].items():
                cells = [_cell(groups[group]) if groups else "-" for group in GROUPS]
                rows.append([f"{role}, {source} audio, {name}", *cells])
    return rows


def _cell(entry: dict[str, object]) -> str:
    if entry["value"] is None:
        return "-"
    interval = entry["interval"]
    return f"{100 * entry['value']:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
