"""Stores, whole and in parts: manifest with statistics, index, chunks, and any of their files."""

import json
import os
import random
import tempfile
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hostile.mutate import Sample, change_bytes, mutated
from hostile.reader import Reader

from data_pipelines.conversion.verify import verify
from data_pipelines.loader import LoaderOptions, WindowOf, window_items
from data_pipelines.mixture import Mixture
from data_pipelines.record import SPLITS, Record
from data_pipelines.store.features import RECORDS_PER_SHARD, FeatureFacts, FeatureStore, write_features
from data_pipelines.store.reader import Store, write_store
from unils_jax.motion import Window


def make_store(folder: Path) -> None:
    """Two conversations of which one has events, and a person without audio."""
    rng = np.random.default_rng(0)
    records = []
    for i, (split, people) in enumerate((("train", 2), ("train", 1), ("val", 2))):
        motion = (rng.standard_normal((people, 130, 108)) * 0.1).astype(np.float16)
        audio = None if people == 1 else rng.integers(-3000, 3000, (people, 130 * 640)).astype(np.int16)
        mask = None if people == 1 else rng.random((people, 130)) < 0.5
        names = ("ann", "ben")[:people]
        records.append((split, Record(f"r{i}", motion, audio, mask, "standin", {"turns": [[0, 1.5]]}, names)))
    write_store(folder / "store", records)


def read_store(folder: Path) -> None:
    """Reads all that training, evaluation and `unils data` read of a store."""
    store = Store(folder / "store")
    for split in SPLITS:
        for i, _ in enumerate(store.records(split)):
            store.source(split, i).frames([(0, 0, 1)])
    for centred in (True, False):
        Mixture(folder / "store").statistics(centred=centred)
    verify(folder / "store")
    for view in ("pair", "solo"):
        window = WindowOf([store], "train", [window_items(store, "train", view)], [0], LoaderOptions(view, 1, 0))
        window((0, 0), np.random.default_rng(0))


def read_remote(folder: Path) -> None:
    """Reads a store through an address, files of which are fetched into a cache."""
    os.environ["UNILS_CACHE"] = str(folder / "cache")
    store = Store(f"file://{folder / 'store'}")
    for split in SPLITS:
        for i, _ in enumerate(store.records(split)):
            store.read(split, i)


def with_sizes(sample: Sample) -> Sample:
    """Lets the manifest know the files' sizes, as one who makes a bad store does."""
    try:
        manifest = json.loads(sample["store/manifest.json"])
        for name, entry in manifest["files"].items():
            if f"store/{name}" in sample:
                entry["bytes"] = len(sample[f"store/{name}"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return sample
    return {**sample, "store/manifest.json": json.dumps(manifest).encode()}


def damaged_chunks(sample: Sample, seed: int) -> Sample:
    """Changes the messages in a shard, which is written again with its own checksums."""
    rng = random.Random(seed)
    shard = rng.choice(sorted(path for path in sample if "array_record" in path))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        path.write_bytes(sample[shard])
        reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0,max_parallelism:0")
        values = [reader.read([i])[0] for i in range(reader.num_records())]
        reader.close()
        for _ in range(rng.choice((1, 1, 2))):
            at, kind = rng.randrange(len(values) or 1), rng.random()
            if kind < 0.75 and values:
                values[at] = change_message(values[at], rng)
            elif kind < 0.85:
                del values[at : at + 1]
            elif kind < 0.95 and values:
                values[at] = rng.choice(values)
            else:
                values.append(b"")
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for value in values:
            writer.write(value)
        writer.close()
        return {**sample, shard: path.read_bytes()}


def change_message(value: bytes, rng: random.Random) -> bytes:
    """Changes a tf.Example: its bytes, the names of its features, or the text of its events."""
    kind = rng.random()
    if kind < 0.4:
        return change_bytes(value, rng)
    if kind < 0.7:
        events = b'{"turns": [[0, 1.5]]}'
        texts = (b"[" * 21, b"null".ljust(21), b"[1]".ljust(21), b'{"a":1}'.ljust(21), b"\xff" * 21, b"NaN".ljust(21))
        return value.replace(events, rng.choice(texts))
    name = rng.choice((b"motion", b"audio", b"events", b"speech_mask", b"observed", b"record"))
    return value.replace(name, name[::-1], 1)


FACTS = FeatureFacts("window", "s", "e", "each", 4, 6, 320, Window())


def encode(split: str, record: int) -> np.ndarray:
    return np.random.default_rng(record).normal(0, 2, (2, 12, FACTS.dim)).astype(np.float32)


def make_features(folder: Path) -> None:
    """Two splits of audio features, one of two shards."""
    write_features(folder / "features", FACTS, {"train": RECORDS_PER_SHARD + 1, "val": 1}, encode, dtype="bf16")


def read_features(folder: Path) -> None:
    """Goes on with them, and reads windows as training does where the facts fit."""
    features = FeatureStore(folder / "features")
    if not features.facts.problems(FACTS):
        for split, count in features.splits.items():
            for record in range(min(count, 2 * RECORDS_PER_SHARD)):
                features.frames(split, record, 4, FACTS.frames_per_window)
    write_features(folder / "features", FACTS, {"train": RECORDS_PER_SHARD + 1, "val": 1}, encode, dtype="bf16")


READERS = {
    "store manifest": Reader(make_store, read_store, only=("store/manifest.json",)),
    "store index": Reader(make_store, read_store, only=("store/index/",), mend=with_sizes),
    "store chunks": Reader(make_store, read_store, damage=damaged_chunks, mend=with_sizes),
    "store files": Reader(make_store, read_store, damage=lambda sample, seed: mutated(sample, seed), mend=with_sizes),
    "store behind a URL": Reader(make_store, read_remote, only=("store/manifest.json", "store/train", "store/index")),
    "audio features": Reader(make_features, read_features),
}
