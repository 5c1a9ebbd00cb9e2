"""Both sets of a release, as its LMDBs hold them, become stores that verify and train, in memory that does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_data import motioncode, npz, release_value, write_lmdb
from hostile_npz import HOSTILE, Runs, bomb
from tiny_runs import STAGES, quick_compiles, run_unils, write_tiny_config

from data_pipelines.sources.dualtalk import read_clip
from data_pipelines.store.reader import Store
from data_pipelines.windows import cut_window
from unils_jax.audio import read_audio
from unils_jax.motion import JAW


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    """TalkMotionOnly and SeamlessInteractionTalk in float16, a broken record planted in each, converted."""
    folder = tmp_path_factory.mktemp("both_sets")
    talk = {f"clip{i}": npz(motioncode=motioncode(230 + i, i, channels=112)) for i in range(6)}
    talk["broken"] = talk["clip0"][:-4000]
    index = {"train": [["broken", 230], *([f"clip{i}", 230 + i] for i in range(4))]}
    index |= {"val": [["clip4", 234]], "test": [["clip5", 235]]}
    write_lmdb(folder / "talk", talk, index)
    pairs, listed = {}, {"train": {}, "val": {}, "test": {}}
    for i, split in enumerate(("train", "train", "train", "val", "test")):
        names = [f"V00_S0001_I{i:08d}_P{person:04d}" for person in (2 * i, 2 * i + 1)]
        pairs |= {name: release_value(240, 2 * i + k) for k, name in enumerate(names)}
        listed[split][f"pair{i}"] = [*(f"some/path/{name}" for name in names), 240]
    listed["train"]["lonely"] = ["some/path/V00_S0001_I00000000_P0000", "some/path/nobody", 240]
    write_lmdb(folder / "seamless", pairs, listed)
    for name in ("talk", "seamless"):
        flags = ["--source", folder / name / "lmdb", "--out", folder / f"{name}_store", "--workers", "0"]
        assert run_unils("data", "convert", "--from", "release", *flags) == 0
    return {name: folder / f"{name}_store" for name in ("talk", "seamless")}


def test_both_sets_convert_verify_and_name_what_is_broken(stores, tmp_path, capsys):
    for name, broken in (("talk", "broken"), ("seamless", "lonely")):
        report = json.loads((stores[name] / "conversion.json").read_text())
        assert [item["name"] for item in report["dropped"]] == [broken]
        frames = report["frames"]
        assert frames["in"] == frames["out"] + frames["dropped"] and frames["cut_at_ends"] == 0
        assert run_unils("data", "verify", stores[name], "--out", tmp_path / f"{name}.json") == 0
    assert "0 warnings" in capsys.readouterr().out


@pytest.mark.slow
def test_three_stages_train_on_what_was_converted(stores, tmp_path):
    for stage, parent in zip(STAGES, (None, *STAGES), strict=False):
        store = stores["seamless" if stage == "dialogue" else "talk"]
        config = write_tiny_config(tmp_path / f"{stage}.py", stage, store)
        flags = ["--config.expression_basis=flame", *(["--parent", tmp_path / parent] if parent else [])]
        with quick_compiles():
            assert run_unils("train", "--config", config, "--workdir", tmp_path / stage, *flags) == 0
        lines = (tmp_path / stage / "metrics.jsonl").read_text().splitlines()
        assert len(lines) >= 6 and all(np.isfinite(json.loads(line).get("train/loss", 0.0)) for line in lines)


LIMITED = """
import resource, sys
from unils_jax.cli.main import main
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
sys.exit(main(sys.argv[1:]))
"""


def test_a_hostile_release_converts_in_two_gigabytes_and_names_every_record(tmp_path):
    values = {what: content for what, (content, _) in HOSTILE.items()} | {
        "a bomb": bomb(1),
        "pickled": npz(motioncode=np.array([Runs(tmp_path / "ran")])),
        "sound": npz(motioncode=motioncode(120, 1)),
    }
    # Every archive that holds something at all holds it under the name that is asked for.
    values = {what: content.replace(b"audio.npy", b"motioncode.npy") for what, content in values.items()}
    values = {what: content for what, content in values.items() if content}
    source, index = write_lmdb(tmp_path / "release", values, {"train": [[what, 120] for what in values]})
    flags = ["--source", source, "--index", index, "--out", tmp_path / "store", "--workers", "0"]
    words = [sys.executable, "-c", LIMITED, "data", "convert", "--from", "release", *map(str, flags)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "store" / "conversion.json").read_text())
    assert {item["name"] for item in report["dropped"]} == values.keys() - {"sound"} and report["records"] == 1
    assert all(repr(item["name"]) in item["detail"] for item in report["dropped"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(
    "UNILS_REAL_DATA" not in os.environ, reason="set UNILS_REAL_DATA to a folder of a real dialogue clip"
)
def test_the_real_clip_converts_verifies_and_its_windows_are_in_step(tmp_path, capsys):
    folder = Path(os.environ["UNILS_REAL_DATA"])
    flags = ["--source", folder, "--split", "train", "--out", tmp_path / "store", "--workers", "0"]
    assert run_unils("data", "convert", "--from", "dualtalk", *flags) == 0
    assert run_unils("data", "verify", tmp_path / "store") == 0
    assert "sound, 0.01 hours, the jaw -1.7 frames after the voice, 0 warnings" in capsys.readouterr().out
    window = cut_window(Store(tmp_path / "store").source("train", 0), 200, lambda low, high: 223)
    motion = read_clip(folder / "dialogue_speaker2.npz").motion[223:323]
    np.testing.assert_allclose(window["motion"][1, :, JAW], motion[:, JAW], atol=2e-4)
    samples = read_audio(folder / "dialogue_speaker2.wav")[223 * 640 : 323 * 640]
    np.testing.assert_allclose(window["audio"][1], samples, atol=2e-5)
    assert not window["motion"][0].any() and np.abs(window["audio"][0]).max() > 0.01


# The peak of this process from /proc: its ru_maxrss would begin with that of the process that started it.
MEASURED = """
import re, resource, sys
from unils_jax.cli.main import main
assert main(sys.argv[1:]) == 0
own = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; run on Linux")
def test_ten_hours_take_no_more_memory_than_one(tmp_path):
    """Five minutes of two people, made once; the index lists them twelve times (an hour) and 120 times (ten)."""
    peaks = {}
    for hours in (1, 10):
        values = {person: release_value(7500, k, audio="int16") for k, person in enumerate("ab")} if hours == 1 else {}
        index = {"train": {f"pair{i}": ["a", "b", 7500] for i in range(12 * hours)}}
        if hours == 1:
            source, _ = write_lmdb(tmp_path / "release", values, index)
        listed = tmp_path / f"{hours}.json"
        listed.write_text(json.dumps(index))
        for command in (
            [
                "convert",
                "--from",
                "release",
                "--source",
                source,
                "--index",
                listed,
                "--out",
                tmp_path / f"store{hours}",
            ],
            ["verify", tmp_path / f"store{hours}"],
        ):
            workers = ["--workers", "1", "--shards", "4"] if command[0] == "convert" else []
            words = [sys.executable, "-c", MEASURED, "data", *map(str, command), *workers]
            done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=True)
            peaks[command[0], hours] = int(done.stdout.split()[-1])
    print({key: f"{kilobytes / 1024:.0f} MiB" for key, kilobytes in peaks.items()})
    for command in ("convert", "verify"):
        assert peaks[command, 10] <= 1.2 * peaks[command, 1], peaks
