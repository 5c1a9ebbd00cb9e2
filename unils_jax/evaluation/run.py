"""Evaluates a checkpoint, or anybody's motion files, on the records of a store.

The figures are those of `metrics`; here records are chosen, motion is made or read, and the report
is put together.
"""

import datetime
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from data_pipelines.cluster import Actors, each
from data_pipelines.loader import make_loader
from data_pipelines.sources.tracking import TrackOptions
from data_pipelines.store.reader import Store
from unils_jax import __version__
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError
from unils_jax.evaluation.likelihood import bits_changed
from unils_jax.evaluation.metrics import ConversationScores, Mesh, ScoreTable, find_mesh, jsonable
from unils_jax.evaluation.motion_files import FolderMotion, check_basis
from unils_jax.evaluation.protocols import (
    PROTOCOLS,
    Predict,
    Protocol,
    conversation_of,
    generate_with,
    people_to_score,
    skip_reason,
)
from unils_jax.evaluation.report import report_paths, write_report
from unils_jax.files import check_output
from unils_jax.inference.finishing import finish
from unils_jax.models.unils import UniLSConfig
from unils_jax.motion import FPS, MOTION_KIND, center_head
from unils_jax.systems.base import System, window_of
from unils_jax.systems.registry import models_with_audio

log = logging.getLogger(__name__)

NOTES = (
    "Figures compare with the published rows (Seamless Interaction, test, FLAME basis) only where data and basis are "
    "the same; LVE and MHD are over speaking frames.",
    "The release's code has no F-FID and P-FID: here they are Fréchet distances of per-frame expression (100) and head "
    "rotation (3) over all frames of the split, the table's column over both roles.",
    "Intervals are 95 % bootstrap intervals over conversations, of the mean over people and seeds.",
)
# The figures of a summary line, by their names there.
HEADLINE = {
    "LVE": "unils/speaking/LVE",
    "speaking FDD": "unils/speaking/FDD",
    "listening FDD": "unils/listening/FDD",
    "F-FID": "fid/both/expression_fid",
    "P-FID": "fid/both/pose_fid",
}

Report = dict[str, Any]


@dataclass(frozen=True)
class EvaluationSettings:
    """What is scored of a store, and how."""

    protocol: str = "unils-clean"  # a key of PROTOCOLS
    split: str = "test"
    num_seeds: int = 1  # decodes of each conversation, for systems that draw
    limit: int | None = None  # the first conversations only; None: all
    dtype: str = "float32"  # of the decode
    audio_encoder: str | None = None  # for checkpoints that lack their published one
    flame: str | None = None  # FLAME's model file; None: FLAME motion has no vertex metrics
    finished: bool = False  # True: motion as it is drawn and exported; False: as it was decoded
    own_sampling: bool = False  # True: bits are drawn as the checkpoint says; False: as the protocol does
    files: TrackOptions = TrackOptions()  # of motion files in other layouts than ours

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise UserError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")


def evaluate(  # noqa: PLR0913  (every option has its name in the public call)
    checkpoint: str | os.PathLike | Checkpoint,
    data: str | os.PathLike,
    *,
    protocol: str = "unils-clean",
    split: str = "test",
    seeds: int = 1,
    limit: int | None = None,
    dtype: str = "float32",
    audio_encoder: str | None = None,
    head: str | None = None,
    finished: bool = False,
    own_sampling: bool = False,
    out: str | os.PathLike | None = None,
) -> Report:
    """Scores a checkpoint's motion against a store's truth; returns the report as plain values.

    Raises UserError where checkpoint and store do not fit each other, and where no record can be
    scored.

    Args:
        checkpoint: A loaded checkpoint, or its path as for `load`.
        data: The store with the truth.
        protocol: A key of `PROTOCOLS`: which people and frames are scored, under which conditions.
        split: "train", "val" or "test".
        seeds: Decodes of each conversation; 1 for systems that draw nothing.
        limit: Scores the first conversations only; None: all.
        dtype: Of the decode, "float32" or "bfloat16".
        audio_encoder: Folder or hub name, for a checkpoint that lacks its published encoder.
        finished: Scores motion as it is drawn and exported, see `finish`; False: as decoded.
        own_sampling: Draws bits as the checkpoint says; False: as the protocol does.
        head: FLAME file; None: motion in FLAME's basis has no vertex metrics.
        out: JSON file to write, with Markdown and HTML next to it; None: nothing is written.
    """
    settings = EvaluationSettings(protocol, split, seeds, limit, dtype, audio_encoder, head, finished, own_sampling)
    return evaluate_checkpoint(checkpoint, data, settings, out=out)


def evaluate_checkpoint(
    checkpoint: str | os.PathLike | Checkpoint,
    data: str | os.PathLike,
    settings: EvaluationSettings,
    *,
    out: str | os.PathLike | None = None,
    actors: Actors | None = None,
) -> Report:
    """Does what `evaluate` does, with its options in one value.

    With `actors` those of a Ray cluster decode and score, to the same figures; None: this process.
    """
    return _evaluate(partial(CheckpointMotion, checkpoint, settings), data, settings, out, actors)


def evaluate_files(
    folder: str | os.PathLike,
    data: str | os.PathLike,
    settings: EvaluationSettings,
    *,
    out: str | os.PathLike | None = None,
) -> Report:
    """Scores a folder of motion files of any system against the truth of a store.

    Raises UserError for missing files, motion of another basis, and where no record can be scored.
    """
    return _evaluate(partial(FolderMotion, Path(folder), options=settings.files), data, settings, out)


class CheckpointMotion:
    """Motion that a checkpoint gives for the conversations of a store."""

    needs_audio = True

    def __init__(self, checkpoint: str | os.PathLike | Checkpoint, settings: EvaluationSettings, store: Store):
        if isinstance(checkpoint, Checkpoint):
            self.name = str(checkpoint.source["checkpoint"])
        else:
            self.name = str(checkpoint)
            checkpoint = load(checkpoint, audio_encoder=settings.audio_encoder, stage=models_with_audio())
        check_basis(self.name, checkpoint.expression_basis, store)
        self.system: System = checkpoint.system
        if not self.system.draws and settings.num_seeds > 1:
            raise UserError(
                f"{self.system.title} draws nothing: it gives one motion a conversation, got --seeds "
                f"{settings.num_seeds}"
            )
        self.checkpoint = checkpoint.select(MOTION_KIND)
        self.source: dict[str, Any] = checkpoint.source
        self.dtype: str | None = settings.dtype
        self.window, self.sampling = window_of(checkpoint.config), checkpoint.sampling
        self.state = "finished" if settings.finished else "raw"

    def open(self, protocol: Protocol, names: Sequence[str], mesh: Mesh | None) -> Predict:
        """Returns what gives a conversation's motion."""
        predict = generate_with(self.system, self.checkpoint.model, protocol, self.dtype)
        if self.state == "raw":
            return predict
        basis, frames = self.checkpoint.expression_basis, self.window.frames
        return lambda conversation, seed: finish(predict(conversation, seed), basis, window_frames=frames).motion

    def window_frames(self, name: str) -> int:
        """Returns the frames of the windows that a conversation's motion is decoded in."""
        return self.window.frames

    def notes(self) -> list[str]:
        """Returns nothing: a checkpoint's motion has all channels."""
        return []

    def bits_changed(self, settings: EvaluationSettings, store: Store, conversations: int) -> float | None:
        """Measures the share of bits that the dtype changes, in a window each of eight records.

        None where nothing is decoded to bits, or in float32.
        """
        if not isinstance(self.checkpoint.config, UniLSConfig) or settings.dtype == "float32":
            return None
        options = {"view": "pair", "batch_size": min(conversations, 8), "seed": 0, "window": self.window}
        windows = make_loader(str(store.path), settings.split, **options)
        return bits_changed(self.checkpoint.model, next(iter(windows)), settings.dtype)


class Scorer:
    """The conversations of a store to score, and what scores them, with its compiled programs."""

    def __init__(
        self,
        open_motion: Callable[..., CheckpointMotion | FolderMotion],
        data: str | os.PathLike,
        settings: EvaluationSettings,
    ):
        self.store, self.split = Store(data), settings.split
        self.motion = open_motion(store=self.store)
        self.chosen, self.skipped = choose_records(self.motion, self.store, settings)
        self.protocol = PROTOCOLS[settings.protocol].for_window(self.motion.window)
        if settings.own_sampling:
            self.protocol = replace(self.protocol, **vars(self.motion.sampling))
        self.seeds = [self.protocol.seed + i for i in range(settings.num_seeds)]
        basis, scale = self.store.expression_basis, channel_scale(self.store, self.split, self.chosen)
        self.mesh, self.notes = find_mesh(settings.flame, basis)
        self.table = ScoreTable(self.mesh, basis, *scale)
        self.predict = self.motion.open(self.protocol, [name for _, name in self.chosen], self.mesh)

    def __call__(self, number: int) -> list[ConversationScores]:
        """Returns the scores of one of the chosen conversations, alone in a list."""
        i, name = self.chosen[number]
        conversation = conversation_of(self.store.read(self.split, i), self.protocol)
        motions = [self.predict(conversation, seed) for seed in self.seeds]
        frames = self.motion.window_frames(name)  # of each: files of one folder may be of several models
        people = [people_to_score(conversation, motion, self.protocol, frames) for motion in motions]
        return [self.table.score(name, people)]


def _evaluate(
    open_motion: Callable[..., CheckpointMotion | FolderMotion],
    data: str | os.PathLike,
    settings: EvaluationSettings,
    out: str | os.PathLike | None,
    actors: Actors | None = None,
) -> Report:
    """Scores all records that the protocol can score; puts the report together and writes it."""
    started = time.time()
    for path in () if out is None else report_paths(out).values():
        check_output(path)
    make = partial(Scorer, open_motion, data, settings)
    scorer = make()
    motion, store, mesh, table = scorer.motion, scorer.store, scorer.mesh, scorer.table
    count = len(scorer.chosen)
    changed = motion.bits_changed(settings, store, count)
    waiting: dict[int, ConversationScores] = {}  # until those before them are done
    units = each(make if actors else lambda: scorer, range(count), actors)
    for done, (number, (scores,)) in enumerate(tqdm(units, "evaluate", count, disable=None, unit="conversation"), 1):
        waiting[number] = scores
        while len(table.conversations) in waiting:
            table.take(waiting.pop(len(table.conversations)))
        if done % 10 == 0 or done == count:
            log.info("scored %d of %d conversations", done, count)
    report = {
        "metrics": table.metrics(),
        "clips": {"ranked_by": table.ranking, **table.extremes()},
        "settings": {
            "protocol": scorer.protocol.settings(motion.system),
            "seeds": scorer.seeds if motion.system is not None and motion.system.draws else [],
            "limit": settings.limit,
            "motion_from": motion.name,
            "source": motion.source,
            "motion": motion.state,  # of files, the first one's
            "audio_encoder": settings.audio_encoder,
            "dtype": motion.dtype,
            "bits_changed": changed,
            "flame": settings.flame,
            "expression_basis": store.expression_basis,
            "mesh": None if mesh is None else ("FLAME" if settings.flame else "stand-in head"),
        },
        "data": {
            "store": str(store.path),
            "split": settings.split,
            "conversations": count,
            "scored_hours": table.frames / FPS / 3600,
            "made_with": store.manifest["settings"],
        },
        "skipped": scorer.skipped,
        "notes": [*NOTES, *scorer.notes, *motion.notes()],
        "versions": versions(),
        "per_conversation": table.per_conversation(),
        "pictures": table.pictures(),
        "time": {
            "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
            "seconds": time.time() - started,
        },
        "host": host() | {"engine": "ray" if actors else "local"},
    }
    report = jsonable(report)
    if out is not None:
        write_report(out, report, table.traces())
    return report


def choose_records(
    motion: CheckpointMotion | FolderMotion, store: Store, settings: EvaluationSettings
) -> tuple[list[tuple[int, str]], list[dict[str, str]]]:
    """Chooses the records to score.

    Returns their numbers and names, and what is left out with the reason. Raises UserError where
    none can be scored.
    """
    protocol, system = PROTOCOLS[settings.protocol].for_window(motion.window), motion.system
    needs_partner = system is not None and "other_motion" in system.inputs
    chosen, skipped = [], []
    for i, record in enumerate(store.records(settings.split)):
        if settings.limit is not None and len(chosen) == settings.limit:
            break
        reason = skip_reason(record, protocol, needs_audio=motion.needs_audio, needs_partner=needs_partner)
        if reason is None:
            chosen.append((i, record["name"]))
        else:
            skipped.append({"name": record["name"], "reason": reason})
    if not chosen:
        first = f"; {skipped[0]['name']}: {skipped[0]['reason']}" if skipped else ""
        raise UserError(
            f"split {settings.split} of {store.path} holds no conversation to score{first}; give another split"
        )
    return chosen, skipped


def channel_scale(
    store: Store, split: str, chosen: Sequence[tuple[int, str]]
) -> tuple[Float32[np.ndarray, "108"], Float32[np.ndarray, "108"]]:
    """Returns the mean and deviation in which distributions are drawn: the training split's.

    A store without one, as recordings for evaluation alone are, has those of the chosen records.
    """
    statistics = store.channel_statistics()
    if not statistics.count.any():
        for i, _ in chosen:
            record = store.read(split, i)
            for person, motion in enumerate(center_head(record.motion.astype(np.float32))):
                statistics = statistics.add(motion, None if record.observed is None else record.observed[person])
    return statistics.normalisation(str(store.path))


def versions() -> dict[str, str]:
    """Returns the versions of everything that the figures depend on."""
    packages = ("jax", "jaxlib", "flax", "numpy", "scipy")
    return {"unils": __version__, "python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def host() -> dict[str, Any]:
    """Describes the machine that the evaluation ran on."""
    return {
        "name": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
    }


def headline(report: Report) -> str:
    """Returns the main figures for a summary line."""
    metrics, changed = report["metrics"], report["settings"]["bits_changed"]
    means = {name: metrics[path]["mean"] for name, path in HEADLINE.items() if path in metrics}
    shown = [f"{name} {mean:.4g}" for name, mean in means.items() if mean is not None]
    return ", ".join(shown if changed is None else [*shown, f"{changed:.2%} of the bits changed by the dtype"])
