"""A real SLURM of one node: the launch script is submitted, stopped by a signal, queued again, and finishes."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_files import metrics

ROOT = Path(__file__).parents[1]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
STEPS = 60

CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[Path]:
    """Runs munge, the controller and one node; their folder. Skips where they are not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and SLURM ({', '.join(missing)}): apt-get install slurm-wlm munge")
    # A socket's path has little room, less than a test's folder takes.
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    conf, key = folder / "slurm.conf", folder / "key"
    conf.write_text(CONF.format(host=host, folder=folder, ports=free_ports(2)))
    key.write_bytes(os.urandom(1024))
    key.chmod(stat.S_IRUSR)
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("PATH", f"{folder}:/usr/sbin:{os.environ['PATH']}")
    (folder / "unils").write_text(f'#!/bin/sh\nexec {sys.executable} -m unils_jax.cli.main "$@"\n')
    (folder / "unils").chmod(stat.S_IRWXU)
    munge = [f"--{name}={folder}/{file}" for name, file in (("key-file", "key"), ("socket", "munge.socket"))]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"]
    daemons = []
    try:
        for command in (["munged", "-F", "-f", *munge], ["slurmctld", "-D", "-f", conf], ["slurmd", "-D", "-f", conf]):
            with (folder / f"{command[0]}.out").open("w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            wait_until((folder / "munge.socket").exists, 20)
        wait_until(lambda: "idle" in output("sinfo", "-h", "-o", "%t"), 30)
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(20)
        shutil.rmtree(folder)


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.slow
def test_a_job_is_stopped_queued_again_and_finishes(slurm, tiny_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    workdir, log = tmp_path / "run", tmp_path / "job.log"
    one_node = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", f"--output={log}"]
    flags = ["--config", tiny_runs.configs["codec"], "--workdir", workdir, f"--config.num_steps={STEPS}"]
    flags += ["--config.checkpoint_every=1000", "--config.eval_every=1000", "--config.data.num_workers=0"]
    job = output("sbatch", "--parsable", *one_node, ROOT / "launch/slurm.sbatch", *flags).strip()
    assert job.isdecimal(), (slurm / "slurmctld.out").read_text()

    wait_until(lambda: workdir.exists() and len(metrics(workdir)) >= 2, 240)
    output("scancel", f"--signal={signal.SIGUSR1.name.removeprefix('SIG')}", job)
    wait_until(lambda: "Restarts=1" in output("scontrol", "show", "job", job), 120)
    assert "which is saved" in log.read_text()
    # SLURM lets a requeued job wait for two minutes, as a node refuses one that it has just ended;
    # seconds are enough on one node.
    wait_until(lambda: "idle" in output("sinfo", "-h", "-o", "%t"), 120)
    time.sleep(20)
    output("scontrol", "update", f"JobId={job}", "StartTime=now")
    ends = ("JobState=COMPLETED", "JobState=FAILED")
    wait_until(lambda: any(end in output("scontrol", "show", "job", job) for end in ends), 600)
    assert ends[0] in output("scontrol", "show", "job", job), log.read_text()

    steps = [row["step"] for row in metrics(workdir) if row["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
