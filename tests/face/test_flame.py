import os
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flame_golden import golden_arrays, golden_flame_asset
from scipy.sparse import csc_matrix

from unils_jax.errors import UserError
from unils_jax.face.flame import NUM_VERTICES, rotation_matrices, vertices
from unils_jax.face.flame_file import flame_regions, load_flame
from unils_jax.face.standin import standin_asset


@pytest.fixture(scope="module")
def arrays(golden):
    return golden_arrays(golden)


@pytest.fixture
def chumpy(monkeypatch):
    """A class that pickles as chumpy's: its values in `x`, and a set beside them."""

    class Ch:
        def __init__(self, x):
            self.x, self._dirty_vars, self._itr = x, set(), None

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    module = types.ModuleType("chumpy.ch")
    module.Ch = Ch
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)
    return Ch


def published_layout(arrays, wrap) -> dict:
    """As generic_model.pkl has them: float64, a sparse regressor, chumpy objects, names that we do not read."""
    content = {name: array.astype(np.float64) for name, array in arrays.items() if array.dtype == np.float32}
    content["shapedirs"], content["J"] = wrap(content["shapedirs"]), wrap(np.zeros((5, 3)))
    content["J_regressor"] = csc_matrix(content["J_regressor"])
    content["f"], content["kintree_table"] = arrays["f"].astype(np.uint32), arrays["kintree_table"]
    return {**content, "bs_type": "lrotmin", "bs_style": "lbs"}


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def same(asset, arrays) -> bool:
    pairs = [
        ("v_template", "v_template"),
        ("posedirs", "posedirs"),
        ("weights", "weights"),
        ("J_regressor", "j_regressor"),
    ]
    exact = all(np.array_equal(arrays[theirs], getattr(asset, ours)) for theirs, ours in pairs)
    return exact and np.array_equal(arrays["shapedirs"][:, :, 300:], asset.expression_basis)


def test_the_published_pickle_is_read_without_chumpy(tmp_path, arrays, chumpy, monkeypatch):
    path = write(tmp_path / "generic_model.pkl", published_layout(arrays, chumpy))
    named_bytes = {key.encode(): value for key, value in published_layout(arrays, chumpy).items()}
    python2 = write(tmp_path / "bytes.pkl", named_bytes)
    for name in ("chumpy", "chumpy.ch"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would fail
    for asset in (load_flame(path), load_flame(python2)):
        assert same(asset, arrays) and asset.name == "flame"
        assert asset.faces.dtype == np.int32 and asset.faces.shape == (9976, 3)
        assert len(asset.lips) == 254 and len(set(asset.lips.tolist())) == 250 and len(asset.upper_face) == 884


def test_an_npz_of_the_same_names_is_read(tmp_path, arrays):
    np.savez(tmp_path / "flame.npz", **arrays)
    assert same(load_flame(tmp_path / "flame.npz"), arrays)


def test_a_malicious_flame_file_is_refused_and_not_run(tmp_path, arrays):
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = write(tmp_path / "generic_model.pkl", {"v_template": arrays["v_template"], "f": Attack()})
    with pytest.raises(UserError, match=r"generic_model.pkl holds the forbidden global .*system"):
        load_flame(path)
    assert not marker.exists()


def test_a_damaged_flame_file_is_refused(tmp_path, arrays, monkeypatch):
    whole = pickle.dumps({"v_template": arrays["v_template"]}, 2)
    for name, data in (("cut.pkl", whole[:5000]), ("empty.pkl", b""), ("text.pkl", b"hello\n"), ("list.pkl", b"].")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            load_flame(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        load_flame(tmp_path / "none.pkl")
    np.savez(tmp_path / "large.npz", **arrays)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "large.npz").read_bytes()[:5000])
    with pytest.raises(UserError, match="cut.npz"):
        load_flame(tmp_path / "cut.npz")
    monkeypatch.setattr("unils_jax.face.flame_file.MAX_FILE_BYTES", 1000)
    (tmp_path / "large.pkl").write_bytes(whole)
    for name in ("large.npz", "large.pkl"):
        with pytest.raises(UserError, match="1000"):
            load_flame(tmp_path / name)


def test_every_wrong_array_is_named_at_once(tmp_path, arrays):
    wrong = dict(arrays)
    wrong["v_template"] = arrays["v_template"][:-1]
    wrong["weights"] = np.full_like(arrays["weights"], np.nan)
    wrong["f"] = arrays["f"] + NUM_VERTICES
    wrong["kintree_table"] = arrays["kintree_table"][:, ::-1]
    wrong["J_regressor"] = csc_matrix(arrays["J_regressor"][:, :100])
    del wrong["posedirs"]
    with pytest.raises(UserError) as error:
        load_flame(write(tmp_path / "wrong.pkl", wrong))
    for name in ("v_template", "weights", "f must", "kintree_table", "J_regressor", "posedirs"):
        assert name in str(error.value), name


def test_sparse_indices_outside_the_regressor_are_refused(tmp_path, arrays):
    sparse = csc_matrix(arrays["J_regressor"])
    sparse.indices = sparse.indices + 7
    with pytest.raises(UserError, match="J_regressor"):
        load_flame(write(tmp_path / "wrong.pkl", {**arrays, "J_regressor": sparse}))


def test_region_lists_stay_inside_flame():
    for name, indices in flame_regions().items():
        assert 0 <= indices.min() and indices.max() < NUM_VERTICES, name


def test_no_motion_shows_the_template():
    asset = standin_asset()
    posed = vertices(asset, jnp.zeros((2, 108)), head_rotation=True)
    np.testing.assert_allclose(posed, np.tile(asset.v_template, (2, 1, 1)), atol=1e-7)


def test_head_rotation_turns_the_whole_head_about_the_root(golden):
    asset = golden_flame_asset(golden)
    motion = jnp.asarray(golden("flame_metrics").inputs["gt_motion"][0, :3])
    still, turned = (np.asarray(vertices(asset, motion, head_rotation=flag)) for flag in (False, True))
    root = asset.j_regressor[0] @ (asset.v_template + np.einsum("vce,te->tvc", asset.expression_basis, motion[:, :100]))
    rotation = np.asarray(rotation_matrices(motion[:, 100:103]))
    total = asset.weights.sum(axis=1)[None, :, None]
    expected = np.einsum("tvk,tck->tvc", still - total * root[:, None], rotation) + total * root[:, None]
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_rotations_at_zero_are_identity_with_finite_gradients():
    assert np.array_equal(rotation_matrices(jnp.zeros((1, 3)))[0], np.eye(3))
    assert np.isfinite(jax.jacobian(rotation_matrices)(jnp.zeros((1, 3)))).all()


def test_leading_shapes_are_kept_and_jit_changes_nothing(golden):
    asset = golden_flame_asset(golden)
    motion = jnp.asarray(golden("flame_metrics").inputs["params"])
    plain = vertices(asset, motion, head_rotation=True)
    assert plain.shape == (2, 2, 5023, 3)
    jitted = jax.jit(lambda m: vertices(asset, m, head_rotation=True))(motion)
    np.testing.assert_allclose(plain, jitted, atol=1e-7)
    np.testing.assert_allclose(plain[1, 1], vertices(asset, motion[1, 1], head_rotation=True), atol=1e-7)
