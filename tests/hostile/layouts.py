"""Data sets in published layouts."""

from pathlib import Path

import numpy as np
from hostile.reader import Reader
from talker_data import write_set

from data_pipelines.sources.unitalker import TalkerSet, TalkerSplit
from data_pipelines.speech_loader import SetSpeech, make_speech_loader

SPEECH = {"seed": 0, "clip_step_s": 0.0, "normalize": True, "as_pivot": False, "process_index": 0, "process_count": 1}


def make_talkers(folder: Path) -> None:
    """A set of two records with its PCA."""
    rng = np.random.default_rng(0)
    records = [
        (subject, 25, rng.standard_normal((20, 12)).astype(np.float32), rng.standard_normal(12800).astype(np.float32))
        for subject in (0, 1)
    ]
    write_set(folder / "set", "parts", records, rng.standard_normal((2, 12)).astype(np.float32))
    components = rng.standard_normal((3, 12)).astype(np.float32)
    np.savez(folder / "set/pca.npz", components_to_data=components, original_data_mean=np.zeros(12, np.float32))


def read_talkers(folder: Path) -> None:
    """Reads the set as training does, and as evaluation does."""
    sets = [TalkerSet(folder / "set")]
    loader = make_speech_loader(sets, [], "train", batch_size=1, **SPEECH)
    for group in loader.groups:
        loader.batch(group[:1])
    assert loader.kinds is not None and loader.pca is not None
    SetSpeech(sets, "test").describe()
    split = TalkerSplit(sets, "val")
    for entry in split.entries:
        split.read(entry)


READERS = {"UniTalker set": Reader(make_talkers, read_talkers)}
