"""Several real processes on one machine: they train on their own parts of every batch, save together, and agree."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from run_files import (
    assert_same,
    item,
    last_step,
    metrics,
    run_to_end,
    started,
    wait_until,
    without_speed,
)

from unils_jax.errors import UserError
from unils_jax.training import distributed
from unils_jax.training.distributed import EXIT_STATUS, raise_unless_agreed

LOCAL = Path(__file__).parents[2] / "launch" / "local.sh"
BATCH = "--config.data.batch_size=4"


def launch(runs, count: int, workdir: Path, *flags: str) -> list:
    """Returns the command of launch/local.sh with the tiny dialogue stage."""
    common = ["--config", runs.configs["dialogue"], "--parent", runs.workdirs["prior"], BATCH]
    return ["bash", LOCAL, count, *common, "--workdir", workdir, *flags]


@pytest.fixture
def port(monkeypatch) -> None:
    """Finds a free port for process 0 and sets it in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PORT", str(free.getsockname()[1]))


def assert_close_runs(first: list[dict], second: list[dict]) -> None:
    """Asserts equal rows, with figures equal up to the rounding of sums taken in another order."""
    first, second = without_speed(first), without_speed(second)
    assert [(row["step"], row["split"]) for row in first] == [(row["step"], row["split"]) for row in second]
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"step", "split", "bit_accuracy"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=f"step {a['step']} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_save_together_and_one_alone_goes_on(tiny_runs, tmp_path, port, count):
    cache, log = tmp_path / "xla", tmp_path / "log"
    assert tiny_runs.train("dialogue", tmp_path / "alone", BATCH) == 0
    together = tmp_path / "together"
    shorter = ["--config.num_steps=3", "--config.optimizer.decay_steps=6"]
    assert run_to_end(launch(tiny_runs, count, together, *shorter), cache, log) == 0, log.read_text()
    assert [row["step"] for row in metrics(together) if row["split"] == "train"] == [1, 2, 3]
    assert sorted(path.name for path in (together / "checkpoints").iterdir()) == ["3"]
    assert tiny_runs.train("dialogue", together, BATCH) == 0
    assert_close_runs(metrics(together), metrics(tmp_path / "alone"))
    assert_same(item(together, 6, "frozen"), item(tmp_path / "alone", 6, "frozen"))
    for name in ("params", "ema"):
        alone = item(tmp_path / "alone", 6, name)
        for path, value in item(together, 6, name).items():
            # Rates of 4e-3 over six steps: where Adam's direction hangs on rounding, single values may differ by them.
            np.testing.assert_allclose(value, alone[path], atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tiny_runs, tmp_path, port):
    cache, log, workdir = tmp_path / "xla", tmp_path / "log", tmp_path / "run"
    flags = ["--config.num_steps=400", "--config.checkpoint_every=1000"]
    with started(launch(tiny_runs, 2, workdir, *flags), cache, log) as process:
        wait_until(lambda: last_step(workdir) >= 4, process, log)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout.split()[1]), signal.SIGTERM)
        assert process.wait(300) == EXIT_STATUS, log.read_text()
    steps = re.findall(r"stopped by (.*?) after step (\d+), which is saved", log.read_text())
    assert {reason for reason, _ in steps} == {"SIGTERM", "a signal to another process"} and len(steps) == 2
    assert len({step for _, step in steps}) == 1
    step = int(steps[0][1])
    assert last_step(workdir) == step and [path.name for path in (workdir / "checkpoints").iterdir()] == [str(step)]


def rows(*hosts: tuple[int, int, bytes]) -> np.ndarray:
    """Returns a row for each process: config's digest, parameters' digest, host name."""
    return np.array(
        [[config] * 32 + [params] * 32 + list(name.ljust(64, b"\0")) for config, params, name in hosts], np.uint8
    )


def test_hosts_that_hold_something_else_are_named():
    raise_unless_agreed(rows((1, 2, b"a"), (1, 2, b"b")))
    with pytest.raises(UserError) as error:
        raise_unless_agreed(rows((1, 2, b"a"), (3, 2, b"b"), (1, 5, b"c"), (4, 6, b"d")))
    assert str(error.value).startswith(
        "these processes hold another config than process 0 (a): process 1 (b), process 3 (d); "
        "another parameters than process 0 (a): process 2 (c), process 3 (d)"
    )


@pytest.mark.slow
def test_processes_with_other_settings_do_not_start(tiny_runs, tmp_path, port):
    log = tmp_path / "log"
    script = 'i=$2; shift 2; exec unils train --process_id $i --config.seed=$i "$@"'
    common = launch(tiny_runs, 2, tmp_path / "run")[3:]
    together = ["--coordinator", f"127.0.0.1:{os.environ['PORT']}", "--num_processes", 2]
    commands = [["bash", "-c", script, "x", "-", i, *together, *common] for i in (0, 1)]
    with started(commands[0], tmp_path / "xla", log) as first, started(commands[1], tmp_path / "xla", log) as second:
        assert [first.wait(300), second.wait(300)] == [2, 2], log.read_text()
    reported = re.findall(
        "unils: error: these processes hold another config than process 0 .*: process 1 ", log.read_text()
    )
    assert len(reported) == 2 and "Traceback" not in log.read_text()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.parent.name == "checkpoints"]


def test_proxies_are_hidden_while_processes_join_and_are_there_again(monkeypatch):
    seen = {}
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    def initialize(*_: object, **__: object) -> None:
        seen.update({name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")})
        raise RuntimeError("nobody there")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match="cannot join"):
        distributed.join("127.0.0.1:1", 0, 2)
    assert not {name for name in seen if name.lower() != "no_proxy"}
    assert (os.environ["http_proxy"], os.environ["HTTPS_PROXY"]) == ("http://127.0.0.1:9",) * 2
