"""The model in the box: small, in our own format, the default of `unils decode`, and better than nothing."""

import io
import logging
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_runs import quick_compiles, run_unils

import unils_jax.checkpoints.loading
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.audio import frame_loudness, write_wav
from unils_jax.checkpoints.loading import load, pretrained
from unils_jax.errors import UserError
from unils_jax.evaluation.figures.speech import jaw_loudness
from unils_jax.motion import load_motion


def test_the_demo_model_is_small_float16_and_of_the_format_that_every_command_reads():
    folder = pretrained().parent
    files = {f"{name}{suffix}" for name in ("model", "live") for suffix in (".safetensors", ".json", ".safetensors.md")}
    assert {path.name for path in folder.iterdir()} == files
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000
    assert {array.dtype for array in load_file(pretrained()).values()} == {np.dtype(np.float16)}
    checkpoint = load(pretrained(), stage="dialogue")
    assert checkpoint.expression_basis == "standin"
    assert checkpoint.config.lora is None and not checkpoint.system.encoder.needed(checkpoint.config)


def test_the_live_one_answers_in_windows_of_a_fraction_of_a_second():
    config = load(pretrained("live"), stage="dialogue").config
    assert (config.codec.scales[-1], config.prior.context_windows, config.prior.lookahead_frames) == (10, 10, 3)


def test_its_card_says_what_it_has_seen():
    card = pretrained().with_name("model.safetensors.md").read_text()
    for text in ("not FLAME's", "our ear", "synthetic conversations only", "consent"):
        assert text in card


@pytest.fixture(scope="module")
def conversation():
    """Two people whom the demo model has never met."""
    return make_conversation(SynthConfig(minutes=0.3), 1_000_000, 0)


@pytest.fixture(scope="module")
def decoded(conversation, tmp_path_factory) -> SimpleNamespace:
    """Both people's motion, from their two tracks alone and without a checkpoint, twice, and what the command said."""
    folder = tmp_path_factory.mktemp("decoded")
    for name, track in zip("ab", conversation.audio, strict=True):
        write_wav(folder / f"{name}.wav", track.astype(np.float32) / 32768)
    tracks = ["--audio", folder / "a.wav", "--audio2", folder / "b.wav"]
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        with quick_compiles():
            assert run_unils("decode", *tracks, "--out", folder / "m.npz") == 0
            assert run_unils("decode", *tracks, "--out", folder / "again.npz", "--seed=1") == 0
    finally:
        logging.getLogger().removeHandler(handler)
    again = load_motion(folder / "again.npz").motion
    return SimpleNamespace(**vars(load_motion(folder / "m.npz")), again=again, said=said.getvalue())


def test_decode_without_a_checkpoint_says_what_it_takes(decoded):
    assert "demo model trained on synthetic conversations; stand-in basis" in decoded.said
    assert decoded.source["checkpoint"] == "the demo model of unils_jax"
    assert decoded.expression_basis == "standin"


def test_its_jaw_follows_the_own_voice_of_people_it_has_never_met(conversation, decoded):
    own, other = [], []
    for motion, p in product((decoded.motion, decoded.again), range(2)):
        for track, values in ((p, own), (1 - p, other)):
            loudness = frame_loudness(conversation.audio[track].astype(np.float32) / 32768)
            values.append(jaw_loudness(motion[p], loudness, conversation.speech_mask[p]))
    assert np.mean(own) > 0.4 and np.mean(own) > np.mean(other) + 0.3


def test_its_faces_move_about_as_much_as_true_ones(conversation, decoded):
    """Expression, head, jaw, eyes, mean of two decodes: one alone varies by a tenth with what is drawn."""
    truth = conversation.motion.astype(np.float32)
    motions = np.stack([decoded.motion, decoded.again])
    for channels in (slice(0, 100), slice(100, 103), slice(103, 104), slice(104, 108)):
        ratio = motions[..., channels].std(axis=2).mean() / truth[..., channels].std(axis=1).mean()
        assert 0.5 < ratio < 1.3


def test_a_package_without_the_model_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(unils_jax.checkpoints.loading, "PRETRAINED", tmp_path)
    with pytest.raises(UserError, match="make pretrained"):
        pretrained()
