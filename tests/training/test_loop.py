"""The loop with data made up here: numbers that are none, shapes that change, traces, speed, and the averaged model."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from run_files import assert_same, item, metrics
from tiny_models import CONFIGS, random_motion
from tiny_runs import quick_compiles

from unils_jax.errors import UserError
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import abstract
from unils_jax.systems.unils.system import CODEC
from unils_jax.training.config import DataConfig, RunConfig, make_objective
from unils_jax.training.loop import InitialState, TrainOptions, TrainSetup, train
from unils_jax.training.metrics import KeptRows, MetricsLog
from unils_jax.training.optimizer import OptimizerConfig
from unils_jax.training.sharding import make_mesh
from unils_jax.training.step import make_eval_step
from unils_jax.training.throughput import flops
from unils_jax.training.throughput.profiling import Throughput, known_peak, parse_steps

MODEL = CONFIGS["codec"]
pytestmark = pytest.mark.usefixtures("compile_cache")


def batch_of(seed: int, size: int = 2) -> dict[str, np.ndarray]:
    return {"motion": np.array(random_motion(size, 100, seed=seed)), "record": np.arange(size, dtype=np.int32)}


class MadeUp:
    """Data whose batch of step s (from 1) is `batch(s)`."""

    names = ("alpha", "beta", "gamma", "delta")

    def __init__(self, batch: Callable[[int], dict[str, np.ndarray]], step: int = 0):
        self.batch, self.step = batch, step

    def at_step(self, step: int) -> "MadeUp":
        return MadeUp(self.batch, step)

    def __next__(self) -> dict[str, np.ndarray]:
        self.step += 1
        return self.batch(self.step)

    def get_state(self) -> bytes:
        return json.dumps({"step": self.step}).encode()

    def set_state(self, state: bytes) -> None:
        assert json.loads(state) == {"step": self.step}


def run(workdir: Path, batch: Callable[[int], dict[str, np.ndarray]] = batch_of, options=None, **settings) -> dict:
    """Trains a tiny codec on made-up batches."""
    common = {"num_steps": 5, "log_every": 1, "eval_every": 100, "eval_batches": 1, "checkpoint_every": 100}
    config = RunConfig("codec", data=DataConfig("-", 2), model=MODEL, **common | settings)
    graphdef, shapes = abstract(lambda rngs: UniLS(MODEL, rngs=rngs))

    def fresh() -> dict:
        rng = np.random.default_rng(0)
        drawn = {path: rng.normal(0, 0.1, shape.shape).astype(np.float32) for path, shape in shapes.items()}
        return drawn | {"codec/motion_std": np.ones(108, np.float32)}

    def held_out():
        return iter([batch_of(99), batch_of(98)])

    setup = TrainSetup(make_mesh(), graphdef, make_objective(config, None), InitialState(shapes, {}, fresh))
    with quick_compiles():
        return train(config, workdir, setup, MadeUp(batch), held_out, options)


def rows(workdir: Path, split: str) -> list[dict]:
    return [row for row in metrics(workdir) if row["split"] == split]


def broken_at(*steps: int) -> Callable[[int], dict[str, np.ndarray]]:
    """Batches with a NaN in the second item at some steps."""

    def batch(step: int) -> dict[str, np.ndarray]:
        made = batch_of(step)
        if step in steps:
            made["motion"][1, 5, 5] = np.nan
            made["record"][:] = [3, 1]
        return made

    return batch


def test_a_step_that_is_not_finite_is_left_out_and_its_records_are_named(tmp_path, caplog):
    run(tmp_path, broken_at(2, 5), checkpoint_every=1, keep_checkpoints=5)
    for name in ("params", "ema", "optimizer"):
        for bad in (2, 5):
            assert_same(item(tmp_path, bad - 1, name), item(tmp_path, bad, name))
    assert any(np.any(item(tmp_path, 3, "params")[p] != v) for p, v in item(tmp_path, 2, "params").items())
    reported = rows(tmp_path, "train")
    assert [row["finite"] for row in reported] == [1, 0, 1, 1, 0] and reported[1]["loss"] is None
    assert "step 2 is not finite (loss nan, gradient norm nan) and left out; its records: beta, delta" in caplog.text


def test_training_ends_after_too_many_steps_in_a_row_that_are_not_finite(tmp_path):
    with pytest.raises(UserError, match="not finite in 3 steps in a row, up to step 6 .* records: beta, delta"):
        run(tmp_path, broken_at(2, 4, 5, 6, 7, 8, 9), num_steps=20, max_bad_steps=3)


def test_a_step_that_is_compiled_again_is_logged(tmp_path, caplog):
    run(tmp_path, lambda step: batch_of(step, 4 if step == 4 else 2))
    assert "WARNING: step 4 was compiled again" in caplog.text and caplog.text.count("compiled again") == 1


def test_a_step_may_not_move_data_by_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("unils_jax.training.loop.device_batch", lambda mesh, batch: {"motion": batch["motion"]})
    monkeypatch.setattr("unils_jax.training.loop.flops.count", lambda *args: flops.Work({}))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path)


def test_validation_is_of_the_averaged_weights(tmp_path):
    run(
        tmp_path,
        eval_every=3,
        checkpoint_every=3,
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=0, ema_decay=0.5),
    )
    graphdef, _ = abstract(lambda rngs: UniLS(MODEL, rngs=rngs))
    objective = make_objective(RunConfig("codec", 1, DataConfig("-", 2), MODEL), None)
    evaluate = make_eval_step(CODEC, graphdef, objective)
    frozen = item(tmp_path, 3, "frozen")
    for name, agrees in (("ema", True), ("params", False)):
        weights = item(tmp_path, 3, name)
        loss = np.mean([evaluate(weights, frozen, {"motion": batch_of(s)["motion"]})["loss"] for s in (99, 98)])
        assert np.isclose(loss, rows(tmp_path, "val")[0]["loss"], rtol=1e-5) == agrees


def test_the_free_running_evaluation_gets_all_averaged_parameters_when_it_is_due(tmp_path):
    seen = {}

    def evaluate(step: int, params: dict) -> dict[str, float]:
        seen[step] = params
        return {"unils/both/LVE": float(step)}

    last = run(tmp_path, options=TrainOptions(free_running_eval=evaluate), probe_every=2, checkpoint_every=2)
    assert [(row["step"], row["unils/both/LVE"]) for row in rows(tmp_path, "free")] == [(2, 2), (4, 4), (5, 5)]
    assert last["free/unils/both/LVE"] == 5
    assert_same(seen[4], item(tmp_path, 4, "ema") | item(tmp_path, 4, "frozen"))


def test_speed_is_told_apart_from_what_was_learnt(tmp_path):
    run(tmp_path, options=TrainOptions(peak_flops=1e12))
    reported = rows(tmp_path, "speed")
    assert [row["step"] for row in reported] == [1, 2, 3, 4, 5]
    assert reported[0]["compile_s"] > 0 and "steps_per_s" not in reported[0]
    for row in reported[1:]:
        assert row["frames_per_s"] == pytest.approx(200 * row["steps_per_s"]) and 0 <= row["data_wait_share"] <= 1
        assert row["flops_utilisation"] > 0 and row["host_memory_gib"] > 0 and "compile_s" not in row
    assert not {"steps_per_s", "compile_s"} & {name for row in rows(tmp_path, "train") for name in row}


def test_utilisation_is_the_steps_products_over_the_peak(monkeypatch):
    now = iter([0.0, 10.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr("unils_jax.training.throughput.profiling.time.perf_counter", lambda: next(now))
    speed = Throughput(frames_per_step=800, peak_flops=1e9)
    speed.flop_per_step = 1e8
    speed.restart(40)
    with speed.waiting():
        pass
    figures = speed.read(60)
    assert figures["steps_per_s"] == 2 and figures["frames_per_s"] == 1600
    assert figures["data_wait_share"] == 0.1 and figures["flops_utilisation"] == pytest.approx(0.2)


def test_data_sheet_peaks_are_of_the_longest_fitting_name_and_of_bfloat16_alone():
    assert known_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert known_peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert known_peak("NVIDIA H100 80GB HBM3", "float32") is None and known_peak("cpu", "bfloat16") is None


def test_a_trace_holds_the_steps_and_the_named_scopes(tmp_path, caplog):
    caplog.set_level("INFO", "unils_jax")
    run(tmp_path, options=TrainOptions(profile_steps=(3, 4)))
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    (xplane,) = (tmp_path / "profile").rglob("*.xplane.pb")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sorted({event["args"]["step_num"] for event in events if event.get("name") == "train"}) == ["3", "4"]
    planes = {plane.name: plane for plane in jax.profiler.ProfileData.from_file(str(xplane)).planes}
    assert "/host:CPU" in planes and any(list(line.events) for line in planes["/host:CPU"].lines)
    assert b"self_attn" in xplane.read_bytes()
    assert f"traced into {tmp_path / 'profile'}" in caplog.text


@pytest.mark.parametrize("text", ["", "3", "a:b", "0:3", "5:4", "1:2:3", "-1:2"])
def test_steps_to_trace_are_two_numbers(text):
    assert parse_steps("10:12") == (10, 12)
    with pytest.raises(UserError, match="must be FIRST:LAST"):
        parse_steps(text)


def test_metrics_of_a_run_that_was_cut_are_dropped_on_resume(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, "train", {"loss": step + 0.1})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "spl')
    with MetricsLog(tmp_path, KeptRows(3)) as log:
        log.write(4, "train", {"loss": 0.25, "grad_norm": float("inf")})
        assert log.last == {"train/loss": 0.25, "train/grad_norm": float("inf")}
    reported = [(row["step"], row["loss"]) for row in metrics(tmp_path)]
    assert reported == [(1, 1.1), (2, 2.1), (3, 3.1), (4, 0.25)] and metrics(tmp_path)[-1]["grad_norm"] is None


def test_a_folder_where_the_metrics_should_be_is_refused_in_a_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="metrics.jsonl cannot be read .*; move it away"), MetricsLog(tmp_path):
        pass


def test_an_evaluation_that_is_still_to_come_is_not_logged_twice(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in (1, 2):
            for split in ("train", "val", "free"):
                log.write(step, split, {"loss": 1.0})
    for evaluated, left in ((True, ["train", "val", "free"]), (False, ["train"])):
        with MetricsLog(tmp_path, KeptRows(2, evaluated=evaluated)):
            assert [row["split"] for row in metrics(tmp_path) if row["step"] == 2] == left
    assert len(metrics(tmp_path)) == 4


def test_a_log_without_a_folder_writes_nothing_and_knows_its_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with MetricsLog(None) as log:
        log.write(1, "train", {"loss": 0.5})
        assert log.last == {"train/loss": 0.5}
    assert not list(tmp_path.iterdir())
