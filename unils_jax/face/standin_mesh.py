"""The stand-in head's geometry: a closed skin with rings of lips and lids, and parts on it.

The skin is triangulated as the convex hull of directions: rings around mouth and eyes, rows
elsewhere. Every direction is then lifted to a super-ellipsoid and warped into a face. Metres; y up,
z towards the viewer, x to the head's left; the origin is the middle of the skull at the height of
the eyes. NumPy and SciPy only.
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull

HALF_AXES = np.array([0.076, 0.118, 0.098])
ROUNDNESS = 2.5  # exponent of the super-ellipsoid: 2 is an ellipsoid, more is boxier
MOUTH_Y = -0.068
EYE = np.array([0.032, 0.0])
EYE_RADIUS = 0.0125
LID_CLEARANCE = 0.0010
LID_POINTS, LIP_POINTS = 24, 32
CREASE = 3  # rings 0 (margin) to CREASE slide over the eyeball when the lid closes

PARTS = ("skin", "lips", "bag", "teeth_upper", "teeth_lower", "eye_left", "eye_right", "brow", "lashes", "ear", "neck")
SKIN, LIPS, BAG, TEETH_UPPER, TEETH_LOWER, EYE_LEFT, EYE_RIGHT, BROW, LASHES, EAR, NECK = range(len(PARTS))


def smoothstep(x: np.ndarray) -> np.ndarray:
    """Rises smoothly from 0 at 0 to 1 at 1."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def bump(x: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Returns a bell of height 1 around 0."""
    return np.exp(-((x / width) ** 2))


@dataclass(frozen=True, eq=False)
class Mesh:
    """A mesh with its parts.

    `closed` is where a vertex lies with both eyes shut; `domain_y` its height before the lips were
    brought together (upper and lower lip are apart there).
    """

    points: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    part: Int[np.ndarray, " V"]
    closed: Float[np.ndarray, "V 3"]
    domain_y: Float[np.ndarray, " V"]


class _Builder:
    """Collects the pieces of a Mesh."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(Mesh)}
        self._count = 0

    def add(
        self,
        part: int | np.ndarray,
        points: np.ndarray,
        faces: np.ndarray,
        closed: np.ndarray | None = None,
        domain_y: np.ndarray | None = None,
    ) -> None:
        """Appends a piece; `faces` count from its first vertex."""
        num = len(points)
        piece = {
            "points": points,
            "faces": faces + self._count,
            "part": np.broadcast_to(part, num),
            "closed": points if closed is None else closed,
            "domain_y": points[:, 1] if domain_y is None else domain_y,
        }
        for name, array in piece.items():
            self._pieces[name].append(array)
        self._count += num

    def joined(self) -> Mesh:
        """Returns all pieces as one mesh."""
        return Mesh(**{name: np.concatenate(arrays) for name, arrays in self._pieces.items()})


def build_mesh() -> Mesh:
    """Builds the whole head, about 2,700 vertices; the same on every call."""
    mesh = _Builder()
    _add_skin(mesh)
    _add_teeth(mesh)
    for side, part in ((1.0, EYE_LEFT), (-1.0, EYE_RIGHT)):
        points, faces = _eyeball()
        mesh.add(part, points + eye_centre(side), faces)
        _add_brow(mesh, side)
        _add_ear(mesh, side)
    _add_neck(mesh)
    return mesh.joined()


def eye_centre(side: float) -> np.ndarray:
    """Returns the middle of an eyeball; `side` is 1 for the left eye, -1 for the right."""
    surface = warp(front(np.array([[side * EYE[0], EYE[1]]])))[0]
    return np.array([side * EYE[0], EYE[1], surface[2] - EYE_RADIUS + 0.0005])


def front(xy: np.ndarray) -> np.ndarray:
    """Returns the points of the unwarped front that lie behind [n, 2] frontal coordinates."""
    q = np.abs(xy / HALF_AXES[:2]) ** ROUNDNESS
    z = HALF_AXES[2] * np.clip(1.0 - q.sum(axis=1), 0.0, None) ** (1 / ROUNDNESS)
    return np.column_stack([xy, z])


def _lift(directions: np.ndarray) -> np.ndarray:
    """Returns the unwarped points in [n, 3] directions."""
    norm = (np.abs(directions) ** ROUNDNESS).sum(axis=1, keepdims=True) ** (1 / ROUNDNESS)
    return directions / norm * HALF_AXES


def warp(base: np.ndarray) -> np.ndarray:
    """Warps the super-ellipsoid to a face: jaw, skull, nose, sockets, cheeks and chin."""
    x, y, z = base.T.copy()
    forward = smoothstep(z / 0.05)
    x = x * (1.0 - 0.30 * smoothstep((-0.03 - y) / 0.09))
    lifted = y + 0.055 * smoothstep((-y - 0.03) / 0.09) * smoothstep((0.02 - z) / 0.08)
    ax = np.abs(x)
    relief = np.interp(
        y, [-0.053, -0.048, -0.043, -0.035, -0.02, 0.0, 0.014, 0.03], [0, 0.003, 0.014, 0.0215, 0.0145, 0.006, 0.002, 0]
    ) * bump(x, np.interp(y, [-0.045, -0.034, -0.02, 0.0], [0.0115, 0.0105, 0.0085, 0.007]))
    relief += 0.006 * bump(ax - 0.0125, 0.0055) * bump(y + 0.040, 0.006)  # wings of the nose
    relief -= 0.008 * bump(ax - 0.030, 0.017) * bump(y - 0.001, 0.012)
    relief += 0.004 * bump(ax - 0.026, 0.020) * bump(y - 0.024, 0.008)
    relief += 0.005 * bump(ax - 0.046, 0.016) * bump(y + 0.022, 0.018)
    relief += 0.010 * bump(x, 0.020) * bump(y + 0.106, 0.014)
    relief -= 0.003 * bump(x, 0.020) * bump(y + 0.088, 0.007)
    relief += 0.004 * bump(x, 0.030) * bump(y - MOUTH_Y, 0.022)  # the teeth carry the lips
    return np.column_stack([x, lifted, z + forward * relief])


def _mouth_rings() -> tuple[np.ndarray, np.ndarray]:
    """Returns frontal coordinates [rings, n, 2] from the slit outwards, and shares of lip.

    The share of a ring is 0 at the slit and 1 at the border.
    """
    t = 2 * np.pi * np.arange(LIP_POINTS) / LIP_POINTS
    cos, sin = np.cos(t), np.sin(t)
    upper = 0.0082 * np.abs(sin) ** 0.85 * (1.0 - 0.14 * bump(cos, 0.16))
    lower = -0.0105 * np.abs(sin) ** 0.8
    slit = np.column_stack([0.0245 * cos, 0.003 * sin])
    border = np.column_stack([0.0285 * cos, np.where(sin > 0, upper, lower)])
    rings = [slit + (border - slit) * s for s in (0.0, 0.2, 0.45, 0.75, 1.0)]
    rings += [border * np.array(scale) for scale in ((1.03, 1.06), (1.13, 1.3), (1.32, 1.75))]
    return np.array(rings) + [0.0, MOUTH_Y], np.array([0.0, 0.2, 0.45, 0.75, 1.0, np.nan, np.nan, np.nan])


def _eye_rings(side: float) -> np.ndarray:
    """Returns frontal coordinates [rings, n, 2] from the lid margin outwards."""
    t = 2 * np.pi * np.arange(LID_POINTS) / LID_POINTS
    cos, sin = np.cos(t), np.sin(t)
    rings = []
    for x, up, down in ((14.2, 5.3, 4.5), (14.8, 7.0, 5.6), (15.6, 9.0, 7.0), (16.8, 10.8, 8.6), (20.5, 14.2, 12.2)):
        y = np.where(sin > 0, up, down) * np.sign(sin) * np.abs(sin) ** 0.9
        rings.append(np.column_stack([side * (EYE[0] + x * 1e-3 * cos), EYE[1] + y * 1e-3 + 0.0006 * cos]))
    return np.array(rings)


def _lid_surface(xy: np.ndarray, side: float) -> np.ndarray:
    """Returns the depth of the lids over frontal coordinates.

    It is outside the eyeball everywhere, without its steep rim.
    """
    centre = eye_centre(side)
    q = np.hypot(xy[:, 0] - centre[0], xy[:, 1] - centre[1]) / EYE_RADIUS
    return centre[2] + (EYE_RADIUS + LID_CLEARANCE) / (1.0 + 0.55 * q**2)


def _rows() -> np.ndarray:
    """Returns directions all over the head in rings around the face's middle.

    They are mirrored left to right, and coarser at the back.
    """
    directions, theta = [np.array([[0.0, 0.0, 1.0]])], 0.0
    while True:
        step = np.deg2rad(np.interp(np.rad2deg(theta), [0, 60, 90, 180], [4.0, 4.6, 7.5, 10.0]))
        theta += step
        if theta > np.pi - 0.5 * step:
            break
        num = 2 * max(3, round(np.pi * np.sin(theta) / step))
        phi = np.pi / 2 + 2 * np.pi * (np.arange(num) + 0.5 * (len(directions) % 2)) / num
        ring = [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.full(num, np.cos(theta))]
        directions.append(np.column_stack(ring))
    return np.concatenate([*directions, [[0.0, 0.0, -1.0]]])


def _background() -> np.ndarray:
    """Returns unwarped points of the skin outside the rings: rows, finer ones on the nose."""
    points = _lift(_rows())
    x, y = np.meshgrid(np.arange(-5, 6) * 0.0034, np.arange(-0.052, 0.016, 0.0034))
    nose = front(np.column_stack([x.ravel(), y.ravel()]))
    on_nose = (points[:, 2] > 0) & (np.abs(points[:, 0]) < 0.0195) & (np.abs(points[:, 1] + 0.0185) < 0.036)
    points = np.concatenate([points[~on_nose], nose])
    ax, y, ahead = np.abs(points[:, 0]), points[:, 1], points[:, 2] > 0
    in_eye = np.hypot((ax - EYE[0]) / 0.0235, (y - EYE[1]) / 0.0165) < 1
    up, down = 0.0082 * 1.75 + 0.003, 0.0105 * 1.75 + 0.003
    in_mouth = np.hypot(ax / 0.041, (y - MOUTH_Y) / np.where(y > MOUTH_Y, up, down)) < 1
    return points[~(ahead & (in_eye | in_mouth))]


def _add_skin(mesh: _Builder) -> None:
    mouth, lip = _mouth_rings()
    eyes = [_eye_rings(side) for side in (1.0, -1.0)]
    flat = [mouth.reshape(-1, 2), *(rings.reshape(-1, 2) for rings in eyes)]
    base = np.concatenate([*(front(xy) for xy in flat), _background()])
    num_mouth, num_eye = len(flat[0]), len(flat[1])

    starts = (0, num_mouth, num_mouth + num_eye)
    faces = _skin_faces(base, [(first, rings.shape) for first, rings in zip(starts, (mouth, *eyes), strict=True)])
    points = warp(base)
    points[:num_mouth] = _shape_lips(points[:num_mouth], mouth, lip)
    closed = points.copy()
    for i, side in enumerate((1.0, -1.0)):
        rows = slice(num_mouth + i * num_eye, num_mouth + (i + 1) * num_eye)
        points[rows], closed[rows] = _shape_lids(points[rows], side)
    part = np.full(len(base), SKIN)
    part[:num_mouth][np.repeat(~np.isnan(lip), LIP_POINTS)] = LIPS
    for first in starts[1:]:
        part[first : first + LID_POINTS] = LASHES
    mesh.add(part, points, faces, closed, base[:, 1])

    slit = points[:LIP_POINTS]
    upper = np.sign(np.round(np.sin(2 * np.pi * np.arange(LIP_POINTS) / LIP_POINTS), 6))[:, None]
    middle = np.array([0.0, MOUTH_Y, 0.0])
    bag = [slit, (slit - middle) * [0.96, 1, 1] + middle + upper * [0, 0.001, 0] - [0, 0, 0.004]]
    bag += [(slit - middle) * [0.8, 1, 1] + middle + upper * [0, 9e-3, 0] - [0, 0, z] for z in (0.02, 0.04)]
    bag += [np.broadcast_to(bag[-1].mean(axis=0), slit.shape)]  # the throat closes it
    height = np.tile(base[:LIP_POINTS, 1], len(bag))
    height[-LIP_POINTS:] = MOUTH_Y
    _add_tube(mesh, BAG, np.array(bag), domain_y=height)
    for i in range(2):
        first = num_mouth + i * num_eye
        margin, shut = points[first : first + LID_POINTS], closed[first : first + LID_POINTS]
        rim = [(ring - ring.mean(axis=0)) * [0.93, 0.9, 1] + ring.mean(axis=0) for ring in (margin, shut)]
        tubes = [np.array([edge, inner - [0, 0, 0.005]]) for edge, inner in zip((margin, shut), rim, strict=True)]
        _add_tube(mesh, LASHES, tubes[0], closed=tubes[1], flip=i == 1)


def _skin_faces(base: np.ndarray, grids: list[tuple[int, tuple[int, ...]]]) -> np.ndarray:
    """Returns strips between the rings of each grid, and a hull of directions for the rest.

    A grid is its first vertex and its shape (rings, points, 2).
    """
    num_background = sum(rings * points for _, (rings, points, _) in grids)
    outer = [np.arange(first + (rings - 1) * points, first + rings * points) for first, (rings, points, _) in grids]
    chosen = np.concatenate([*outer, np.arange(num_background, len(base))])
    directions = base / HALF_AXES
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hull = chosen[ConvexHull(directions[chosen]).simplices]
    for ring in outer:
        hull = hull[~np.isin(hull, ring).all(axis=1)]
    strips = [first + grid_faces(rings, points, closed=True) for first, (rings, points, _) in grids]
    faces = np.concatenate([hull, *strips])
    a, b, c = (directions[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(axis=1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return faces[np.lexsort(faces.T)]


def _shape_lips(points: np.ndarray, mouth: np.ndarray, lip: np.ndarray) -> np.ndarray:
    """Brings the lips together and gives them their swell."""
    rings = points.reshape(*mouth.shape[:2], 3).copy()
    t = 2 * np.pi * np.arange(LIP_POINTS) / LIP_POINTS
    middle = np.abs(np.sin(t)) ** 0.6
    for ring, s in zip(rings, np.nan_to_num(lip, nan=1.0), strict=True):
        ring[:, 1] -= (1.0 - s) * 0.96 * (mouth[0, :, 1] - MOUTH_Y)
    swell = np.array([0.001, 0.0045, 0.0055, 0.003, 0.0005, 0.0, 0.0, 0.0])
    rings[..., 2] += swell[:, None] * (middle * np.where(np.sin(t) < 0, 1.1, 0.9))
    rings[:4, :, 2] -= 0.002 * (1.0 - middle)
    return rings.reshape(-1, 3)


def _shape_lids(points: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Lays the inner rings over the eyeball and returns them open and shut.

    Both margins meet below the middle.
    """
    rings = points.reshape(-1, LID_POINTS, 3).copy()
    sin = np.round(np.sin(2 * np.pi * np.arange(LID_POINTS) / LID_POINTS), 6)
    covers = 1.0 - smoothstep((np.arange(len(rings)) - CREASE + 1) / 3.0)
    for cover, ring in zip(covers, rings, strict=True):
        ring[:, 2] += cover * (_lid_surface(ring[:, :2], side) - ring[:, 2])
    shut = rings.copy()
    line = rings[0].copy()
    line[:, 1] = EYE[1] - 0.0026 * np.abs(sin) ** 0.9 + 0.042 * (np.abs(line[:, 0]) - EYE[0])
    line[:, 1] += np.where(sin < 0, 0.0003, -0.0003)  # they overlap a little: no slit between two straight edges
    for k in range(CREASE):
        shut[k, :, :2] = line[:, :2] + (rings[CREASE][:, :2] - line[:, :2]) * (k / CREASE)
        shut[k, :, 2] = _lid_surface(shut[k, :, :2], side)
    return rings.reshape(-1, 3), shut.reshape(-1, 3)


def grid_faces(rows: int, columns: int, *, closed: bool) -> np.ndarray:
    """Returns triangles of a grid of vertices; `closed` joins the last column to the first."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    quads = np.stack([a, b, b + columns, a + columns], axis=-1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _add_tube(mesh: _Builder, part: int, rings: np.ndarray, *, closed=None, domain_y=None, flip: bool = False) -> None:
    """Builds a tube through rings [n, m, 3], its inside visible (outside with `flip`)."""
    faces = grid_faces(rings.shape[0], rings.shape[1], closed=True)
    shut = None if closed is None else closed.reshape(-1, 3)
    mesh.add(part, rings.reshape(-1, 3), faces[:, ::-1] if flip else faces, shut, domain_y)


def _add_teeth(mesh: _Builder) -> None:
    x = np.linspace(-0.018, 0.018, 13)
    arc = warp(front(np.column_stack([x, np.full(13, MOUTH_Y)])))[:, 2] - 0.0075 - 14.0 * x**2
    for part, heights in ((TEETH_UPPER, (0.010, 0.0045, -0.0018)), (TEETH_LOWER, (-0.003, -0.007, -0.011))):
        points = np.array([np.column_stack([x, np.full(13, MOUTH_Y + h), arc - 0.0012 * (h < 0)]) for h in heights])
        mesh.add(part, points.reshape(-1, 3), grid_faces(3, 13, closed=False)[:, ::-1])


def _eyeball() -> tuple[np.ndarray, np.ndarray]:
    """Builds a sphere around the origin, its pole (the pupil) at +z.

    Rings are doubled at the edges of pupil and iris.
    """
    polar = np.deg2rad([0, 11, 12.5, 20, 29, 30.5, 38, 48, 62, 80, 105, 135, 180])
    phi = 2 * np.pi * np.arange(16) / 16
    sin, cos = np.sin(polar)[:, None], np.cos(polar)[:, None]
    points = np.stack([sin * np.cos(phi), sin * np.sin(phi), cos * np.ones(16)], axis=-1) * EYE_RADIUS
    faces = grid_faces(len(polar), 16, closed=True)[:, ::-1]
    return points.reshape(-1, 3), faces


def _add_brow(mesh: _Builder, side: float) -> None:
    u = np.linspace(0.0, 1.0, 12)
    x, y = 0.0125 + 0.037 * u, 0.0195 + 0.0065 * np.sin(np.pi * u**0.75 * 0.85)
    half = 0.0031 * (1.0 - 0.65 * u**2)
    rows = []
    for offset, height in ((-1.0, 0.0008), (0.0, 0.0028), (1.0, 0.0008)):
        row = warp(front(np.column_stack([side * x, y + offset * half])))
        rows.append(row + [0.0, 0.0, height])
    faces = grid_faces(3, 12, closed=False)
    mesh.add(BROW, np.concatenate(rows), faces if side > 0 else faces[:, ::-1])


def _add_ear(mesh: _Builder, side: float) -> None:
    theta, phi = np.linspace(0.0, np.pi, 8), 2 * np.pi * np.arange(12) / 12
    unit = np.stack(
        np.broadcast_arrays(
            np.sin(theta)[:, None] * np.cos(phi), np.cos(theta)[:, None], np.sin(theta)[:, None] * np.sin(phi)
        ),
        axis=-1,
    )
    points = unit.reshape(-1, 3) * [0.009, 0.030, 0.017]
    points[:, 0] -= 0.35 * points[:, 2]  # the back edge stands off the head
    faces = grid_faces(8, 12, closed=True)
    points = points * [side, 1.0, 1.0] + [side * 0.0755, -0.012, -0.012]
    mesh.add(EAR, points, faces if side > 0 else faces[:, ::-1])


def _add_neck(mesh: _Builder) -> None:
    phi = 2 * np.pi * np.arange(24) / 24
    rings = [
        np.column_stack([a * np.sin(phi), np.full(24, y), b * np.cos(phi) + c])
        for y, a, b, c in (
            (-0.03, 0.045, 0.048, -0.03),
            (-0.08, 0.046, 0.050, -0.022),
            (-0.115, 0.047, 0.051, -0.022),
            (-0.14, 0.052, 0.053, -0.025),
            (-0.158, 0.062, 0.056, -0.028),
        )
    ]
    _add_tube(mesh, NECK, np.array(rings), flip=True)
