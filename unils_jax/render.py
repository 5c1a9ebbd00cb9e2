"""Motion to pictures and video: heads side by side, H.264 with the conversation's audio.

Lighting is computed per vertex in NumPy, so both backends draw the same picture: pyvista (extra `render`, with an
off-screen OpenGL context from the system) or a z-buffer in NumPy that needs nothing.
"""

import functools
import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.sparse import csr_array
from tqdm import tqdm

from unils_jax.errors import UserError
from unils_jax.files import atomic_output, check_output
from unils_jax.models.flame import FlameAsset, vertices
from unils_jax.models.standin import vertex_colors
from unils_jax.motion import EXPRESSION, FPS, MOTION_DIM, SAMPLE_RATE, SAMPLES_PER_FRAME

log = logging.getLogger(__name__)

BACKENDS = ("pyvista", "numpy")
CHUNK_FRAMES = 50  # vertices are held for this many frames at a time
BACKGROUND = (44, 49, 58)
_PROBE = (
    "import os, sys; sys.stderr = open(os.devnull, 'w'); import pyvista as pv;"
    "p = pv.Plotter(off_screen=True, window_size=(64, 64)); p.add_mesh(pv.Sphere(), color='white', lighting=False);"
    "image = p.screenshot(return_img=True); p.close(); sys.exit(0 if image.max() > 200 else 1)"
)


@dataclass(frozen=True)
class RenderSummary:
    """What was rendered: frames of video, seconds it took, frames per second (all heads drawn and encoded), backend."""

    num_frames: int
    elapsed_s: float
    frames_per_s: float
    backend: str


def pick_backend(backend: str | None = None) -> str:
    """`backend` itself after a check, or the best that works here: "pyvista" or "numpy".

    Raises UserError for an unknown name, and for pyvista where it cannot draw.
    """
    if backend not in (None, *BACKENDS):
        raise UserError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "numpy":
        return backend
    if pyvista_works():
        return "pyvista"
    if backend == "pyvista":
        raise UserError("backend pyvista cannot draw here; install the extra `render` and libegl1 libgl1-mesa-dri")
    return "numpy"


@functools.cache
def pyvista_works() -> bool:
    """Whether pyvista draws off-screen here; tried in a child process, because a missing driver can abort one."""
    if importlib.util.find_spec("pyvista") is None:
        return False
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], timeout=60, capture_output=True, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


@dataclass(frozen=True, eq=False)
class _Scene:
    """What stays the same over a video: topology, colours, and the square in metres that every tile shows."""

    faces: Int[np.ndarray, "F 3"]
    colors: Float[np.ndarray, "V 3"]
    vertex_faces: csr_array  # [V, F], sums face normals into vertices
    centre: Float[np.ndarray, " 2"]
    half: float


def _scene(asset: FlameAsset) -> _Scene:
    low, high = asset.v_template.min(axis=0), asset.v_template.max(axis=0)
    num_faces = len(asset.faces)
    columns = np.repeat(np.arange(num_faces), 3)
    ones = np.ones(3 * num_faces, np.float32)
    summing = csr_array((ones, (asset.faces.ravel(), columns)), shape=(len(asset.v_template), num_faces))
    half = 0.56 * float((high - low)[:2].max())
    return _Scene(asset.faces, vertex_colors(asset).astype(np.float32), summing, ((low + high) / 2)[:2], half)


def _shade(scene: _Scene, points: np.ndarray) -> np.ndarray:
    """Lit vertex colours [V, 3], 0 to 255: a key light from the upper left front, a fill, and a little gloss."""
    a, b, c = (points[scene.faces[:, i]] for i in range(3))
    normals = scene.vertex_faces @ np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    key, fill = np.array([-0.40, 0.48, 0.78], np.float32), np.array([0.75, 0.05, 0.66], np.float32)
    half_way = (key + np.array([0, 0, 1], np.float32)) / np.linalg.norm(key + np.array([0, 0, 1], np.float32))
    light = 0.30 + 0.62 * np.clip(normals @ key, 0, None) + 0.22 * np.clip(normals @ fill, 0, None)
    gloss = 26.0 * np.clip(normals @ half_way, 0, None) ** 24
    return np.clip(scene.colors * light[:, None] + gloss[:, None], 0, 255)


class _NumpyCanvas:
    """A z-buffer: every pixel centre that a front-facing triangle covers, all triangles at once."""

    def __init__(self, scene: _Scene, num_people: int, size: int) -> None:
        self._scene, self._size, self._num_people = scene, size, num_people

    def draw(self, points_PVx: np.ndarray) -> np.ndarray:
        """The picture [size, P*size, 3] uint8 of P heads."""
        return np.concatenate([self._tile(points) for points in points_PVx], axis=1)

    def close(self) -> None:
        """Nothing to release."""

    def _tile(self, points: np.ndarray) -> np.ndarray:
        scene, size = self._scene, self._size
        colors = _shade(scene, points)
        scale = size / (2 * scene.half)
        screen_x = (points[:, 0] - scene.centre[0]) * scale + size / 2
        screen_y = size / 2 - (points[:, 1] - scene.centre[1]) * scale
        x, y, z = (v.astype(np.float32)[scene.faces] for v in (screen_x, screen_y, points[:, 2]))
        edges = (x[:, 1] - x[:, 0], y[:, 1] - y[:, 0], x[:, 2] - x[:, 0], y[:, 2] - y[:, 0])
        area = edges[1] * edges[2] - edges[0] * edges[3]  # positive for faces towards the viewer (y grows downwards)
        first_x, first_y = (np.clip(np.ceil(v.min(axis=1) - 0.5), 0, size).astype(np.int32) for v in (x, y))
        last_x, last_y = (np.clip(np.floor(v.max(axis=1) - 0.5), -1, size - 1).astype(np.int32) for v in (x, y))
        wide, high = np.clip(last_x - first_x + 1, 0, None), np.clip(last_y - first_y + 1, 0, None)
        seen = np.flatnonzero((area > 1e-6) & (wide * high > 0))
        count = (wide * high)[seen]
        face = np.repeat(seen.astype(np.int32), count)
        step = np.arange(face.size, dtype=np.int32) - np.repeat((np.cumsum(count) - count).astype(np.int32), count)
        row, column = np.divmod(step, wide[face])
        column, row = column + first_x[face], row + first_y[face]

        dx = column.astype(np.float32) + np.float32(0.5) - x[:, 0][face]
        dy = row.astype(np.float32) + np.float32(0.5) - y[:, 0][face]
        inverse = 1.0 / np.where(area > 1e-6, area, np.float32(1.0))
        u = dy * (edges[2] * inverse)[face] - dx * (edges[3] * inverse)[face]
        v = dx * (edges[1] * inverse)[face] - dy * (edges[0] * inverse)[face]
        inside = np.flatnonzero((u >= 0) & (v >= 0) & (u + v <= 1))
        face, u, v = face[inside], u[inside], v[inside]
        pixel = row[inside] * size + column[inside]
        depth = z[:, 0][face] + u * (z[:, 1] - z[:, 0])[face] + v * (z[:, 2] - z[:, 0])[face]
        nearest = np.full(size * size, -np.inf, np.float32)
        np.maximum.at(nearest, pixel, depth)
        top = np.flatnonzero(depth >= nearest[pixel])
        corners, u, v = scene.faces[face[top]], u[top, None], v[top, None]
        image = np.empty((size * size, 3), np.uint8)
        image[:] = BACKGROUND
        blend = colors[corners[:, 0]] * (1 - u - v) + colors[corners[:, 1]] * u + colors[corners[:, 2]] * v
        image[pixel[top]] = blend.astype(np.uint8)
        return image.reshape(size, size, 3)


class _PyvistaCanvas:
    """An off-screen VTK window with all heads in one mesh, side by side under a parallel projection."""

    def __init__(self, scene: _Scene, num_people: int, size: int) -> None:
        import pyvista
        from vtkmodules.vtkCommonCore import vtkLogger

        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)  # it reports a missing X server, then uses EGL
        self._scene = scene
        self._offsets = np.arange(num_people, dtype=np.float32) * 2 * scene.half
        num_vertices = len(scene.colors)
        faces = np.concatenate([scene.faces + p * num_vertices for p in range(num_people)])
        points = np.zeros((num_people * num_vertices, 3), np.float32)
        self._mesh = pyvista.PolyData(points, np.insert(faces, 0, 3, axis=1).ravel())
        self._mesh["rgb"] = np.zeros((len(points), 3), np.uint8)
        self._plotter = pyvista.Plotter(off_screen=True, window_size=(num_people * size, size))
        self._plotter.set_background(BACKGROUND)
        self._plotter.add_mesh(self._mesh, scalars="rgb", rgb=True, lighting=False, culling="back")
        middle = [float(self._offsets.mean() + scene.centre[0]), float(scene.centre[1])]
        camera = self._plotter.camera
        camera.position, camera.focal_point, camera.up = (*middle, 2.0), (*middle, 0.0), (0.0, 1.0, 0.0)
        camera.enable_parallel_projection()
        camera.parallel_scale = scene.half
        camera.clipping_range = (1.0, 3.0)
        self._plotter.enable_anti_aliasing("msaa", multi_samples=8)

    def draw(self, points_PVx: np.ndarray) -> np.ndarray:
        """The picture [size, P*size, 3] uint8 of P heads."""
        colors = np.concatenate([_shade(self._scene, points) for points in points_PVx])
        shifted = points_PVx + self._offsets[:, None, None] * np.array([1, 0, 0], np.float32)
        self._mesh.points = shifted.reshape(-1, 3)
        self._mesh["rgb"] = colors.astype(np.uint8)
        return np.ascontiguousarray(self._plotter.screenshot(return_img=True)[..., :3])

    def close(self) -> None:
        """Releases the window."""
        self._plotter.close()


def _canvas(backend: str, scene: _Scene, num_people: int, size: int) -> _NumpyCanvas | _PyvistaCanvas:
    return (_PyvistaCanvas if backend == "pyvista" else _NumpyCanvas)(scene, num_people, size)


def shown_motion(motion: Float[np.ndarray, "*b 108"], asset: FlameAsset, expression_basis: str) -> np.ndarray:
    """What of `motion` the head can show: of another basis than its own only jaw, gaze and head, which is logged."""
    if expression_basis == asset.name:
        return motion
    log.warning(
        "motion has the %s basis, the head is %s: only jaw, gaze and head are shown%s",
        expression_basis,
        asset.name,
        "; give --flame for the expression" if expression_basis == "flame" else "",
    )
    motion = motion.copy()
    motion[..., EXPRESSION] = 0.0
    return motion


@functools.partial(jax.jit, static_argnums=0)
def _posed(asset: FlameAsset, motion: jax.Array) -> jax.Array:
    return vertices(asset, motion, head_rotation=True)


def _frames_of_vertices(asset: FlameAsset, motion_PTM: np.ndarray) -> Iterator[np.ndarray]:
    """Yields [P, V, 3] frame by frame, computed in pieces of one shape so that memory does not grow with time."""
    num_frames = motion_PTM.shape[1]
    piece_frames = min(CHUNK_FRAMES, num_frames)
    for start in range(0, num_frames, piece_frames):
        piece = motion_PTM[:, start : start + piece_frames]
        missing = piece_frames - piece.shape[1]
        points = np.asarray(_posed(asset, np.pad(piece, ((0, 0), (0, missing), (0, 0)))))
        for t in range(piece.shape[1]):
            yield points[:, t]


def _check_motion(motion: np.ndarray, size: int) -> None:
    problems = []
    if motion.shape[-1] != MOTION_DIM or 0 in motion.shape:
        problems.append(f"motion must be [people, frames, {MOTION_DIM}] and not empty, got {list(motion.shape)}")
    elif not np.isfinite(motion).all():
        problems.append("motion holds NaN or infinite values; decode it again")
    if size % 2 or not 64 <= size <= 2048:
        problems.append(f"size must be an even number from 64 to 2048, got {size}; 512 is usual")
    if problems:
        raise UserError("; ".join(problems))


def render_frame(
    motion: Float[np.ndarray, "P 108"],
    asset: FlameAsset,
    *,
    expression_basis: str,
    size: int = 512,
    backend: str | None = None,
) -> UInt8[np.ndarray, "size width 3"]:
    """One picture of P heads side by side, RGB, `size` high and P * `size` wide. Raises as `render_video`."""
    _check_motion(motion, size)
    shown = shown_motion(motion.astype(np.float32), asset, expression_basis)
    canvas = _canvas(pick_backend(backend), _scene(asset), len(motion), size)
    try:
        return canvas.draw(next(_frames_of_vertices(asset, shown[:, None])))
    finally:
        canvas.close()


def render_video(
    path: str | os.PathLike,
    motion: Float[np.ndarray, "P T 108"],
    asset: FlameAsset,
    audio: Sequence[Float[np.ndarray, " _"]] | Float[np.ndarray, "Q N"] | None = None,
    *,
    expression_basis: str,
    size: int = 512,
    captions: Sequence[str] | None = None,
    backend: str | None = None,
) -> RenderSummary:
    """Writes an .mp4 of `motion` at 25 frames a second, one tile a person, with the audio from its first sample.

    `audio` holds one or two tracks at 16 kHz: the first is the left channel, the second the right; one alone is
    heard on both. It is padded or cut to the motion's length. The file appears when it is whole. Raises UserError for
    an output that cannot be written, motion of a wrong shape or not finite, an odd size, over two tracks, or an
    unknown backend.
    """
    path = check_output(path, ".mp4")
    _check_motion(motion, size)
    num_people, num_frames = motion.shape[:2]
    stereo = None if audio is None else _stereo(audio, num_frames)
    labels = None if captions is None else _caption_strip(captions, num_people, size)
    backend = pick_backend(backend)
    log.info("rendering %d frames of %d head(s) with %s", num_frames, num_people, backend)
    shown = shown_motion(np.asarray(motion, np.float32), asset, expression_basis)
    started = time.perf_counter()
    canvas = _canvas(backend, _scene(asset), num_people, size)
    try:
        with atomic_output(path) as partial:
            images = (_captioned(canvas.draw(points), labels) for points in _frames_of_vertices(asset, shown))
            _encode(partial, images, stereo, (num_people * size, size), num_frames)
    finally:
        canvas.close()
    elapsed_s = time.perf_counter() - started
    return RenderSummary(num_frames, elapsed_s, num_frames / elapsed_s, backend)


def _stereo(audio: Sequence[np.ndarray] | np.ndarray, num_frames: int) -> np.ndarray:
    """[2, N] float32 in [-1, 1], exactly as long as the video."""
    tracks = [np.asarray(track, np.float32) for track in audio]
    if not 1 <= len(tracks) <= 2 or any(track.ndim != 1 or not np.isfinite(track).all() for track in tracks):
        raise UserError(f"audio must be one or two finite mono tracks, got {[list(t.shape) for t in tracks]}")
    num_samples = num_frames * SAMPLES_PER_FRAME
    fitted = [np.pad(track[:num_samples], (0, max(0, num_samples - track.size))) for track in tracks]
    return np.clip(np.stack([fitted[0], fitted[-1]]), -1.0, 1.0)


def _encode(
    path: Path, images: Iterator[np.ndarray], stereo: np.ndarray | None, shape: tuple[int, int], num_frames: int
) -> None:
    """Encodes H.264 and AAC; the audio of a frame goes in with the frame, so that players need not search."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=Fraction(FPS), options={"preset": "veryfast", "crf": "20"})
        video.width, video.height, video.pix_fmt = *shape, "yuv420p"
        sound = None
        if stereo is not None:
            # FFmpeg's default AAC search spoils the first 64 ms of one channel (0.04 of a tone of 0.28, now 2e-4).
            coder = {"aac_coder": "fast"}
            sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo", bit_rate=96_000, options=coder)
        for t, image in enumerate(tqdm(images, "render", num_frames, disable=None, unit="frame")):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if sound is not None and stereo is not None:
                piece = stereo[:, t * SAMPLES_PER_FRAME : (t + 1) * SAMPLES_PER_FRAME]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = SAMPLE_RATE, t * SAMPLES_PER_FRAME
                frame.time_base = Fraction(1, SAMPLE_RATE)
                container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))


def _caption_strip(captions: Sequence[str], num_people: int, size: int) -> np.ndarray:
    """A coverage mask [size, P*size, 1] of one line of text at the foot of every tile."""
    from PIL import Image, ImageDraw, ImageFont

    if len(captions) != num_people:
        raise UserError(f"captions must name every person: {num_people}, got {len(captions)}")
    canvas = Image.new("L", (num_people * size, size))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(10, size // 24))
    for p, caption in enumerate(captions):
        draw.text(((p + 0.5) * size, size * 0.97), caption, fill=255, font=font, anchor="ms")
    return np.asarray(canvas, np.float32)[..., None] / 255.0


def _captioned(image: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    return image if labels is None else (image * (1.0 - labels) + 235.0 * labels).astype(np.uint8)
