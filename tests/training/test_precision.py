import pytest

from unils_jax.benchmarks.precision_runs import compare, smoke_configs


@pytest.mark.slow
def test_bfloat16_reaches_the_validation_loss_of_float32(tiny_store):
    """Trains the smoke configs' models, one block deep, for some steps.

    For whole runs see docs/training.md and `unils_jax.benchmarks.precision_runs`.
    """
    configs = smoke_configs(tiny_store, num_steps=12, eval_batches=1)
    for values in configs.values():
        for part in ("codec", "prior"):
            if part in values["model"]:
                values["model"][part]["depth"] = 1
    losses = compare(configs, seeds=(0,))
    for stage, of in losses.items():
        (exact,), (rounded,) = of["float32"], of["bfloat16"]
        assert rounded != exact and rounded == pytest.approx(exact, rel=0.02), stage
