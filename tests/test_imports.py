"""What importing costs and needs, seen in fresh processes, and that every module has its place in the layers."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unils_jax
from unils_jax.cli.main import COMMANDS

PACKAGE = Path(unils_jax.__file__).parent
# What GPU images often lack, and the extras.
OPTIONAL = (
    "grain",
    "ml_collections",
    "tensorboardX",
    "pyvista",
    "vtkmodules",
    "tensorflow_datasets",
    "tensorflow",
    "clu",
)
CORE = (
    "unils_jax.models.unils",
    "unils_jax.face.flame",
    "unils_jax.face.standin",
    "unils_jax.training.step",
    "unils_jax.training.config",
    "unils_jax.inference.conversations",
    "unils_jax.evaluation.likelihood",
    "unils_jax.checkpoints.loading",
    "unils_jax.outputs.video",
    "unils_jax.config",
)


def loaded_after(program: str, missing: tuple[str, ...] = ()) -> set[str]:
    """The top-level modules that a fresh process holds after `program`; importing one of `missing` fails there."""
    blocked = f"import sys\nfor name in {missing!r}: sys.modules[name] = None\n"
    listed = "\nprint(*sorted({name.partition('.')[0] for name, module in sys.modules.items() if module is not None}))"
    command = [sys.executable, "-c", blocked + program + listed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_else():
    assert not loaded_after("import unils_jax") & {"jax", "flax", "numpy", "torch", "scipy"}


def test_models_step_and_decode_need_no_data_library():
    loaded = loaded_after("\n".join(f"import {module}" for module in CORE), OPTIONAL)
    assert {"jax", "flax", "unils_jax"} <= loaded
    assert not loaded & {"torch", "transformers", "data_pipelines", *OPTIONAL}


TRAIN_AND_DECODE = """
import jax
import numpy as np
from flax import nnx
from unils_jax.inference.conversations import Sampling, decode
from unils_jax.models.codec import CodecConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import UniLSConfig, UniLS
from unils_jax.nn.params import split
from unils_jax.systems.base import Objective
from unils_jax.systems.unils.system import CODEC
from unils_jax.training.optimizer import OptimizerConfig
from unils_jax.training.step import init_state, make_train_step
jax.config.update("jax_disable_most_optimizations", True)
codec = CodecConfig(code_dim=4, scales=(1, 100), width=4, depth=1, num_heads=1)
config = UniLSConfig(codec, PriorConfig(4, 1, 1, audio_dim=2), logmel=LogMelConfig(2, 0))
model = UniLS(config, rngs=nnx.Rngs(0))
graphdef, params = split(model)
trainable, frozen = CODEC.split(params)
step = make_train_step(CODEC, graphdef, Objective(), OptimizerConfig())
batch = {"motion": np.zeros((1, 100, 108), np.float32)}
state, metrics = step(init_state(trainable, OptimizerConfig()), frozen, batch, jax.random.key(0))
assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))
assert decode(model, np.zeros(640, np.float32), sampling=Sampling(0.0, 1.0)).shape == (1, 1, 108)
"""


@pytest.mark.slow
def test_a_model_trains_a_step_and_decodes_without_the_data_libraries():
    assert "torch" not in loaded_after(TRAIN_AND_DECODE, OPTIONAL)


def test_converting_and_checking_data_start_no_jax():
    modules = (
        "conversion.convert",
        "conversion.verify",
        "conversion.workers",
        "sources.unils_lmdb",
        "sources.dualtalk",
        "sources.folder",
    )
    loaded = loaded_after("\n".join(f"import data_pipelines.{module}" for module in modules))
    assert not loaded & {"jax", "jaxlib", "flax", "grain", "tensorflow", "torch"}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["doctor", "--help"]])
def test_the_command_line_answers_without_starting_jax(words):
    program = f"from unils_jax.cli.main import main\ntry: main({words})\nexcept SystemExit: pass"
    assert not loaded_after(program) & {"jax", "flax", "numpy", "scipy", "torch"}


def test_every_command_has_its_module_and_none_imports_torch():
    modules = {command.module for command in COMMANDS.values()}
    found = {path.stem for path in (PACKAGE / "cli").glob("[!_]*.py")}
    found |= {path.parent.name for path in (PACKAGE / "cli").glob("*/__init__.py")}
    assert found == modules | {"arguments", "decode_flags", "main"}
    commands = [f"import unils_jax.cli.{name}" for name in sorted(modules)]
    assert not loaded_after("\n".join(commands)) & {"torch", "transformers", "pyvista", "sklearn"}


def test_flags_end_at_the_command_line():
    below = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "cli" not in path.parents]
    assert not [path for path in below if "argparse" in path.read_text()]


@pytest.mark.parametrize("folder", ["unils_jax", "data_pipelines"])
def test_no_module_defers_its_annotations(folder):
    """The shapes in them are checked under pytest, which needs them evaluated."""
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        assert "from __future__ import annotations" not in path.read_text(), path


def test_every_folder_has_a_layer():
    pyproject = PACKAGE.parent / "pyproject.toml"
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    named = {module.strip() for line in contracts[0]["layers"] for module in re.split("[|:]", line)}
    assert named == {f"unils_jax.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}


def test_packages_of_the_wheel_are_all_there_are():
    pyproject = PACKAGE.parent / "pyproject.toml"
    listed = set(tomllib.loads(pyproject.read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for folder in ("unils_jax", "data_pipelines")
        for path in (PACKAGE.parent / folder).rglob("__init__.py")
    }
    folders = ("baselines", "live", "live.smoke", "miniature", "smoke")
    configs = {"unils_jax.configs", *(f"unils_jax.configs.{name}" for name in folders)}
    assert listed == found | configs
