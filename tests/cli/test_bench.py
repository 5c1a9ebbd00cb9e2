"""`unils bench ...`: what it writes, what it refuses, and the smoke test of a GPU machine."""

import json
import subprocess
from pathlib import Path

import pytest
from tiny_runs import quick_compiles, run_unils, write_tiny_config

from unils_jax.benchmarks.gpu_smoke import STAGES, gpu_smoke
from unils_jax.benchmarks.train import random_data_config
from unils_jax.checkpoints.loading import load, pretrained
from unils_jax.cli.serve import LoadRequest, _to_check_with
from unils_jax.config import load_config
from unils_jax.errors import UserError
from unils_jax.inference.sampling import DEFAULT_SAMPLING
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import abstract
from unils_jax.systems.registry import STAGES as STAGE_DATA


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--config", "codec", "--aot", "--against", "torch"), "--aot runs nothing"),
        (("train", "--config", "codec", "prior", "--batch_size", "4"), "one size a config: 2, got 1"),
        (("train", "--config", "codec", "--batch_size", "0"), "batch_size must be at least 1"),
        (("train", "--config", "smoke/dualtalk", "--against", "torch"), "reference is of UniLS, DualTalk has none"),
        (("train", "--config", "smoke/unitalker", "--against", "torch"), "reference is of UniLS, UniTalker has none"),
        (("train", "--config", "codek"), "no config named 'codek'"),
        (("train", "--config", "codec", "--config.model.codec.with=3"), "did you mean model.codec.width"),
        (("decode", "--config", "prior"), "needs a dialogue"),
        (("decode", "--config", "dialogue", "--checkpoint", "x"), "give one of them"),
        (("decode", "--checkpoint", "nowhere"), "nowhere does not exist"),
        (("decode", "--batch", "0"), "--batch must be at least 1"),
        (("decode", "--rounds", "0"), "--rounds must be at least 1"),
        (("decode", "--threads", "0"), "--threads must be from 1"),
        (("decode", "--json", "figures.txt"), "must end in .json"),
        (("decode", "--config.data.batch_size=3"), "unknown argument"),
        (("train", "--config", "codec", "--topology", "v5e"), "--topology must be a TPU"),
        (("train", "--config", "codec", "--topology", "v5e:2x2", "--against", "torch"), "--topology runs nothing"),
        (("decode", "--slices", "2"), "--slices is of --topology"),
        (("train", "--config", "codec", "--aot", "--config.mesh.fsdp=2"), "JAX has started with 1; start another"),
        (("everything",), "invalid choice"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, message):
    assert run_unils("bench", *words) == 2
    assert message in capsys.readouterr().err


def test_ahead_of_time_needs_no_data_and_its_figures_go_to_a_file(tmp_path, capsys):
    file, config = tmp_path / "aot.json", write_tiny_config(tmp_path / "codec.py", "codec", tmp_path / "nowhere")
    with quick_compiles():
        assert run_unils("bench", "train", "--config", config, "--batch_size", "1", "--aot", "--json", file) == 0
    result = json.loads(file.read_text())
    (row,) = result["stages"]
    assert (row["stage"], row["batch_size"]) == ("codec", 1) and "steps_per_s" not in row
    assert row["step_flops"] > row["backward_flops"] > 0 == row["encoder_flops"]
    assert row["program_bytes"] == sum(row["memory_bytes"].values()) > row["memory_bytes"]["arguments"]
    model = random_data_config(str(config), 1, []).model
    trained, _ = STAGE_DATA["codec"].split(abstract(lambda rngs: UniLS(model, rngs=rngs))[1])
    state_bytes = 4 * 4 * sum(shape.size for shape in trained.values())  # parameters, average and two moments
    assert row["memory_bytes"]["arguments"] > state_bytes
    assert result["machine"]["platform"] == "cpu" and "matrix_peak" not in result["machine"]
    assert "| codec | 1 |" in capsys.readouterr().out


def test_gpu_smoke_says_what_to_do_where_there_is_no_gpu(tmp_path, capsys):
    assert run_unils("bench", "gpu-smoke", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "JAX sees no GPU" in error and "--allow_cpu" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="what a machine without a GPU says: run it on one")
def test_make_gpu_smoke_says_so_before_it_installs_anything():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu-smoke"], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "no NVIDIA GPU here" in done.stderr and not done.stdout


def test_gpu_smoke_starts_from_nothing(tmp_path):
    (tmp_path / "old").touch()
    with pytest.raises(UserError, match="not empty"):
        gpu_smoke(tmp_path, allow_cpu=True)


def test_a_load_is_checked_with_what_the_server_decodes_by():
    given, own = _to_check_with(LoadRequest(clients=2, check=True)), load(pretrained("live")).sampling
    assert given["sampling"] == own != DEFAULT_SAMPLING and given["program"].slots == 2


@pytest.mark.slow
def test_gpu_smoke_goes_from_data_to_motion(tmp_path):
    files = {stage: write_tiny_config(tmp_path / f"{stage}.py", stage, tmp_path) for stage in STAGES}
    configs = {stage: load_config(str(file)) for stage, file in files.items()}
    with quick_compiles():
        said = gpu_smoke(tmp_path / "smoke", configs, allow_cpu=True)
    assert said.startswith("gpu-smoke passed on cpu") and "motion 2 x 125 x 108" in said
    for stage in STAGES:
        assert f"{stage} loss " in said and (tmp_path / "smoke" / stage / "checkpoints" / "3").is_dir()
