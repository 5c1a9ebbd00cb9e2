"""Draws heads as pixels: lit in NumPy per vertex, then OpenGL (extra `render`) or a z-buffer.

Both draw the same picture. OpenGL comes from EGL or OSMesa, whichever the system has; the
z-buffer is NumPy.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.sparse import csr_array

from unils_jax.errors import UserError
from unils_jax.outputs.drawn_head import DrawnHead

BACKENDS = ("pyvista", "numpy")
BACKGROUND = (44, 49, 58)
MESA_WINDOW = "vtkOSOpenGLRenderWindow"
_WINDOWS = {"vtkEGLRenderWindow": "EGL", MESA_WINDOW: "OSMesa", "vtkXOpenGLRenderWindow": "GLX"}
_PROBE = (
    "import os, sys; sys.stderr = open(os.devnull, 'w'); import pyvista as pv;"
    "p = pv.Plotter(off_screen=True, window_size=(64, 64)); p.add_mesh(pv.Sphere(), color='white', lighting=False);"
    "image = p.screenshot(return_img=True); name = p.render_window.GetClassName(); p.close();"
    "print(name); sys.exit(0 if image.max() > 200 else 1)"
)


def pick_backend(backend: str | None = None) -> str:
    """Returns `backend` after a check, or the best that works here: "pyvista" or "numpy".

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


def pyvista_works() -> bool:
    """Returns whether pyvista draws off-screen here."""
    return window_class() is not None


@functools.cache
def window_class() -> str | None:
    """Returns VTK's window class that draws off-screen here, or None.

    It is VTK's own choice (EGL as a rule), or else OSMesa's. Each is tried in a child process,
    because a missing driver can abort the process.
    """
    if importlib.util.find_spec("pyvista") is None:
        return None
    for window in (None, MESA_WINDOW):
        environment = {**os.environ, **({"VTK_DEFAULT_OPENGL_WINDOW": window} if window else {})}
        command = [sys.executable, "-c", _PROBE]
        try:
            probe = subprocess.run(command, timeout=60, capture_output=True, check=False, text=True, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if probe.returncode == 0 and probe.stdout.strip():
            return probe.stdout.split()[-1]
    return None


def graphics(backend: str) -> str:
    """Returns what draws behind a backend: "pyvista on EGL", "pyvista on OSMesa" or "NumPy"."""
    window = window_class() if backend == "pyvista" else None
    return "NumPy" if window is None else f"pyvista on {_WINDOWS.get(window, window)}"


@dataclass(frozen=True)
class Tiles:
    """A picture of `rows` by `columns` heads, filled row by row."""

    rows: int
    columns: int
    width: int  # of a tile, in pixels
    height: int
    palettes: Sequence[int]  # for each tile the number of its person's colours

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the whole picture."""
        return self.rows * self.height, self.columns * self.width


@dataclass(frozen=True, eq=False)
class _Scene:
    """The parts of a picture that stay the same over a video."""

    head: DrawnHead
    faces: Int[np.ndarray, "F 3"]
    colors: Float[np.ndarray, "C V 3"]
    vertex_faces: csr_array  # [V, F], sums face normals into vertices


def _scene(head: DrawnHead) -> _Scene:
    faces = head.asset.faces
    columns = np.repeat(np.arange(len(faces)), 3)
    ones = np.ones(3 * len(faces), np.float32)
    summing = csr_array((ones, (faces.ravel(), columns)), shape=(len(head.asset.v_template), len(faces)))
    return _Scene(head, faces, head.colors.astype(np.float32), summing)


def _unit(direction: Sequence[float | int] | np.ndarray) -> np.ndarray:
    vector = np.asarray(direction, np.float32)
    return vector / np.linalg.norm(vector)


_KEY, _FILL, _RIM = _unit([-0.45, 0.50, 0.78]), _unit([0.75, 0.05, 0.66]), _unit([0.85, 0.35, -0.30])
_HALF_WAY = _unit(_KEY + _unit([0, 0, 1]))


def _shade(scene: _Scene, points: np.ndarray, palette: int) -> np.ndarray:
    """Returns lit vertex colours [V, 3], 0 to 255.

    A key light comes from the upper left front, with a fill and a rim from behind; highlights
    are broad on skin and small on eyes.
    """
    a, b, c = (points[scene.faces[:, i]] for i in range(3))
    normals = scene.vertex_faces @ np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    wrapped = np.clip((normals @ _KEY + 0.25) / 1.25, 0, None)  # light that creeps a little round the form, as in skin
    light = 0.30 + 0.66 * wrapped + 0.20 * np.clip(normals @ _FILL, 0, None)
    glance = np.clip(normals @ _HALF_WAY, 0, None)
    gloss = scene.head.gloss
    shine = gloss * np.where(gloss > 0.5, 190.0 * glance**90, 240.0 * glance**18)
    rim = 34.0 * np.clip(normals @ _RIM, 0, None) ** 2 * (gloss < 0.5)
    return np.clip(scene.colors[palette % len(scene.colors)] * light[:, None] + (shine + rim)[:, None], 0, 255)


class NumpyCanvas:
    """A z-buffer: every pixel centre that a front-facing triangle covers, all triangles at once."""

    def __init__(self, head: DrawnHead, tiles: Tiles) -> None:
        self._scene, self._tiles = _scene(head), tiles

    def draw(self, points_NVx: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """Draws the picture of N heads, one a tile."""
        drawn = [self._tile(points, palette) for points, palette in zip(points_NVx, self._tiles.palettes, strict=True)]
        columns = self._tiles.columns
        rows = [np.concatenate(drawn[i : i + columns], axis=1) for i in range(0, len(drawn), columns)]
        return np.concatenate(rows)

    def close(self) -> None:
        """Does nothing: this canvas holds no window."""

    def _tile(self, points: np.ndarray, palette: int) -> np.ndarray:
        scene, width, height = self._scene, self._tiles.width, self._tiles.height
        colors, centre = _shade(scene, points, palette), scene.head.centre
        scale = height / (2 * scene.head.half)
        screen_x = (points[:, 0] - centre[0]) * scale + width / 2
        screen_y = height / 2 - (points[:, 1] - centre[1]) * scale
        x, y, z = (v.astype(np.float32)[scene.faces] for v in (screen_x, screen_y, points[:, 2]))
        edges = (x[:, 1] - x[:, 0], y[:, 1] - y[:, 0], x[:, 2] - x[:, 0], y[:, 2] - y[:, 0])
        area = edges[1] * edges[2] - edges[0] * edges[3]  # positive for faces towards the viewer (y grows downwards)
        # The pixel centres inside each face's bounding box, cut to the tile, laid out as one list
        # of (face, row, column): no loop over faces.
        limits = ((x, width), (y, height))
        first_x, first_y = (np.clip(np.ceil(v.min(axis=1) - 0.5), 0, n).astype(np.int32) for v, n in limits)
        last_x, last_y = (np.clip(np.floor(v.max(axis=1) - 0.5), -1, n - 1).astype(np.int32) for v, n in limits)
        wide, high = np.clip(last_x - first_x + 1, 0, None), np.clip(last_y - first_y + 1, 0, None)
        seen = np.flatnonzero((area > 1e-6) & (wide * high > 0))
        count = (wide * high)[seen]
        face = np.repeat(seen.astype(np.int32), count)
        step = np.arange(face.size, dtype=np.int32) - np.repeat((np.cumsum(count) - count).astype(np.int32), count)
        row, column = np.divmod(step, wide[face])
        column, row = column + first_x[face], row + first_y[face]

        # Barycentric coordinates decide which of them a face covers, and mix its corners.
        dx = column.astype(np.float32) + np.float32(0.5) - x[:, 0][face]
        dy = row.astype(np.float32) + np.float32(0.5) - y[:, 0][face]
        inverse = 1.0 / np.where(area > 1e-6, area, np.float32(1.0))
        u = dy * (edges[2] * inverse)[face] - dx * (edges[3] * inverse)[face]
        v = dx * (edges[1] * inverse)[face] - dy * (edges[0] * inverse)[face]
        inside = np.flatnonzero((u >= 0) & (v >= 0) & (u + v <= 1))
        face, u, v = face[inside], u[inside], v[inside]
        pixel = row[inside] * width + column[inside]
        depth = z[:, 0][face] + u * (z[:, 1] - z[:, 0])[face] + v * (z[:, 2] - z[:, 0])[face]
        # Two passes: the largest depth of each pixel, then the faces that reach it.
        nearest = np.full(width * height, -np.inf, np.float32)
        np.maximum.at(nearest, pixel, depth)
        top = np.flatnonzero(depth >= nearest[pixel])
        corners, u, v = scene.faces[face[top]], u[top, None], v[top, None]
        image = np.empty((width * height, 3), np.uint8)
        image[:] = BACKGROUND
        blend = colors[corners[:, 0]] * (1 - u - v) + colors[corners[:, 1]] * u + colors[corners[:, 2]] * v
        image[pixel[top]] = blend.astype(np.uint8)
        return image.reshape(height, width, 3)


class PyvistaCanvas:
    """An off-screen VTK window under a parallel projection: one renderer a tile, one topology."""

    def __init__(self, head: DrawnHead, tiles: Tiles) -> None:
        # The extra `render`: a machine without it draws with NumPy.
        import pyvista  # noqa: PLC0415
        from vtkmodules.vtkCommonCore import vtkLogger  # noqa: PLC0415

        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)  # it reports a missing X server, then uses EGL
        # VTK's own choice failed in the probe and OSMesa worked: this process must ask for it, too.
        if window_class() == MESA_WINDOW:
            os.environ["VTK_DEFAULT_OPENGL_WINDOW"] = MESA_WINDOW
        self._scene, self._tiles = _scene(head), tiles
        height, width = tiles.shape
        self._plotter = pyvista.Plotter(
            off_screen=True, window_size=(width, height), shape=(tiles.rows, tiles.columns), border=False
        )
        self._meshes = []
        faces = np.insert(self._scene.faces, 0, 3, axis=1).ravel()
        for i in range(len(tiles.palettes)):
            self._plotter.subplot(*divmod(i, tiles.columns))
            self._plotter.set_background(BACKGROUND)
            mesh = pyvista.PolyData(np.zeros_like(head.asset.v_template), faces)
            mesh["rgb"] = np.zeros((mesh.n_points, 3), np.uint8)
            self._plotter.add_mesh(mesh, scalars="rgb", rgb=True, lighting=False, culling="back")
            camera, (x, y) = self._plotter.camera, head.centre
            camera.position, camera.focal_point, camera.up = (x, y, 2.0), (x, y, 0.0), (0.0, 1.0, 0.0)
            camera.enable_parallel_projection()
            camera.parallel_scale = head.half
            camera.clipping_range = (1.0, 3.0)
            self._meshes.append(mesh)
        self._plotter.enable_anti_aliasing("msaa", multi_samples=8)

    def draw(self, points_NVx: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """Draws the picture of N heads, one a tile."""
        for mesh, points, palette in zip(self._meshes, points_NVx, self._tiles.palettes, strict=True):
            mesh.points = points
            mesh["rgb"] = _shade(self._scene, points, palette).astype(np.uint8)
        self._plotter.render()  # a screenshot alone would show the picture before
        return np.ascontiguousarray(self._plotter.screenshot(return_img=True)[..., :3])

    def close(self) -> None:
        """Releases the window."""
        self._plotter.close()


def make_canvas(backend: str, head: DrawnHead, tiles: Tiles) -> NumpyCanvas | PyvistaCanvas:
    """Makes the canvas of a backend that `pick_backend` has checked."""
    return (PyvistaCanvas if backend == "pyvista" else NumpyCanvas)(head, tiles)
