"""Stores -> batches, with Grain: shuffled over whole splits, endless, the same for any number of processes.

The order and the jitter are functions of (seed, epoch, item) alone, and a step's batch of the step's number: a run
stopped after k steps goes on at step k without replaying, on whatever number of processes and workers. Batches are
plain NumPy; nothing here starts a JAX backend, so worker processes stay off the accelerator.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32

from data_pipelines.mixture import CACHE_BYTES, Mixture
from data_pipelines.partner_windows import Scale, audio_scale, cut_partners, partner_index
from data_pipelines.store.index import NO_AUDIO
from data_pipelines.store.reader import Store
from data_pipelines.windows import cut_window, training_index
from unils_jax.errors import UserError
from unils_jax.motion import PARTNER_FRAMES, WINDOW_FRAMES, dualtalk_channels

VIEWS = ("solo", "pair", "partners")
# Grain wants a length; at a thousand steps a second this one lasts for nine thousand years.
_ENDLESS = 1 << 48
_BUFFER = 2  # batches that each worker holds ready
SHARED_MEMORY = "/dev/shm"
_MAX_SUBSTITUTES = 16
_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


class WindowOf:
    """(store number, item number) and a random generator -> one training window of float32 arrays.

    `record` is the number of the record in all stores together. Where a record cannot be read, a window of the next
    one stands in, and `replaced` is the number of the first one that failed, else -1.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        split: str,
        items: Sequence[np.ndarray],
        first_records: Sequence[int],
        view: str = "pair",
        centre_head: bool = True,
    ):
        self.stores, self.split, self.items, self.first_records = stores, split, items, first_records
        self.view, self.centre_head = view, centre_head
        self._scales: dict[tuple[int, int], Scale] = {}
        # The arrays of a batch must be those of every window: one dialogue without a mask, and none has one.
        self.has_mask = all(
            store.index(split).has_mask[rows[:, 0]].all() for store, rows in zip(stores, items, strict=True)
        )

    def __call__(self, element: tuple[int, int], rng: np.random.Generator) -> Batch:
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
        """The window of one item; a person of -1 takes both."""
        if self.view == "partners":
            return self._cut_partners(number, record, person, i)
        source = self.stores[number].source(self.split, record, None if person < 0 else person)
        window = cut_window(source, i, randint, centred=self.centre_head)
        window = {name: as_float32(array) for name, array in window.items()}
        window["observed"] = source.observed.astype(np.float32)
        if not self.has_mask:
            window.pop("speech_mask", None)
        return window if person < 0 else {name: array[0] for name, array in window.items()}

    def _cut_partners(self, number: int, record: int, person: int, i: int) -> Batch:
        """Scales are kept: a record's audio is read whole once in each process."""
        source = self.stores[number].source(self.split, record)
        if (number, record) not in self._scales:
            self._scales[number, record] = audio_scale(source)
        window = cut_partners(source, person, i, self._scales[number, record])
        observed = dualtalk_channels(source.observed[person])
        return {name: as_float32(array) for name, array in {**window, "observed": observed}.items()}


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array in float32; float16 by a table, which takes half the time of NumPy's own conversion."""
    return _HALF.take(array.view(np.uint16)) if array.dtype == np.float16 else array.astype(np.float32)


def inclusive(rng: np.random.Generator) -> Callable[[int, int], int]:
    """`randint(low, high)` over a generator, both ends included."""
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


def window_items(store: Store, split: str, view: str) -> Int32[np.ndarray, "items 3"]:
    """All training items `(record, person, i)` of a split. Solo: each person with motion; pair: person is -1; partners:
    each person of a dialogue in which both have motion.

    Pairs are the dialogues with audio and motion of someone; other records are left out. Raises
    UserError for an unknown view and where nothing is left.
    """
    if view not in VIEWS:
        raise UserError(f"view must be one of {VIEWS}, got {view!r}")
    index = store.index(split)
    items = partner_index(index.frames) if view == "partners" else training_index(index.frames)
    if not len(items):
        least = PARTNER_FRAMES + 1 if view == "partners" else WINDOW_FRAMES + 2
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


class ProcessRows:
    """The windows of one process out of the global order, from one step on, as a random-access source for Grain.

    Global batch s holds windows `s * batch .. (s + 1) * batch`; process p of n has the p-th n-th of them, in order.
    """

    def __init__(self, windows: Any, first_step: int, batch_size: int, process_index: int, process_count: int):
        self.windows, self.first_step, self.batch_size = windows, first_step, batch_size
        self.rows = batch_size // process_count
        self.first_row = process_index * self.rows

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, i: int) -> Batch:
        step, row = divmod(i, self.rows)
        return self.windows[(self.first_step + step) * self.batch_size + self.first_row + row]


class Loader:
    """The endless batches of one process; see `make_loader`. `iter(loader)` starts at step 0, `at_step(k)` at k.
    There are items for `steps_per_epoch` whole batches, one at least."""

    def __init__(
        self,
        mixture: Mixture,
        split: str,
        items: Sequence[np.ndarray],
        *,
        view: str,
        batch_size: int,
        seed: int,
        num_workers: int,
        process_index: int,
        process_count: int,
        max_bad_records: int,
        centre_head: bool = True,
    ):
        self.mixture, self.split, self.view = mixture, split, view
        self.batch_size, self.num_workers, self.max_bad_records = batch_size, num_workers, max_bad_records
        self.process_index, self.process_count = process_index, process_count
        self.steps_per_epoch = max(sum(map(len, items)) // batch_size, 1)
        counts = [len(store.index(split)) for store in mixture.stores]
        self.first_records = [sum(counts[:k]) for k in range(len(counts))]
        window = WindowOf(mixture.stores, split, items, self.first_records, view, centre_head)
        self._windows = _global_order(items, mixture.weights, seed).random_map(window)
        self.order = self._fingerprint(seed)

    def __iter__(self) -> "LoaderIterator":
        return self.at_step(0)

    def at_step(self, step: int) -> "LoaderIterator":
        """The iterator whose first batch is that of step `step`, counted from 0; no window before it is cut."""
        return LoaderIterator(self, step)

    @cached_property
    def names(self) -> list[str]:
        """The name of every record, by the numbers in a batch's `record`."""
        return [name for store in self.mixture.stores for name in store.index(self.split).names]

    def why_bad(self, record: int) -> str:
        """What is wrong with a record that could not be read, by its number in a batch."""
        number = int(np.searchsorted(self.first_records, record, side="right")) - 1
        store, i = self.mixture.stores[number], record - self.first_records[number]
        try:
            store.read(self.split, i)
        except UserError as error:
            return str(error)
        return f"record {self.names[record]!r} (number {i} of {self.split} in {store.path}) could not be read once"

    def _fingerprint(self, seed: int) -> str:
        """What decides the order, as a short text."""
        data = [store.manifest["files"].get(f"index/{self.split}.npz") for store in self.mixture.stores]
        decisive = [data, self.mixture.weights, self.split, self.view, self.batch_size, seed]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Grain's iterator over this process's batches from a step on."""
        rows = ProcessRows(self._windows, first_step, self.batch_size, self.process_index, self.process_count)
        dataset = grain.MapDataset.source(rows).batch(rows.rows, drop_remainder=True)
        # Few and small: a batch of 128 pairs holds 65 MB of audio.
        batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        num_workers = fitting_workers(rows[0], rows.rows, self.num_workers) if self.num_workers else 0
        if num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain hands absl's flags to its workers and refuses to while nobody has parsed any; we have none.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_BUFFER)
            batches = batches.mp_prefetch(options)
        return iter(batches)


class LoaderIterator:
    """Batches of a loader (this one or `speech`'s) from a step on. Its state is the number of the next step; Grain's
    checkpoint handlers take it."""

    def __init__(self, loader: Any, step: int):
        if step < 0:
            raise UserError(f"step must not be negative, got {step}")
        self.loader, self.step = loader, step
        self._batches: Any = None
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
            raise _worker_died(error) from error
        self._watch(batch.pop("replaced"))
        self.step += 1
        return batch

    def start_prefetch(self) -> None:
        """Starts threads and workers, which the first batch does otherwise."""
        if self._batches is None:
            self._batches = self.loader.batches(self.step)

    def get_state(self) -> bytes:
        """JSON: the next step, and what the order depends on. The same in every process."""
        return json.dumps({"step": self.step, "order": self.loader.order}).encode()

    def set_state(self, state: bytes) -> None:
        """Goes on where `get_state` was taken. Raises UserError where data, seed, batch size or view differ."""
        try:
            values = json.loads(state)
            step, order = int(values["step"]), values["order"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the saved position in the data is damaged ({error}); start from an older checkpoint"
            ) from None
        if order != self.loader.order:
            raise UserError(
                "the saved position is of other stores, weights, seed, batch size or view; use those, or start the "
                f"data anew at step {step}"
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


def fitting_workers(window: Batch, rows: int, num_workers: int) -> int:
    """Returns how many of the workers can hand their batches over in shared memory; 0: use threads.

    A worker that finds no room there is killed by the kernel. Needed are the batches that each of them
    holds ready, and one more that is being taken. A warning says so where they are fewer than asked for.
    """
    num_bytes = sum(array.nbytes for array in window.values()) * rows
    try:
        room = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return num_workers  # a system that has it elsewhere
    fitting = min(num_workers, max(0, room.free // max(num_bytes, 1) - 1) // _BUFFER)
    if fitting < num_workers:
        log.warning(
            "WARNING: %d workers need %d MiB in %s, where %d of %d MiB are free: batches are cut by %s; %s",
            num_workers,
            num_bytes * (_BUFFER * num_workers + 1) >> 20,
            SHARED_MEMORY,
            room.free >> 20,
            room.total >> 20,
            f"{fitting} of them" if fitting else "threads",
            _SHARED_MEMORY_REMEDY,
        )
    return fitting


_SHARED_MEMORY_REMEDY = (
    "start the container with more (--shm-size, or an emptyDir of medium Memory there), or set "
    "--config.data.num_workers=0"
)


def _worker_died(error: RuntimeError) -> UserError:
    text = " ".join(str(error).split())[:200]
    return UserError(
        f"a worker of the loader died ({text}): either memory or {SHARED_MEMORY} ran out; {_SHARED_MEMORY_REMEDY}"
    )


def _global_order(items: Sequence[np.ndarray], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """(store, item) in the one order that all processes share, each store shuffled anew every epoch."""
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
    view: str,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    max_bad_records: int = 0,
    centre_head: bool = True,
    cache_bytes: int = CACHE_BYTES,
) -> Loader:
    """Endless batches of one store, or of several `(path, weight)`, windows drawn from each by its weight.

    All arrays but `record` are float32. Solo: `motion`, `prev`, `style` `[B, 100, 108]`, `observed [B, 108]` (1 where
    the source has the channel). Pair: the same with both people, `[B, 2, ...]`, `audio [B, 2, 64000]` and, where every
    dialogue of the stores has one, `speech_mask [B, 2, 100]`. Partners: see `partners.cut_partners`, and `observed
    [B, 56]`. `record [B]` int32 numbers the records as `Loader.names`. Head rotation of solo and pair windows is
    centred over the record, unless `centre_head` is False.

    `batch_size` is that of all processes together: process p of n gets the p-th n-th of the rows of each global batch,
    so that the parts of all processes, joined in order, are the same batch for any n. With `num_workers` > 0 windows
    are cut in so many spawned processes (the caller guards `__main__`), with 0 in threads; the batches are the same.
    Each process keeps up to `cache_bytes` of motion in memory. A record that cannot be read is an error that names it;
    up to `max_bad_records` different ones (counted by each process from its start) are logged and replaced by a
    window of the record after. Raises UserError as `window_items`, and for sizes that do not fit.
    """
    problems = [
        f"{name} must be at least {least}, got {value}"
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("max_bad_records", max_bad_records, 0),
        )
        if value < least
    ]
    if not 0 <= process_index < process_count:
        problems.append(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    elif batch_size % process_count:
        problems.append(f"batch_size must be a multiple of the {process_count} processes, got {batch_size}")
    if problems:
        raise UserError("; ".join(problems))
    mixture = Mixture(stores, cache_bytes=cache_bytes)
    return Loader(
        mixture,
        split,
        [window_items(store, split, view) for store in mixture.stores],
        view=view,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        process_index=process_index,
        process_count=process_count,
        max_bad_records=max_bad_records,
        centre_head=centre_head,
    )
