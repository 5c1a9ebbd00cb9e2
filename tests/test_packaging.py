"""The wheel, installed into an environment of its own and used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import unils_jax

ROOT = Path(unils_jax.__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md", "configs", "unils_jax", "data_pipelines")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"XDG_CACHE_HOME": str(cwd), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--wheel-dir", "dist", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel) -> Path:
    """A new environment that holds the wheel, and borrows the dependencies of the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path in a .pth file is searched, but the .pth files in it are not read: the checkout stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env"


def test_the_wheel_holds_configs_and_data_and_nothing_of_the_checkout(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"unils_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert configs and configs <= names
    assert "unils_jax/face/flame_regions.json" in names
    assert "unils_jax/evaluation/report.html" in names
    models = [
        f"{name}{suffix}" for name in ("model", "live") for suffix in (".json", ".safetensors", ".safetensors.md")
    ]
    assert {f"unils_jax/checkpoints/pretrained/{name}" for name in models} <= names
    assert not [name for name in names if name.endswith((".ts", "package.json"))]
    built = {f"unils_jax/outputs/viewer/dist/{name}" for name in ("viewer.js", "LICENSE.three.txt")}
    assert (built & names) == {name for name in built if (ROOT / name).exists()}, "the page's script and its licence"
    modules = {
        str(path.relative_to(ROOT)) for top in ("unils_jax", "data_pipelines") for path in (ROOT / top).rglob("*.py")
    }
    assert modules <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"unils_jax", "data_pipelines"}
    assert {Path(name).name for name in names if "licenses/" in name} == {"LICENSE", "THIRD_PARTY.md"}


def test_the_installed_command_works_in_another_folder(environment, tmp_path):
    unils, python = environment / "bin" / "unils", environment / "bin" / "python"
    assert run(unils, "--version", cwd=tmp_path) == f"unils {unils_jax.__version__}\n"
    program = "import unils_jax.config as c, data_pipelines as d; print(c.config_path('smoke/codec'), d.__file__)"
    assert all(Path(path).is_relative_to(environment) for path in run(python, "-c", program, cwd=tmp_path).split())
    run(
        unils,
        "data",
        "synth",
        "--out",
        "store",
        "--conversations",
        "3",
        "--minutes",
        "0.1",
        "--voices",
        "builtin",
        cwd=tmp_path,
    )
    flags = ["--config", "smoke/codec", "--workdir", "codec", "--config.data.store=store", "--dry_run"]
    assert "nothing was trained" in run(unils, "train", *flags, cwd=tmp_path)


def test_two_wav_files_become_a_video_with_nothing_else_given(environment, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.05, 32_000), 16_000)
    flags = ("--audio", "a.wav", "--audio2", "b.wav", "--video", "v.mp4")
    done = run(environment / "bin" / "unils", "decode", *flags, cwd=tmp_path)
    assert "v.mp4: 2 x 50 frames" in done
    assert (tmp_path / "v.mp4").stat().st_size > 1000
