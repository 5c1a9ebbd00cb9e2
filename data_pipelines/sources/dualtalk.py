"""A folder in DualTalk's layout: `NAME_speakerK.wav` and `NAME_speakerK.npz` of two people, 25 fps.

Its motion has 50 expression channels, the head's rotation and the jaw's; the expression channels it
lacks and the eyes are zero and marked as not observed. A person without motion is kept with the
audio alone.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.sources.base import (
    PARTNER,
    Entry,
    Reading,
    Shares,
    SkippedEntry,
    Track,
    assemble,
    listed_digest,
    mix_sound,
    read_people,
    split_of_files,
)
from unils_jax.errors import UserError
from unils_jax.files import read_npz_file
from unils_jax.motion import HEAD, JAW, MOTION_DIM

EXPRESSION_DIM, POSE_DIM = 50, 6
OBSERVED = np.zeros(MOTION_DIM, bool)
OBSERVED[:EXPRESSION_DIM] = OBSERVED[HEAD] = OBSERVED[JAW] = True
TOLD_JAW = 0.05  # rad; what is left out beyond it is told for each record
_FILE = re.compile(r"(.+)_speaker([12])\.(npz|wav)")


@dataclass(frozen=True)
class DualTalkSource:
    """A folder with the splits' folders inside, or of one split, or split by hashes of names."""

    folder: Path
    split: str = ""  # the split of the whole folder; "": by the folders inside, or by hashes
    shares: Shares | None = None  # of train, val and test where hashes split; None: 80/10/10

    def describe(self) -> dict[str, Any]:
        """Returns a checksum of the names and sizes of all files."""
        return {"layout": "dualtalk", "files": listed_digest(self.folder, self.entries())}

    def notes(self) -> tuple[str, ...]:
        """Returns a sentence on what no record of this layout keeps."""
        return ("the jaw keeps the first of its three components, the opening; the other two are left out",)

    def entries(self) -> list[Entry]:
        """Lists all conversations by name. Raises UserError where the folder holds none."""
        entries = split_of_files(self.folder, self.split, _FILE, self.shares)
        if not entries:
            raise UserError(
                f"{self.folder} holds no NAME_speaker1.wav or .npz; give DualTalk's folder, or one split of it"
            )
        return entries

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Entry], Reading]]:
        """Returns the reader; files are opened one by one."""
        yield self._read

    def _read(self, entry: Entry) -> Reading:
        people = read_people(self.folder, entry, _FILE, read_clip, num_frames=lambda clip: len(clip.motion))
        motions, sounds, frames, notices = people
        silent = [speaker for speaker in "12" if speaker not in sounds]
        if silent:
            raise SkippedEntry(PARTNER, f"no wav of speaker {' and '.join(silent)}", frames)
        tracks = [
            Track(
                motions[speaker].motion if speaker in motions else None,
                mix_sound(entry, sounds[speaker], notices),
                observed=OBSERVED if speaker in motions else None,
            )
            for speaker in "12"
        ]
        for speaker, clip in motions.items():
            if clip.lost_jaw > TOLD_JAW:
                notices.append(
                    f"the jaw of speaker {speaker} turns sideways by up to {clip.lost_jaw:.2f} rad, which is left out"
                )
        reading = assemble(entry, tracks, expression_basis="flame", source="dualtalk")
        return reading._replace(notices=tuple(notices))


class Clip(NamedTuple):
    """A person's motion, and what of it has no channel."""

    motion: np.ndarray  # [T, 108] float32
    lost_jaw: float  # the largest second or third component of the jaw's rotation, rad


def read_clip(path: Path) -> Clip:
    """Reads the 108 channels of a DualTalk .npz.

    It holds `exp [T, 50]` and `pose [T, 6]` (head 3, jaw 3). The jaw keeps the first component of
    its rotation, as everywhere here. Raises UserError for another layout.
    """
    arrays = read_npz_file(path, ("exp", "pose"))
    shapes = {name: array.shape for name, array in arrays.items() if array.dtype.kind == "f"}
    num_frames = shapes.get("exp", (0,))[0] if shapes.get("exp") else 0
    if shapes != {"exp": (num_frames, EXPRESSION_DIM), "pose": (num_frames, POSE_DIM)}:
        found = {name: f"{array.dtype} {list(array.shape)}" for name, array in arrays.items()} or "neither"
        raise UserError(f"{path} must hold float exp [T, 50] and pose [T, 6], got {found}")
    motion = np.zeros((num_frames, MOTION_DIM), np.float32)
    motion[:, :EXPRESSION_DIM] = arrays["exp"]
    motion[:, HEAD] = arrays["pose"][:, :3]
    motion[:, JAW] = arrays["pose"][:, 3:4]
    return Clip(motion, float(np.abs(arrays["pose"][:, 4:]).max(initial=0)))
