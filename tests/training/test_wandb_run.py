"""A run's page at Weights & Biases: made once, gone on with by runs that resume, a plain word where it cannot be."""

import sys
from types import SimpleNamespace

import pytest

from unils_jax.errors import UserError
from unils_jax.training.distributed import Preempted
from unils_jax.training.metrics import MetricsLog
from unils_jax.training.wandb_run import ID_FILE, WandbRun


class Page:
    """Stands for the package: what it was called with, in order."""

    def __init__(self, step: int = 0):
        self.step, self.calls = step, []
        self.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))

    def __getattr__(self, name: str):
        def called(*args, **named):
            self.calls.append((name, *args, named))
            return self

        return called

    def of(self, name: str) -> list[tuple]:
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def package(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)

    def install(page: Page) -> Page:
        monkeypatch.setitem(sys.modules, "wandb", page)
        return page

    return install


def test_a_run_that_was_stopped_goes_on_with_its_page(package, tmp_path):
    first = package(Page())
    with pytest.raises(Preempted), WandbRun(tmp_path, {"num_steps": 9}) as page:
        page.write(1, "train", {"loss": 0.5})
        raise Preempted(1, "SIGTERM")
    (made,) = first.of("init")[0]
    run_id = (tmp_path / ID_FILE).read_text().strip()
    assert made["id"] == run_id and made["name"] == tmp_path.name and made["config"] == {"num_steps": 9}
    assert first.of("log") == [({"train/loss": 0.5}, {"step": 1})]
    assert [call[0] for call in first.calls[-2:]] == ["mark_preempting", "finish"]
    assert first.of("finish") == [({"exit_code": 1},)]

    second = package(Page(step=3))
    with WandbRun(tmp_path, {}) as page, MetricsLog(tmp_path, page=page) as log:
        for step in (2, 3):  # the page has the second step already
            log.write(step, "val", {"loss": 0.25})
    (resumed,) = second.of("init")[0]
    assert (resumed["id"], resumed["resume"], resumed["project"]) == (
        run_id,
        "allow",
        "unils",
    ) and "name" not in resumed
    assert second.of("log") == [({"val/loss": 0.25}, {"step": 3})]
    assert second.of("finish") == [({"exit_code": 0},)] and not second.of("mark_preempting")


def test_a_page_that_is_refused_is_one_line(package, tmp_path, monkeypatch):
    page = package(Page())

    def refuse(**named):
        raise page.errors.Error("No API key\nconfigured.")

    monkeypatch.setattr(page, "init", refuse, raising=False)
    with pytest.raises(UserError, match="--wandb: No API key configured.; run wandb login, or set WANDB_MODE=offline"):
        WandbRun(tmp_path, {})
    assert not (tmp_path / ID_FILE).exists()


def test_without_the_package_nothing_begins(tiny_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unils_jax.training.wandb_run.importlib.util.find_spec", lambda name: None)
    assert tiny_runs.train("codec", tmp_path / "run", "--wandb") == 2
    assert "--wandb needs the package wandb: run pip install '.[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_real_package_keeps_a_run_and_its_resumption_under_one_id(tiny_runs, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir = tmp_path / "run"
    half = ["--config.num_steps=3", "--config.optimizer.decay_steps=6"]
    assert tiny_runs.train("codec", workdir, "--wandb", *half) == 0
    assert tiny_runs.train("codec", workdir, "--wandb") == 0
    run_id = (workdir / ID_FILE).read_text().strip()
    files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    for file in files:
        assert b"train/loss" in file.read_bytes() and b"val/loss" in file.read_bytes()


def test_an_id_that_is_a_folder_is_one_line(package, tmp_path):
    package(Page())
    (tmp_path / ID_FILE).mkdir()
    with pytest.raises(UserError, match=f"{ID_FILE} cannot be read .*; remove it"):
        WandbRun(tmp_path, {})
