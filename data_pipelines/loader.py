"""Stores -> batches, with Grain: shuffled, endless, the same for any number of processes.

Splits are shuffled as a whole. The order and the jitter are functions of (seed, epoch, item) alone,
and a step's batch of the step's number: a run stopped after k steps goes on at step k without
replaying, on any number of processes and workers. Batches are plain NumPy. Nothing here starts a
JAX backend, so worker processes stay off the accelerator.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32

from data_pipelines.mixture import CACHE_BYTES, Mixture
from data_pipelines.partner_windows import Scale, audio_scale, cut_partners, partner_index
from data_pipelines.record import SPLITS
from data_pipelines.shared_memory import BUFFERED_BATCHES, fitting_workers, worker_died
from data_pipelines.store.features import FeatureStore
from data_pipelines.store.index import NO_AUDIO
from data_pipelines.store.reader import Store
from data_pipelines.windows import RELEASE_WINDOW, cut_window, least_frames, training_index
from unils_jax.errors import UserError
from unils_jax.motion import PARTNER_FRAMES, Window, to_56_channels

VIEWS = ("solo", "pair", "partners")
# Grain wants a length; at a thousand steps a second this one lasts for nine thousand years.
_ENDLESS = 1 << 48
# Records tried in a row in place of one that cannot be read.
_MAX_SUBSTITUTES = 16
# The float32 value of each of the 65,536 float16 numbers.
_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class LoaderOptions:
    """What a loader's batches hold, and how they are made; see `make_loader`."""

    view: str  # one of VIEWS
    batch_size: int  # windows of a global batch, of all processes together
    seed: int  # decides the order and the jitter
    num_workers: int = 0  # spawned processes that cut windows; 0: threads of this process do
    process_index: int = 0  # of this training process
    process_count: int = 1  # training processes that share each batch
    max_bad_records: int = 0  # different records that may fail in this process before it is an error
    centre_head: bool = True  # head rotation centred over the record; False: as it was tracked
    window: Window = RELEASE_WINDOW  # how long windows, their context and their audio are; of partners it is not used
    # Rows of each global batch that this process takes; (): the p-th n-th of them.
    rows: tuple[int, ...] = ()
    features: str = ""  # a folder of features of the one store's audio, which take its place; "": none

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}, got {value}"
            for name, value, least in (
                ("batch_size", self.batch_size, 1),
                ("num_workers", self.num_workers, 0),
                ("max_bad_records", self.max_bad_records, 0),
            )
            if value < least
        ]
        if not 0 <= self.process_index < self.process_count:
            problems.append(f"process_index must be in 0..{self.process_count - 1}, got {self.process_index}")
        elif self.batch_size % self.process_count:
            problems.append(
                f"batch_size must be a multiple of the {self.process_count} processes, got {self.batch_size}"
            )
        if problems:
            raise UserError("; ".join(problems))

    @property
    def own_rows(self) -> tuple[int, ...]:
        """The rows of each global batch that this process takes."""
        return self.rows or even_share(self.batch_size, self.process_index, self.process_count)


def even_share(batch_size: int, process_index: int, process_count: int) -> tuple[int, ...]:
    """Returns the p-th n-th of a batch's rows."""
    size = batch_size // process_count
    return tuple(range(process_index * size, (process_index + 1) * size))


class WindowOf:
    """A function of (store number, item number) and a generator: one window in float32.

    `record` is the number of the record in all stores together. Where a record cannot be read, a
    window of the next one takes its place, and `replaced` is the number of the first one that
    failed, else -1.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        split: str,
        items: Sequence[np.ndarray],
        first_records: Sequence[int],
        options: LoaderOptions,
    ):
        self.stores, self.split, self.items, self.first_records = stores, split, items, first_records
        self.view, self.centre_head, self.window = options.view, options.centre_head, options.window
        self.features = FeatureStore(options.features) if options.features else None
        self._scales: dict[tuple[int, int], Scale] = {}
        # All windows of a batch have the same arrays: one dialogue without a mask, none has one.
        self.has_mask = all(
            store.index(split).has_mask[rows[:, 0]].all() for store, rows in zip(stores, items, strict=True)
        )

    def __call__(self, element: tuple[int, int], rng: np.random.Generator) -> Batch:
        """Cuts the window of an item, or of the next one that can be read."""
        number, item = element
        items, randint, replaced = self.items[number], inclusive(rng), -1
        for tried in range(_MAX_SUBSTITUTES + 1):
            record, person, i = (int(value) for value in items[item])
            try:
                window = self.cut(number, record, person, i, randint)
                break
            except UserError:
                if tried == _MAX_SUBSTITUTES:
                    raise
                replaced = record if replaced < 0 else replaced
                item = int(np.searchsorted(items[:, 0], record, side="right")) % len(items)
        first = self.first_records[number]
        window["record"] = np.int32(first + record)
        window["replaced"] = np.int32(-1 if replaced < 0 else first + replaced)
        return window

    def cut(self, number: int, record: int, person: int, i: int, randint: Callable[[int, int], int]) -> Batch:
        """Cuts the window of one item; a person of -1 takes both."""
        if self.view == "partners":
            return self._cut_partners(number, record, person, i)
        source = self.stores[number].source(self.split, record, None if person < 0 else person)
        cut = cut_window if self.features is None else partial(self.features.cut, place=(self.split, record))
        window = cut(source, i, randint, self.window, centred=self.centre_head)
        window = {name: as_float32(array) for name, array in window.items()}
        window["observed"] = source.observed.astype(np.float32)
        if not self.has_mask:
            window.pop("speech_mask", None)
        return window if person < 0 else {name: array[0] for name, array in window.items()}

    def _cut_partners(self, number: int, record: int, person: int, i: int) -> Batch:
        # Scales are kept: a record's audio is read whole once in each process.
        source = self.stores[number].source(self.split, record)
        if (number, record) not in self._scales:
            self._scales[number, record] = audio_scale(source)
        window = cut_partners(source, person, i, self._scales[number, record])
        observed = to_56_channels(source.observed[person])
        return {name: as_float32(array) for name, array in {**window, "observed": observed}.items()}


def as_float32(array: np.ndarray) -> np.ndarray:
    """Returns the array in float32: itself where it is, float16 by a table, faster than NumPy."""
    return _HALF.take(array.view(np.uint16)) if array.dtype == np.float16 else array.astype(np.float32, copy=False)


def inclusive(rng: np.random.Generator) -> Callable[[int, int], int]:
    """Returns `randint(low, high)` over a generator, both ends included."""
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


def window_items(store: Store, split: str, view: str, window: Window = RELEASE_WINDOW) -> Int32[np.ndarray, "items 3"]:
    """Lists all training items `(record, person, i)` of a split.

    Solo: each person with motion. Pair: person is -1, of dialogues with audio and motion of at
    least one of the two. Partners: each person of a dialogue with audio in which both have motion.
    Other records are left out. Raises UserError for an unknown view and where nothing is left.
    """
    if view not in VIEWS:
        raise UserError(f"view must be one of {VIEWS}, got {view!r}")
    index = store.index(split)
    if not len(index):
        held = ", ".join(f"{len(store.lengths(name))} in {name}" for name in SPLITS)
        raise UserError(
            f"{store.path} has no record in its {split} split ({held}); convert more recordings, or divide them "
            "with --splits"
        )
    sizes = (window.frames, window.context_frames)
    items = partner_index(index.frames) if view == "partners" else training_index(index.frames, *sizes)
    if not len(items):
        least = PARTNER_FRAMES + 1 if view == "partners" else least_frames(window)
        raise UserError(f"{store.path} has no record of at least {least} frames in its {split} split; use a longer set")
    has_motion = index.has_motion()
    if view == "solo":
        rows, people = np.nonzero(has_motion[items[:, 0]])
        items = np.stack([items[rows, 0], people, items[rows, 1]], axis=1)
    else:
        moving = has_motion.all(axis=1) if view == "partners" else has_motion.any(axis=1)
        fit = (index.people == 2) & (index.samples != NO_AUDIO) & moving
        items = items[fit[items[:, 0]]]
    if view == "partners":
        items = np.stack([np.repeat(items[:, 0], 2), np.tile([0, 1], len(items)), np.repeat(items[:, 1], 2)], axis=1)
    elif view == "pair":
        items = np.stack([items[:, 0], np.full(len(items), -1), items[:, 1]], axis=1)
    if not len(items):
        whose = " of both people" if view == "partners" else ""
        wanted = "person with motion" if view == "solo" else f"dialogue with audio and motion{whose}"
        raise UserError(f"{store.path} has no {wanted} in its {split} split; this stage needs those")
    return items.astype(np.int32)


class Loader:
    """The endless batches of one process; see `make_loader`.

    `iter(loader)` starts at step 0, `at_step(k)` at step k. There are items for `steps_per_epoch`
    whole batches, one at least.
    """

    def __init__(self, mixture: Mixture, split: str, items: Sequence[np.ndarray], options: LoaderOptions):
        self.mixture, self.split, self.options = mixture, split, options
        self.batch_size, self.max_bad_records = options.batch_size, options.max_bad_records
        self.steps_per_epoch = max(sum(map(len, items)) // options.batch_size, 1)
        counts = [len(store.index(split)) for store in mixture.stores]
        self.first_records = [sum(counts[:k]) for k in range(len(counts))]
        window = WindowOf(mixture.stores, split, items, self.first_records, options)
        # The jitter is drawn before processes take their rows: it does not depend on their number.
        self._windows = _global_order(items, mixture.weights, options.seed).random_map(window)
        self.order = self._fingerprint()

    def __iter__(self) -> "LoaderIterator":
        return self.at_step(0)

    def at_step(self, step: int) -> "LoaderIterator":
        """Returns the iterator whose first batch is that of step `step`, counted from 0.

        No window before it is cut.
        """
        return LoaderIterator(self, step)

    @cached_property
    def names(self) -> list[str]:
        """The name of every record, by the numbers in a batch's `record`."""
        return [name for store in self.mixture.stores for name in store.index(self.split).names]

    def why_bad(self, record: int) -> str:
        """Says what is wrong with a record that could not be read, by its number in a batch."""
        number = int(np.searchsorted(self.first_records, record, side="right")) - 1
        store, i = self.mixture.stores[number], record - self.first_records[number]
        try:
            store.read(self.split, i)
        except UserError as error:
            return str(error)
        return f"record {self.names[record]!r} (number {i} of {self.split} in {store.path}) could not be read once"

    def _fingerprint(self) -> str:
        """Returns a short text of all that decides the order."""
        data = [store.manifest["files"].get(f"index/{self.split}.npz") for store in self.mixture.stores]
        options = self.options
        decisive = [data, self.mixture.weights, self.split, options.view, options.batch_size, options.seed]
        # Left out where it is the release's: positions that were saved before stay valid.
        decisive += [] if options.window == RELEASE_WINDOW else [asdict(options.window)]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Returns Grain's iterator over this process's batches from a step on."""
        rows = self.options.own_rows
        own = partial(_own_window, self._windows, self.batch_size, first_step, rows)
        dataset = grain.MapDataset.range(_ENDLESS).map(own).batch(len(rows), drop_remainder=True)
        # Few and small: a batch of 128 pairs holds 65 MB of audio.
        batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        num_workers = self.options.num_workers
        if num_workers:
            num_workers = fitting_workers(sum(array.nbytes for array in own(0).values()) * len(rows), num_workers)
        if num_workers:
            # Grain hands absl's flags to its workers and refuses to while they are not parsed. Only
            # absl's own `app.run` parses them, which neither our commands nor a notebook use.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=BUFFERED_BATCHES)
            batches = batches.mp_prefetch(workers)
        return iter(batches)


def _own_window(windows: grain.MapDataset, batch_size: int, first_step: int, rows: tuple[int, ...], i: int) -> Batch:
    """Returns the i-th window of one process, counted from the first of its step `first_step`.

    Global batch s holds windows `s * batch_size .. (s + 1) * batch_size`; the process has `rows` of
    them.
    """
    step, row = divmod(i, len(rows))
    return windows[(first_step + step) * batch_size + rows[row]]


@runtime_checkable
class AnyLoader(Protocol):
    """What an iterator needs of its loader: `Loader` or `speech_loader.SpeechLoader`."""

    order: str
    max_bad_records: int

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Returns the batches from a step on; the iterator has `close()`."""

    def why_bad(self, record: int) -> str:
        """Says what is wrong with a record."""


class LoaderIterator:
    """Batches of a loader from a step on.

    Its state is the number of the next step; Grain's checkpoint handlers take it.
    """

    def __init__(self, loader: AnyLoader, step: int):
        if step < 0:
            raise UserError(f"step must not be negative, got {step}")
        self.loader, self.step = loader, step
        self._batches: Iterator[Batch] | None = None
        self._bad: set[int] = set()

    def __iter__(self) -> "LoaderIterator":
        return self

    def __next__(self) -> Batch:
        self.start_prefetch()
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if "was terminated unexpectedly" not in str(error):
                raise
            raise worker_died(error) from error
        self._watch(batch.pop("replaced"))
        self.step += 1
        return batch

    def start_prefetch(self) -> None:
        """Starts threads and workers, which the first batch does otherwise."""
        if self._batches is None:
            self._batches = self.loader.batches(self.step)

    def get_state(self) -> bytes:
        """Returns JSON of the next step and of the order; it is the same in every process."""
        return json.dumps({"step": self.step, "order": self.loader.order}).encode()

    def set_state(self, state: bytes) -> None:
        """Goes on where `get_state` was taken.

        Raises UserError where data, seed, batch size, view or window differ.
        """
        try:
            values = json.loads(state)
            step, order = int(values["step"]), values["order"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the saved position in the data is damaged ({error}); start from an older checkpoint"
            ) from None
        if order != self.loader.order:
            raise UserError(
                "the saved position is of other stores, weights, seed, batch size, view or window; use those, or start "
                f"the data anew at step {step}"
            )
        self.close()
        self.step = step

    def close(self) -> None:
        """Ends threads and workers; the next batch starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _watch(self, replaced: np.ndarray) -> None:
        for record in sorted({int(number) for number in replaced if number >= 0} - self._bad):
            self._bad.add(record)
            reason = self.loader.why_bad(record)
            if len(self._bad) > self.loader.max_bad_records:
                raise UserError(
                    f"{reason} ({len(self._bad)} bad records, data.max_bad_records allows "
                    f"{self.loader.max_bad_records})"
                )
            log.warning("left out: %s", reason)


def _global_order(items: Sequence[np.ndarray], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Returns (store, item) in the one order of all processes; every epoch is shuffled anew."""
    streams = []
    for number, rows in enumerate(items):
        stream = grain.MapDataset.range(len(rows)).seed(seed + number).shuffle().repeat()
        streams.append(stream.map(partial(_numbered, number)))
    if len(streams) == 1:
        return streams[0]
    return grain.MapDataset.mix(streams, weights).seed(seed)


def _numbered(store: int, item: int) -> tuple[int, int]:
    return store, item


def make_loader(
    stores: str | os.PathLike | Sequence[tuple[str, float]],
    split: str,
    *,
    cache_bytes: int = CACHE_BYTES,
    **options: str | int | bool | tuple[int, ...] | Window,
) -> Loader:
    """Returns endless batches of one store, or of several `(path, weight)`.

    Windows are drawn from each store by its weight. All arrays but `record` are float32. Solo:
    `motion [B, T, 108]`, `prev` and `style` `[B, F, 108]`, `observed [B, 108]` (1 where the source
    has the channel). Pair: the same with both people, `[B, 2, ...]`, `audio [B, 2, N]` and, where
    every dialogue of the stores has one, `speech_mask [B, 2, T]`. T, F and N are the window's, 100,
    100 and 64000 in the release. Partners: see
    `partner_windows.cut_partners`, and `observed [B, 56]`. `record [B]` int32 numbers the records
    as `Loader.names`.

    Process p of n gets the p-th n-th of the rows of each global batch, or those that `rows` lists,
    so that the parts of all processes together are the same batch for any n. With `num_workers` > 0
    the caller guards `__main__`; the batches are the same. A record that cannot be read is an error
    that names it; up to `max_bad_records` different ones (counted by each process from its start)
    are logged and replaced by a window of the next record.

    Args:
        stores: The path or URL of a store, or several with their weights.
        split: "train", "val" or "test".
        cache_bytes: Motion that each process keeps in memory.
        **options: The fields of `LoaderOptions`.

    Raises:
        UserError: As `window_items`, and for sizes that do not fit.
    """
    settings = LoaderOptions(**options)
    mixture = Mixture(stores, cache_bytes=cache_bytes)
    items = [window_items(store, split, settings.view, settings.window) for store in mixture.stores]
    return Loader(mixture, split, items, settings)
