"""The training bench at tiny sizes: both sides train the same model, and its figures are what was measured."""

import statistics

import jax
import numpy as np
import pytest
from bench_models import tiny_run
from tiny_runs import quick_compiles

from data_pipelines.loader import make_loader
from data_pipelines.speech_loader import make_speech_loader
from unils_jax.benchmarks import timing as bench
from unils_jax.benchmarks.timing import random_params, torch_reference_of
from unils_jax.benchmarks.trace import TRAIN_PARTS, Operation, operations, summarise
from unils_jax.benchmarks.train import (
    batch_shapes,
    bench_train,
    random_batch,
    random_data_config,
    table,
    torch_reference_loss,
)
from unils_jax.checkpoints.torch_keys import torch_views
from unils_jax.face.standin import standin_asset
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import abstract, merge
from unils_jax.systems.base import Objective
from unils_jax.systems.registry import STAGES
from unils_jax.training.config import make_objective
from unils_jax.training.step import init_state, make_train_step
from unils_jax.training.throughput.flops import count


def both_sides(torch, stage: str):
    """Our loss as a function of the trainable parameters, those, the PyTorch reference, and its loss."""
    config, data = tiny_run(stage), STAGES[stage]
    graphdef, params = random_params(config.model)
    batch = jax.device_put(random_batch(config))
    trainable, frozen = data.split(params)
    objective = Objective(head=standin_asset() if stage == "codec" else None, mesh_frames=100)

    def loss(trainable):
        return data.loss(merge(graphdef, {**frozen, **trainable}), batch, None, objective)[0]

    reference = torch_reference_of(config.model, params).eval()
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in batch.items()}
    return loss, trainable, reference, torch_reference_loss(reference, objective)(tensors, None)


def test_the_torch_reference_s_codec_has_the_same_loss_and_gradients_with_its_mesh(torch):
    loss, trainable, reference, references = both_sides(torch, "codec")
    with quick_compiles():
        value, grads = jax.jit(jax.value_and_grad(loss))(trainable)
    references.backward()
    np.testing.assert_allclose(references.item(), value, rtol=1e-5)
    found = {name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None}
    expected = dict(torch_views(grads, "codec"))
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        np.testing.assert_allclose(grad, expected[name], atol=1e-5 * np.abs(expected[name]).max(), err_msg=name)


@pytest.mark.slow
def test_the_dialogue_torch_reference_has_the_same_loss_and_trains_the_same(torch):
    loss, trainable, reference, references = both_sides(torch, "dialogue")
    with quick_compiles():
        np.testing.assert_allclose(references.item(), jax.jit(loss)(trainable), rtol=1e-5)
    trained = {name for name, parameter in reference.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, _ in torch_views(trainable, "dialogue")}


def test_figures_follow_from_the_rounds(torch, monkeypatch):
    monkeypatch.setattr(bench, "MEASURED_S", 0.01)
    with quick_compiles():
        row = bench_train(tiny_run("prior"), Objective(), against="torch", rounds=3, peak=1e12)
    ours, references = row["seconds"]["ours"], row["seconds"]["torch"]
    assert len(ours) == len(references) == 3 and min(ours + references) > 0
    assert row["steps_per_s"] == 1 / statistics.median(ours)
    assert row["frames_per_s"] == pytest.approx(200 * row["steps_per_s"])
    assert row["utilisation"] == pytest.approx(row["step_flops"] * row["steps_per_s"] / 1e12)
    assert row["times_torch"] == statistics.median(b / a for a, b in zip(ours, references, strict=True))
    assert {"forward", "backward", "update"} <= row["profile"]["phase"].keys()
    assert {"self_attn", "mlp"} <= row["profile"]["part"].keys()
    for shares in row["profile"].values():
        assert sum(shares.values()) == pytest.approx(1)
    text = table({"stages": [row], "against": "torch"})
    assert "| prior | 2 |" in text and "prior: " in text


@pytest.mark.slow
def test_a_full_dialogue_step_has_the_stated_work():
    """At most 73 TFLOP for the paper's 128 pairs; the encoder, once a track, 147 GFLOP of 4 seconds."""
    config = random_data_config("dialogue", 128, [])
    stage, (graphdef, params) = STAGES["dialogue"], abstract(lambda rngs: UniLS(config.model, rngs=rngs))
    trainable, frozen = stage.split(params)
    state = jax.eval_shape(lambda params: init_state(params, config.optimizer), trainable)
    step = make_train_step(stage, graphdef, make_objective(config, None), config.optimizer)
    work = count(step, state, frozen, batch_shapes(config), jax.eval_shape(lambda: jax.random.key(0)))
    assert work.within("wav2vec2") == pytest.approx(256 * 147.3e9, rel=1e-3)
    assert work.model == work.total and 60e12 < work.model <= 73e12
    assert work.backward < (work.model - work.within("wav2vec2")) * 2 / 3  # adapters: no gradient of frozen kernels


def test_the_batch_of_a_pair_holds_both_people_and_their_audio():
    shapes = {name: shape.shape for name, shape in batch_shapes(tiny_run("dialogue")).items()}
    assert shapes == {name: (2, 2, 100, 108) for name in ("motion", "prev", "style")} | {"audio": (2, 2, 64_000)}
    assert {name: value.shape for name, value in random_batch(tiny_run("dialogue")).items()} == shapes


@pytest.mark.parametrize("stage", ["dualtalk", "unitalker"])
def test_the_batches_of_the_family_are_those_of_its_loaders(tiny_store, stage):
    if stage == "dualtalk":
        loader = make_loader(str(tiny_store), "train", view="partners", batch_size=2, seed=0)
    else:
        settings = {"clip_step_s": 0.0, "normalize": True, "as_pivot": False, "process_index": 0, "process_count": 1}
        loader = make_speech_loader([], [(str(tiny_store), 1.0)], "train", batch_size=2, seed=0, **settings)
    batch, ours = next(iter(loader)), random_batch(tiny_run(stage))
    assert batch.pop("annotation", None) == ours.annotation
    shapes = {name: (value.shape, value.dtype) for name, value in ours.items()}
    told = ("observed", "record", "replaced")  # what the loop and the shares take, the model does not
    assert shapes == {name: (value.shape, value.dtype) for name, value in batch.items() if name not in told}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dualtalk", "unitalker"])
def test_the_family_s_steps_are_measured(monkeypatch, stage):
    monkeypatch.setattr(bench, "MEASURED_S", 0.01)
    with quick_compiles():
        row = bench_train(tiny_run(stage), Objective(), against=None, rounds=2, peak=1e12)
    assert row["stage"] == stage and row["frames_per_s"] == pytest.approx(400 * row["steps_per_s"])
    assert 0 < row["encoder_flops"] < row["step_flops"]
    assert f"| {stage} | 2 |" in table({"stages": [row], "against": None})


@pytest.mark.slow
def test_a_step_on_kept_features_is_measured_in_turns(monkeypatch):
    monkeypatch.setattr(bench, "MEASURED_S", 0.01)
    with quick_compiles():
        row = bench_train(tiny_run("dialogue"), Objective(), against="features", rounds=3, peak=1e12)
    quotients = [ours / kept for ours, kept in zip(row["seconds"]["ours"], row["seconds"]["features"], strict=True)]
    assert row["times_features"] == statistics.median(quotients)
    assert "steps/s on features" in table({"stages": [row], "against": "features"})


HLO = """
%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %inner = f32[4]{0} tanh(%p), metadata={op_name="jit(step)/jvp(mlp)/tanh" stack_frame_id=1}
}
  %dot.1 = f32[4,4]{1,0} dot(%a, %b), metadata={op_name="jit(step)/jvp(self_attn)/dot_general"}
  %fusion.2 = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/transpose(jvp(mlp))/mul"}
  %tuple.3 = (f32[4]{0}, s32[]) while(%init), body=%body, metadata={op_name="jit(step)/jvp(mlp)/while"}
  %dot.4 = f32[4]{0} dot(%a, %b), metadata={op_name="jit(step)/jvp(wav2vec2)/self_attn/dot_general"}
  %dot.5 = f32[4]{0} dot(%a, %b), metadata={op_name="jit(step)/transpose(jvp())/rematted_computation/mlp/dot_general"}
  ROOT %add.6 = f32[4]{0} add(%a, %b), metadata={op_name="jit(step)/add"}
  %copy.7 = f32[4]{0} copy(%a)
"""


def test_operations_are_read_from_a_program_s_text():
    found = operations(HLO)
    assert found["dot.1"] == Operation("dot", "jit(step)/jvp(self_attn)/dot_general")
    assert found["tuple.3"].opcode == "while" and found["copy.7"] == Operation("copy", "")


def test_time_is_summed_by_phase_part_and_kind():
    times = {"dot.1": 1.0, "fusion.2": 2.0, "tuple.3": 50.0, "dot.4": 4.0, "dot.5": 8.0, "add.6": 16.0, "unknown": 99.0}
    events = [*times.items(), ("dot.1", 1.0)]
    sums = summarise(operations(HLO), events, TRAIN_PARTS)
    assert sums["phase"] == {"forward": 2, "backward": 2, "encoder": 4, "recomputed": 8, "update": 16}
    assert sums["part"] == {"self_attn": 2, "mlp": 10, "wav2vec2": 4, "other": 16}
    assert sums["kind"] == {"product": 14, "other": 18}
