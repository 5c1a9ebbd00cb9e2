"""Seamless Interaction's files as tests make them: a body whose head turns as is known."""

import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from scipy.spatial.transform import Rotation

JOINTS = (2, 5, 8, 11)  # spine and neck in body_pose; the head is 14


def true_head(seconds: float, fps: float, seed: int = 0) -> np.ndarray:
    """The head's rotation in FLAME's axes `[T, 3]`, upright and towards the camera but for waves."""
    times = np.arange(round(seconds * fps)) / fps
    rng = np.random.default_rng([seed, 5])
    return 0.25 * np.sin(2 * np.pi * times[:, None] * rng.uniform(0.1, 0.6, 3) + rng.uniform(0, 6, 3))


def features(seconds: float, seed: int = 0, lost: slice = slice(0)) -> dict[str, np.ndarray]:
    """The arrays of a feature file; the frames `lost` hold another pose and are flagged."""
    rng, head = np.random.default_rng(seed), true_head(seconds, 30, seed)
    count = len(head)
    body = rng.uniform(-0.3, 0.3, (1, 21, 3)) + rng.normal(0, 0.05, (count, 21, 3))
    # An upright person seen by a camera whose y points down: half a turn about x, and some swaying.
    orient = Rotation.from_euler("x", 180, degrees=True) * Rotation.from_rotvec(rng.normal(0, 0.1, (count, 3)))
    matrices = np.diag([1.0, -1.0, -1.0]) @ orient.as_matrix()
    for joint in JOINTS:
        matrices = matrices @ Rotation.from_rotvec(body[:, joint]).as_matrix()
    wanted = Rotation.from_rotvec(head).as_matrix()
    body[:, 14] = Rotation.from_matrix(matrices.transpose(0, 2, 1) @ wanted).as_rotvec()
    valid = np.ones(count, bool)
    valid[lost], body[lost] = False, 9.0
    hands = np.zeros((count, 15, 3), np.float32)
    return {
        "boxes_and_keypoints:keypoints": np.zeros((count, 4, 3), np.float32),
        "movement:FAUValue": np.ones((count, 24), np.float32),
        "movement:alignment_head_rotation": np.zeros((count, 3), np.float32),
        "movement:emotion_scores": np.zeros((count, 8), np.float32),
        "movement:expression": np.ones((count, 128), np.float32),
        "movement:gaze_encodings": np.zeros((count, 2), np.float32),
        "movement:is_valid": np.ones((count, 1), np.float32),
        "smplh:body_pose": body,
        "smplh:global_orient": orient.as_rotvec(),
        "smplh:is_valid": valid,
        "smplh:left_hand_pose": hands,
        "smplh:right_hand_pose": hands,
        "smplh:translation": np.zeros((count, 3), np.float32),
    }


def write_participant(
    folder: Path, file_id: str, seconds: float = 5.0, *, seed: int = 0, turns=((0.5, 2.0),), lost: slice = slice(0)
) -> np.ndarray:
    """Writes the .wav, .npz and .json of a participant; returns the sound at 48 kHz."""
    folder.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * 48000)) / 48000
    sound = 0.2 * np.sin(2 * np.pi * (200 + 100 * seed) * times)
    soundfile.write(folder / f"{file_id}.wav", sound, 48000, subtype="PCM_16")
    np.savez(folder / f"{file_id}.npz", **features(seconds, seed, lost))
    vad = [{"start": start, "end": end} for start, end in turns]
    said = [{"start": 0.5, "end": 2.0, "transcript": "well", "words": []}]
    text = json.dumps({"id": file_id, "metadata:transcript": said, "metadata:vad": vad})
    (folder / f"{file_id}.json").write_text(text)
    return sound


def pack(folder: Path, archive: Path) -> None:
    """Moves the files of a folder into an archive, as a batch of the download has them."""
    with tarfile.open(archive, "w") as packed:
        for file in sorted(folder.iterdir()):
            packed.add(file, file.name)
            file.unlink()
    folder.rmdir()
