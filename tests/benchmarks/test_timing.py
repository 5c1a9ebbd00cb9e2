"""What all benches share."""

import os
import sys

import jax
import numpy as np
import pytest
from bench_models import MODELS
from tiny_models import CONFIGS

from unils_jax.benchmarks import timing as bench
from unils_jax.benchmarks.timing import (
    interleaved,
    limit_threads,
    machine,
    markdown,
    random_params,
    ratio,
    torch_reference_of,
)
from unils_jax.errors import UserError
from unils_jax.nn.params import merge


def test_contenders_take_turns_and_quick_ones_are_repeated(monkeypatch):
    monkeypatch.setattr(bench, "MEASURED_S", 1.0)
    clock, calls = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def contender(name: str, seconds: float):
        def run(times: int) -> None:
            calls.append((name, times))
            clock[0] += times * seconds

        return run

    seconds = interleaved({"quick": contender("quick", 0.25), "slow": contender("slow", 2.0)}, rounds=3)
    assert calls == [("quick", 1), ("slow", 1)] + 3 * [("quick", 4), ("slow", 1)]
    assert seconds == {"quick": [0.25] * 3, "slow": [2.0] * 3}


def test_a_ratio_is_the_median_of_the_rounds_own():
    # The third round was slow for both: it changes the ratio of medians, and not this.
    assert ratio({"ours": [1.0, 1.0, 9.0], "torch": [2.0, 2.0, 18.0]}, "ours", "torch") == 2.0


def test_random_weights_keep_activations_at_their_size():
    graphdef, params = random_params(MODELS["dialogue"])
    model = merge(graphdef, params)
    tracks = jax.jit(lambda audio: model.audio_encoder(audio))(np.random.default_rng(0).normal(size=(1, 4000)))
    assert 0.1 < float(np.std(tracks)) < 10


@pytest.mark.parametrize("threads", [0, 10_000])
def test_a_number_of_threads_that_there_are_not_is_refused(threads):
    before = os.sched_getaffinity(0)
    with pytest.raises(UserError, match="--threads must be from 1 to"):
        limit_threads(threads)
    assert os.sched_getaffinity(0) == before


def test_threads_pin_the_process(monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append((pid, cores)))
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    limit_threads(1)
    assert pinned == [(0, [min(os.sched_getaffinity(0))])] and os.environ["OMP_NUM_THREADS"] == "1"


def test_the_machine_is_named_with_its_measured_peak():
    described = machine()
    assert described["platform"] == "cpu" and described["device"] and "jax" in described["versions"]
    assert all(1e8 < flops < 1e16 for flops in described["matrix_peak"].values())


def test_a_table_has_a_line_a_row():
    text = markdown([{"name": "a", "x": 0.12345, "y": 1234.5}, {"name": "b", "x": None, "y": 2}])
    assert text.splitlines() == ["| name | x | y |", "|---|---|---|", "| a | 0.123 | 1,234 |", "| b |  | 2 |"]


def test_without_torch_the_torch_reference_is_refused_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch: run pip install"):
        torch_reference_of(MODELS["prior"], {})


def test_a_model_that_has_no_torch_reference_is_refused():
    with pytest.raises(UserError, match="log-mel"):
        torch_reference_of(CONFIGS["dialogue"], {})
