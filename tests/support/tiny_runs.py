"""What tests of the command line share, made once a session: tiny runs of the three stages, and a release's files."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
from pt_writer import write_pt
from safetensors.numpy import load_file

from unils_jax.cli.main import main

STAGES = ("codec", "prior", "dialogue")
TINY_CODEC = {"code_dim": 8, "scales": (1, 25, 100), "width": 16, "depth": 1, "num_heads": 2}
NUM_STEPS, CHECKPOINT_EVERY = 6, 3

_COMMON = """
import ml_collections
from unils_jax.config import load_config

def get_config():
    config = load_config("smoke/{stage}")
    config.head = ""
    config.num_steps = {num_steps}
    config.data.update({{"store": {store!r}, "batch_size": 2}})
    config.update({{"log_every": 1, "eval_every": 3, "eval_batches": 1, "checkpoint_every": {checkpoint_every}}})
"""
_CODEC = f"""
    config.model.codec.update({TINY_CODEC!r})
    config.loss.coarse_scales = 1
"""
_PRIOR = """
    config.model.prior.update({"width": 16, "depth": 1, "num_heads": 2})
"""
_DIALOGUE = """
    config.model.prior.audio_dim = 6
    config.model.ear = None
    config.model.logmel = {"num_mels": 6, "context_frames": 0}
    config.model.lora = {"rank": 2, "alpha": 4.0, "dropout_rate": 0.1}
    config.sampling = {"tau": 1.3, "cfg": 2.0, "top_p": 1.0}
"""
_EAR = """
    config.model.ear.update(
        {"num_mels": 8, "context_frames": 2, "width": 8, "blocks": 1, "coarse_bands": 2, "feature_context": 0}
    )
"""


def run_unils(*argv: str | Path) -> int:
    """The exit status of `unils ...`, in this process."""
    try:
        return main([str(word) for word in argv])
    except SystemExit as stop:
        return stop.code


def write_tiny_config(path: Path, stage: str, store: Path) -> Path:
    """A config file of the stage: what the smoke config says, at a size that compiles in seconds."""
    values = {"stage": stage, "store": str(store)}
    text = _COMMON.format(**values, num_steps=NUM_STEPS, checkpoint_every=CHECKPOINT_EVERY)
    text += {"ear": _EAR, "codec": _CODEC, "prior": _CODEC + _PRIOR, "dialogue": _CODEC + _PRIOR + _DIALOGUE}[stage]
    path.write_text(dedent(text) + "    return config\n")
    return path


@contextmanager
def quick_compiles() -> Iterator[None]:
    """Half the compile time for slower programs, which six steps do not feel."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def unoptimised() -> Iterator[None]:
    """Programs of the module compile quickly; for facts that do not hang on how a program is compiled."""
    with quick_compiles():
        yield


@dataclass(frozen=True)
class TinyRuns:
    """`store`, and per stage its config file and its finished workdir; two checkpoints each, of steps 3 and 6."""

    store: Path
    configs: dict[str, Path]
    workdirs: dict[str, Path]

    def train(self, stage: str, workdir: Path, *flags: str) -> int:
        """`unils train` of a stage into another workdir, from the same parent."""
        parent = {"prior": "codec", "dialogue": "prior"}.get(stage)
        from_parent = ["--parent", self.workdirs[parent]] if parent else []
        with quick_compiles():
            return run_unils("train", "--config", self.configs[stage], "--workdir", workdir, *from_parent, *flags)

    def copy(self, stage: str, to: Path) -> Path:
        """A copy of a finished workdir, to be damaged or resumed."""
        return shutil.copytree(self.workdirs[stage], to)


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` filled, one for all of pytest's worker processes."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / name
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """A synthetic store of three conversations of twelve seconds."""

    def make(folder: Path) -> None:
        flags = ["--conversations", "3", "--minutes", "0.2", "--voices", "builtin"]
        assert run_unils("data", "synth", "--out", folder / "store", *flags) == 0

    return made_once(tmp_path_factory, "tiny_data", make) / "store"


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory) -> Path:
    """A folder, set as JAX's: a step that was compiled once is not compiled again for the runs that resume."""
    folder = made_once(tmp_path_factory, "xla", lambda folder: None)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory, tiny_store, compile_cache) -> TinyRuns:
    """The three stages, trained for six steps each through `unils train`."""

    def runs_in(folder: Path) -> TinyRuns:
        configs = {stage: folder / f"{stage}.py" for stage in STAGES}
        return TinyRuns(tiny_store, configs, {stage: folder / stage for stage in STAGES})

    def make(folder: Path) -> None:
        runs = runs_in(folder)
        for stage in STAGES:
            write_tiny_config(runs.configs[stage], stage, tiny_store)
            assert runs.train(stage, runs.workdirs[stage]) == 0

    return runs_in(made_once(tmp_path_factory, "tiny_runs", make))


def transformers_config(w2v: dict) -> dict:
    """The config.json that transformers would write for a golden's wav2vec2."""
    return {
        "model_type": "wav2vec2",
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "hidden_size": w2v["hidden"],
        "num_hidden_layers": w2v["layers"],
        "num_attention_heads": w2v["heads"],
        "intermediate_size": w2v["intermediate"],
        "conv_dim": w2v["conv_dim"],
        "num_conv_pos_embeddings": w2v["pos_conv"],
        "num_conv_pos_embedding_groups": w2v["pos_groups"],
        "layer_norm_eps": w2v["layer_norm_eps"],
    }


def meta_cfg(model: dict) -> dict:
    """The config tree of a release checkpoint around a golden's MODEL part."""
    return {"MODEL": model, "DATASET": {"MOTION_FPS": 25, "AUDIO_SAMPLE_RATE": 16_000}, "EXP_STR": "golden"}


@pytest.fixture(scope="session")
def release(tmp_path_factory, golden) -> SimpleNamespace:
    """A release as a user has it on disk, of the goldens' weights.

    `codec`, `prior` and `dialogue` are .pt files, `encoder` the folder of a tiny wav2vec2 (`w2v` its weights), `audio`
    and `audio2` the two tracks of `loragen_decode`, exact in float32 and in 16 bits.
    """
    folder = tmp_path_factory.mktemp("release")
    files = {}
    for stage, case in zip(STAGES, ("codec", "freegen", "loragen"), strict=True):
        weights, model = golden(case).weights, golden(case).config["model"]
        files[stage] = write_pt(folder / f"{stage}.pt", {"model": weights, "meta_cfg": meta_cfg(model)})
    encoder = folder / "wav2vec2"
    encoder.mkdir()
    source = golden("loragen").folder / "audio_encoder.safetensors"
    shutil.copyfile(source, encoder / "model.safetensors")
    (encoder / "config.json").write_text(json.dumps(transformers_config(golden("loragen").config["w2v"])))
    first, second = golden("loragen_decode").inputs["audio_i8"][0]
    soundfile.write(folder / "a.wav", first.astype(np.float32) / 128, 16_000, subtype="FLOAT")
    soundfile.write(folder / "b.wav", second.astype(np.int16) * 256, 16_000, subtype="PCM_16")
    tracks = {"audio": folder / "a.wav", "audio2": folder / "b.wav"}
    return SimpleNamespace(**files, encoder=encoder, w2v=load_file(source), **tracks)
