"""Data sets in published layouts."""

import json
from pathlib import Path

import numpy as np
from foreign_data import release_value, talking, write_dualtalk, write_lmdb, write_motion, write_wav
from hostile.reader import Reader
from seamless_data import pack, write_participant
from talker_data import write_set
from tracked import truth, write_clip, write_pictures

from data_pipelines.conversion.convert import ShardTask, _claim, convert, make_plan
from data_pipelines.conversion.convert import _checked as checked
from data_pipelines.sources.base import SkippedEntry, Source
from data_pipelines.sources.dualtalk import DualTalkSource
from data_pipelines.sources.folder import FilesSource
from data_pipelines.sources.seamless import SeamlessSource
from data_pipelines.sources.tracking import TrackOptions
from data_pipelines.sources.tracks import TracksSource
from data_pipelines.sources.unils_lmdb import ReleaseSource, find_index
from data_pipelines.sources.unitalker import TalkerSet, TalkerSplit
from data_pipelines.speech_loader import SetSpeech, make_speech_loader
from data_pipelines.store.writer import DEFAULT_DTYPES
from data_pipelines.synthetic.bank.bank import Bank
from data_pipelines.synthetic.bank.speakers import SPEAKERS

VAD = TrackOptions(vad="loudness")
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


def make_dualtalk(folder: Path) -> None:
    write_dualtalk(folder / "d", "a", 110, 0)
    write_dualtalk(folder / "d", "b", 110, 1, silent="2")


def make_files(folder: Path) -> None:
    write_motion(folder / "d/a.npz", 2, 110, 0)
    write_wav(folder / "d/a.wav", np.stack([talking(110, 1)[1], talking(110, 2)[1]], axis=1))


def make_release(folder: Path) -> None:
    values = {"p_0": release_value(110, 0), "p_1": release_value(110, 1, audio="int16", compressed=True)}
    write_lmdb(folder / "d", values, {"train": {"p": ["x/p_0", "x/p_1", 110]}, "val": [["p_0", 110]]})


def make_tracks(folder: Path) -> None:
    """Clips in every form with sound, turns, a video and persons; small, because each input reads them all."""
    motion = truth(4.2, 25)[:, :20]
    arrays = {"exp": motion[:, :10], "pose": motion[:, 10:16] * 0.3, "fps": np.float64(25)}
    frames = {name: value for name, value in arrays.items() if name != "fps"}
    for name, form in (("b", "pkl"), ("c", "json"), ("e", "pt"), ("g", "arrays")):
        write_clip(folder / "d", name, frames, form)
    for name in ("f_speaker1", "f_speaker2", "v"):
        np.savez(folder / f"d/{name}.npz", **arrays)
    write_wav(folder / "d/f.wav", talking(105, 1)[1])
    turns = [f"SPEAKER f 1 {k}.0 0.9 <NA> <NA> s{k} <NA> <NA>" for k in (1, 2)]
    (folder / "d/f.rttm").write_text("\n".join(turns))
    (folder / "d/people.csv").write_text("name,person1,person2\nf,x,y\n")
    write_pictures(folder / "d/v.mp4", 105)


def make_seamless(folder: Path) -> None:
    """Interactions in folders and an archive, one with a tracker's file, one without a partner."""
    write_participant(folder / "d/train/A0", "V0_S0_I0_PA", 0.5)
    for number in (1, 2):
        for person in "AB":
            write_participant(folder / f"d/train/{person}{number}", f"V0_S0_I{number}_P{person}", 4.2, seed=number)
    pack(folder / "d/train/A1", folder / "d/train/A1.tar")
    motion = truth(4.2, 30)
    write_clip(folder / "t", "V0_S0_I2_PA", {"exp": motion[:, :10], "head": motion[:, 100:103]})


def read_seamless(folder: Path) -> None:
    source = SeamlessSource(folder / "d", motion_folder=folder / "t")
    source.table()
    read_source(source)


def read_source(source: Source) -> None:
    """Reads all entries of a source, as a conversion does."""
    plan = make_plan(source)
    with source.open() as read:
        for entry in (entry for entries in plan.shards.values() for entry in entries):
            try:
                checked(read, entry)
            except SkippedEntry as skipped:
                refused = skipped
            else:
                refused = None
    if refused is not None:
        raise refused


def read_release(folder: Path) -> None:
    read_source(ReleaseSource(folder / "d/lmdb", find_index(folder / "d/lmdb")))


def make_conversion(folder: Path) -> None:
    """A conversion that was stopped before its last step."""
    for name in "ab":
        write_motion(folder / f"d/{name}.npz", 1, 110, ord(name))
    source, out = FilesSource(folder / "d", "train"), folder / "out"
    plan = make_plan(source, num_shards=2)
    _claim(out, plan)
    for shard, entries in plan.shards.items():
        ShardTask(source, out, DEFAULT_DTYPES)((shard, entries), lambda name: None, lambda counts: None)


def convert_again(folder: Path) -> None:
    source = FilesSource(folder / "d", "train")
    convert(source, folder / "out", make_plan(source, num_shards=2))


def bank_in(folder: Path) -> Bank:
    return Bank(folder, speakers=SPEAKERS[:1], engines={})


def make_bank(folder: Path) -> None:
    """The file of a speaker who says two texts."""
    said = [{"text": "a", "short": True, "samples": n, "phones": [["a", 0.0, 0.1]]} for n in (800, 1600)]
    path = bank_in(folder)._path(0)
    path.parent.mkdir(parents=True)
    described = np.frombuffer(json.dumps(said).encode(), np.uint8)
    np.savez(path, samples=np.arange(2400, dtype=np.int16), described=described)


READERS = {
    "UniTalker set": Reader(make_talkers, read_talkers),
    "DualTalk folder": Reader(make_dualtalk, lambda folder: read_source(DualTalkSource(folder / "d", "train"))),
    "folder of files": Reader(make_files, lambda folder: read_source(FilesSource(folder / "d", "train"))),
    "folder of tracks": Reader(
        make_tracks, lambda folder: read_source(TracksSource(folder / "d", "train", options=VAD))
    ),
    "Seamless folder": Reader(make_seamless, read_seamless),
    "release LMDB": Reader(make_release, read_release),
    "conversion resumed": Reader(make_conversion, convert_again, only=("out/",)),
    "bank of voices": Reader(make_bank, lambda folder: bank_in(folder).utterances(0)),
}
