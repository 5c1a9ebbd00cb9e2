"""Motion files to score: our own, and what other systems publish, as parameters or as vertices."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.spatial.transform import Rotation

from data_pipelines.resampling import check_rate, positions
from data_pipelines.sources.tracking import TrackOptions, mapping_of
from data_pipelines.store.reader import Store
from data_pipelines.tracks.files import SUFFIXES, Arrays, read_clip
from data_pipelines.tracks.mapping import Mapping
from data_pipelines.tracks.motion import extract
from data_pipelines.tracks.pieces import even_times, on_grid
from unils_jax.errors import UserError, shown
from unils_jax.evaluation.protocols import Conversation, Prediction, Protocol
from unils_jax.evaluation.unils_metrics import CHUNK_FRAMES, Mesh
from unils_jax.files import npz_names
from unils_jax.inference.finishing import window_frames_of
from unils_jax.motion import FPS, GROUPS, MOTION_DIM, Window, load_motion

log = logging.getLogger(__name__)

VERTEX_KEYS = ("array", "vertices", "verts")  # of a .npy, and in a .npz
_SIZES, _MAX_TURN, _MAX_OFFSET_M = (0.8, 1.25), np.deg2rad(8), 0.03  # of vertices, against the head at rest
_MAX_GAP_S = 0.01  # between frames at times of their own, beyond their usual distance
_CHECKED = 40  # frames of a file whose vertices are compared with the head

Read = Callable[[Conversation, int], Prediction]


class _Person(NamedTuple):
    """One person's file at 25 frames a second."""

    motion: Float32[np.ndarray, "T 108"]
    observed: Bool[np.ndarray, " 108"]
    vertices: Float32[np.ndarray, "T V 3"] | None


class FolderMotion:
    """Motion files of any system, named as the records of a store.

    `NAME.npz` is a motion file of ours. Any layout of a tracker (see docs/data.md), or vertices of
    the head, are one person a file: `NAME`, or `NAME_speaker1` and `NAME_speaker2`.
    """

    needs_audio = False
    system = None
    dtype: str | None = None
    window = Window()

    def __init__(self, folder: Path, store: Store, options: TrackOptions):
        self.folder, self.store, self.name, self.options = folder, store, str(folder), options
        self.source: dict[str, Any] = {}
        self.state = "unknown"
        self._files: dict[str, list[Path]] = {}
        self._mapping: Mapping | None = None
        self._rest: np.ndarray | None = None  # vertices of the head at rest
        self._upper_face: np.ndarray | None = None  # indices of those that no jaw moves
        self._missing = np.zeros(MOTION_DIM, bool)
        self._of_vertices = self._assumed_rate = False

    def open(self, protocol: Protocol, names: Sequence[str], mesh: Mesh | None) -> Read:
        """Returns what reads a conversation's motion. Raises UserError where files are missing."""
        self._files = {name: self._files_of(name, protocol.num_people) for name in names}
        missing = [name for name, files in self._files.items() if not files]
        if missing:
            several = protocol.num_people > 1
            listed = ", ".join(f"{name}.npz" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise UserError(
                f"{self.folder} lacks {len(missing)} of {len(names)} motion files: {listed}"
                f"{' (of other systems: a file a person, NAME_speaker1 and NAME_speaker2)' if several else ''}; "
                "make them, or score fewer with --limit"
            )
        first = self._files[names[0]][0]
        if _is_ours(first):
            file = load_motion(first)
            self.source, self.state = file.source, "finished" if file.finished else "raw"
        if mesh is not None:
            # As many frames as the metrics pose at a time, so that it compiles once.
            self._rest = np.asarray(mesh.vertices(np.zeros((CHUNK_FRAMES, MOTION_DIM), np.float32)))[0]
            self._upper_face = np.unique(mesh.upper_face)
        return lambda conversation, seed: self._read(self._files[conversation.name])

    def window_frames(self, name: str) -> int:
        """Returns the frames of the windows that a conversation's file says it was decoded in."""
        path = self._files[name][0]
        return window_frames_of(load_motion(path).source if _is_ours(path) else {})

    def bits_changed(self, settings: object, store: Store, conversations: int) -> None:
        """Returns None: nothing is decoded here."""

    def notes(self) -> list[str]:
        """Returns what was read of other systems' files, and what they lack, a sentence each."""
        notes = []
        if self._mapping is not None:
            parts = ", ".join(f"{part} from {column}" for part, column in self._mapping.parts.items())
            notes.append(f"The motion files are of the layout {self._mapping.layout}: {parts}.")
        if self._of_vertices:
            notes.append("The motion files hold vertices: LVE, MHD and FDD are of them, all else is left out.")
        elif self._missing.any():
            notes.append(
                f"The motion files lack {_listed(self._missing)}: figures are of the channels that motion and truth "
                "both have, and those that rest on a group without any are left out."
            )
        if self._assumed_rate:
            notes.append(f"Motion files that name no rate are taken to have {FPS:g} frames/s; --fps says otherwise.")
        return notes

    def _files_of(self, name: str, num_people: int) -> list[Path]:
        """Returns the file of a record, or one for each person; [] where one is missing."""
        alone = self._find(name)
        if alone is not None and (num_people == 1 or _is_ours(alone)):
            return [alone]
        files = [self._find(f"{name}_speaker{k + 1}") for k in range(num_people)]
        return [file for file in files if file is not None] if None not in files else []

    def _find(self, stem: str) -> Path | None:
        paths = [self.folder / f"{stem}.{suffix}" for suffix in SUFFIXES]
        found = [path for path in paths if path.is_file()] + [p for p in (self.folder / stem,) if p.is_dir()]
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1].name} both hold the motion of {shown(stem)}; keep one")
        return found[0] if found else None

    def _read(self, paths: Sequence[Path]) -> Prediction:
        if _is_ours(paths[0]):
            file = load_motion(paths[0])
            check_basis(paths[0], file.expression_basis, self.store)
            return Prediction(file.motion)
        people = [self._person(path) for path in paths]
        kinds = {person.vertices is None for person in people}
        if len(kinds) > 1:
            raise UserError(f"{paths[0]} and {paths[1].name} must both hold vertices, or neither; give one kind")
        # The files of one conversation may differ by a frame.
        frames = min(len(person.motion) for person in people)
        observed = np.stack([person.observed for person in people])
        self._missing |= ~observed.all(axis=0)
        vertices = [person.vertices[:frames] for person in people if person.vertices is not None]
        motion = np.stack([person.motion[:frames] for person in people])
        return Prediction(motion, observed, np.stack(vertices) if vertices else None)

    def _person(self, path: Path) -> _Person:
        arrays = read_clip(path)
        vertices = next((arrays[key] for key in VERTEX_KEYS if _are_vertices(arrays.get(key))), None)
        try:
            return self._parameters(path, arrays) if vertices is None else self._vertices(arrays, vertices)
        except UserError as error:
            told = str(error)
            raise UserError(told if str(path) in told else f"{path}: {told}") from None

    def _parameters(self, path: Path, arrays: Arrays) -> _Person:
        """Brings a file of a tracker's layout to 25 frames a second, its channels marked."""
        check_basis(path, "flame", self.store)
        if self._mapping is None:
            clips = [file for files in self._files.values() for file in files if not _is_ours(file)]
            self._mapping = mapping_of(clips, self.options)
            if self._mapping.problems:
                raise UserError("; ".join(self._mapping.problems))
        clip = extract(arrays, self._mapping)
        for notice in clip.notices:
            log.warning("%s: %s", path, notice)
        times = clip.times
        if times is None or self.options.fps is not None:
            times = even_times(len(clip.values), self._rate(clip.fps))
        grid = on_grid(clip.values, clip.valid, times, _MAX_GAP_S)
        # A system gives all frames: a gap is damage, and what fills it would be scored.
        if not (clip.valid.all() and grid.covered.all()):
            lost = int(np.argmin(clip.valid)) if not clip.valid.all() else "after a gap in its times"
            raise UserError(f"it must give every frame, the first without motion is {lost}; mend the file")
        # What is zero from end to end was never predicted: systems without a head write zeros.
        observed = clip.observed & grid.motion.any(axis=0)
        if not observed.any():
            raise UserError("it holds nothing but zeros; give the motion that the system predicts")
        return _Person(grid.motion, observed, None)

    def _vertices(self, arrays: Arrays, vertices: np.ndarray) -> _Person:
        """Brings vertices `[T, V, 3]` or `[T, 3 V]` in metres to 25 frames a second."""
        if self._rest is None or self._upper_face is None:
            raise UserError("it holds vertices, which are measured on a head; give --flame generic_model.pkl")
        frames = vertices.reshape(-1, vertices.shape[-2] if vertices.shape[-1] == 3 else vertices.shape[-1] // 3, 3)
        if frames.shape[1] != len(self._rest):
            raise UserError(f"it holds {frames.shape[1]} vertices, the head has {len(self._rest)}; give the same mesh")
        if frames.dtype.kind != "f" or not np.isfinite(frames).all():
            raise UserError("its vertices must be finite floating numbers; mend the file")
        rate = arrays.get("fps")
        place = positions(len(frames), self._rate(None if rate is None or rate.size != 1 else float(rate.item())))
        before = place.astype(int)
        after, amount = np.minimum(before + 1, len(frames) - 1), (place - before)[:, None, None]
        frames = (frames[before] + amount * (frames[after] - frames[before])).astype(np.float32)
        _check_pose(frames[:: max(1, len(frames) // _CHECKED)], self._rest, self._upper_face)
        self._of_vertices = True
        return _Person(np.zeros((len(frames), MOTION_DIM), np.float32), np.zeros(MOTION_DIM, bool), frames)

    def _rate(self, named: float | None) -> float:
        """Returns the frames a second by flag, file, or 25, which the report then says."""
        rate = named if self.options.fps is None else self.options.fps
        self._assumed_rate |= rate is None
        return FPS if rate is None else check_rate(rate, "fps")


def check_basis(what: str | os.PathLike, expression_basis: str, store: Store) -> None:
    """Raises UserError where the expression channels of motion and truth mean different things."""
    if expression_basis != store.expression_basis:
        raise UserError(
            f"{what} is of the {expression_basis!r} expression basis, the store {store.path} of "
            f"{store.expression_basis!r}; score it on data of its own basis"
        )


def _is_ours(path: Path) -> bool:
    """Tells our motion files, of all people of a record, from those of other systems."""
    return path.suffix == ".npz" and path.is_file() and bool({"motion", "expression_basis"} & {*npz_names(path)})


def _are_vertices(array: np.ndarray | None) -> bool:
    """Tells coordinates of a mesh from parameters, which are far fewer."""
    if array is None or array.ndim < 2 or array.size == 0:
        return False
    if array.ndim > 2 and array.shape[-1] == 3:
        return array.shape[-2] > 3
    return array.ndim < 4 and array.shape[-1] > 3 * MOTION_DIM and array.shape[-1] % 3 == 0


def _check_pose(vertices: Float32[np.ndarray, "T V 3"], rest: Float[np.ndarray, "V 3"], upper_face: np.ndarray) -> None:
    """Raises UserError for vertices of another size or place than the head's, and turned ones."""
    centred, still = vertices - vertices.mean(axis=1, keepdims=True), rest - rest.mean(axis=0)
    size = float(np.linalg.norm(centred, axis=(1, 2)).mean() / np.linalg.norm(still))
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise UserError(f"its vertices are {size:.3g} times as large as the head; they must be in metres")
    offset = float(np.linalg.norm(vertices.mean(axis=1) - rest.mean(axis=0), axis=-1).max())
    # The jaw turns none of these, so that what turns them is the head.
    still, upper = rest[upper_face] - rest[upper_face].mean(axis=0), vertices[:, upper_face]
    turns = [Rotation.align_vectors(still, frame)[0].magnitude() for frame in upper - upper.mean(axis=1, keepdims=True)]
    turn = max(turns)
    if turn > _MAX_TURN or offset > _MAX_OFFSET_M:
        raise UserError(
            f"its vertices are turned by up to {np.rad2deg(turn):.3g} degrees and moved by up to {1000 * offset:.3g} "
            "mm against the head at rest; write them without head rotation and translation"
        )


def _listed(missing: Bool[np.ndarray, " 108"]) -> str:
    """Returns what is missing in words, by groups of channels."""
    words = []
    for group, channels in GROUPS.items():
        count, width = int(missing[channels].sum()), channels.stop - channels.start
        if count:
            words.append(group if count == width else f"{count} of {width} channels of {group}")
    return ", ".join(words)
