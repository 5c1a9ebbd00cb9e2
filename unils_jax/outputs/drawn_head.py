"""Heads as they are drawn: the stand-in's mesh made smooth, with eyes, hair, a bust and colours.

Training computes its mesh losses on `standin_asset`, which is small on purpose. Pictures, the
page and glTF show this head: the same coefficients, joints and channels on four times the faces,
so that the picture is of what was trained. NumPy and SciPy only, the same on every call.
"""

import functools
import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from scipy.sparse import csr_array

from unils_jax.face import standin_mesh as sm
from unils_jax.face.flame import NUM_EXPRESSION, NUM_POSE, FlameAsset
from unils_jax.face.standin import joint_regressor, standin_asset
from unils_jax.motion import EXPRESSION, STANDIN_SHAPES

log = logging.getLogger(__name__)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """The colours, RGB, of a person's parts, by which two people differ."""

    skin: Color
    lips: Color
    blush: Color
    hair: Color
    iris: Color
    shirt: Color


PALETTES = (
    Palette((226, 180, 154), (190, 108, 102), (214, 138, 122), (70, 48, 38), (78, 118, 140), (62, 84, 116)),
    Palette((184, 134, 106), (150, 84, 78), (168, 104, 86), (34, 28, 28), (92, 62, 40), (112, 74, 70)),
)
FLAME_SKIN, FLAME_LIPS = (205, 160, 138), (190, 120, 112)
_BAG, _TEETH, _WHITE, _PUPIL, _LASHES = (58, 16, 20), (230, 224, 210), (236, 234, 230), (14, 14, 18), (52, 32, 30)
_NOSTRIL, _LID_SHADE = (70, 34, 30), (150, 96, 82)
_HAIRLINE = (  # depth, height
    (-0.1, -0.07),
    (-0.03, -0.05),
    (-0.005, -0.016),
    (0.012, 0.02),
    (0.03, 0.052),
    (0.055, 0.066),
    (0.08, 0.071),
)
EYE_RADIUS = sm.EYE_RADIUS - 0.0005  # room for lids that several shapes move at once
LIDS_FOLLOW = (1.1, -0.8)  # of a blink, upper and lower lid, by the sine of the eye's pitch: lids go with the gaze
EYE_PITCH = [25, 34]  # entries (2, 1) of both eyes' rotations less identity, among the pose columns of four joints
REST_LIDS = 0.10  # of a blink: how far the lids hang when the coefficients are zero
_SKIN, _LIPS, _BAG_PART, _TEETH_PART, _BROW, _EDGE, _EYE, _SHIRT = range(8)
_GLOSS = np.array([0.10, 0.22, 0.05, 0.30, 0.02, 0.02, 1.0, 0.0])


@dataclass(frozen=True, eq=False)
class DrawnHead:
    """A head to draw."""

    asset: FlameAsset  # poses it
    colors: UInt8[np.ndarray, "C V 3"]  # RGB before lighting, one row a palette; people take turns
    gloss: Float32[np.ndarray, " V"]  # strength of highlights, 0..1
    follow: Float32[np.ndarray, " V"]  # how far a vertex turns with the head; 0: the shoulders
    centre: tuple[float, float]  # x, y in metres of the middle of a square picture
    half: float  # metres that the picture shows to each side of it


def drawn_head(asset: FlameAsset) -> DrawnHead:
    """Returns how `asset` is drawn: the stand-in by its fine head, FLAME as it is.

    FLAME has the colour of skin, and redder lips.
    """
    if asset is standin_asset():
        return standin_head()
    num = len(asset.v_template)
    colors = np.tile(np.array(FLAME_SKIN, np.uint8), (num, 1))
    colors[asset.lips] = FLAME_LIPS
    low, high = asset.v_template.min(axis=0), asset.v_template.max(axis=0)
    x, y = ((low + high) / 2)[:2]
    gloss, follow = np.full(num, 0.1, np.float32), np.ones(num, np.float32)
    return DrawnHead(asset, colors[None], gloss, follow, (float(x), float(y)), 0.56 * float((high - low)[:2].max()))


def shown_motion(
    motion: Float[np.ndarray, "*b 108"], asset: FlameAsset, expression_basis: str, *, quiet: bool = False
) -> np.ndarray:
    """Returns the part of `motion` that the head can show.

    A head of another basis than the motion's shows only jaw, gaze and head rotation; a warning
    says so unless `quiet`.
    """
    if expression_basis == asset.name:
        return motion
    if not quiet:
        log.warning(
            "motion has the %s basis, the head is %s: only jaw, gaze and head are shown%s",
            expression_basis,
            asset.name,
            "; give --flame for the expression" if expression_basis == "flame" else "",
        )
    motion = motion.copy()
    motion[..., EXPRESSION] = 0.0
    return motion


@functools.cache
def standin_head() -> DrawnHead:
    """Builds the drawn stand-in, once; its arrays are shared and read-only."""
    mesh, coarse = sm.build_mesh(), standin_asset()
    # Eyes and neck are too coarse to be made smooth: finer ones replace them.
    kept = ~np.isin(mesh.part, (sm.EYE_LEFT, sm.EYE_RIGHT, sm.NECK))
    faces = np.cumsum(kept)[mesh.faces[kept[mesh.faces].all(axis=1)]] - 1
    smooth, faces = subdivision(faces, int(kept.sum()))
    shut = smooth @ (mesh.closed - mesh.points)[kept]
    flat = smooth @ mesh.points[kept] + REST_LIDS * shut
    hair = _hair(smooth, mesh, kept, flat)
    teeth = [smooth @ (mesh.part[kept] == part).astype(np.float64) for part in (sm.TEETH_UPPER, sm.TEETH_LOWER)]
    points = _character(flat) + _hair_volume(flat, hair)
    points += teeth[0][:, None] * [0.0, 0.0, -0.0035] + teeth[1][:, None] * [0.0, -0.0015, -0.0045]
    # The face's own proportions are not linear: each shape is the difference of two deformed faces.
    basis = np.zeros((len(points), 3, NUM_EXPRESSION))
    for i, (name, full) in enumerate(STANDIN_SHAPES.items()):
        moved = smooth @ (coarse.expression_basis[kept, :, i].astype(np.float64) * full)
        if name.startswith("blink"):
            moved *= 1.0 - REST_LIDS  # the lids already hang that far
        basis[:, :, i] = (_character(flat + moved) - _character(flat)) / full
    lids = np.where(shut[:, 1:2] < 0, LIDS_FOLLOW[0], LIDS_FOLLOW[1]) * shut
    sides = [np.where((flat[:, :1] > 0) == left, lids, 0.0) for left in (True, False)]
    weights = smooth @ coarse.weights[kept].astype(np.float64)
    materials = np.stack([smooth @ np.isin(mesh.part[kept], parts).astype(np.float64) for parts in _PARTS], axis=1)
    head = _Piece(points, faces, basis, weights, materials, np.ones(len(points)), np.stack(sides, axis=2))
    pieces = [head, _eye(1.0, coarse, 3), _eye(-1.0, coarse, 4), _bust()]
    colors = [_paint(palette, head, flat, hair, np.linalg.norm(shut, axis=1), pieces) for palette in PALETTES]
    return _joined(pieces, colors, coarse)


_PARTS = (
    (sm.SKIN, sm.EAR),
    (sm.LIPS,),
    (sm.BAG,),
    (sm.TEETH_UPPER, sm.TEETH_LOWER),
    (sm.BROW,),
    (sm.LASHES,),
    (sm.EYE_LEFT, sm.EYE_RIGHT),
    (),
)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A connected part of a head."""

    points: np.ndarray  # [v, 3], metres
    faces: np.ndarray  # indices from the piece's first vertex
    basis: np.ndarray  # [v, 3, 100]
    weights: np.ndarray  # [v, 5], of skinning
    materials: np.ndarray  # [v, 8], the share of each material
    follow: np.ndarray  # [v], see DrawnHead
    lids: np.ndarray | None = None  # [v, 3, 2], displacements by the sine of each eye's pitch


def _joined(pieces: list[_Piece], colors: list[np.ndarray], coarse: FlameAsset) -> DrawnHead:
    starts = np.cumsum([0, *(len(piece.points) for piece in pieces)])[:-1]
    faces = np.concatenate([piece.faces + start for piece, start in zip(pieces, starts, strict=True)])
    points, basis, weights, materials, follow = (
        np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("points", "basis", "weights", "materials", "follow")
    )
    posedirs = np.zeros((len(points), 3, NUM_POSE), np.float32)
    for piece, start in zip(pieces, starts, strict=True):
        if piece.lids is not None:
            posedirs[start : start + len(piece.points)][:, :, EYE_PITCH] = piece.lids
    joints = coarse.j_regressor.astype(np.float64) @ coarse.v_template.astype(np.float64)
    asset = FlameAsset(
        v_template=points.astype(np.float32),
        expression_basis=basis.astype(np.float32),
        posedirs=posedirs,
        j_regressor=joint_regressor(points, basis, weights, joints).astype(np.float32),
        weights=weights.astype(np.float32),
        faces=faces.astype(np.int32),
        lips=np.flatnonzero(materials[:, _LIPS] > 0.5).astype(np.int32),
        upper_face=np.zeros(0, np.int32),
        name="standin",
    )
    head = DrawnHead(
        asset=asset,
        colors=np.stack(colors),
        gloss=(materials @ _GLOSS).astype(np.float32),
        follow=follow.astype(np.float32),
        centre=(0.0, -0.028),
        half=0.168,
    )
    # The head is cached and shared: a caller that wrote into it would change every later picture.
    for array in (*vars(asset).values(), *vars(head).values()):
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    return head


def subdivision(faces: Int[np.ndarray, "F 3"], num_vertices: int) -> tuple[csr_array, Int[np.ndarray, "G 3"]]:
    """Makes one step of Loop's scheme: the matrix [V + edges, V], and four faces for each.

    The matrix takes old vertices to new ones. Edges of one face are creases: they follow their
    own line, so pieces that share an open edge keep sharing it.
    """
    corners = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    edges, edge_of = np.unique(np.sort(corners, axis=1), axis=0, return_inverse=True)
    opposite = faces[:, [2, 0, 1]].reshape(-1)
    num_edges, counts = len(edges), np.bincount(edge_of)
    inner = counts == 2
    rows, columns, values = [], [], []

    def put(row: np.ndarray, column: np.ndarray, value: np.ndarray | float) -> None:
        rows.append(row)
        columns.append(column)
        values.append(np.broadcast_to(value, row.shape))

    ends = np.where(inner, 3 / 8, 1 / 2)
    for end in (0, 1):
        put(num_vertices + np.arange(num_edges), edges[:, end], ends)
    across = inner[edge_of]  # a border edge has no vertex on its other side
    put(num_vertices + edge_of[across], opposite[across], 1 / 8)

    on_border = np.zeros(num_vertices, bool)
    on_border[edges[~inner]] = True
    valence = np.bincount(edges.ravel(), minlength=num_vertices)
    spread = (5 / 8 - (3 / 8 + np.cos(2 * np.pi / np.maximum(valence, 1)) / 4) ** 2) / np.maximum(valence, 1)
    vertices = np.arange(num_vertices)
    put(vertices, vertices, np.where(on_border, 3 / 4, 1 - valence * spread))
    for near, far in ((0, 1), (1, 0)):
        own, other = edges[:, near], edges[:, far]
        used = np.where(on_border[own], ~inner, True)
        put(own[used], other[used], np.where(on_border[own], 1 / 8, spread[own])[used])
    matrix = csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(num_vertices + num_edges, num_vertices),
    )
    ab, bc, ca = (num_vertices + edge_of.reshape(-1, 3)).T
    a, b, c = faces.T
    finer = [np.stack(face, axis=1) for face in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    return matrix, np.concatenate(finer)


def _character(points: np.ndarray) -> np.ndarray:
    """Gives points the drawn face's own proportions: a broader jaw and a longer chin.

    Nothing changes from the eyes upwards.
    """
    x, y, z = points.T.copy()
    low = sm.smoothstep((-0.026 - y) / 0.055)
    x = x * (1.0 + 0.17 * low * (1.0 - sm.bump(x, 0.030)))
    y = y - 0.005 * sm.smoothstep((-0.082 - y) / 0.035)
    return np.column_stack([x, y, z])


def _hair(smooth: csr_array, mesh: sm.Mesh, kept: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Returns how much of each vertex is hair, 0..1.

    Hair is above a line from the forehead over the temples to the nape.
    """
    x, y, z = flat.T
    skin = smooth @ (mesh.part[kept] == sm.SKIN).astype(np.float64)
    depth, height = zip(*_HAIRLINE, strict=True)
    line = np.interp(z, depth, height) + 0.0018 * np.sin(x / 0.005) * (z > 0.03)
    line -= 0.008 * sm.bump(np.abs(x) - 0.052, 0.014) * (z > 0.02)
    return skin * sm.smoothstep((y - line) / 0.007 + 0.3)


def _hair_volume(flat: np.ndarray, hair: np.ndarray) -> np.ndarray:
    out = flat - [0.0, 0.015, -0.010]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    x, y, _ = flat.T
    tufts = 0.0012 * np.sin(x / 0.0045 + 0.004 * np.sin(y / 0.01) / 0.004)
    depth = 0.0045 + 0.0105 * sm.smoothstep((y - 0.03) / 0.06) + tufts
    return (hair * depth)[:, None] * out


def _eye(side: float, coarse: FlameAsset, joint: int) -> _Piece:
    """Makes an eyeball about the joint of the training mesh, its pole (the pupil) at +z.

    Narrow rings at the edges of pupil, iris and limbus keep their colours from running.
    """
    polar = np.deg2rad([0, 10, 11, 14, 18, 22, 26, 28, 30, 31.5, 40, 52, 68, 90, 130, 180])
    phi = 2 * np.pi * np.arange(32) / 32
    sin, cos = np.sin(polar)[:, None], np.cos(polar)[:, None]
    ball = np.stack([sin * np.cos(phi), sin * np.sin(phi), cos * np.ones(32)], axis=-1).reshape(-1, 3)
    centre = coarse.j_regressor[joint].astype(np.float64) @ coarse.v_template.astype(np.float64)
    num = len(ball)
    faces = sm.grid_faces(len(polar), 32, closed=True)[:, ::-1]
    weights, materials = np.zeros((num, 5)), np.zeros((num, len(_PARTS)))
    weights[:, joint] = materials[:, _EYE] = 1.0
    basis = np.zeros((num, 3, NUM_EXPRESSION))
    return _Piece(ball * EYE_RADIUS + centre, faces, basis, weights, materials, np.ones(num))


def _bust() -> _Piece:
    """Makes neck, collar and shoulders.

    The neck turns with the head at its top, and not at all from the collar down.
    """
    phi = 2 * np.pi * np.arange(48) / 48
    rings = [  # height, half width, half depth, middle in depth
        (-0.030, 0.047, 0.050, -0.026),
        (-0.060, 0.047, 0.050, -0.024),
        (-0.090, 0.047, 0.049, -0.022),
        (-0.115, 0.049, 0.050, -0.022),
        (-0.132, 0.054, 0.053, -0.022),
        (-0.1325, 0.0575, 0.057, -0.022),
        (-0.139, 0.0595, 0.059, -0.022),
        (-0.145, 0.062, 0.060, -0.023),
        (-0.156, 0.090, 0.066, -0.026),
        (-0.170, 0.130, 0.074, -0.028),
        (-0.190, 0.168, 0.080, -0.030),
        (-0.230, 0.185, 0.085, -0.032),
        (-0.280, 0.190, 0.087, -0.033),
    ]
    flat = [np.column_stack([a * np.sin(phi), np.full(48, y), b * np.cos(phi) + c]) for y, a, b, c in rings]
    points, row = np.concatenate(flat), np.repeat(np.arange(len(rings)), 48)
    dip = np.interp(row, [2, 3, 4, 8, 9], [0.0, 0.008, 0.018, 0.018, 0.0])  # the collar is lower at the throat
    points[:, 1] -= dip * sm.smoothstep((points[:, 2] + 0.02) / 0.05)
    num = len(points)
    weights, materials = np.zeros((num, 5)), np.zeros((num, len(_PARTS)))
    weights[:, 1] = 1.0
    materials[row <= 4, _SKIN] = materials[row > 4, _SHIRT] = 1.0
    follow = 1.0 - sm.smoothstep((-0.045 - points[:, 1]) / 0.085)
    follow[row >= 5] = 0.0
    faces = sm.grid_faces(len(rings), 48, closed=True)[:, ::-1]
    return _Piece(points, faces, np.zeros((num, 3, NUM_EXPRESSION)), weights, materials, follow)


def _paint(
    palette: Palette, head: _Piece, flat: np.ndarray, hair: np.ndarray, closed: np.ndarray, pieces: list[_Piece]
) -> np.ndarray:
    """Returns the RGB [V, 3] uint8 of all pieces.

    `flat` are the head's points before it got its own proportions, `closed` how far each moves
    when the eyes shut.
    """
    table = np.zeros((len(_PARTS), 3))
    table[[_SKIN, _LIPS, _SHIRT]] = palette.skin, palette.lips, palette.shirt
    table[[_BAG_PART, _TEETH_PART, _EDGE, _EYE]] = _BAG, _TEETH, _LASHES, _WHITE
    table[_BROW] = palette.hair
    colors = [piece.materials @ table for piece in pieces]
    x, y, z = flat.T
    skin, front = head.materials[:, _SKIN], z > 0
    lips = head.materials[:, _LIPS]
    layers = (
        (0.40 * skin * sm.bump(np.abs(x) - 0.043, 0.017) * sm.bump(y + 0.033, 0.017) * front, palette.blush),
        (0.30 * skin * sm.bump(x, 0.012) * sm.bump(y + 0.036, 0.010) * front, palette.blush),
        (0.80 * skin * sm.bump(np.abs(x) - 0.0068, 0.004) * sm.bump(y + 0.0475, 0.0030) * front, _NOSTRIL),
        (0.28 * skin * (closed > 1e-4), _LID_SHADE),
        (0.45 * lips * sm.bump(y - sm.MOUTH_Y, 0.0022), _LASHES),
        (np.clip(hair, 0, 1), palette.hair),
    )
    for amount, color in layers:
        colors[0] += amount[:, None] * (np.array(color) - colors[0])
    strands = 1.0 + 0.16 * np.sin(x / 0.0021 + y / 0.009)
    colors[0] *= 1.0 + hair[:, None] * (strands[:, None] - 1.0)
    for eye in (1, 2):
        colors[eye] = _eye_colors(pieces[eye], palette)
    colors[3] *= _neck_shade(pieces[3])[:, None]
    return np.clip(np.concatenate(colors), 0, 255).round().astype(np.uint8)


def _eye_colors(eye: _Piece, palette: Palette) -> np.ndarray:
    out = eye.points - (eye.points.min(axis=0) + eye.points.max(axis=0)) / 2
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    polar, phi = np.rad2deg(np.arccos(np.clip(out[:, 2], -1, 1))), np.arctan2(out[:, 1], out[:, 0])
    iris = np.array(palette.iris) * (1.0 + 0.10 * np.sin(11 * phi) + 0.25 * sm.smoothstep((18 - polar) / 7))[:, None]
    iris *= (1.0 - 0.55 * sm.smoothstep((polar - 24) / 4))[:, None]
    white = np.array(_WHITE) - np.array([10, 34, 38]) * sm.smoothstep((polar - 45) / 40)[:, None]
    colors = np.where((polar < 30.5)[:, None], iris, white)
    return np.where((polar < 10.5)[:, None], np.array(_PUPIL), colors)


def _neck_shade(bust: _Piece) -> np.ndarray:
    """Returns the light that chin, jaw and collar leave on the neck, 0..1."""
    _, y, z = bust.points.T
    skin = bust.materials[:, _SKIN]
    shadow = 0.42 * skin * sm.smoothstep((y + 0.128) / 0.035) * sm.smoothstep((z + 0.04) / 0.06)
    return 1.0 - shadow - 0.15 * skin * sm.smoothstep((-0.118 - y) / 0.02)
