"""Motion as a binary glTF 2.0 file (.glb): skinned heads with morph targets and one animation.

Frame t is a key at t/25 s. Morph targets are the named shapes fully expressed (the stand-in's)
or a unit of coefficient (FLAME's), with pose correctives as further targets; their weights and
the rotations of head, jaw and eyes are keyed in every frame. A reader that skins and morphs as
the specification says gets the vertices of `face.flame.vertices`. With other `Morphs` (ARKit's)
the targets are those, and the jaw is one of them and no joint.
"""

import json
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from unils_jax import __version__
from unils_jax.errors import UserError
from unils_jax.face.flame import FlameAsset
from unils_jax.files import atomic_output, check_output
from unils_jax.motion import EXPRESSION, EYES, FPS, HEAD, JAW, STANDIN_SHAPES
from unils_jax.outputs.drawn_head import DrawnHead, drawn_head, shown_motion

DISTANCE = 0.42  # metres between two people
_FLOAT, _UNSIGNED_BYTE, _UNSIGNED_INT = 5126, 5121, 5125
_VERTEX_BUFFER, _INDEX_BUFFER = 34962, 34963
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
JOINTS = ("shoulders", "head", "jaw", "eye_left", "eye_right")


@dataclass
class _File:
    """A file while it grows: its bytes, their views and accessors, and the JSON's lists."""

    binary: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    meshes: list[dict[str, Any]] = field(default_factory=list)
    skins: list[dict[str, Any]] = field(default_factory=list)
    channels: list[dict[str, Any]] = field(default_factory=list)  # of the one animation
    samplers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, values: np.ndarray, target: int | None = None, *, normalized: bool = False) -> int:
        """Appends an array [n] or [n, width]; returns its accessor's number."""
        kinds = {"float32": _FLOAT, "uint8": _UNSIGNED_BYTE, "uint32": _UNSIGNED_INT}
        rows = values.reshape(len(values), -1)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": values.nbytes}
        self.views.append(view if target is None else {**view, "target": target})
        self.binary += np.ascontiguousarray(values).tobytes()
        self.binary += bytes(-len(self.binary) % 4)  # accessors must begin at multiples of four
        self.accessors.append(
            {
                "bufferView": len(self.views) - 1,
                "componentType": kinds[values.dtype.name],
                "count": len(values),
                "type": _TYPES[rows.shape[1]],
                "min": rows.min(axis=0).tolist(),
                "max": rows.max(axis=0).tolist(),
                **({"normalized": True} if normalized else {}),
            }
        )
        return len(self.accessors) - 1

    def animate(self, node: int, path: str, times: int, values: np.ndarray) -> None:
        """Adds keys of a node's property, one for each time of the accessor `times`."""
        sampler = {"input": times, "output": self.add(values.astype(np.float32)), "interpolation": "LINEAR"}
        self.samplers.append(sampler)
        self.channels.append({"sampler": len(self.samplers) - 1, "target": {"node": node, "path": path}})


@dataclass(frozen=True)
class Morphs:
    """Morph targets of the drawn head, and their weights over time."""

    names: list[str]
    shapes: Float[np.ndarray, "K V 3"]  # displacements in metres at weight 1
    weights: Float[np.ndarray, "P T K"]


def write_glb(
    path: str | os.PathLike,
    motion: Float[np.ndarray, "P T 108"],
    asset: FlameAsset,
    *,
    expression_basis: str,
    embed_flame: bool = False,
    morphs: Morphs | None = None,
) -> None:
    """Writes people side by side, 0.42 m apart, metres, y up, facing +z.

    Motion of another basis than the head's moves jaw, gaze and head only. `morphs` replace the
    head's own shapes and the jaw's joint; of `motion` head and eyes are left then. Raises UserError
    for an output that cannot be written, and for FLAME geometry without `embed_flame`.
    """
    path = check_output(path, ".glb")
    if asset.name == "flame" and not embed_flame:
        raise UserError(
            "the file would contain FLAME's geometry, which is licensed: add --embed_flame if your licence allows it, "
            "or leave --flame away and the stand-in head is written"
        )
    motion = shown_motion(motion.astype(np.float32), asset, expression_basis)
    head, file = drawn_head(asset), _File()
    own = morphs is None
    morphs = _own_morphs(head.asset, motion) if morphs is None else morphs
    shared = _shared(file, head, morphs, [j for j, name in enumerate(JOINTS) if own or name != "jaw"])
    places = (np.arange(len(motion)) - (len(motion) - 1) / 2) * DISTANCE
    for p, x in enumerate(places):
        _person(file, head, shared, motion[p], p, float(x))
    # Its joints alone place a skinned mesh: the format wants it at the top of the scene.
    below = {child for node in file.nodes for child in node.get("children", ())}
    roots = [node for node in range(len(file.nodes)) if node not in below]
    licence = {"copyright": "Geometry: FLAME, licensed by its makers"} if asset.name == "flame" else {}
    document = {
        "asset": {"version": "2.0", "generator": f"unils_jax {__version__}", **licence},
        "scene": 0,
        "scenes": [{"name": "conversation", "nodes": roots}],
        "nodes": file.nodes,
        "meshes": file.meshes,
        "skins": file.skins,
        "materials": [
            {"name": "vertex colours", "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 0.6}}
        ],
        "animations": [{"name": "conversation", "channels": file.channels, "samplers": file.samplers}],
        "accessors": file.accessors,
        "bufferViews": file.views,
        "buffers": [{"byteLength": len(file.binary)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # chunks, too
    with atomic_output(path) as partial, open(partial, "wb") as out:
        out.write(struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(file.binary)))
        out.write(struct.pack("<I4s", len(text), b"JSON") + text)
        out.write(struct.pack("<I4s", len(file.binary), b"BIN\0"))
        out.write(file.binary)


@dataclass(frozen=True)
class _Shared:
    """The accessors that the meshes of all people share, and what they are made of."""

    morphs: Morphs
    kept: list[int]  # of `JOINTS`
    attributes: dict[str, int]
    indices: int
    targets: list[dict[str, int]]  # morph targets
    inverse_bind: int
    times: int  # seconds of the keys


def _shared(file: _File, head: DrawnHead, morphs: Morphs, kept: list[int]) -> _Shared:
    asset, s = head.asset, head.asset.skinning
    points = asset.v_template
    joints, weights = _skin(head, kept)
    targets = [{"POSITION": file.add(shape.astype(np.float32), _VERTEX_BUFFER)} for shape in morphs.shapes]
    attributes = {
        "POSITION": file.add(points, _VERTEX_BUFFER),
        "NORMAL": file.add(_normals(points, asset.faces), _VERTEX_BUFFER),
        "JOINTS_0": file.add(joints, _VERTEX_BUFFER),
        "WEIGHTS_0": file.add(weights, _VERTEX_BUFFER),
    }
    indices = file.add(asset.faces.astype(np.uint32).ravel(), _INDEX_BUFFER)
    # The shoulders' joint is where the head turns.
    places = np.concatenate([s.joint_template[:1], s.joint_template])[kept]
    matrices = np.tile(np.eye(4, dtype=np.float32), (len(places), 1, 1))
    matrices[:, 3, :3] = -places  # column-major, so that the last row is the translation
    inverse_bind = file.add(matrices.reshape(-1, 16))
    times = file.add((np.arange(morphs.weights.shape[1]) / FPS).astype(np.float32))
    return _Shared(morphs, kept, attributes, indices, targets, inverse_bind, times)


def _own_morphs(asset: FlameAsset, motion: Float[np.ndarray, "P T 108"]) -> Morphs:
    """Returns the head's expression and its pose correctives."""
    s = asset.skinning
    shapes = s.basis.reshape(len(s.basis), 3, -1).transpose(0, 2, 1)
    per_coefficient = np.ones(len(shapes))  # weights of a target
    names = [f"expression_{k:02d}" for k in range(s.num_expression)]
    if asset.name == "standin":
        names = list(STANDIN_SHAPES)
        per_coefficient[: len(names)] = 1 / np.array(list(STANDIN_SHAPES.values()))
    names += [f"pose_{c:02d}" for c in s.pose_columns]
    turns = _turns(motion.reshape(-1, motion.shape[-1]))[1:]
    less_identity = np.stack([turn.as_matrix() - np.eye(3) for turn in turns], axis=1)
    correctives = less_identity.reshape(*motion.shape[:2], 27)[..., s.pose_columns]
    expression = motion[..., EXPRESSION][..., : s.num_expression].astype(np.float64)
    weights = np.concatenate([expression, correctives], axis=-1) * per_coefficient
    return Morphs(names, shapes / per_coefficient[:, None, None], weights)


def _skin(head: DrawnHead, kept: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the four strongest of the kept joints for every vertex, and their weights.

    The weights sum to one.
    """
    s = head.asset.skinning
    moved = np.where(np.isin([2, 3, 4], kept), s.weights.T.astype(np.float64), 0.0)
    rest = np.clip(1.0 - moved.sum(axis=1), 0.0, None)
    follow = head.follow.astype(np.float64)
    weights = np.column_stack([(1.0 - follow) * rest, follow * rest, moved])[:, kept]
    # Readers support four joints a vertex; a stable sort gives the same file every time.
    order = np.argsort(-weights, axis=1, kind="stable")[:, :4]
    strongest = np.take_along_axis(weights, order, axis=1)
    strongest /= strongest.sum(axis=1, keepdims=True)
    return np.where(strongest > 0, order, 0).astype(np.uint8), strongest.astype(np.float32)


def _normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (points[faces[:, i]] for i in range(3))
    normals = np.zeros_like(points)
    for i in range(3):
        np.add.at(normals, faces[:, i], np.cross(b - a, c - a))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.maximum(length, 1e-30), np.float32([0, 0, 1])).astype(np.float32)


def _linear(colors: np.ndarray) -> np.ndarray:
    """Converts sRGB bytes to linear RGBA bytes, as COLOR_0 has them."""
    x = colors.astype(np.float64) / 255
    x = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    rgb = np.round(255 * x).astype(np.uint8)
    return np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], axis=1)


def _person(file: _File, head: DrawnHead, shared: _Shared, motion: np.ndarray, person: int, x: float) -> None:
    """Adds one person's nodes, mesh, skin and keys.

    The person is at `x` metres; number `person` picks the palette and the names.
    """
    nodes, colors, morphs = file.nodes, head.colors[person % len(head.colors)], shared.morphs
    attributes = {**shared.attributes, "COLOR_0": file.add(_linear(colors), _VERTEX_BUFFER, normalized=True)}
    primitive = {"attributes": attributes, "indices": shared.indices, "targets": shared.targets, "material": 0}
    file.meshes.append(
        {
            "name": f"person {person + 1}",
            "primitives": [primitive],
            "weights": [0.0] * len(shared.targets),
            "extras": {"targetNames": morphs.names},
        }
    )
    mesh = len(nodes) + 1
    joints = [mesh + 1 + j for j in range(len(shared.kept))]
    file.skins.append({"inverseBindMatrices": shared.inverse_bind, "joints": joints, "skeleton": joints[0]})
    template = head.asset.skinning.joint_template.astype(np.float64)
    places = [template[0], np.zeros(3), *(template[1:] - template[0])]  # each in its parent's frame
    nodes.append({"name": f"person {person + 1}", "translation": [x, 0.0, 0.0], "children": joints[:1]})
    nodes.append({"name": f"face {person + 1}", "mesh": len(file.meshes) - 1, "skin": len(file.skins) - 1})
    below = {0: joints[1:2], 1: joints[2:]}
    for j in shared.kept:
        node = {"name": f"{JOINTS[j]} {person + 1}", "translation": places[j].tolist()}
        nodes.append({**node, "children": below[j]} if j in below else node)
    file.animate(mesh, "weights", shared.times, morphs.weights[person].reshape(-1))
    turns = _turns(motion)
    translations = _translations(head.asset, motion, turns)
    for joint, j in zip(joints[1:], shared.kept[1:], strict=True):
        file.animate(joint, "rotation", shared.times, turns[j - 1].as_quat(canonical=True))
        # Joints follow the expression in FLAME, not in the stand-in, whose keys would say nothing.
        if np.ptp(translations[j - 1], axis=0).max() > 1e-7:
            file.animate(joint, "translation", shared.times, translations[j - 1])


def _turns(motion: Float[np.ndarray, "T 108"]) -> list[Rotation]:
    """Returns the rotations of head, jaw and both eyes over time."""
    zero = np.zeros((len(motion), 1))
    eyes = motion[:, EYES].astype(np.float64)
    axes = [
        motion[:, HEAD].astype(np.float64),
        np.concatenate([motion[:, JAW], zero, zero], axis=1),
        np.concatenate([eyes[:, :2], zero], axis=1),
        np.concatenate([eyes[:, 2:], zero], axis=1),
    ]
    return [Rotation.from_rotvec(axis) for axis in axes]


def _translations(
    asset: FlameAsset, motion: Float[np.ndarray, "T 108"], turns: list[Rotation]
) -> list[Float[np.ndarray, "T 3"]]:
    """Returns the translations of head, jaw and both eyes over time, in the parent's frame.

    A joint J that has moved from J0 with the expression turns a vertex v to R (v - J) + J. Its
    node applies R (v - J0) + t, so t = J - R (J - J0); below the head, whose frame begins at the
    head's J0, that less this J0.
    """
    s = asset.skinning
    expression = motion[:, EXPRESSION][:, : s.num_expression].astype(np.float64)
    offsets = np.einsum("te,ejc->jtc", expression, s.joint_basis.astype(np.float64))
    origins = s.joint_template.astype(np.float64)
    return [origins[j] + offsets[j] - turns[j].apply(offsets[j]) - origins[0] for j in range(4)]
