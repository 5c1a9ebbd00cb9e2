"""Clips of face trackers as tests make them: one motion in the arrays and files of each tracker."""

import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from pt_writer import write_pt
from scipy.spatial.transform import Rotation

from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW


def truth(seconds: float, fps: float, seed: int = 0) -> np.ndarray:
    """Smooth motion `[T, 108]` float64 at a rate: the same function of time at every rate."""
    times = np.arange(round(seconds * fps)) / fps
    rng = np.random.default_rng(seed)
    rates, phases = rng.uniform(0.2, 1.5, 108), rng.uniform(0, 6, 108)
    waves = np.sin(2 * np.pi * times[:, None] * rates + phases)
    scale = np.full(108, 0.6)
    scale[HEAD], scale[JAW], scale[EYES] = 0.25, 0.15, 0.1
    return waves * scale


def rotvec(motion: np.ndarray, part: str) -> np.ndarray:
    """A part of the motion as rotation vectors `[T, 3]`."""
    channels = {"head": HEAD, "jaw": JAW, "left": slice(104, 106), "right": slice(106, 108)}[part]
    out = np.zeros((len(motion), 3))
    values = motion[:, channels]
    out[:, : values.shape[1]] = values
    return out


def matrix(vectors: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(vectors).as_matrix()


def six(vectors: np.ndarray) -> np.ndarray:
    """The first two rows of the matrices."""
    return matrix(vectors)[:, :2].reshape(-1, 6)


def deca(motion: np.ndarray) -> dict:
    pose = np.concatenate([rotvec(motion, "head"), rotvec(motion, "jaw")], axis=1)
    frames = len(motion)
    return {
        "exp": motion[:, :50],
        "pose": pose,
        "shape": np.ones((frames, 100)),
        "tex": np.zeros((frames, 50)),
        "cam": np.ones((frames, 3)),
    }


def emoca(motion: np.ndarray) -> dict:
    arrays = deca(motion)
    return {"expcode": arrays["exp"], "posecode": arrays["pose"], "shapecode": arrays["shape"]}


def smirk(motion: np.ndarray) -> dict:
    return {
        "expression_params": motion[:, :50],
        "pose_params": rotvec(motion, "head"),
        "jaw_params": rotvec(motion, "jaw"),
        "eyelid_params": np.full((len(motion), 2), 0.3),
        "shape_params": np.ones((len(motion), 300)),
    }


def emica(motion: np.ndarray) -> dict:
    return {"expcode": motion[:, EXPRESSION], "globalpose": rotvec(motion, "head"), "jawpose": rotvec(motion, "jaw")}


def mica(motion: np.ndarray) -> dict:
    eyes = np.concatenate([six(rotvec(motion, "left")), six(rotvec(motion, "right"))], axis=1)
    facing = np.diag([-1.0, 1.0, -1.0])
    return {
        "flame": {"exp": motion[:, EXPRESSION], "jaw": six(rotvec(motion, "jaw")), "eyes": eyes},
        "camera": {"R": (facing @ matrix(rotvec(motion, "head"))).transpose(0, 2, 1)[:, :2].reshape(-1, 6)},
    }


def vhap(motion: np.ndarray) -> dict:
    eyes = np.concatenate([rotvec(motion, "left"), rotvec(motion, "right")], axis=1)
    neck = np.tile([0.02, -0.03, 0.01], (len(motion), 1))
    head = Rotation.from_rotvec(rotvec(motion, "head")) * Rotation.from_rotvec(neck).inv()
    return {
        "expr": motion[:, EXPRESSION],
        "rotation": head.as_rotvec(),
        "neck_pose": neck,
        "jaw_pose": rotvec(motion, "jaw"),
        "eyes_pose": eyes,
        "translation": np.zeros((len(motion), 3)),
        "static_offset": np.zeros((1, 5, 3)),
    }


def flame(motion: np.ndarray) -> dict:
    return {
        "expression": motion[:, EXPRESSION],
        "global_orient": matrix(rotvec(motion, "head")),
        "jaw_pose": matrix(rotvec(motion, "jaw")),
        "leye_pose": matrix(rotvec(motion, "left")),
        "reye_pose": matrix(rotvec(motion, "right")),
    }


def general(motion: np.ndarray) -> dict:
    """Names of no tracker: quaternions, degrees nowhere, 300 coefficients, a jaw of one angle."""
    wider = np.concatenate([motion[:, EXPRESSION], np.zeros((len(motion), 200))], axis=1)
    return {
        "exp_params": wider,
        "head_rotation": Rotation.from_rotvec(rotvec(motion, "head")).as_quat(),
        "jaw": motion[:, JAW][:, 0],
        "eyes": motion[:, EYES],
    }


# Tracker -> its arrays of a motion, and the channels that they have.
TRACKERS: dict[str, tuple[Callable[[np.ndarray], dict], list[int]]] = {
    "deca": (deca, [*range(50), *range(100, 104)]),
    "emoca": (emoca, [*range(50), *range(100, 104)]),
    "smirk": (smirk, [*range(50), *range(100, 104)]),
    "emica": (emica, [*range(104)]),
    "mica": (mica, [*range(108)]),
    "vhap": (vhap, [*range(108)]),
    "flame": (flame, [*range(108)]),
    "general": (general, [*range(108)]),
}


def flat(arrays: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of dicts inside dicts by paths of names."""
    out = {}
    for key, value in arrays.items():
        out |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def frame(arrays: dict, i: int) -> dict:
    """The arrays of one frame, a row each."""
    return {key: frame(v, i) if isinstance(v, dict) else v[i : i + 1] for key, v in arrays.items()}


def listed(arrays: dict) -> dict:
    return {key: listed(v) if isinstance(v, dict) else v.tolist() for key, v in arrays.items()}


def write_pictures(path: Path, count: int, rate: Fraction = Fraction(25), drop: Sequence[int] = ()) -> None:
    """Writes a video of black pictures without sound; those of `drop` are left out, a variable rate."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=rate)
        video.width = video.height = 32
        for i in (i for i in range(count) if i not in drop):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, 1 / rate
            container.mux(video.encode(picture))
        container.mux(video.encode(None))


def write_clip(folder: Path, name: str, arrays: dict, form: str = "npz") -> None:
    """Writes a clip in one of the forms in which trackers leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = len(next(iter(flat(arrays).values())))
    if form == "npz":
        np.savez(folder / f"{name}.npz", **{key.replace("/", "|"): value for key, value in flat(arrays).items()})
    elif form == "pkl":
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(arrays))
    elif form == "json":
        (folder / f"{name}.json").write_text(json.dumps(listed(arrays)))
    elif form == "pt":
        write_pt(folder / f"{name}.pt", {key: np.float32(value) for key, value in arrays.items()})
    elif form == "frame":
        # torch.save of NumPy's arrays.
        with zipfile.ZipFile(folder / f"{name}.frame", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(arrays, protocol=2))
    elif form == "json frames":
        (folder / f"{name}.json").write_text(json.dumps([listed(frame(arrays, i)) for i in range(frames)]))
    elif form == "arrays":
        (folder / name).mkdir()
        for key, value in flat(arrays).items():
            np.save(folder / name / f"{key}.npy", value)
    else:
        (folder / name).mkdir()
        for i in range(frames):
            write_clip(folder / name, f"{i + 1:05d}", frame(arrays, i), form.removesuffix(" frames"))
