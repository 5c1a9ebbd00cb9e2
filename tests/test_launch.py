"""The launch scripts: what they start is understood by `unils train`, signals and exit statuses go through.

SLURM, Google Cloud and Kubernetes are stood in for by small scripts that record the command they are given.
"""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tiny_runs import run_unils

from unils_jax.training.distributed import EXIT_STATUS

LAUNCH = Path(__file__).parents[1] / "launch"
USER_FLAGS = ["--config", "prior", "--workdir", "a b", "--parent", "runs/codec", "--config.data.store=store"]

STAND_INS = {
    "unils": 'printf "%s\\n" "$@" > "$RECORD"; exit "${STATUS:-0}"',
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'echo "$@" > "$RECORD.requeued"',
    "gcloud": 'while [ "$1" != "--command" ]; do shift; done; exec bash -c "$2"',
}


@pytest.fixture
def shell(tmp_path):
    """Runs a command with the stand-ins first on the path; returns its exit status and what `unils` was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)

    def run(*command: str | Path, **variables: str) -> tuple[int, list[str]]:
        record = tmp_path / "record"
        environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record)}
        done = subprocess.run([str(word) for word in command], env=environment | variables, timeout=60, check=False)
        return done.returncode, record.read_text().splitlines()

    return run


def understood(argv: list[str], runs, workdir: Path) -> None:
    """Asserts that `unils train --dry_run` passes with exactly these arguments, paths and config being tiny ones."""
    tiny = {"--config": runs.configs["prior"], "--workdir": workdir, "--parent": runs.workdirs["codec"]}
    assert argv[0] == "train" and tiny.keys() <= set(argv)
    for flag, value in tiny.items():
        argv[argv.index(flag) + 1] = str(value)
    argv = [f"--config.data.store={runs.store}" if word.startswith("--config.data.store=") else word for word in argv]
    assert run_unils(*argv, "--dry_run") == 0


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch", "tpu_vm.sh"])
def test_scripts_are_sound(script):
    assert subprocess.run(["bash", "-n", LAUNCH / script], check=False).returncode == 0
    assert (LAUNCH / script).read_text().startswith("#!/usr/bin/env bash\n")


def test_slurm_starts_what_unils_understands(shell, tiny_runs, tmp_path):
    status, argv = shell("bash", LAUNCH / "slurm.sbatch", *USER_FLAGS, SLURM_JOB_ID="7")
    assert status == 0 and argv == ["train", "--distributed", *USER_FLAGS]
    understood(argv, tiny_runs, tmp_path / "run")
    assert not (tmp_path / "record.requeued").exists()


def test_slurm_queues_again_what_was_told_to_stop(shell, tmp_path):
    for status, queued in ((1, False), (EXIT_STATUS, True)):
        assert shell("bash", LAUNCH / "slurm.sbatch", SLURM_JOB_ID="7", STATUS=str(status))[0] == status
        assert (tmp_path / "record.requeued").exists() == queued
    assert (tmp_path / "record.requeued").read_text() == "requeue 7\n"


def test_tpu_vm_starts_what_unils_understands(shell, tiny_runs, tmp_path):
    status, argv = shell("bash", LAUNCH / "tpu_vm.sh", *USER_FLAGS, TPU="name", ZONE="zone")
    assert status == 0 and argv == ["train", "--distributed", *USER_FLAGS]
    understood(argv, tiny_runs, tmp_path / "run")


def test_kubernetes_starts_what_unils_understands(shell, tiny_runs, tmp_path):
    service, job = yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    status, argv = shell(*container["command"], *container["args"], JOB_COMPLETION_INDEX="1")
    assert status == 0
    given = dict(zip(argv, argv[1:], strict=False))
    assert given["--coordinator"] == f"{job['metadata']['name']}-0.{pod['subdomain']}:12355"
    assert given["--num_processes"] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    assert given["--process_id"] == "1" and service["metadata"]["name"] == pod["subdomain"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [EXIT_STATUS]}} in rules
    argv[argv.index("--compile_cache") + 1] = str(tmp_path / "xla")
    understood(argv, tiny_runs, tmp_path / "run")


def test_local_numbers_the_processes_and_takes_the_status_that_is_not_zero(shell):
    status, argv = shell("bash", LAUNCH / "local.sh", "1", *USER_FLAGS, PORT="4321", STATUS="3")
    together = ["--coordinator", "127.0.0.1:4321", "--num_processes", "1", "--process_id", "0"]
    assert status == 3 and argv == ["train", *together, *USER_FLAGS]


def test_local_hands_signals_on_and_waits(tmp_path):
    stand_in = tmp_path / "unils"
    stand_in.write_text(
        "#!/usr/bin/env bash\ntrap 'sleep 0.3; echo got >> \"$RECORD\"; exit 75' USR1\n"
        'echo up >> "$RECORD"\nwhile :; do sleep 0.05; done\n'
    )
    stand_in.chmod(stat.S_IRWXU)
    record = tmp_path / "record"
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record)}
    process = subprocess.Popen(["bash", LAUNCH / "local.sh", "2"], env=environment, start_new_session=True)
    try:
        for word in ("up", "got"):
            deadline = time.monotonic() + 60
            while not record.exists() or record.read_text().count(word) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if word == "up":
                process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == EXIT_STATUS
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
