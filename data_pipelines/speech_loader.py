"""Clips of speech with annotations -> batches of one annotation and length, for any process count.

The sources are UniTalker's sets and, as the annotation `motion_108`, people of our stores. An epoch
holds every clip as often as its set says; its order is a function of (seed, epoch), a batch of its
global step.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data_pipelines.loader import Batch, LoaderIterator, as_float32, even_share
from data_pipelines.partner_windows import partner_index
from data_pipelines.sources.base import SHORT, SkippedEntry
from data_pipelines.sources.unitalker import PCA_FILE, TalkerClip, TalkerEntry, TalkerSet, TalkerSplit, read_pca
from data_pipelines.store.index import NO_AUDIO
from data_pipelines.store.reader import Store
from unils_jax.audio import normalize_record
from unils_jax.errors import UserError
from unils_jax.motion import FPS, MOTION_DIM, MOTION_KIND, PARTNER_FRAMES, SAMPLE_RATE, SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Item:
    """One clip as the loader sees it."""

    source: int  # the number of its source
    # The source's own; of a store it is record, person and first frame.
    entry: TalkerEntry | tuple[int, int, int]
    name: str
    kind: str  # the annotation's name
    dim: int  # numbers a frame
    fps: int
    frames: int
    samples: int
    repeats: int  # how often an epoch shows it


class SetSpeech:
    """UniTalker's sets as a source."""

    def __init__(self, sets: Sequence[TalkerSet], split: str):
        self.split = TalkerSplit(sets, split)
        self.num_subjects = self.split.num_identities - 1

    def items(self, number: int) -> Iterator[Item]:
        """Yields the clips that are long enough. Raises UserError for a damaged one."""
        for entry in self.split.entries:
            one = self.split.sets[entry.number]
            try:
                frames, samples = self.split.length(entry)
            except SkippedEntry as skipped:
                if skipped.reason == SHORT:
                    continue
                raise UserError(f"{one.folder}: {skipped}; mend it or leave it out") from None
            dim = self.split.templates[entry.number].shape[1]
            name = f"{one.folder.name}/{entry.annotation}"
            yield Item(number, entry, name, entry.kind, dim, entry.model_fps, frames, samples, one.repeats)

    def read(self, item: Item) -> TalkerClip:
        """Reads the clip. Raises UserError where its files are damaged."""
        try:
            return self.split.read(item.entry)
        except SkippedEntry as skipped:
            raise UserError(f"{item.name}: {skipped}; mend it or leave it out") from None

    def pca(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Reads components and mean of every annotation whose set has a PCA file.

        The first set of an annotation decides.
        """
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for entry in {entry.number: entry for entry in reversed(self.split.entries)}.values():
            folder = self.split.sets[entry.number].folder
            if (folder / PCA_FILE).exists():
                found[entry.kind] = read_pca(folder)
        return found

    def describe(self) -> str:
        """Returns a checksum of the records of the sets."""
        return self.split.describe()


class StoreSpeech:
    """People of a store as a source: clips of 8 s side by side, head rotation centred, no template.

    `first_row` is the identity row of its first person; a person without a name is the pivot (-1).
    People with missing channels or audio are left out.
    """

    def __init__(self, store: Store, split: str, repeats: int, first_row: int):
        self.store, self.name, self.repeats = store, split, repeats
        train = store.index("train")
        known = sorted({name for i in range(len(train)) for name in train.identities(i) if name})
        self.rows = {name: first_row + i for i, name in enumerate(known)}
        self.num_subjects = len(known)

    def items(self, number: int) -> Iterator[Item]:
        """Yields the clips of all people that have every channel and audio."""
        index = self.store.index(self.name)
        for record, first in partner_index(index.frames).tolist():
            whole = index.observed_of(record).all(axis=1) & (index.samples[record] != NO_AUDIO)
            for person in np.flatnonzero(whole[: index.people[record]]).tolist():
                name, size = f"{index.name(record)} person {person + 1}", PARTNER_FRAMES * SAMPLES_PER_FRAME
                entry = (record, person, first)
                yield Item(number, entry, name, MOTION_KIND, MOTION_DIM, int(FPS), PARTNER_FRAMES, size, self.repeats)

    def read(self, item: Item) -> TalkerClip:
        """Reads the clip."""
        record, person, first = item.entry
        last = first + PARTNER_FRAMES
        source, names = self.store.source(self.name, record), self.store.index(self.name).identities(record)
        motion = as_float32(source.frames([(person, first, last)])[0][0])
        audio = source.audio(first * SAMPLES_PER_FRAME, last * SAMPLES_PER_FRAME)[person]
        row = self.rows.get(names[person], -1) if names else -1
        return TalkerClip(audio, motion, np.zeros(MOTION_DIM, np.float32), row)

    def describe(self) -> str:
        """Returns the checksum of the split's index."""
        return str(self.store.manifest["files"].get(f"index/{self.name}.npz"))


@dataclass(frozen=True)
class SpeechOptions:
    """What the batches of speech hold, and how they are made; see `make_speech_loader`."""

    batch_size: int  # clips of a global batch, of all processes together
    seed: int  # decides the order
    clip_step_s: float  # seconds that a clip is cut down to a multiple of; 0: it keeps its length
    normalize: bool  # audio to zero mean and unit variance over the clip
    as_pivot: bool  # every clip as of the pivot identity (-1), whichever person speaks
    process_index: int  # of this training process
    process_count: int  # training processes that share each batch
    rows: tuple[int, ...] = ()  # of each batch that this process takes; (): the p-th n-th of them


class SpeechLoader:
    """Endless batches of one split; `at_step(k)` starts at step k. See `make_speech_loader`."""

    max_bad_records = 0

    def __init__(self, sources: Sequence[SetSpeech | StoreSpeech], options: SpeechOptions):
        self.sources, self.seed, self.batch_size = list(sources), options.seed, options.batch_size
        self.normalize, self.as_pivot = options.normalize, options.as_pivot
        self.rows = options.rows or even_share(options.batch_size, options.process_index, options.process_count)
        listed = [item for number, source in enumerate(sources) for item in source.items(number)]
        if not listed:
            raise UserError("the data hold no clip of at least 0.5 s with audio; name other sets or stores")
        self.items = [_cut_down(item, options.clip_step_s) for item in listed]
        self.num_identities = sum(source.num_subjects for source in sources) + 1
        groups: dict[tuple, list[int]] = {}
        for number, item in enumerate(self.items):
            groups.setdefault((item.kind, item.frames, item.samples), []).extend([number] * item.repeats)
        self.groups = list(groups.values())
        self.steps_per_epoch = sum(-(-len(group) // self.batch_size) for group in self.groups)
        self.mean_frames = float(np.mean([self.items[number].frames for group in self.groups for number in group]))
        settings = (options.batch_size, options.seed, options.clip_step_s, options.normalize, options.as_pivot)
        decisive = [[source.describe() for source in sources], *settings]
        self.order = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Numbers per frame of every annotation. Raises UserError where two sets of one differ."""
        kinds: dict[str, int] = {}
        for item in self.items:
            if kinds.setdefault(item.kind, item.dim) != item.dim:
                raise UserError(f"{item.name} has {item.dim} numbers a frame, others of {item.kind} {kinds[item.kind]}")
        return kinds

    @cached_property
    def pca(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Components and mean of the annotations that have a PCA."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for source in self.sources:
            if isinstance(source, SetSpeech):
                found |= source.pca()
        return found

    @cached_property
    def names(self) -> list[str]:
        """The name of every clip, by the numbers in a batch's `record`."""
        return [item.name for item in self.items]

    def why_bad(self, record: int) -> str:
        """Returns a clip's name; none is ever replaced, for a bad clip is an error here."""
        return self.names[record]

    def __iter__(self) -> LoaderIterator:
        return self.at_step(0)

    def at_step(self, step: int) -> LoaderIterator:
        """Returns the iterator whose first batch is that of step `step`, counted from 0."""
        return LoaderIterator(self, step)

    def plan(self, epoch: int) -> list[list[int]]:
        """Returns the items of every batch of an epoch, each of clips of one annotation and length.

        The last batch of a length is filled up with its first clips.
        """
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for group in self.groups:
            shuffled = rng.permutation(group).tolist()
            size = -(-len(shuffled) // self.batch_size) * self.batch_size
            filled = [shuffled[i % len(shuffled)] for i in range(size)]
            batches += [filled[i : i + self.batch_size] for i in range(0, size, self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yields this process's batches from a step on; the next is read while one is used."""
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
        """Returns this process's rows of a batch."""
        numbers = [numbers[row] for row in self.rows]
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
    """Returns the item cut to a multiple of `step_s`, where it is as long as one."""
    seconds = item.frames / item.fps
    whole = step_s * (seconds // step_s) if step_s else 0
    if not whole:
        return item
    frames, samples = round(whole * item.fps), min(round(whole * SAMPLE_RATE), item.samples)
    return replace(item, frames=frames, samples=samples)


def parse_sets(texts: Sequence[str]) -> list[TalkerSet]:
    """Reads a config's `data.sets`: `PATH`, `PATH=SCALE` or `PATH=SCALE*REPEATS` each."""
    sets, problems = [], []
    for text in texts:
        path, equals, factors = text.rpartition("=")
        path, factors = (path, factors) if equals else (text, "1")
        scale, _, repeats = factors.partition("*")
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
    sets: Sequence[TalkerSet],
    stores: Sequence[tuple[str, float]],
    split: str,
    **options: int | float | bool | tuple[int, ...],
) -> SpeechLoader:
    """Returns endless batches of clips of one annotation and length.

    They hold `audio [B, N]` as the encoder wants it, `motion [B, T, D]`, `template [B, D]`,
    `identity [B]` (-1: the pivot), `record [B]`, and under `annotation` the name of the annotation.
    The identity table's rows are the sets' subjects, the stores' people, the pivot.

    Args:
        sets: UniTalker's sets.
        stores: Paths and weights; a weight, rounded, is how often an epoch shows a store's clips.
        split: "train", "val" or "test".
        **options: The fields of `SpeechOptions`.
    """
    sources: list[SetSpeech | StoreSpeech] = [SetSpeech(sets, split)] if sets else []
    for path, weight in stores:
        first_row = sum(source.num_subjects for source in sources)
        sources.append(StoreSpeech(Store(path), split, max(round(weight), 1), first_row))
    return SpeechLoader(sources, SpeechOptions(**options))
