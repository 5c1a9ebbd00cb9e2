"""The 108 channels, centring, smoothing, and motion files that come back as they went or say why not."""

import numpy as np
import pytest

from unils_jax.errors import UserError
from unils_jax.motion import (
    BASES,
    EYES,
    HEAD,
    JAW,
    STANDIN_SHAPES,
    center_head,
    channel_names,
    from_motioncode,
    load_motion,
    save_motion,
    smooth,
)


def motion(people: int = 2, frames: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(people, frames, 108)).astype(np.float32)


def write(path, **changes) -> None:
    """A motion file by hand, with some of its arrays replaced (None leaves one out)."""
    arrays = {
        "motion": motion(),
        "fps": 25.0,
        "channels": np.array(channel_names("flame")),
        "expression_basis": "flame",
    }
    arrays = {**arrays, "source": "{}", **changes}
    with open(path, "wb") as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize("basis", BASES)
def test_every_channel_has_a_name_of_its_own(basis):
    names = channel_names(basis)
    assert len(names) == len(set(names)) == 108
    assert names[HEAD] == ["head_x", "head_y", "head_z"]
    assert names[JAW] == ["jaw"]
    assert len(names[EYES]) == 4


def test_the_standin_basis_names_its_shapes():
    names = channel_names("standin")
    assert names[: len(STANDIN_SHAPES)] == list(STANDIN_SHAPES)
    assert names[len(STANDIN_SHAPES)] == f"expression_{len(STANDIN_SHAPES):02d}"


def test_the_108_channels_are_these_columns_of_a_motioncode():
    code = np.arange(2 * 115, dtype=np.float16).reshape(2, 115)
    kept = from_motioncode(code)
    assert kept.dtype == np.float16
    np.testing.assert_array_equal(kept[0], [*range(104), 106, 107, 109, 110])


@pytest.mark.parametrize("shape", [(5, 110), (111,), (2, 5, 111)])
def test_a_motioncode_of_another_shape_is_refused(shape):
    with pytest.raises(UserError, match=r"motioncode must be \[T, at least 111\]"):
        from_motioncode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_head_is_centred_over_the_record_in_its_own_dtype(dtype):
    record = motion().astype(dtype)
    centred = center_head(record)
    assert centred.dtype == dtype
    np.testing.assert_array_equal(centred[..., HEAD], record[..., HEAD] - record[..., HEAD].mean(-2, keepdims=True))
    rest = np.ones(108, bool)
    rest[HEAD] = False
    np.testing.assert_array_equal(centred[..., rest], record[..., rest])


def test_centring_leaves_its_argument_alone():
    record = motion()
    before = record.copy()
    center_head(record)
    np.testing.assert_array_equal(record, before)


def test_smoothing_keeps_cubics_ends_included():
    time = np.linspace(-1, 1, 40, dtype=np.float32)
    cubic = np.broadcast_to((2 - time + time**2 - 3 * time**3)[None, :, None], (1, 40, 108))
    np.testing.assert_allclose(smooth(cubic), cubic, atol=1e-5)


def test_smoothing_takes_noise_down_and_keeps_dtype():
    noisy = motion(frames=200)
    smoothed = smooth(noisy)
    assert smoothed.dtype == np.float32
    assert smoothed.std() < 0.8 * noisy.std()


@pytest.mark.parametrize("frames", [1, 8])
def test_motion_too_short_to_smooth_is_unchanged(frames):
    np.testing.assert_array_equal(smooth(motion(frames=frames)), motion(frames=frames))


@pytest.mark.parametrize("basis", BASES)
def test_a_motion_file_comes_back_as_it_went(tmp_path, basis):
    path, source = tmp_path / "m.npz", {"audio": ["a.wav"], "seed": 3}
    save_motion(path, motion(), expression_basis=basis, source=source)
    loaded = load_motion(path)
    np.testing.assert_array_equal(loaded.motion, motion())
    assert (loaded.expression_basis, loaded.source, loaded.fps) == (basis, source, 25.0)


def test_a_motion_file_names_its_channels(tmp_path):
    save_motion(tmp_path / "m.npz", motion(), expression_basis="standin", source={})
    assert list(np.load(tmp_path / "m.npz")["channels"]) == channel_names("standin")


@pytest.mark.parametrize("basis", ["", "FLAME", "arkit"])
def test_an_unknown_basis_is_not_written(tmp_path, basis):
    with pytest.raises(UserError, match="expression_basis must be one of"):
        save_motion(tmp_path / "m.npz", motion(), expression_basis=basis, source={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion": motion()[0]}, r"motion must be float32 \[P, T, 108\], got float32 \[30, 108\]"),
        ({"motion": motion()[..., :100]}, r"motion must be float32 \[P, T, 108\], got float32 \[2, 30, 100\]"),
        ({"motion": motion().astype(np.float64)}, "got float64"),
        ({"motion": np.full((1, 2, 108), np.nan, np.float32)}, "motion holds NaN or infinite values"),
        ({"motion": np.array(["x"], object)}, "is not a motion file of unils"),
        ({"motion": None}, "is not a motion file of unils"),
        ({"fps": 30.0}, "fps must be 25.0, got 30.0"),
        ({"expression_basis": "other"}, "expression_basis must be one of"),
        ({"source": "{"}, "is not a motion file of unils"),
    ],
)
def test_a_motion_file_of_another_layout_is_refused_by_name(tmp_path, changes, message):
    write(tmp_path / "bad.npz", **changes)
    with pytest.raises(UserError, match=message) as error:
        load_motion(tmp_path / "bad.npz")
    assert "bad.npz" in str(error.value)


def test_all_problems_of_a_motion_file_are_named(tmp_path):
    write(tmp_path / "bad.npz", fps=30.0, expression_basis="other")
    with pytest.raises(UserError, match="fps must be.*expression_basis must be"):
        load_motion(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_a_broken_motion_file_is_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match="bad.npz is not a motion file of unils"):
        load_motion(tmp_path / "bad.npz")


def test_a_cut_motion_file_is_refused(tmp_path):
    save_motion(tmp_path / "m.npz", motion(), expression_basis="flame", source={})
    whole = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "m.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a motion file"):
        load_motion(tmp_path / "m.npz")


def test_a_single_array_is_no_motion_file(tmp_path):
    with open(tmp_path / "bad.npz", "wb") as file:
        np.save(file, motion())
    with pytest.raises(UserError, match="bad.npz is not a motion file"):
        load_motion(tmp_path / "bad.npz")


def test_a_compressed_motion_file_with_a_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, motion=motion(), expression_basis="flame", fps=25.0, source="{}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad.npz is not a motion file"):
        load_motion(path)


def test_a_missing_motion_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="motion file .*none.npz does not exist"):
        load_motion(tmp_path / "none.npz")
