"""The launch scripts: what they start is understood by `unils train`, signals and exit statuses go through.

SLURM, Google Cloud and Kubernetes are stood in for by small scripts that record the command they are given.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
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

# Writes each call in one line; the second `describe` finds the slice ready.
RECORDING_GCLOUD = """#!/usr/bin/env bash
(tr '\\n' ' ' <<< "$*"; echo) >> "$RECORD"
case "$*" in *describe*) [ "$(grep -c describe "$RECORD")" -lt 2 ] && echo PROVISIONING || echo ACTIVE ;; esac
"""


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
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", LAUNCH / script], check=True)


def test_slurm_starts_what_unils_understands(shell, tiny_runs, tmp_path):
    status, argv = shell("bash", LAUNCH / "slurm.sbatch", *USER_FLAGS, SLURM_JOB_ID="7")
    assert status == 0 and argv == ["train", "--distributed", *USER_FLAGS]
    understood(argv, tiny_runs, tmp_path / "run")
    assert not (tmp_path / "record.requeued").exists()


def test_slurm_queues_again_what_was_stopped_or_crashed_a_few_times(shell, tmp_path):
    record = tmp_path / "record.requeued"
    # The exit status, how often the job was restarted before, and whether it is queued again.
    for status, restarts, queued in (
        (0, 0, 0),
        (2, 0, 0),
        (1, 0, 1),
        (1, 3, 0),
        (EXIT_STATUS, 0, 1),
        (EXIT_STATUS, 9, 1),
    ):
        record.unlink(missing_ok=True)
        variables = {"SLURM_JOB_ID": "7", "STATUS": str(status), "SLURM_RESTART_COUNT": str(restarts)}
        assert shell("bash", LAUNCH / "slurm.sbatch", **variables)[0] == status
        assert record.exists() == queued, (status, restarts)
    assert record.read_text() == "requeue 7\n"


def test_slurm_gives_each_process_its_cores(shell, tmp_path):
    (tmp_path / "bin" / "srun").write_text('#!/bin/sh\necho "$SRUN_CPUS_PER_TASK" > "$RECORD"\n')
    assert shell("bash", LAUNCH / "slurm.sbatch", SLURM_CPUS_PER_TASK="6") == (0, ["6"])


def test_tpu_vm_makes_a_slice_installs_and_gives_it_back(shell, tmp_path):
    (tmp_path / "bin" / "gcloud").write_text(RECORDING_GCLOUD)
    variables = {"TPU": "mine", "ZONE": "z", "TYPE": "v5litepod-16", "RUNTIME": "v2", "SPOT": "1", "POLL_S": "0"}
    status, calls = shell("bash", LAUNCH / "tpu_vm.sh", "create", **variables)
    assert status == 0
    assert calls[0].startswith("compute tpus queued-resources create mine --node-id mine") and "--spot" in calls[0]
    assert [call.split()[3] for call in calls[1:]] == ["describe", "describe"]  # until it is ACTIVE
    (tmp_path / "record").unlink()
    status, calls = shell("bash", LAUNCH / "tpu_vm.sh", "install", "gs://bucket/u-1.whl", **variables, SLICES="2")
    assert status == 0 and sum(" mine-0 " in call for call in calls) == sum(" mine-1 " in call for call in calls) == 1
    assert "/tmp/u-1.whl[tpu]" in "".join(calls)
    assert shell("bash", LAUNCH / "tpu_vm.sh", "dance", **variables)[0] == 2


def test_tpu_vm_starts_what_unils_understands_and_again_after_a_save(shell, tiny_runs, tmp_path):
    home = tmp_path / "home"
    (home / "unils/bin").mkdir(parents=True)
    # The first run is stopped and has saved, the second one ends.
    (home / "unils/bin/unils").write_text(
        '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$RECORD"\n'
        'echo run >> "$RECORD.runs"; [ "$(wc -l < "$RECORD.runs")" -ge 2 ] || exit 75\n'
    )
    (home / "unils/bin/unils").chmod(stat.S_IRWXU)
    (tmp_path / "record").touch()
    shell("bash", LAUNCH / "tpu_vm.sh", "train", *USER_FLAGS, TPU="name", ZONE="zone", HOME=str(home))
    log, deadline = home / "unils.log", time.monotonic() + 30
    while not log.exists() or "ended with status 0" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    argv = (tmp_path / "record").read_text().splitlines()
    assert argv == ["train", "--distributed", *USER_FLAGS]
    assert (tmp_path / "record.runs").read_text().count("run") == 2
    understood(argv, tiny_runs, tmp_path / "run")


@pytest.mark.parametrize("name", ["gke_gpu.yaml", "gke_tpu.yaml"])
def test_kubernetes_starts_what_unils_understands(name, shell, tiny_runs, tmp_path):
    jobset = yaml.safe_load((LAUNCH / name).read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    status, argv = shell(*container["command"], *container["args"], JOB_COMPLETION_INDEX="1")
    assert status == 0
    given = dict(zip(argv, argv[1:], strict=False))
    if name == "gke_gpu.yaml":
        # JobSet names pods JOBSET-JOB-REPLICA-POD in its subdomain.
        host = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{jobset['spec']['network']['subdomain']}"
        assert given["--coordinator"] == f"{host}:12355"
        assert given["--num_processes"] == str(job["completions"])
        assert given["--process_id"] == "1"
    else:
        assert "--distributed" in argv
    assert job["completions"] == job["parallelism"]
    # What is saved after a signal, and lost nodes, start all again without being counted; a crash is counted.
    rules = job["podFailurePolicy"]["rules"]
    assert {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [EXIT_STATUS]}} in rules
    ignored = {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 3, "rules": [ignored]} and job["backoffLimit"] == 0
    argv[argv.index("--compile_cache") + 1] = str(tmp_path / "xla")
    understood(argv, tiny_runs, tmp_path / "run")


@pytest.mark.parametrize("name", ["gke_gpu.yaml", "gke_tpu.yaml"])
def test_the_jobs_of_a_jobset_are_valid_kubernetes(name):
    validate = pytest.importorskip("kubernetes_validate", reason="checks manifests: pip install kubernetes-validate")
    (replicated,) = yaml.safe_load((LAUNCH / name).read_text())["spec"]["replicatedJobs"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "unils"},
        "spec": replicated["template"]["spec"],
    }
    validate.validate(job, "1.31", strict=True)


def test_the_image_is_made_of_files_that_are_there_and_runs_as_nobody_in_particular():
    root = LAUNCH.parent
    lines = (root / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    kept = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in lines:
        word, *rest = line.split() if line.strip() else [""]
        if word == "COPY" and not rest[0].startswith("--from"):
            for name in rest[:-1]:
                assert (root / name).exists() and name.split("/")[0] in kept, name
    # The command at the top is one that `unils` knows.
    (example,) = [line for line in lines if " unils decode " in line]
    flags = {word for word in example.split("unils decode ")[1].split() if word.startswith("--")}
    known = subprocess.run(
        [sys.executable, "-m", "unils_jax.cli.main", "decode", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    assert flags and all(f"{flag} " in known for flag in flags)
    assert "USER unils" in lines and 'ENTRYPOINT ["unils"]' in lines
    assert any("uv export --quiet --frozen" in line for line in lines)


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
