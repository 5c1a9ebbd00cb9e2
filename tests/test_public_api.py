"""The names at the package's top: lazily imported, told to editors, and what the command line gives."""

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_models import tiny_model
from tiny_runs import quick_compiles, run_unils

import unils_jax as unils
from unils_jax.errors import UserError
from unils_jax.inference import conversations
from unils_jax.motion import load_motion
from unils_jax.systems.dualtalk.system import respond

HOUSE = {
    "load", "read_audio", "decode", "decode_many", "Streams", "train", "evaluate", "render", "export", "load_motion",
    "save_motion", "SYSTEMS", "UserError",
}  # fmt: skip


def told_to_editors() -> dict[str, str]:
    """name -> module, as the block of `TYPE_CHECKING` imports them."""
    tree = ast.parse(Path(unils.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_editors_are_told_of_every_name_where_it_lives():
    assert told_to_editors() == {name: f"unils_jax.{home}" for name, home in unils._HOME.items()}
    assert unils.__all__ == ["__version__", *unils._HOME] and dir(unils) == sorted(unils.__all__)
    assert set(unils._HOME) >= HOUSE


@pytest.mark.parametrize("name", sorted(unils._HOME))
def test_every_name_is_there_and_is_no_module(name):
    found = getattr(unils, name)
    assert found is getattr(importlib.import_module(f"unils_jax.{unils._HOME[name]}"), name)
    assert not isinstance(found, type(unils))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'dekode'"):
        _ = unils.dekode


@pytest.fixture(scope="module")
def voices() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.normal(0, 0.1, samples).astype(np.float32) for samples in (16_000, 12_000))


def test_the_one_call_is_the_decode_of_unils(voices):
    model = tiny_model("merged")
    with quick_compiles():
        for tracks in (voices, voices[:1]):
            sampling = unils.Sampling(1.0, 1.5, 0.97)
            expected = conversations.decode(model, *tracks, sampling=sampling, seed=3)
            np.testing.assert_array_equal(unils.decode(model, *tracks, seed=3), expected)


def test_the_one_call_is_the_answer_of_dualtalk(voices):
    model, rng = tiny_model("dualtalk"), np.random.default_rng(1)
    motions = rng.normal(0, 0.1, (2, 25, 108)).astype(np.float32)
    with quick_compiles():
        one = unils.decode(model, *voices, other_motion=motions[1])
        np.testing.assert_array_equal(one, respond(model, *voices, motions[1])[None])
        both = unils.decode(model, *voices, other_motion=motions)
        frames = both.shape[1]
        np.testing.assert_array_equal(both[0], one[0, :frames])
        np.testing.assert_array_equal(both[1], respond(model, *voices[::-1], motions[0])[:frames])


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("merged", {"identity": 1}, "UniLS has no use for identity; leave it away"),
        ("dualtalk", {"style": np.zeros((1, 100, 108), np.float32)}, "DualTalk has no use for style"),
        ("merged", {"people": 2}, "two people need two tracks"),
        ("dualtalk", {"people": 2, "other_motion": np.zeros((4, 108), np.float32)}, "two people need two tracks"),
    ],
)
def test_what_a_system_has_no_use_for_is_named(voices, name, given, problem):
    with pytest.raises(UserError, match=problem):
        unils.decode(tiny_model(name), voices[0], **given)


def test_a_notebook_and_the_command_line_decode_alike(tiny_runs, voices, tmp_path):
    tracks = []
    for name, samples in zip(("a", "b"), voices, strict=True):
        tracks.append(tmp_path / f"{name}.wav")
        soundfile.write(tracks[-1], samples, 16_000, subtype="FLOAT")
    out, workdir = tmp_path / "m.npz", tiny_runs.workdirs["dialogue"]
    files = ("--audio", tracks[0], "--audio2", tracks[1])
    with quick_compiles():
        assert run_unils("decode", "--checkpoint", workdir, *files, "--seed", "3", "--out", out) == 0
        finished = load_motion(out)
        assert run_unils("decode", "--checkpoint", workdir, *files, "--seed", "3", "--out", out, "--raw") == 0
        motion = unils.decode(unils.load(workdir), *map(unils.read_audio, tracks), seed=3)
    raw = load_motion(out)
    np.testing.assert_array_equal(raw.motion, motion)
    np.testing.assert_array_equal(finished.motion, unils.finish(motion, raw.expression_basis).motion)
    assert finished.finished and not raw.finished
