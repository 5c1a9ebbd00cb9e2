"""Motion from elsewhere: tables and arrays in every layout that is read."""

from pathlib import Path

import numpy as np
from foreign_data import dualtalk_arrays, write_motion
from hostile.reader import Reader
from pt_writer import write_pt

from unils_jax.inference.recordings import is_decoded
from unils_jax.motion import load_motion
from unils_jax.outputs.layouts import read_artalk, read_dualtalk, write_artalk
from unils_jax.outputs.tables import read_csv, write_csv


def some_motion(people: int = 2, frames: int = 6) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((people, frames, 108)) * 0.1).astype(np.float32)


def make_table(folder: Path) -> None:
    write_csv(folder / "m.csv", some_motion(), "standin")


def make_trackers(folder: Path) -> None:
    arrays = dualtalk_arrays(6, 0)
    np.savez(folder / "a.npz", exp=arrays["exp"], pose=arrays["pose"], fps=30.0)
    rotation = np.repeat(np.eye(3)[None], 6, 0)
    np.savez_compressed(
        folder / "b.npz", expr=arrays["exp"], rotation=rotation, jaw_pose=rotation, times=np.arange(6) / 25
    )


def make_artalk(folder: Path) -> None:
    write_artalk(folder / "m.npz", some_motion())
    np.save(folder / "m.npy", np.zeros((6, 106), np.float32))
    write_pt(folder / "m.pt", {"motion": np.zeros((6, 106), np.float32), "fps": 25.0})


def read_trackers(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_dualtalk([path])


def read_artalks(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_artalk([path])


def read_motion(folder: Path) -> None:
    is_decoded(folder / "m.npz", 2, {}, (), finished=True)
    load_motion(folder / "m.npz", any_rate=True)


def read_tables(folder: Path) -> None:
    try:
        read_csv(folder / "m.csv")
    finally:
        read_csv(folder / "m.csv", fps=50.0)


READERS = {
    "motion table": Reader(make_table, read_tables),
    "motion file": Reader(lambda folder: write_motion(folder / "m.npz", 2, 110, 0), read_motion),
    "motion of trackers": Reader(make_trackers, read_trackers, apart=True),
    "motion of ARTalk": Reader(make_artalk, read_artalks, apart=True),
}
