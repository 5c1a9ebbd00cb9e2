"""Store -> batches, with Grain: shuffled over the whole split, endless, and the same for any number of processes.

The order and the jitter are functions of (seed, epoch, item) alone. Batches are plain NumPy; nothing here starts a
JAX backend, so worker processes stay off the accelerator.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import grain
import numpy as np
from absl import flags

from data_pipelines.schema import Record
from data_pipelines.store import Store
from data_pipelines.windows import centered, cut_centered, one_person, training_index
from unils_jax.errors import UserError

VIEWS = ("solo", "pair")
CACHE_BYTES = 1 << 30


class RecordCache:
    """The records of one split, decoded and centred, the latest used kept up to `max_bytes` per process.

    Called with a record's number. Pickles without its contents; safe for threads.
    """

    def __init__(self, store: Store, split: str, *, with_audio: bool, max_bytes: int = CACHE_BYTES):
        self.store, self.split, self.with_audio, self.max_bytes = store, split, with_audio, max_bytes
        self._empty()

    def _empty(self) -> None:
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._empty()

    def __call__(self, i: int) -> Record:
        with self._lock:
            if i in self._records:
                self._records.move_to_end(i)
                return self._records[i]
        record = centered(self.store.read(self.split, i, with_audio=self.with_audio))
        with self._lock:
            if i not in self._records:
                self._records[i] = record
                self._bytes += _num_bytes(record)
            while self._bytes > self.max_bytes and len(self._records) > 1:
                self._bytes -= _num_bytes(self._records.popitem(last=False)[1])
        return record


def _num_bytes(record: Record) -> int:
    return sum(array.nbytes for array in (record.motion, record.audio, record.speech_mask) if array is not None)


class WindowOf:
    """Item number and a random generator -> one training window of float32 arrays; `items` are (record, person, i).

    A person of None takes all people of the record (pair), a number takes that one alone (solo).
    """

    def __init__(self, cache: RecordCache, items: list[tuple[int, int | None, int]]):
        self.cache, self.items = cache, items

    def __call__(self, item: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record_number, person, i = self.items[item]
        record = self.cache(record_number)
        randint = inclusive(rng)
        if person is None:
            return {name: array.astype(np.float32) for name, array in cut_centered(record, i, randint).items()}
        window = cut_centered(one_person(record, person), i, randint)
        return {name: window[name][0].astype(np.float32) for name in ("motion", "prev", "style")}


def inclusive(rng: np.random.Generator) -> Callable[[int, int], int]:
    """`randint(low, high)` over a generator, both ends included."""
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


def window_items(store: Store, split: str, view: str) -> list[tuple[int, int | None, int]]:
    """All training items `(record, person, i)` of a split. Solo: each person alone; pair: person is None.

    Raises UserError for an unknown view, a split without a record long enough, and, for pairs, records that are not
    dialogues with audio and speech mask.
    """
    if view not in VIEWS:
        raise UserError(f"view must be one of {VIEWS}, got {view!r}")
    records = store.records(split)
    index = training_index(store.lengths(split))
    if not index:
        raise UserError(f"{store.path} has no record of at least 102 frames in its {split} split; use a longer set")
    if view == "solo":
        return [(r, person, i) for r, i in index for person in range(records[r]["people"])]
    for entry in records:
        if entry["people"] != 2 or not entry["audio"] or not entry["speech_mask"]:
            raise UserError(
                f"record {entry['name']!r} of {store.path} is no dialogue with audio and speech mask; "
                "the dialogue stage needs those"
            )
    return [(r, None, i) for r, i in index]


def make_loader(
    store_path: str,
    split: str,
    *,
    view: str,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """An endless data set of batches; `iter()` gives Grain's iterator with `get_state` and `set_state`.

    All arrays are float32. Solo: `motion`, `prev`, `style` `[B, 100, 108]`. Pair: the same as `[B, 2, 100, 108]`,
    `audio [B, 2, 64000]` and `speech_mask [B, 2, 100]`. `batch_size` is that of one process; process k of n sees
    items k, k + n, ... of one global order, so n processes together see what one process with batches n times as
    large sees. With `num_workers` > 0 windows are cut in so many spawned processes (the caller guards `__main__`);
    with 0 in threads. Raises UserError as `window_items`, and for sizes that are not positive.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    store = Store(store_path)
    items = window_items(store, split, view)
    window = WindowOf(RecordCache(store, split, with_audio=view == "pair"), items)
    dataset = grain.MapDataset.range(len(items)).seed(seed).shuffle().repeat().random_map(window)
    dataset = dataset[process_index::process_count].batch(batch_size, drop_remainder=True)
    # Few and small: a batch of 128 pairs holds 65 MB of audio.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    batches = dataset.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain hands absl's flags to its workers and refuses to while nobody has parsed any; we have none.
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2))
    return batches
