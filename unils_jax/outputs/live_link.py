"""Tables as Live Link Face records them: what importers for Unreal, Blender and Maya read.

A row a frame: timecode, count, ARKit's 52 coefficients and nine angles of head and eyes. One file a
person. Source: the column names and their order in recordings of the app.
"""

import csv
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from unils_jax.files import atomic_output
from unils_jax.motion import EYES, FPS, HEAD
from unils_jax.outputs.arkit import ARKIT_NAMES

ANGLE_NAMES = tuple(part + angle for part in ("Head", "LeftEye", "RightEye") for angle in ("Yaw", "Pitch", "Roll"))
# The app has the right side of jaw and mouth first, ARKit's list the left one.
_SWAPPED = {"jawLeft": "jawRight", "jawRight": "jawLeft", "mouthLeft": "mouthRight", "mouthRight": "mouthLeft"}
_ORDER = tuple(_SWAPPED.get(name, name) for name in ARKIT_NAMES)
COLUMNS = (*(name[0].upper() + name[1:] for name in _ORDER), *ANGLE_NAMES)


def live_link_paths(path: str | os.PathLike, num_people: int) -> list[Path]:
    """Returns the files of people: `path` for one, NAME_person1.csv and so on for several."""
    path = Path(path)
    if num_people == 1:
        return [path]
    return [path.with_name(f"{path.stem}_person{p + 1}{path.suffix}") for p in range(num_people)]


def write_live_link(
    path: str | os.PathLike, coefficients: Float[np.ndarray, "P T 52"], motion: Float[np.ndarray, "P T 108"]
) -> list[Path]:
    """Writes one table a person, whole or not at all; returns their paths.

    `coefficients` are in the order of `ARKIT_NAMES`; the angles are those of `motion`.
    """
    columns = [ARKIT_NAMES.index(name) for name in _ORDER]
    paths = live_link_paths(path, len(motion))
    for file_path, shapes, person in zip(paths, coefficients, motion, strict=True):
        rows = np.concatenate([shapes[:, columns], angles(person)], axis=1)
        with atomic_output(file_path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["Timecode", "BlendShapeCount", *COLUMNS])
            for t, row in enumerate(rows):
                writer.writerow([_timecode(t), len(COLUMNS), *(f"{value:.8f}" for value in row)])
    return paths


def angles(motion: Float[np.ndarray, "T 108"]) -> Float[np.ndarray, "T 9"]:
    """Returns yaw, pitch and roll of head, left and right eye in radians.

    Yaw is positive to the person's left, pitch downwards, roll towards the person's right shoulder.
    The turns are made in this order, each about the axes that the one before has left.
    """
    eyes = motion[:, EYES].reshape(-1, 2, 2)
    vectors = np.zeros((len(motion), 3, 3))
    vectors[:, 0], vectors[:, 1:, :2] = motion[:, HEAD], eyes
    return Rotation.from_rotvec(vectors.reshape(-1, 3)).as_euler("YXZ").reshape(-1, 9)


def _timecode(frame: int) -> str:
    seconds, rest = divmod(frame, round(FPS))
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}.000"
