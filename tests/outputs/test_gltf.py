"""The .glb as VTK's importer sees it: skinned and morphed by VTK, it must be the head that we pose."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flame_golden import golden_flame_asset

from unils_jax.errors import UserError
from unils_jax.face.flame import vertices
from unils_jax.face.standin import standin_asset
from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW, STANDIN_SHAPES
from unils_jax.outputs import arkit
from unils_jax.outputs.drawn_head import standin_head
from unils_jax.outputs.gltf import DISTANCE, Morphs, write_glb
from unils_jax.outputs.video import _frames_of_vertices

VALIDATOR = Path(__file__).parents[2] / "build/viewer/node_modules/gltf-validator"
VALIDATE = """require(process.argv[1]).validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))
  .then((report) => console.log(JSON.stringify(report)))"""


def moving(num_people: int, num_frames: int, used: int) -> np.ndarray:
    """Every part moves: expression, a turning head, a jaw, two eyes of their own."""
    rng = np.random.default_rng(3)
    motion = np.zeros((num_people, num_frames, 108), np.float32)
    motion[..., EXPRESSION][..., :used] = rng.uniform(0, 1, (num_people, num_frames, used))
    motion[..., HEAD] = rng.uniform(-0.4, 0.4, (num_people, num_frames, 3))
    motion[..., JAW] = rng.uniform(0, 0.3, (num_people, num_frames, 1))
    motion[..., EYES] = rng.uniform(-0.3, 0.3, (num_people, num_frames, 4))
    return motion


def opened(path):
    reading = pytest.importorskip("vtkmodules.vtkIOGeometry", reason="needs VTK: pip install '.[render]'")
    reader = reading.vtkGLTFReader()
    reader.SetFileName(str(path))
    reader.SetApplyDeformationsToGeometry(True)
    reader.SetFrameRate(25)
    reader.UpdateInformation()
    reader.EnableAnimation(0)
    reader.UpdateInformation()
    return reader


def posed(reader, seconds: float) -> list[np.ndarray]:
    """The points of every mesh at a time."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    def leaves(block):
        for i in range(block.GetNumberOfBlocks()):
            inner = block.GetBlock(i)
            if inner is not None and inner.IsA("vtkMultiBlockDataSet"):
                yield from leaves(inner)
            elif inner is not None:
                yield vtk_to_numpy(inner.GetPoints().GetData()).copy()

    reader.UpdateTimeStep(seconds)
    return list(leaves(reader.GetOutput()))


def document(path) -> dict:
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    return json.loads(data[20 : 20 + size])


def test_vtk_sees_the_head_that_we_pose_in_every_frame(tmp_path):
    motion = moving(2, 6, len(STANDIN_SHAPES))
    write_glb(tmp_path / "m.glb", motion, standin_asset(), expression_basis="standin")
    reader = opened(tmp_path / "m.glb")
    assert reader.GetNumberOfAnimations() == 1
    assert reader.GetAnimationDuration(0) == pytest.approx(5 / 25, abs=1e-6)
    frames = list(_frames_of_vertices(standin_head(), motion))
    for t in (0, 3, 5):
        for person, points in enumerate(posed(reader, t / 25)):
            expected = frames[t][person] + np.array([(person - 0.5) * DISTANCE, 0, 0], np.float32)
            np.testing.assert_allclose(points, expected, atol=2e-5)


def test_flame_with_its_moving_joints_and_correctives_is_exact_too(tmp_path, golden):
    asset = golden_flame_asset(golden)
    motion = moving(1, 3, 100)
    write_glb(tmp_path / "m.glb", motion, asset, expression_basis="flame", embed_flame=True)
    reader = opened(tmp_path / "m.glb")
    expected = np.asarray(vertices(asset, jnp.asarray(motion[0]), head_rotation=True))
    for t in range(3):
        (points,) = posed(reader, t / 25)
        np.testing.assert_allclose(points, expected[t], atol=1e-5)
    assert "FLAME" in document(tmp_path / "m.glb")["asset"]["copyright"]


def test_targets_are_named_and_weights_are_keyed_in_every_frame(tmp_path):
    motion = moving(1, 4, 24)
    write_glb(tmp_path / "m.glb", motion, standin_asset(), expression_basis="standin")
    file = document(tmp_path / "m.glb")
    assert file["meshes"][0]["extras"]["targetNames"] == [*STANDIN_SHAPES, "pose_16", "pose_25"]
    channels, accessors = file["animations"][0]["channels"], file["accessors"]
    samplers = file["animations"][0]["samplers"]
    counts = {c["target"]["path"]: accessors[samplers[c["sampler"]]["output"]]["count"] for c in channels}
    assert counts == {"weights": 4 * 26, "rotation": 4}
    times = accessors[samplers[0]["input"]]
    assert (times["min"], times["max"], times["count"]) == ([0.0], [pytest.approx(3 / 25)], 4)
    nodes = {file["nodes"][c["target"]["node"]]["name"] for c in channels}
    assert nodes == {"face 1", "head 1", "jaw 1", "eye_left 1", "eye_right 1"}


def test_flames_geometry_is_embedded_only_when_asked_for(tmp_path, golden):
    with pytest.raises(UserError, match="--embed_flame"):
        write_glb(tmp_path / "m.glb", moving(1, 2, 9), golden_flame_asset(golden), expression_basis="flame")
    assert not list(tmp_path.iterdir())


def test_motion_of_another_basis_moves_jaw_gaze_and_head_only(tmp_path, caplog):
    write_glb(tmp_path / "m.glb", moving(1, 2, 50), standin_asset(), expression_basis="flame")
    file = document(tmp_path / "m.glb")
    weights = next(c for c in file["animations"][0]["channels"] if c["target"]["path"] == "weights")
    accessor = file["accessors"][file["animations"][0]["samplers"][weights["sampler"]]["output"]]
    assert (accessor["min"], accessor["max"]) != ([0.0], [0.0]), "lids follow the gaze"
    motion = moving(1, 2, 50)
    motion[..., EYES] = 0.0
    write_glb(tmp_path / "m.glb", motion, standin_asset(), expression_basis="flame")
    file = document(tmp_path / "m.glb")
    accessor = file["accessors"][file["animations"][0]["samplers"][weights["sampler"]]["output"]]
    assert accessor["min"] == accessor["max"] == [0.0]
    assert "only jaw, gaze and head" in caplog.text


def test_arkits_shapes_fully_expressed_are_the_head_that_we_pose(tmp_path):
    """Between its ends a jaw that is a shape goes straight and not round; two of our shapes are one of ARKit's."""
    motion = moving(1, 4, len(STANDIN_SHAPES)) * 0.9
    motion[..., list(STANDIN_SHAPES).index("nose_wrinkle")] = 0
    motion[..., EYES.start :: 2] = 0
    motion[0, :, JAW] = 0
    motion[0, 2], motion[0, 3] = 0, 0
    motion[0, 2, JAW], motion[0, 3, EYES.start :: 2] = arkit.JAW_OPEN, [0.5, -0.5]
    names, shapes = arkit.standin_basis(standin_head().asset)
    morphs = Morphs(names, shapes, arkit.by_name(motion).of(names))
    write_glb(tmp_path / "m.glb", motion, standin_asset(), expression_basis="standin", morphs=morphs)
    reader = opened(tmp_path / "m.glb")
    for t, (expected,) in enumerate(_frames_of_vertices(standin_head(), motion)):
        np.testing.assert_allclose(posed(reader, t / 25)[0], expected, atol=2e-5)
    file = document(tmp_path / "m.glb")
    assert [node["name"] for node in file["nodes"]][2:] == ["shoulders 1", "head 1", "eye_left 1", "eye_right 1"]
    assert file["meshes"][0]["extras"]["targetNames"] == names
    assert [name for name in arkit.ARKIT_NAMES if name not in names] == [
        *("eyeLookInLeft", "eyeLookOutLeft", "eyeLookInRight", "eyeLookOutRight"),
        *("jawForward", "jawLeft", "jawRight", "mouthClose", "mouthFunnel", "mouthDimpleLeft", "mouthDimpleRight"),
        *("mouthShrugUpper", "tongueOut"),
    ]


def test_a_fit_on_flames_head_is_written_with_the_users_shapes(tmp_path, golden):
    asset, names = golden_flame_asset(golden), ["jawOpen", "mouthSmileLeft"]
    shapes = asset.expression_basis[:, :, :2].transpose(2, 0, 1)
    motion = moving(1, 3, 2)
    motion[..., JAW] = motion[..., EYES] = 0
    found = arkit.by_fit(motion, asset, names, shapes)
    morphs = Morphs(names, shapes, found.of(names))
    write_glb(tmp_path / "m.glb", motion, asset, expression_basis="flame", embed_flame=True, morphs=morphs)
    reader = opened(tmp_path / "m.glb")
    expected = np.asarray(vertices(asset, jnp.asarray(motion[0]), head_rotation=True))
    for t in range(3):
        np.testing.assert_allclose(posed(reader, t / 25)[0], expected[t], atol=2e-5)


def findings(path) -> tuple[list[str], dict]:
    """The errors and warnings of Khronos' validator, and what it counted in the file."""
    if not shutil.which("node") or not VALIDATOR.exists():
        pytest.skip("needs Khronos' glTF validator: run `make viewer` (needs Node)")
    done = subprocess.run(
        ["node", "-e", VALIDATE, str(VALIDATOR), str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    report = json.loads(done.stdout)
    issues = [issue for issue in report["issues"]["messages"] if issue["severity"] < 2]
    return [f"{issue['code']} {issue['pointer']}" for issue in issues], report["info"]


@pytest.mark.slow
@pytest.mark.parametrize(("people", "frames"), [(1, 1), (1, 5), (2, 5)])
def test_khronos_validator_finds_nothing_in_the_stand_in(tmp_path, people, frames):
    motion = moving(people, frames, len(STANDIN_SHAPES))
    write_glb(tmp_path / "m.glb", motion, standin_asset(), expression_basis="standin")
    said, info = findings(tmp_path / "m.glb")
    assert said == []
    assert (info["drawCallCount"], info["animationCount"], info["hasSkins"]) == (people, 1, True)


@pytest.mark.slow
def test_khronos_validator_finds_nothing_in_arkits_shapes(tmp_path):
    motion, (names, shapes) = moving(2, 3, 24), arkit.standin_basis(standin_head().asset)
    morphs = Morphs(names, shapes, arkit.by_name(motion).of(names))
    write_glb(tmp_path / "m.glb", motion, standin_asset(), expression_basis="standin", morphs=morphs)
    said, info = findings(tmp_path / "m.glb")
    assert said == [] and info["hasMorphTargets"]


@pytest.mark.slow
def test_khronos_validator_finds_nothing_in_flames_head(tmp_path, golden):
    asset = golden_flame_asset(golden)
    write_glb(tmp_path / "m.glb", moving(2, 3, 100), asset, expression_basis="flame", embed_flame=True)
    said, info = findings(tmp_path / "m.glb")
    assert said == [] and info["hasMorphTargets"]


@pytest.mark.slow
def test_khronos_validator_finds_what_is_wrong(tmp_path):
    """A joint beyond the skin's: the validator reads the numbers, not the JSON alone."""
    write_glb(tmp_path / "m.glb", moving(1, 2, 24), standin_asset(), expression_basis="standin")
    file, data = document(tmp_path / "m.glb"), bytearray((tmp_path / "m.glb").read_bytes())
    accessor = file["accessors"][file["meshes"][0]["primitives"][0]["attributes"]["JOINTS_0"]]
    start = 28 + struct.unpack_from("<I", data, 12)[0] + file["bufferViews"][accessor["bufferView"]]["byteOffset"]
    data[start] = 200
    (tmp_path / "m.glb").write_bytes(data)
    assert any("JOINTS" in issue for issue in findings(tmp_path / "m.glb")[0])
