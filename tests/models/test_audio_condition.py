"""Generators with one audio cross-attention: to the own track, or to both tracks mixed."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_tools import uncached
from jax import Array
from safetensors.numpy import load_file
from tiny_models import CODE_DIM, CONFIGS, SCALES, jitted, random_model, random_motion, tiny_model

from unils_jax.checkpoints.adapters import save_adapter, split_adapter
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export, make_meta_cfg
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError
from unils_jax.inference.conversations import Request, decode_many
from unils_jax.inference.program import Program, StepInputs, make_program
from unils_jax.inference.sampling import Sampling, make_controls
from unils_jax.nn.params import merge, split
from unils_jax.systems.registry import STAGES
from unils_jax.systems.unils.meta_cfg import model_sizes
from unils_jax.systems.unils.system import DIALOGUE, StepNoise, generator_logits

pytestmark = pytest.mark.usefixtures("unoptimised")
ONE_AUDIO = ("own", "mixed")


@cache
def program(audio_condition: str, people: int) -> Program:
    """Returns one program for all tests that decode with it."""
    return make_program(random_model(replace(CONFIGS[audio_condition], lora=None), 0), people=people)


@cache
def teacher_forced(audio_condition: str):
    """Returns a function of (batch, people without audio [B, 2]) to the logits of two pairs."""
    graphdef, params = split(tiny_model(audio_condition))
    run = jax.jit(lambda batch, noise: generator_logits(merge(graphdef, params), batch, noise)[0])
    kept = jnp.zeros((2, 2, 1, 1), bool)
    flips = jnp.zeros((2, 2, sum(SCALES[:-1]), CODE_DIM), bool)

    def logits(batch: dict, no_audio: Array = kept[..., 0, 0]) -> np.ndarray:
        drop = no_audio[..., None, None]
        return np.asarray(run(batch, StepNoise(kept, kept, drop, ~drop, flips)))  # there is no other track to drop

    return logits


def tracks(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (2, 64_000)).astype(np.float32)


def pairs() -> dict[str, Array]:
    motions = {name: random_motion(2, 2, 100, seed=i) for i, name in enumerate(("motion", "prev", "style"))}
    return {**motions, "audio": jnp.stack([jnp.asarray(tracks(seed)) for seed in range(2)])}


def moved(audio_condition: str, first: dict, second: dict, *no_audio: Array) -> np.ndarray:
    """Returns for each person whether the logits differ, [2, 2]."""
    logits = teacher_forced(audio_condition)
    return np.abs(logits(first, *no_audio) - logits(second, *no_audio)).max((2, 3, 4)) > 1e-3


@pytest.mark.parametrize(("audio_condition", "people"), [("own", 1), ("mixed", 2)])
def test_cached_logits_are_those_of_the_training_forward(audio_condition, people):
    ready = program(audio_condition, people)
    model, audio = merge(ready.graphdef, ready.params), tracks()
    clips = [np.asarray(random_motion(people, 100, seed=seed)) for seed in range(3)]
    style, prev, uncond_prev = (ready.features(clip)[None] for clip in clips)
    controls = make_controls([Sampling()], [0], [0], len(ready.scales))
    chunk, _ = ready.chunk(StepInputs(audio[None], style, jnp.array(prev), uncond_prev, controls))
    known = [x[0] for x in (style, prev, uncond_prev, chunk.bits)]
    conditional, unconditional, motion = jitted(model, uncached, jnp.asarray(audio), *known)
    np.testing.assert_allclose(chunk.logits[0], 1.5 * conditional - 0.5 * unconditional, atol=1e-4)
    np.testing.assert_allclose(chunk.motion[0], motion, atol=1e-4)


@pytest.mark.parametrize(
    ("audio_condition", "people", "encoded"), [("dialogue", 1, 2), ("own", 1, 1), ("own", 2, 2), ("mixed", 2, 1)]
)
def test_the_encoder_runs_once_for_every_track_that_is_used(audio_condition, people, encoded):
    model, audio = tiny_model(audio_condition), jax.ShapeDtypeStruct((3, 2, 64_000), jnp.float32)
    features = jax.eval_shape(lambda audio: model.encode_audio(audio, people), audio)
    assert features.shape[:2] == (3, encoded)
    tracks_of_people = jax.eval_shape(lambda features: model.audio_of_people(features, people), features)
    assert [x.shape for x in tracks_of_people] == [(3 * people, *features.shape[2:])] * len(model.prior.audio_embeds)


def motion_of(audio_condition: str, own: np.ndarray, other: np.ndarray | None, people: int) -> np.ndarray:
    request = Request(own, other, np.asarray(random_motion(1, 100, seed=5)), seed=3)
    return next(decode_many(program(audio_condition, people), [request]))[1]


def test_who_listens_to_the_own_track_moves_alike_whatever_the_other_s():
    own, other, another = (tracks(seed)[0] for seed in range(3))
    motion = motion_of("own", own, other, 1)
    for track in (another, None):
        np.testing.assert_array_equal(motion_of("own", own, track, 1), motion)
    assert not np.array_equal(motion_of("own", other, own, 1), motion)


def test_mixed_audio_is_the_same_for_both_people():
    own, other, another = (tracks(seed)[0] for seed in range(3))
    motion = motion_of("mixed", own, other, 2)
    np.testing.assert_array_equal(motion_of("mixed", other, own, 2), motion)
    assert not np.array_equal(motion_of("mixed", own, another, 2), motion)
    features = program("mixed", 2).encode(tracks()[None])
    first, second = tiny_model("mixed").audio_of_people(features)[0]
    np.testing.assert_array_equal(first, second)


def test_people_of_a_pair_train_on_what_they_listen_to():
    batch = pairs()
    tone = {**batch, "audio": batch["audio"].at[0, 1].set(0.1 * jnp.sin(jnp.arange(64_000) / 10))}
    np.testing.assert_array_equal(moved("own", tone, batch), [[False, True], [False, False]])
    np.testing.assert_array_equal(moved("mixed", tone, batch), [[True, True], [False, False]])
    swapped = {**batch, "audio": batch["audio"][:, ::-1]}
    np.testing.assert_array_equal(teacher_forced("mixed")(swapped), teacher_forced("mixed")(batch))


@pytest.mark.parametrize("audio_condition", ONE_AUDIO)
def test_one_drop_silences_the_one_audio_of_its_person(audio_condition):
    batch, no_audio = pairs(), jnp.array([[True, False], [False, False]])
    other_audio = {**batch, "audio": batch["audio"][::-1]}
    np.testing.assert_array_equal(moved(audio_condition, other_audio, batch, no_audio), ~np.asarray(no_audio))


@pytest.mark.parametrize("audio_condition", ONE_AUDIO)
def test_the_one_attention_trains_and_its_vector_only_from_scratch(audio_condition):
    params = split(tiny_model(audio_condition))[1]
    trainable, frozen = DIALOGUE.split(params)
    assert {path.split("/")[3] for path in trainable if "audio" in path} == {"audio_attn"}
    assert all("lora_" in path or "/audio_attn/" in path for path in trainable)
    assert "prior/audio_embed" in frozen and not any("audio_attn" in path for path in frozen)
    assert "prior/audio_embed" in STAGES["artalk"].split(params)[0]


def test_other_manners_of_listening_are_refused():
    sizes = CONFIGS["own"]
    with pytest.raises(UserError, match="prior.audio_condition must be one of pair, own, mixed, got 'both'"):
        replace(sizes, prior=replace(sizes.prior, audio_condition="both"))
    with pytest.raises(
        UserError, match="prior.audio_condition is 'mixed', but without prior.audio_dim there is no audio"
    ):
        replace(CONFIGS["prior"], prior=replace(CONFIGS["prior"].prior, audio_condition="mixed"))


def checkpoint_of(name: str) -> Checkpoint:
    params = {path: np.asarray(value) for path, value in split(tiny_model(name))[1].items()}
    return Checkpoint(CONFIGS[name], params, "flame", {"checkpoint": "tiny"})


@pytest.mark.parametrize("audio_condition", ["own", pytest.param("mixed", marks=pytest.mark.slow)])
def test_the_torch_reference_of_an_exported_file_gives_the_same_logits_and_motion(audio_condition, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")
    from unils_jax.benchmarks import torch_runs
    from unils_jax.benchmarks.torch_model import load_torch_reference

    def torch_reference_of(checkpoint: Checkpoint, path):
        export(checkpoint, path)
        graphdef, params = split(checkpoint.model)
        encode = jax.jit(lambda audio: merge(graphdef, params).audio_encoder(audio))
        reference = load_torch_reference(path)
        reference.audio_encoder = lambda audio: torch.tensor(np.asarray(encode(audio.numpy())))
        return reference

    reference, batch = torch_reference_of(checkpoint_of(audio_condition), tmp_path / "x.safetensors"), pairs()
    with torch.no_grad():
        logits = reference.teacher_forced({name: torch.tensor(np.asarray(value)) for name, value in batch.items()})[0]
    ours = teacher_forced(audio_condition)(batch).swapaxes(0, 1).reshape(logits.shape)
    assert np.abs(logits.numpy() - ours).max() < 1e-5 * np.abs(ours).max()

    ready, audio = program(audio_condition, 1 if audio_condition == "own" else 2), tracks()
    params = {path: np.asarray(value) for path, value in ready.params.items()}
    merged = Checkpoint(replace(CONFIGS[audio_condition], lora=None), params, "flame", {"checkpoint": "tiny"})
    reference = torch_reference_of(merged, tmp_path / "y.safetensors")
    motion = torch_runs.decode(reference, torch.tensor(audio), tau=0.0).motion[0]
    request = Request(*audio, sampling=Sampling(tau=0.0))
    np.testing.assert_allclose(next(decode_many(ready, [request]))[1][0], motion, atol=1e-4)


@pytest.mark.parametrize("audio_condition", ONE_AUDIO)
def test_files_name_the_one_attention_as_artalk_does_and_return(audio_condition, tmp_path):
    checkpoint = checkpoint_of(audio_condition)
    export(checkpoint, tmp_path / "x.safetensors")
    again, keys = load(tmp_path / "x.safetensors"), set(load_file(tmp_path / "x.safetensors"))
    assert again.config == checkpoint.merged().config
    assert "attn_blocks.audio_pos" in keys and "attn_blocks.attn_blocks.1.audio_attn.q_proj.weight" in keys
    assert not any("self_pos" in key or "self_audio" in key or "other" in key for key in keys)
    np.testing.assert_array_equal(again.params["prior/audio_embed"], checkpoint.params["prior/audio_embed"])


def test_a_file_that_does_not_name_the_audio_of_its_one_attention_uses_the_own_track(tmp_path):
    meta_cfg = make_meta_cfg(checkpoint_of("mixed").merged())
    assert meta_cfg["MODEL"].pop("AUDIO_CONDITION") == "mixed"
    state = {"attn_blocks.audio_pos": np.zeros((1, 1, 6), np.float32)}
    sizes = model_sizes(meta_cfg, state)
    assert (sizes["audio_condition"], sizes["audio_width"]) == ("own", 6)
    meta_cfg["MODEL"]["AUDIO_CONDITION"] = "everybody"
    with pytest.raises(UserError, match="MODEL.AUDIO_CONDITION must be one of pair, own, mixed, got 'everybody'"):
        model_sizes(meta_cfg, state)


@pytest.mark.parametrize("audio_condition", ONE_AUDIO)
def test_an_adapter_says_what_it_listens_to(audio_condition, tmp_path):
    dialogue = checkpoint_of(audio_condition)
    save_adapter(tmp_path / "x.safetensors", dialogue.config, dialogue.params, "flame", "x")
    prior = Checkpoint(CONFIGS["prior"], split_adapter(dialogue.params)[0], "flame", {"checkpoint": "tiny"})
    again = prior.with_adapter(tmp_path / "x.safetensors", merge=False)
    assert again.config == dialogue.config and set(again.params) == set(dialogue.params)
    assert all(again.params[path].tobytes() == value.tobytes() for path, value in dialogue.params.items())
