"""ARKit's 52 coefficients, by name (stand-in basis) or by least squares; Live Link Face's table.

The fit is on vertices: without head rotation and gaze, the displacement of every frame from the
neutral face is approached by the user's 52 shapes on the same mesh, each coefficient within 0..1
(least squares with bounds, by coordinate descent on the normal equations). Gaze has no shapes in
such bases as a rule; its coefficients are the eyes' angles over half a radian with either
method. ARKit names sides as the person has them.
"""

import csv
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from unils_jax.errors import UserError
from unils_jax.face.flame import FlameAsset, vertices
from unils_jax.face.standin_mesh import MOUTH_Y, smoothstep
from unils_jax.files import atomic_output, read_npz_file
from unils_jax.motion import EYES, FPS, HEAD, JAW, MOTION_DIM, STANDIN_SHAPES

log = logging.getLogger(__name__)

_SIDES = ("Left", "Right")
_EYES = ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide")
_PAIRS = ("mouthSmile", "mouthFrown", "mouthDimple", "mouthStretch")
_LATE_PAIRS = ("mouthPress", "mouthLowerDown", "mouthUpperUp", "browDown")
ARKIT_NAMES: tuple[str, ...] = (
    *(name + side for side in _SIDES for name in _EYES),
    *("jawForward", "jawLeft", "jawRight", "jawOpen"),
    *("mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight"),
    *(name + side for name in _PAIRS for side in _SIDES),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *(name + side for name in _LATE_PAIRS for side in _SIDES),
    *("browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight"),
    *("noseSneerLeft", "noseSneerRight", "tongueOut"),
)
JAW_OPEN, GAZE_FULL = 0.35, 0.5  # radians that count as 1

# Live Link Face: its table and what its columns are called.
ANGLE_NAMES = tuple(part + angle for part in ("Head", "LeftEye", "RightEye") for angle in ("Yaw", "Pitch", "Roll"))
# The app has the right side of jaw and mouth first, ARKit's list the left one.
_SWAPPED = {"jawLeft": "jawRight", "jawRight": "jawLeft", "mouthLeft": "mouthRight", "mouthRight": "mouthLeft"}
_ORDER = tuple(_SWAPPED.get(name, name) for name in ARKIT_NAMES)
COLUMNS = (*(name[0].upper() + name[1:] for name in _ORDER), *ANGLE_NAMES)

# The stand-in's named shapes, fully expressed, as ARKit shapes.
STANDIN_TO_ARKIT: dict[str, tuple[str, ...]] = {
    "smile_left": ("mouthSmileLeft",),
    "smile_right": ("mouthSmileRight",),
    "lip_pucker": ("mouthPucker",),
    "lip_stretch": ("mouthStretchLeft", "mouthStretchRight"),
    "upper_lip_raise": ("mouthUpperUpLeft", "mouthUpperUpRight"),
    "lower_lip_drop": ("mouthLowerDownLeft", "mouthLowerDownRight"),
    "blink_left": ("eyeBlinkLeft",),
    "blink_right": ("eyeBlinkRight",),
    "brow_up_left": ("browOuterUpLeft",),
    "brow_up_right": ("browOuterUpRight",),
    "brow_inner_up": ("browInnerUp",),
    "brow_down": ("browDownLeft", "browDownRight"),
    "squint": ("eyeSquintLeft", "eyeSquintRight"),
    "eye_wide": ("eyeWideLeft", "eyeWideRight"),
    "lip_press": ("mouthPressLeft", "mouthPressRight"),
    "lip_roll": ("mouthRollLower", "mouthRollUpper"),
    "mouth_corner_down": ("mouthFrownLeft", "mouthFrownRight"),
    "cheek_raise": ("cheekSquintLeft", "cheekSquintRight"),
    "cheek_puff": ("cheekPuff",),
    "nose_wrinkle": ("noseSneerLeft", "noseSneerRight"),
    "mouth_left": ("mouthLeft",),
    "mouth_right": ("mouthRight",),
    "chin_raise": ("mouthShrugLower",),
    "sneer": ("noseSneerLeft", "noseSneerRight"),
}


@dataclass(frozen=True)
class Blendshapes:
    """Coefficients in 0..1 in the order of `ARKIT_NAMES`, and the error of their fit."""

    coefficients: Float32[np.ndarray, "P T 52"]
    # Root mean squares over frames and vertices; both NaN where no mesh was used (by name).
    residual_mm: float  # of the distance that remains
    motion_mm: float  # of the motion itself from the neutral face
    # Shapes whose values left 0..1 and were cut there, with the value farthest outside.
    cut: dict[str, float] = field(default_factory=dict)

    def of(self, names: list[str]) -> Float32[np.ndarray, "P T K"]:
        """Returns the coefficients of some shapes, in their order."""
        return self.coefficients[..., [ARKIT_NAMES.index(name) for name in names]]


def by_name(motion: Float[np.ndarray, "P T 108"]) -> Blendshapes:
    """Returns the coefficients of motion in the stand-in basis, by the names of its shapes.

    Each named shape is the ARKit shape that does the same; shapes with two sides give both; a
    jaw of 0.35 rad is jawOpen 1. Values are cut to 0..1.
    """
    coefficients = np.zeros((*motion.shape[:2], len(ARKIT_NAMES)))
    for channel, (name, full) in enumerate(STANDIN_SHAPES.items()):
        for target in STANDIN_TO_ARKIT[name]:
            coefficients[..., ARKIT_NAMES.index(target)] += motion[..., channel] / full
    coefficients[..., ARKIT_NAMES.index("jawOpen")] = motion[..., JAW][..., 0] / JAW_OPEN
    _add_gaze(coefficients, motion)
    return Blendshapes(
        np.clip(coefficients, 0, 1).astype(np.float32), float("nan"), float("nan"), _outside(coefficients)
    )


def standin_basis(asset: FlameAsset) -> tuple[list[str], Float[np.ndarray, "K V 3"]]:
    """Returns ARKit's shapes on a head of the stand-in basis: names, and metres fully expressed.

    They are those that `by_name` has coefficients for and the head can show; of the gaze the lids
    that follow it, as eyes turn by joints. A shape that is two of ARKit's is cut between left and
    right or between the lips; of two that are the same one of ARKit's the later is taken.
    """
    x, y, _ = asset.v_template.T
    left, upper = smoothstep(x / 0.012 + 0.5), smoothstep((y - MOUTH_Y) / 0.005 + 0.5)
    parts = {"Left": left, "Right": 1 - left, "Upper": upper, "Lower": 1 - upper}
    found = {}
    for channel, (name, full) in enumerate(STANDIN_SHAPES.items()):
        for target in (targets := STANDIN_TO_ARKIT[name]):
            part = next((part for end, part in parts.items() if target.endswith(end)), 1.0)
            whole = full * asset.expression_basis[:, :, channel]
            found[target] = whole if len(targets) == 1 else whole * part[:, None]
    ends = np.zeros((2, MOTION_DIM), np.float32)
    ends[1, JAW] = JAW_OPEN
    neutral, opened = np.asarray(_posed(asset, jnp.asarray(ends)))
    found["jawOpen"] = opened - neutral
    for name, pitch in (("eyeLookDown", GAZE_FULL), ("eyeLookUp", -GAZE_FULL)):
        turn = Rotation.from_rotvec([pitch, 0, 0]).as_matrix() - np.eye(3)
        for side, first in zip(_SIDES, (18, 27), strict=True):  # columns of the eyes' correctives
            found[name + side] = asset.posedirs[:, :, first : first + 9] @ turn.ravel()
    names = [name for name in ARKIT_NAMES if np.any(found.get(name, 0))]
    return names, np.stack([found[name] for name in names])


def by_fit(
    motion: Float[np.ndarray, "P T 108"], asset: FlameAsset, names: list[str], shapes: Float[np.ndarray, "K V 3"]
) -> Blendshapes:
    """Returns the nearest coefficients within 0..1, frame by frame.

    `shapes` are the user's, fully expressed: displacements in metres over the vertices of
    `asset`. Shapes that the user did not supply stay 0.
    """
    # The normal equations are small (K by K) and the same for every frame.
    basis = shapes.reshape(len(shapes), -1).T.astype(np.float64)
    gram = basis.T @ basis
    gram[np.diag_indices_from(gram)] += 1e-9 * np.trace(gram) / len(gram)  # a choice between equal shapes
    fitted, remaining, moved = [], 0.0, 0.0
    for piece in _displacements(motion, asset):
        flat = piece.reshape(len(piece), -1)
        weights = bounded_least_squares(gram, flat @ basis)
        fitted.append(weights)
        remaining += float(np.square(flat - weights @ basis.T).sum())
        moved += float(np.square(flat).sum())
    count = motion.shape[0] * motion.shape[1] * len(asset.v_template)
    coefficients = np.zeros((*motion.shape[:2], len(ARKIT_NAMES)))
    columns = [ARKIT_NAMES.index(name) for name in names]
    coefficients[..., columns] = np.concatenate(fitted).reshape(*motion.shape[:2], -1)
    # A basis with shapes for the gaze has fitted it: the angles would overwrite that.
    if not any(name.startswith("eyeLook") for name in names):
        _add_gaze(coefficients, motion)
    return Blendshapes(
        np.clip(coefficients, 0, 1).astype(np.float32),
        1000 * (remaining / count) ** 0.5,
        1000 * (moved / count) ** 0.5,
        _outside(coefficients),
    )


def _outside(coefficients: Float[np.ndarray, "P T 52"]) -> dict[str, float]:
    """Returns the value farthest outside 0..1 of each shape that leaves it."""
    flat = coefficients.reshape(-1, len(ARKIT_NAMES))
    excess = np.maximum(-flat, flat - 1)
    worst = excess.argmax(axis=0)
    return {
        name: float(flat[worst[k], k])
        for k, name in enumerate(ARKIT_NAMES)
        if excess[worst[k], k] > 1e-6  # rounding is no loss
    }


def bounded_least_squares(
    gram: Float[np.ndarray, "K K"], projected: Float[np.ndarray, "T K"]
) -> Float[np.ndarray, "T K"]:
    """Returns for every row the x in [0, 1]^K that minimises x G x / 2 - p x.

    Coordinate descent, until nothing moves.
    """
    weights = np.zeros_like(projected)
    gradient = -projected
    used = np.flatnonzero(np.diag(gram) > 0)  # a shape that moves nothing has no coefficient
    for _ in range(2000):
        largest = 0.0
        for k in used:
            target = np.clip(weights[:, k] - gradient[:, k] / gram[k, k], 0.0, 1.0)
            step = target - weights[:, k]
            weights[:, k] = target
            gradient += step[:, None] * gram[k]
            largest = max(largest, float(np.abs(step).max(initial=0)))
        if largest < 1e-7:
            break
    return weights


@functools.partial(jax.jit, static_argnums=0)
def _posed(asset: FlameAsset, motion: jax.Array) -> jax.Array:
    return vertices(asset, motion, head_rotation=False)


def _displacements(motion: np.ndarray, asset: FlameAsset, piece_frames: int = 200) -> Iterator[np.ndarray]:
    """Yields metres from the neutral face [t, V, 3], without head rotation and gaze.

    People follow one another.
    """
    frames = motion.reshape(-1, MOTION_DIM).astype(np.float32, copy=True)
    # Gaze turns the eyeballs, which no shape of the face can follow.
    frames[:, EYES] = 0.0
    neutral = np.asarray(_posed(asset, jnp.zeros((1, MOTION_DIM))), np.float64)
    for start in range(0, len(frames), piece_frames):
        piece = frames[start : start + piece_frames]
        yield np.asarray(_posed(asset, jnp.asarray(piece)), np.float64) - neutral


def _add_gaze(coefficients: np.ndarray, motion: np.ndarray) -> None:
    """Adds the eyes' angles as coefficients of the eight eyeLook shapes.

    A positive first component looks down, a positive second one to the person's left.
    """
    for side, name, inward in ((0, "Left", -1.0), (1, "Right", 1.0)):
        pitch, yaw = (motion[..., EYES.start + 2 * side + i] / GAZE_FULL for i in (0, 1))
        for what, value in (("Down", pitch), ("Up", -pitch), ("In", inward * yaw), ("Out", -inward * yaw)):
            coefficients[..., ARKIT_NAMES.index(f"eyeLook{what}{name}")] = np.maximum(value, 0)


def read_basis(path: str | os.PathLike, asset: FlameAsset) -> tuple[list[str], Float[np.ndarray, "K V 3"]]:
    """Reads the user's basis: an .npz with `names [K]` and `shapes [K, V, 3]`.

    Names are of `ARKIT_NAMES`; shapes are displacements in metres over the vertices of the head
    in use. Raises UserError, naming the file.
    """
    path = Path(path)
    arrays = read_npz_file(path, ("names", "shapes"))
    if set(arrays) != {"names", "shapes"}:
        raise UserError(f"{path} must hold the arrays `names` and `shapes`, got {', '.join(arrays) or 'neither'}")
    if arrays["names"].dtype.kind != "U" or arrays["names"].ndim > 1:
        raise UserError(
            f"{path}: names must be a list of text, got {arrays['names'].dtype} {list(arrays['names'].shape)}"
        )
    names, shapes = [str(name) for name in np.atleast_1d(arrays["names"])], arrays["shapes"]
    problems = []
    strange = [name for name in names if name not in ARKIT_NAMES]
    if strange:
        problems.append(f"names must be ARKit's, such as {ARKIT_NAMES[0]}; got {', '.join(map(ascii, strange[:3]))}")
    if len(set(names)) != len(names):
        problems.append("names must differ")
    expected = (len(names), len(asset.v_template), 3)
    if shapes.shape != expected:
        problems.append(
            f"shapes must be {list(expected)}, one displacement for each vertex of the {asset.name} head, "
            f"got {list(shapes.shape)}"
        )
    elif shapes.dtype.kind != "f" or not np.isfinite(shapes).all():
        problems.append("shapes must be finite floating numbers")
    elif np.abs(shapes).max(initial=0) > 0.2:
        problems.append(f"shapes must be in metres; the largest moves a vertex by {np.abs(shapes).max():.1f}")
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return names, shapes


def say_cuts(found: Blendshapes) -> None:
    """Warns of shapes that were cut at 0 and 1, the farthest first."""
    worst = sorted(found.cut.items(), key=lambda item: -abs(item[1] - 0.5))
    if worst:
        log.warning(
            "ARKit's shapes go from 0 to 1: %d of them are cut there, %s%s",
            len(worst),
            ", ".join(f"{name} at {value:.3g}" for name, value in worst[:3]),
            " and others" if len(worst) > 3 else "",
        )


def live_link_paths(path: str | os.PathLike, num_people: int) -> list[Path]:
    """Returns the files of people: `path` for one, NAME_person1.csv and so on for several."""
    path = Path(path)
    if num_people == 1:
        return [path]
    return [path.with_name(f"{path.stem}_person{p + 1}{path.suffix}") for p in range(num_people)]


def write_live_link(
    path: str | os.PathLike,
    coefficients: Float[np.ndarray, "P T 52"],
    motion: Float[np.ndarray, "P T 108"],
    fps: int = round(FPS),
) -> list[Path]:
    """Writes one table a person, whole or not at all; returns their paths.

    `coefficients` are in the order of `ARKIT_NAMES`; the angles are those of `motion`. Row t has
    the timecode of t / fps seconds.
    """
    columns = [ARKIT_NAMES.index(name) for name in _ORDER]
    paths = live_link_paths(path, len(motion))
    for file_path, shapes, person in zip(paths, coefficients, motion, strict=True):
        rows = np.concatenate([shapes[:, columns], angles(person)], axis=1)
        with atomic_output(file_path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["Timecode", "BlendShapeCount", *COLUMNS])
            for t, row in enumerate(rows):
                writer.writerow([_timecode(t, fps), len(COLUMNS), *(f"{value:.8f}" for value in row)])
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


def _timecode(frame: int, fps: int) -> str:
    """Returns hours, minutes, seconds and frames; the last part is thousandths of a frame."""
    seconds, rest = divmod(frame, fps)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}.000"
