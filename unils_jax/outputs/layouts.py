"""Motion in other projects' layouts: DualTalk's 56 channels, ARTalk's 106, and named CSV.

Every value that a layout has room for comes back as it was, bit for bit; what it lacks comes
back as zero. NumPy only.
"""

import csv
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from data_pipelines.sources.dualtalk import read_motion
from unils_jax.errors import UserError
from unils_jax.files import atomic_output, read_npz_file
from unils_jax.motion import BASES, FPS, MOTION_DIM, channel_names, to_56_channels

ARTALK_DIM = 106
_HEADING = ["person", "frame", "time_s"]


def to_artalk(motion: Float[np.ndarray, "T 108"]) -> Float[np.ndarray, "T 106"]:
    """Returns ARTalk's 106 channels: expression 100, head 3, jaw 3.

    The last two of the jaw are zero. The eyes are left out.
    """
    return np.concatenate([motion[:, :104], np.zeros((len(motion), 2), motion.dtype)], axis=1)


def from_artalk(channels: Float[np.ndarray, "T 106"]) -> Float32[np.ndarray, "T 108"]:
    """Returns motion of ARTalk's 106 channels.

    The eyes are zero; of the jaw the first component is kept.
    """
    motion = np.zeros((len(channels), MOTION_DIM), np.float32)
    motion[:, :104] = channels[:, :104]
    return motion


def dualtalk_paths(path: str | os.PathLike, num_people: int) -> list[Path]:
    """Returns the names of a conversation's files in DualTalk's data set.

    They are NAME_speaker1.npz, NAME_speaker2.npz.
    """
    path = Path(path)
    return [path.with_name(f"{path.stem}_speaker{p + 1}.npz") for p in range(num_people)]


def write_dualtalk(path: str | os.PathLike, motion: Float[np.ndarray, "P T 108"]) -> list[Path]:
    """Writes one file a person next to `path`, as DualTalk's data set has them.

    Each holds `exp [T, 50]` and `pose [T, 6]` (head, jaw), and is whole or not there. Returns
    the files' paths.
    """
    paths = dualtalk_paths(path, len(motion))
    for file_path, person in zip(paths, motion, strict=True):
        channels = to_56_channels(person)
        # Our order is jaw, head; theirs is head, jaw.
        pose = np.concatenate([channels[:, 53:], channels[:, 50:53]], axis=1)
        with atomic_output(file_path) as partial, open(partial, "wb") as file:
            np.savez(file, exp=channels[:, :50], pose=pose)
    return paths


def read_dualtalk(paths: list[Path]) -> Float32[np.ndarray, "P T 108"]:
    """Reads motion from files of DualTalk's data set, one a person, cut to the shortest.

    Raises UserError, naming the file.
    """
    people = [_finite(path, read_motion(path)) for path in paths]
    # The files of one conversation may differ by a frame.
    num_frames = min(len(person) for person in people)
    if not num_frames:
        raise UserError(f"{paths[0]} holds no frames; give a file with motion in it")
    return np.stack([person[:num_frames] for person in people])


def write_artalk(path: str | os.PathLike, motion: Float[np.ndarray, "P T 108"]) -> None:
    """Writes an .npz with `motion [P, T, 106]` and `fps`."""
    channels = np.stack([to_artalk(person) for person in motion])
    with atomic_output(path) as partial, open(partial, "wb") as file:
        np.savez(file, motion=channels, fps=np.float64(FPS))


def read_artalk(path: Path) -> Float32[np.ndarray, "P T 108"]:
    """Reads motion from an .npz with `motion [T or P T, 106]`.

    Raises UserError, naming the file.
    """
    # ARTalk saves one person without a leading axis.
    channels = read_npz_file(path, ("motion",)).get("motion")
    if channels is not None and channels.ndim == 2:
        channels = channels[None]
    if channels is None or channels.ndim != 3 or channels.shape[2] != ARTALK_DIM or 0 in channels.shape:
        got = "no such array" if channels is None else list(channels.shape)
        raise UserError(f"{path} must hold motion [T, {ARTALK_DIM}] or [P, T, {ARTALK_DIM}], got {got}")
    return np.stack([from_artalk(person) for person in _finite(path, channels)])


def write_csv(path: str | os.PathLike, motion: Float[np.ndarray, "P T 108"], expression_basis: str) -> None:
    """Writes a table: person (from 1), frame (from 0), its first second, 108 named channels."""
    write_table(path, motion, channel_names(expression_basis))


def write_table(path: str | os.PathLike, values: Float[np.ndarray, "P T C"], names: list[str]) -> None:
    """Writes a row a frame, people one after another.

    Values are float32 in the fewest digits that read back as the same.
    """
    with atomic_output(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_HEADING, *names])
        for p, person in enumerate(values):
            for t, row in enumerate(person.astype(np.float32)):
                writer.writerow([p + 1, t, f"{t / FPS:.2f}", *(np.format_float_scientific(v, trim="-") for v in row)])


def read_csv(path: Path) -> tuple[Float32[np.ndarray, "P T 108"], str]:
    """Reads motion and expression basis from a table of `write_csv`; columns in any order.

    Raises UserError, naming file and line, where columns are missing, a value is no finite
    number, or people differ in their number of frames.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    heading = rows[0] if rows else []
    # The names of the expression channels tell the basis.
    basis = next((b for b in BASES if set(channel_names(b)) <= set(heading)), None)
    if basis is None or "person" not in heading:
        missing = [name for name in ["person", *channel_names("flame")] if name not in heading]
        raise UserError(
            f"{path} must have a column `person` and the 108 channels of a basis in its first line; it lacks "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}; see `unils convert-motion`"
        )
    # By name, so that a table whose columns a spreadsheet has moved still reads right.
    columns = [heading.index(name) for name in channel_names(basis)]
    people: dict[str, list[list[float]]] = {}
    for line, row in enumerate(rows[1:], start=2):
        try:
            people.setdefault(row[heading.index("person")], []).append([float(row[c]) for c in columns])
        except (ValueError, IndexError):
            raise UserError(f"{path}, line {line}: not {len(heading)} numbers; mend the table") from None
    lengths = {name: len(frames) for name, frames in people.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{path}: every person must have as many frames, got {lengths}; mend the table")
    return _finite(path, np.array(list(people.values()), np.float32)), basis


def _finite(path: Path, values: np.ndarray) -> np.ndarray:
    # Integers are no motion: such a file is most likely another one than meant.
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise UserError(f"{path} must hold finite floating numbers, got {values.dtype} with NaN, infinity or integers")
    return values
