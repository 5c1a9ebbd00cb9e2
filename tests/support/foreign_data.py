"""Published layouts as tests make them: the release's LMDB with its index, DualTalk folders, folders of our files."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import soundfile

from unils_jax.motion import SAMPLES_PER_FRAME, save_motion


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    """An .npz archive."""
    buffer = io.BytesIO()
    save: Callable = np.savez_compressed if compressed else np.savez
    save(buffer, **arrays)
    return buffer.getvalue()


def talking(frames: int, seed: int, offset_frames: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jaw `[frames]`, audio `[frames * 640]` in -1..1 and mask: bursts of voice that the jaw follows.

    The jaw comes `offset_frames` after the voice.
    """
    rng = np.random.default_rng(seed)
    times = np.arange(frames * 4)
    loudness = np.clip(
        np.sin(2 * np.pi * times / 31.7 + rng.uniform(0, 6)) + 0.5 * rng.standard_normal(len(times)), 0, 1
    )
    loudness = np.convolve(loudness, np.ones(7) / 7, "same")
    voiced = np.sin(times / 4 / 23 + rng.uniform(0, 6)) > -0.3
    loudness = loudness * voiced
    carrier = rng.standard_normal(frames * SAMPLES_PER_FRAME) * 0.2
    audio = np.repeat(loudness, SAMPLES_PER_FRAME // 4) * carrier
    jaw = np.roll(loudness.reshape(frames, 4).mean(axis=1), offset_frames) * 0.3
    return jaw, np.clip(audio, -1, 1).astype(np.float32), voiced.reshape(frames, 4).all(axis=1)


def motioncode(frames: int, seed: int, *, dtype: type = np.float16, channels: int = 112, offset_frames: int = 0):
    """A release record's motion `[frames, channels]`: smooth expression, head, jaw that follows `talking`, eyes."""
    rng = np.random.default_rng([seed, 1])
    knots = rng.standard_normal((frames // 8 + 2, channels)) * 0.4
    places = np.arange(frames) / 8
    code = np.stack([np.interp(places, np.arange(len(knots)), column) for column in knots.T], axis=1)
    code[:, 100:111] *= 0.3
    code[:, 103] = talking(frames, seed, offset_frames)[0]
    return code.astype(dtype)


def release_value(frames: int, seed: int, *, audio: str = "float32", mask: bool = True, **options: Any) -> bytes:
    """A value of the dialogue set; `audio` is its dtype, "" for the unpaired set's value."""
    compressed = options.pop("compressed", False)
    arrays: dict[str, Any] = {"motioncode": motioncode(frames, seed, **options)}
    _, samples, speaks = talking(frames, seed)
    if audio:
        arrays["audio"] = (samples * 32767).astype(np.int16) if audio == "int16" else samples.astype(audio)
    if mask:
        arrays["speech_mask"] = speaks.astype(np.float32)
    return npz(compressed, **arrays)


def write_lmdb(folder: Path, values: dict[str, bytes], index: dict[str, Any]) -> tuple[Path, Path]:
    """An LMDB of `values` and `index.json` beside it; returns both paths."""
    folder.mkdir(parents=True)
    size = sum(map(len, values.values())) * 2 + (4 << 20)
    with lmdb.open(str(folder / "lmdb"), map_size=size) as env, env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    (folder / "index.json").write_text(json.dumps(index))
    return folder / "lmdb", folder / "index.json"


def dualtalk_arrays(frames: int, seed: int) -> dict[str, np.ndarray]:
    """What a DualTalk .npz holds of one person."""
    code = motioncode(frames, seed, dtype=np.float32)
    rng = np.random.default_rng([seed, 2])
    others = {"shape": (frames, 100), "tex": (frames, 50), "cam": (frames, 3), "light": (frames, 9, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in others.items()}
    return {"exp": code[:, :50], "pose": code[:, 100:106], **arrays}


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> None:
    """A float wav; channels last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")


def write_dualtalk(folder: Path, name: str, frames: int, seed: int, *, speakers: str = "12", silent: str = "") -> None:
    """`NAME_speakerK.npz` and `.wav`, in a split's folder; the speakers in `silent` have no .npz."""
    for speaker in speakers:
        own = seed * 10 + int(speaker)
        write_wav(folder / f"{name}_speaker{speaker}.wav", talking(frames, own)[1])
        if speaker not in silent:
            np.savez(folder / f"{name}_speaker{speaker}.npz", **dualtalk_arrays(frames, own))


def write_motion(path: Path, people: int, frames: int, seed: int, basis: str = "flame") -> np.ndarray:
    """A motion file of ours; returns its motion `[P, T, 108]`."""
    codes = [motioncode(frames, seed * 10 + person, dtype=np.float32) for person in range(people)]
    motion = np.stack([np.concatenate([c[:, :104], c[:, 106:108], c[:, 109:111]], axis=1) for c in codes])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_motion(path, motion, expression_basis=basis, source={"made": "by a test"})
    return motion
