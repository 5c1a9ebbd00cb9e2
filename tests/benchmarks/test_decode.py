"""The decode bench at tiny sizes: its figures are what was measured, and both sides decode the same."""

import statistics
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench_models import MODELS
from tiny_runs import quick_compiles

from unils_jax.benchmarks import timing as bench
from unils_jax.benchmarks.decode import Case, Measurement, bench_decode, cases, table, torch_decode, wait_for_each
from unils_jax.benchmarks.timing import random_params, torch_reference_of
from unils_jax.config import from_dict, load_config
from unils_jax.inference.program import Constants, StepInputs, decode_chunk
from unils_jax.inference.sampling import Sampling, make_controls
from unils_jax.models.unils import UniLS, UniLSConfig
from unils_jax.nn.params import abstract, merge
from unils_jax.training.throughput.flops import count

DIALOGUE = replace(MODELS["dialogue"], lora=None)
HOW = Measurement(rounds=2, latencies=3, peak=1e12)


def test_every_case_is_there_with_and_without_the_encoder():
    names = ["one person", "both people", "4 x both people"]
    assert [case.name for case in cases(4)] == 2 * names
    assert [case.encodes for case in cases(4)] == 3 * [True] + 3 * [False]
    assert [case.name for case in cases(1)] == 2 * names[:2]


@pytest.mark.slow
def test_figures_follow_from_the_rounds(torch, monkeypatch):
    monkeypatch.setattr(bench, "MEASURED_S", 0.01)
    measured = [Case(2, 1, encodes=True)]
    with quick_compiles():
        (row,) = bench_decode(DIALOGUE, random_params(DIALOGUE)[1], measured, replace(HOW, against_torch=True))
    ours, references = row["seconds"]["ours"], row["seconds"]["torch"]
    assert len(ours) == len(references) == 2 and len(row["waits_s"]) == 3
    assert row["frames_per_s"] == pytest.approx(200 / statistics.median(ours))
    assert row["times_real_time"] == pytest.approx(4 / statistics.median(ours))
    assert row["torch_frames_per_s"] == pytest.approx(200 / statistics.median(references))
    assert row["share_of_peak"] == pytest.approx(row["chunk_flops"] / statistics.median(ours) / 1e12)
    assert 0 < row["chunk_p50_s"] <= row["chunk_p95_s"] and row["first_frame_s"] > 0 and row["compile_s"] > 0
    assert sum(row["profile"]["part"].values()) == pytest.approx(1)
    assert {"wav2vec2", "self_attn"} <= row["profile"]["part"].keys()
    assert "| both people | encoded | float32 |" in table({"cases": [row], "against": "torch"})


@pytest.mark.slow
def test_many_conversations_of_given_features_are_measured_alone(monkeypatch):
    monkeypatch.setattr(bench, "MEASURED_S", 0.01)
    with quick_compiles():
        one, many = bench_decode(
            DIALOGUE,
            random_params(DIALOGUE)[1],
            [Case(2, 1, encodes=False), Case(2, 2, encodes=False)],
            HOW,
        )
    assert many["chunk_flops"] == pytest.approx(2 * one["chunk_flops"], rel=0.01)
    assert many["frames_per_s"] == pytest.approx(400 / statistics.median(many["seconds"]["ours"]))
    assert "wav2vec2" not in many["profile"]["part"] and "torch" not in many["seconds"]
    text = table({"cases": [one, many], "against": None})
    assert "| 2 x both people | features given | float32 |" in text and "torch" not in text


def test_the_torch_reference_encodes_once_a_person_and_not_where_features_are_given(torch, monkeypatch):
    reference = torch_reference_of(DIALOGUE, random_params(DIALOGUE)[1]).eval()
    encoder, heard = reference.audio_encoder, []
    features = SimpleNamespace(last_hidden_state=torch.zeros(2, 199, 16))
    monkeypatch.setattr(encoder, "forward", lambda audio: heard.append(len(audio)) or features)
    audio = np.zeros((2, 64_000), np.float32)
    torch_decode(reference, Case(2, 1, encodes=True), audio)(1)
    assert heard == [2, 2]
    given = torch_decode(reference, Case(2, 1, encodes=False), audio)
    assert heard == [2, 2, 2]
    given(2)
    assert heard == [2, 2, 2] and reference.audio_encoder is encoder


def test_slow_chunks_are_waited_for_three_times_and_quick_ones_as_often_as_asked(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def chunks_of(seconds: float):
        def run(chunks: int) -> None:
            clock[0] += chunks * seconds

        return run

    assert wait_for_each(chunks_of(8.0), 20) == [8.0] * 3
    assert wait_for_each(chunks_of(0.25), 20) == [0.25] * 20
    assert wait_for_each(chunks_of(8.0), 1) == [8.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("people", "sound", "most"), [(1, (1, 2, 64_000), 385e9), (2, (1, 2, 64_000), 465e9), (1, (1, 2, 199, 1024), 88e9)]
)
def test_a_full_chunk_has_at_most_the_stated_work(people, sound, most):
    config = replace(from_dict(UniLSConfig, load_config("dialogue").model.to_dict()), lora=None)
    graphdef, params = abstract(lambda rngs: UniLS(config, rngs=rngs))

    def chunk(params, features, silent, inputs):
        constants = Constants(features, silent)
        return decode_chunk(merge(graphdef, params), constants, inputs, guided=True, dtype="float32")

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    clip, controls = shape(1, people, 100, 32), make_controls([Sampling()], [0], [0], len(config.codec.scales))
    inputs = StepInputs(shape(*sound), clip, clip, clip, controls)
    work = count(chunk, params, shape(100, 32), shape(8, 2, 512), inputs)
    assert work.within("wav2vec2") == pytest.approx(2 * 147.3e9 if len(sound) == 3 else 0, rel=1e-3)
    assert 0.7 * most < work.total <= most
