"""The UniLS family of metrics of the paper's table, per sequence and per role.

A sequence is one person's prediction and truth, un-normalised motion of equal length. Roles are
masks over its frames: `speaking`, `listening` (the rest) and `both` (all). An undefined value is
NaN: fewer than two frames of a role, NaN in the input. Vertices are computed in pieces, so that the
meshes of a long conversation are never in memory together.

Source: the paper's section on metrics and the release's evaluation for LVE, MHD, FDD, PDD and JDD.
The release's code lacks F-FID and P-FID; `expression_fid` and `pose_fid` are our definition of
them, see `statistics.Moments`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from unils_jax.motion import HEAD, JAW

ROLES = ("speaking", "listening", "both")
MESH_METRICS = ("LVE", "MHD", "FDD")
POSE_METRICS = ("PDD", "JDD")
CHUNK_FRAMES = 100

# Frames [t, 108] -> vertices [t, V, 3] in metres, identity zero, without head rotation.
Vertices = Callable[[Float[np.ndarray, "t 108"]], Any]


@dataclass(frozen=True)
class Mesh:
    """A head to measure on; an index that a list holds twice counts twice."""

    vertices: Vertices
    lips: Int[np.ndarray, " n"]  # indices of vertices
    upper_face: Int[np.ndarray, " m"]


def role_masks(speaking: Bool[np.ndarray, " T"]) -> dict[str, Bool[np.ndarray, " T"]]:
    """Returns the mask of frames of each role."""
    return {"speaking": speaking, "listening": ~speaking, "both": np.ones_like(speaking)}


def unils_metrics(
    prediction: Float[np.ndarray, "T 108"],
    truth: Float[np.ndarray, "T 108"],
    speaking: Bool[np.ndarray, " T"],
    mesh: Mesh | None = None,
    vertices: Float[np.ndarray, "T V 3"] | None = None,
) -> dict[str, dict[str, float]]:
    """Returns LVE, MHD, FDD, PDD and JDD of each role; PDD and JDD alone without a mesh.

    - LVE, mm: root of the mean over frames of the largest squared distance of a lip vertex.
    - MHD, mm: root of the mean squared distance over frames and all vertices.
    - FDD, 0.01 mm: mean over upper-face vertices of |deviation of x+y+z over time, prediction less
      truth|.
    - PDD, JDD, 0.01 rad: the same for the head rotation's three channels and for the jaw.

    Deviations are unbiased, so that at least two frames are needed. The paper reports speaking LVE,
    MHD, FDD, PDD, JDD and listening FDD, PDD, JDD.

    Args:
        prediction: Motion to score.
        truth: What the person did.
        speaking: Frames of the role `speaking`.
        mesh: A head to measure on.
        vertices: Of the prediction, in metres and without head rotation; None: those of the mesh.
    """
    masks = role_masks(speaking)
    scores = {role: _pose_metrics(prediction[mask], truth[mask]) for role, mask in masks.items()}
    if mesh is not None:
        for role, values in _mesh_metrics(prediction if vertices is None else vertices, truth, masks, mesh).items():
            scores[role] = values | scores[role]
    return scores


def _pose_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {
        name: 100 * deviation_difference(prediction[:, channels], truth[:, channels])
        for name, channels in zip(POSE_METRICS, (HEAD, JAW), strict=True)
    }


def deviation_difference(prediction: Float[np.ndarray, "T C"], truth: Float[np.ndarray, "T C"]) -> float:
    """Returns the mean over channels of |deviation over time, prediction less truth|.

    Deviations are unbiased; NaN below two frames.
    """
    if len(prediction) < 2:
        return float("nan")
    deviations = [np.asarray(x, np.float64).std(axis=0, ddof=1) for x in (prediction, truth)]
    return float(np.abs(deviations[0] - deviations[1]).mean())


class _Deviation:
    """Unbiased deviation over time per column, fed piece by piece."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, np.zeros(()), np.zeros(())

    def add(self, frames: np.ndarray) -> None:
        count = len(frames)
        if not count:
            return
        # Chan's update of mean and squares: as exact as all frames at once, without keeping them.
        mean = frames.mean(axis=0)
        step, total = mean - self.mean, self.count + count
        self.squares = self.squares + ((frames - mean) ** 2).sum(axis=0) + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def value(self) -> np.ndarray:
        return np.sqrt(self.squares / (self.count - 1))


def _mesh_metrics(
    prediction: np.ndarray, truth: np.ndarray, masks: dict[str, np.ndarray], mesh: Mesh
) -> dict[str, dict[str, float]]:
    lip_errors, mean_errors = np.zeros(len(truth)), np.zeros(len(truth))
    deviations = {role: (_Deviation(), _Deviation()) for role in masks}
    for frames, predicted, true in _vertex_pieces(prediction, truth, mesh.vertices):
        squared = ((predicted - true) ** 2).sum(axis=-1, dtype=np.float64)
        lip_errors[frames] = squared[:, mesh.lips].max(axis=1)
        # The mean of squared distances divides by vertices, not by coordinates.
        mean_errors[frames] = squared.mean(axis=1)
        sums = [x[:, mesh.upper_face].sum(axis=-1, dtype=np.float64) for x in (predicted, true)]
        for role, mask in masks.items():
            for deviation, values in zip(deviations[role], sums, strict=True):
                deviation.add(values[mask[frames]])
    scores = {}
    for role, mask in masks.items():
        values = dict.fromkeys(MESH_METRICS, float("nan"))
        if mask.sum() >= 2:
            first, second = (deviation.value() for deviation in deviations[role])
            values = {
                "LVE": float(np.sqrt(lip_errors[mask].mean())),
                "MHD": float(np.sqrt(mean_errors[mask].mean())),
                "FDD": float(100 * np.abs(first - second).mean()),
            }
        scores[role] = values
    return scores


def _vertex_pieces(
    prediction: np.ndarray, truth: np.ndarray, vertices: Vertices
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yields frames and both sides' vertices in millimetres; a side may be vertices already.

    Every piece has one length, so that a jit compiles once.
    """
    for start in range(0, len(truth), CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, len(truth))
        pieces = []
        for motion in (prediction, truth):
            piece = np.asarray(motion[start:stop], np.float32)
            if piece.ndim == 3:
                pieces.append(piece * np.float32(1000))
                continue
            # Edge frames fill the last piece: any motion would do, for their vertices are cut off.
            padded = np.pad(piece, ((0, CHUNK_FRAMES - len(piece)), (0, 0)), mode="edge")
            pieces.append(np.asarray(vertices(padded))[: stop - start] * np.float32(1000))
        yield slice(start, stop), *pieces
