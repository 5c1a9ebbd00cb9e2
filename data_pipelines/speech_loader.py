"""Clips of one person's speech in several annotations -> batches of one kind and length, the same for any process.

The sources are UniTalker's sets and, as the annotation `motion_108`, people of our stores. An epoch holds every clip as
often as its set says; its order is a function of (seed, epoch), a batch of its global step.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.loader import Batch, LoaderIterator, as_float32
from data_pipelines.partner_windows import partner_index
from data_pipelines.sources.base import SHORT, SkippedEntry
from data_pipelines.sources.unitalker import PCA_FILE, TalkerClip, TalkerSet, TalkerSplit, read_pca
from data_pipelines.store.index import NO_AUDIO
from data_pipelines.store.reader import Store
from unils_jax.audio import normalize_record
from unils_jax.errors import UserError
from unils_jax.motion import FPS, MOTION_DIM, MOTION_KIND, PARTNER_FRAMES, SAMPLE_RATE, SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Item:
    """One clip as the loader sees it: its source, the source's own entry, and what it will hold."""

    source: int
    entry: Any
    name: str
    kind: str
    dim: int
    fps: int
    frames: int
    samples: int
    repeats: int


class SetSpeech:
    """UniTalker's sets as a source."""

    def __init__(self, sets: Sequence[TalkerSet], split: str):
        self.split = TalkerSplit(sets, split)
        self.num_subjects = self.split.num_identities - 1

    def items(self, number: int) -> Iterator[Item]:
        """The clips that are long enough; damaged ones are a UserError."""
        for entry in self.split.entries:
            one = self.split.sets[entry.number]
            try:
                frames, samples = self.split.length(entry)
            except SkippedEntry as dropped:
                if dropped.reason == SHORT:
                    continue
                raise UserError(f"{one.folder}: {dropped}; mend it or leave it out") from None
            dim = self.split.templates[entry.number].shape[1]
            name = f"{one.folder.name}/{entry.annotation}"
            yield Item(number, entry, name, entry.kind, dim, entry.model_fps, frames, samples, one.repeats)

    def read(self, item: Item) -> TalkerClip:
        """The clip. Raises UserError where its files are damaged."""
        try:
            return self.split.read(item.entry)
        except SkippedEntry as dropped:
            raise UserError(f"{item.name}: {dropped}; mend it or leave it out") from None

    def pca(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Components and mean of every kind whose set has a PCA file; the first set of a kind decides."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for entry in {entry.number: entry for entry in reversed(self.split.entries)}.values():
            folder = self.split.sets[entry.number].folder
            if (folder / PCA_FILE).exists():
                found[entry.kind] = read_pca(folder)
        return found

    def describe(self) -> str:
        return self.split.describe()


class StoreSpeech:
    """People of a store as a source: pieces of 8 s side by side, head rotation centred, no template.

    `first_row` is the identity row of its first person; who has no name is nobody in particular (-1). People with
    missing channels or audio are left out.
    """

    def __init__(self, store: Store, split: str, repeats: int, first_row: int):
        self.store, self.name, self.repeats = store, split, repeats
        train = store.index("train")
        known = sorted({name for i in range(len(train)) for name in train.identities(i) if name})
        self.rows = {name: first_row + i for i, name in enumerate(known)}
        self.num_subjects = len(known)

    def items(self, number: int) -> Iterator[Item]:
        index = self.store.index(self.name)
        for record, first in partner_index(index.frames).tolist():
            whole = index.observed_of(record).all(axis=1) & (index.samples[record] != NO_AUDIO)
            for person in np.flatnonzero(whole[: index.people[record]]).tolist():
                name, size = f"{index.name(record)} person {person + 1}", PARTNER_FRAMES * SAMPLES_PER_FRAME
                entry = (record, person, first)
                yield Item(number, entry, name, MOTION_KIND, MOTION_DIM, int(FPS), PARTNER_FRAMES, size, self.repeats)

    def read(self, item: Item) -> TalkerClip:
        record, person, first = item.entry
        last = first + PARTNER_FRAMES
        source, names = self.store.source(self.name, record), self.store.index(self.name).identities(record)
        motion = as_float32(source.frames([(person, first, last)])[0][0])
        audio = source.audio(first * SAMPLES_PER_FRAME, last * SAMPLES_PER_FRAME)[person]
        row = self.rows.get(names[person], -1) if names else -1
        return TalkerClip(audio, motion, np.zeros(MOTION_DIM, np.float32), row)

    def describe(self) -> str:
        return str(self.store.manifest["files"].get(f"index/{self.name}.npz"))


class SpeechLoader:
    """Endless batches of one split; `at_step(k)` starts at step k. See `make_speech_loader`."""

    max_bad_records = 0

    def __init__(
        self,
        sources: Sequence[SetSpeech | StoreSpeech],
        *,
        batch_size: int,
        seed: int,
        clip_step_s: float,
        normalize: bool,
        as_pivot: bool,
        process_index: int,
        process_count: int,
    ):
        self.sources, self.seed, self.normalize, self.as_pivot = list(sources), seed, normalize, as_pivot
        self.batch_size, self.process_index, self.process_count = batch_size, process_index, process_count
        listed = [item for number, source in enumerate(sources) for item in source.items(number)]
        if not listed:
            raise UserError("the data hold no clip of at least 0.5 s with audio; name other sets or stores")
        self.items = [_cut_down(item, clip_step_s) for item in listed]
        self.num_identities = sum(source.num_subjects for source in sources) + 1
        groups: dict[tuple, list[int]] = {}
        for number, item in enumerate(self.items):
            groups.setdefault((item.kind, item.frames, item.samples), []).extend([number] * item.repeats)
        self.groups = list(groups.values())
        self.steps_per_epoch = sum(-(-len(group) // batch_size) for group in self.groups)
        self.mean_frames = float(np.mean([self.items[number].frames for group in self.groups for number in group]))
        told = [[source.describe() for source in sources], batch_size, seed, clip_step_s, normalize, as_pivot]
        self.order = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Numbers a frame of every kind. Raises UserError where two sets of one kind differ."""
        kinds: dict[str, int] = {}
        for item in self.items:
            if kinds.setdefault(item.kind, item.dim) != item.dim:
                raise UserError(f"{item.name} has {item.dim} numbers a frame, others of {item.kind} {kinds[item.kind]}")
        return kinds

    @cached_property
    def pca(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Components and mean of the kinds that have a PCA."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for source in self.sources:
            if isinstance(source, SetSpeech):
                found |= source.pca()
        return found

    @cached_property
    def names(self) -> list[str]:
        """The name of every clip, by the numbers in a batch's `record`."""
        return [item.name for item in self.items]

    def __iter__(self) -> LoaderIterator:
        return self.at_step(0)

    def at_step(self, step: int) -> LoaderIterator:
        """The iterator whose first batch is that of step `step`, counted from 0."""
        return LoaderIterator(self, step)

    def plan(self, epoch: int) -> list[list[int]]:
        """The items of every batch of an epoch: clips of one kind and length, what is missing in the last batch of a
        length filled up with its first."""
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for group in self.groups:
            shuffled = rng.permutation(group).tolist()
            size = -(-len(shuffled) // self.batch_size) * self.batch_size
            filled = [shuffled[i % len(shuffled)] for i in range(size)]
            batches += [filled[i : i + self.batch_size] for i in range(0, size, self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This process's batches from a step on; the next is read while one is used."""
        with ThreadPoolExecutor(1) as pool:
            epoch, plan = -1, []
            step, waiting = first_step, None
            while True:
                if step // self.steps_per_epoch != epoch:
                    epoch = step // self.steps_per_epoch
                    plan = self.plan(epoch)
                coming = pool.submit(self.batch, plan[step % self.steps_per_epoch])
                if waiting is not None:
                    yield waiting.result()
                step, waiting = step + 1, coming

    def batch(self, numbers: Sequence[int]) -> Batch:
        """This process's rows of a batch."""
        rows = len(numbers) // self.process_count
        numbers = numbers[self.process_index * rows : (self.process_index + 1) * rows]
        items = [self.items[number] for number in numbers]
        clips = [self.sources[item.source].read(item) for item in items]
        sounds = [clip.audio[: item.samples] for clip, item in zip(clips, items, strict=True)]
        who = [-1 if self.as_pivot else clip.identity for clip in clips]
        return {
            "audio": np.stack([normalize_record(x) if self.normalize else x for x in sounds]),
            "motion": np.stack([clip.motion[: item.frames] for clip, item in zip(clips, items, strict=True)]),
            "template": np.stack([clip.template for clip in clips]),
            "identity": np.array(who, np.int32),
            "annotation": items[0].kind,
            "record": np.array(numbers, np.int32),
            "replaced": np.full(len(items), -1, np.int32),
        }


def _cut_down(item: Item, step_s: float) -> Item:
    """The item with a length that is a multiple of `step_s`, where it is as long as one."""
    seconds = item.frames / item.fps
    whole = step_s * (seconds // step_s) if step_s else 0
    if not whole:
        return item
    frames, samples = round(whole * item.fps), min(round(whole * SAMPLE_RATE), item.samples)
    return replace(item, frames=frames, samples=samples)


def parse_sets(texts: Sequence[str]) -> list[TalkerSet]:
    """Sets of a config's `data.sets`: `PATH`, `PATH=SCALE` or `PATH=SCALE*REPEATS` each."""
    sets, problems = [], []
    for text in texts:
        path, equals, told = text.rpartition("=")
        path, told = (path, told) if equals else (text, "1")
        scale, _, repeats = told.partition("*")
        try:
            one = TalkerSet(Path(path), float(scale), int(repeats or 1))
        except ValueError:
            one = TalkerSet(Path(path), 0.0)
        if not path or one.repeats < 1 or not 0 < one.scale < np.inf:
            problems.append(f"data.sets must hold PATH=SCALE*REPEATS with positive numbers, got {text!r}")
        sets.append(one)
    if problems:
        raise UserError("; ".join(problems))
    return sets


def make_speech_loader(
    sets: Sequence[TalkerSet], stores: Sequence[tuple[str, float]], split: str, **settings: Any
) -> SpeechLoader:
    """Endless batches: `audio [B, N]` as the encoder wants it, `motion [B, T, D]`, `template [B, D]`, `identity [B]`
    (-1: nobody), `record [B]` and the `annotation`'s name. A store's weight, rounded, is
    how often an epoch shows its clips. The identity table's rows are the sets' subjects, the stores' people, the pivot.

    Settings: `batch_size` of all processes together, `seed`, `clip_step_s` (clips are cut down to a multiple of it),
    `normalize` (audio, by the clip), `as_pivot` (whoever speaks is nobody), `process_index`, `process_count`.
    """
    sources: list[SetSpeech | StoreSpeech] = [SetSpeech(sets, split)] if sets else []
    for path, weight in stores:
        first_row = sum(source.num_subjects for source in sources)
        sources.append(StoreSpeech(Store(path), split, max(round(weight), 1), first_row))
    return SpeechLoader(sources, **settings)
