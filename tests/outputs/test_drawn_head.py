import dataclasses

import numpy as np

from unils_jax.face.standin import standin_asset
from unils_jax.motion import EYES, STANDIN_SHAPES
from unils_jax.outputs.canvas import NumpyCanvas, Tiles
from unils_jax.outputs.drawn_head import PALETTES, drawn_head, standin_head, subdivision
from unils_jax.outputs.video import _frames_of_vertices

NAMES = list(STANDIN_SHAPES)


def shaped(**shapes: float) -> np.ndarray:
    """The drawn head's vertices with shapes at a fraction of fully expressed."""
    motion = np.zeros(108, np.float32)
    for name, amount in shapes.items():
        motion[NAMES.index(name)] = amount * STANDIN_SHAPES[name]
    return next(_frames_of_vertices(standin_head(), motion[None, None]))[0]


def test_subdividing_an_octahedron_rounds_it_and_keeps_it_closed():
    points = np.concatenate([np.eye(3), -np.eye(3)])
    faces = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    matrix, finer = subdivision(faces, 6)
    assert matrix.shape == (18, 6) and finer.shape == (32, 3)
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1.0)
    new = matrix @ points
    before, after = np.linalg.norm(points, axis=1), np.linalg.norm(new, axis=1)
    middles = np.linalg.norm(points[faces].mean(axis=1), axis=1)
    assert before.max() / middles.min() > 1.7 and after.max() / after.min() < 1.05, "nearly a sphere"
    edges = np.sort(finer[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    a, b, c = (new[finer[:, i]] for i in range(3))
    assert ((np.cross(b - a, c - a) * a).sum(axis=1) > 0).all(), "faces still look outwards"


def test_an_open_edge_follows_its_own_line_only():
    """Two pieces that share an open edge must share it after, whatever else is in them."""
    matrix, _ = subdivision(np.array([[0, 1, 2], [1, 3, 2]]), 4)
    dense = matrix.toarray()
    np.testing.assert_allclose(dense[0], [0.75, 0.125, 0.125, 0.0])
    np.testing.assert_allclose(dense[3], [0.0, 0.125, 0.125, 0.75])


def test_the_drawn_head_is_the_training_head_on_more_faces():
    head, coarse = standin_head(), standin_asset()
    assert drawn_head(coarse) is head and head.asset is not coarse
    assert len(head.asset.faces) > 3 * len(coarse.faces) and len(coarse.v_template) < 3000
    np.testing.assert_allclose(
        head.asset.j_regressor @ head.asset.v_template, coarse.j_regressor @ coarse.v_template, atol=1e-5
    )
    assert head.asset.skinning.num_expression == coarse.skinning.num_expression == len(NAMES)
    np.testing.assert_allclose(head.asset.weights.sum(axis=1), 1.0, atol=1e-6)


def test_every_named_shape_moves_as_much_as_in_the_training_mesh():
    head, coarse = standin_head(), standin_asset()
    for i, name in enumerate(NAMES):
        drawn, trained = (np.linalg.norm(a.expression_basis[:, :, i], axis=1).max() for a in (head.asset, coarse))
        assert 0.6 < drawn / trained < 1.3, name


def test_shut_lids_leave_nothing_of_the_eyeballs_to_be_seen():
    head = standin_head()
    eyes = head.asset.weights[:, 3:].sum(axis=1) == 1
    colors = np.where(eyes[None, :, None], np.uint8(255), np.uint8(0)) * np.ones(head.colors.shape, np.uint8)
    painted = dataclasses.replace(head, colors=colors, gloss=np.zeros_like(head.gloss))
    canvas = NumpyCanvas(painted, Tiles(1, 3, 512, 512, [0, 0, 0]))
    faces = [shaped(), shaped(blink_left=1.0), shaped(blink_left=1.0, blink_right=1.0)]
    seen = (canvas.draw(np.stack(faces)).min(axis=-1) > 70).reshape(512, 3, 2, 256).sum(axis=(0, 3))
    assert (seen[0] > 300).all()
    assert seen[1, 0] > 300 and seen[1, 1] == 0, "the left eye is on the right of the picture"
    assert (seen[2] == 0).all()


def test_upper_lids_go_down_and_up_with_the_gaze_and_leave_the_iris_to_be_seen():
    head, motion = standin_head(), np.zeros((1, 3, 108), np.float32)
    motion[0, :, EYES.start] = [-0.35, 0.0, 0.35]  # the left eye looks up, ahead, down
    up, ahead, down = (points[0] for points in _frames_of_vertices(head, motion))
    lids = np.flatnonzero(
        head.asset.expression_basis[:, 1, NAMES.index("blink_left")] * STANDIN_SHAPES["blink_left"] < -4e-3
    )
    assert lids.size > 3
    assert (up[lids, 1] > ahead[lids, 1] + 1e-3).all() and (down[lids, 1] < ahead[lids, 1] - 1e-3).all()
    right = head.asset.v_template[:, 0] < -0.005
    assert np.array_equal(up[right], down[right])


def test_shoulders_stay_and_the_face_turns():
    head = standin_head()
    assert head.follow.min() == 0 and head.follow.max() == 1
    y = head.asset.v_template[:, 1]
    assert (head.follow[y > 0] == 1).all() and (head.follow[y < -0.16] == 0).all()


def test_parts_and_people_have_colours_of_their_own():
    head = standin_head()
    assert head.colors.shape == (len(PALETTES), *head.asset.v_template.shape)
    assert len(np.unique(head.colors[0], axis=0)) > 200
    different = (head.colors[0] != head.colors[1]).any(axis=1)
    assert different.mean() > 0.8
    pupils = (head.colors.max(axis=-1) < 30).any(axis=0) & (head.gloss > 0.5)
    assert pupils.sum() >= 2 * 32
