"""Conversions: everything arrives or is accounted for, and no kill, part or number of workers shows in the bytes."""

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ending_task import Ends
from foreign_data import motioncode, npz, release_value, write_dualtalk, write_lmdb, write_motion
from read_back import snapshot
from tiny_runs import run_unils

from data_pipelines.conversion.convert import make_plan
from data_pipelines.conversion.workers import run_in_processes
from data_pipelines.sources.base import Entry, SkippedEntry
from data_pipelines.sources.unils_lmdb import ReleaseSource
from data_pipelines.store.reader import Store
from unils_jax.errors import UserError
from unils_jax.motion import from_motioncode

BROKEN = {
    "cut_in_half": "damaged",
    "nan": "NaN or infinite values",
    "short": "too short",
    "lengths": "lengths disagree",
    "no_partner": "missing partner",
    "pickled": "damaged",
}


def write_dialogues(folder: Path) -> tuple[Path, Path]:
    """Twelve sound pairs of one to two hundred frames in three splits, and one broken in each way."""
    values, index = {}, {"train": {}, "val": {}, "test": {}}

    def add(split: str, name: str, frames: int, seed: int) -> None:
        for person in "ab":
            values[f"{name}_{person}"] = release_value(frames, seed * 2 + (person == "b"), audio="int16")
        index[split][name] = [f"clips/{name}_a", f"clips/{name}_b", frames]

    for i in range(12):
        add(("train", "train", "val", "test")[i % 4], f"pair{i}", 110 + 9 * i, i)
    for i, name in enumerate(BROKEN):
        add("train", name, 90 if name == "short" else 150, 20 + i)
    values["cut_in_half_a"] = values["cut_in_half_a"][:3000]
    values["nan_b"] = npz(
        motioncode=np.where(np.arange(150)[:, None] == 9, np.nan, motioncode(150, 1)), audio=np.zeros(96_000, np.int16)
    )
    values["lengths_a"] = release_value(160, 1)
    values["pickled_b"] = npz(motioncode=np.array([{}]), audio=np.zeros(96_000, np.int16))
    del values["no_partner_b"]
    index["train"]["pair0"][2] += 1
    return write_lmdb(folder, values, index)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory) -> ReleaseSource:
    return ReleaseSource(*write_dialogues(tmp_path_factory.mktemp("dialogues") / "release"))


def convert(source: ReleaseSource, out: Path, *flags: str) -> int:
    where = ["--source", source.lmdb_path, "--index", source.index, "--out", out, "--shards", "5"]
    return run_unils("data", "convert", "--from", "release", *where, *flags)


@pytest.fixture(scope="module")
def converted(dialogues, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "store"
    assert convert(dialogues, out, "--workers", "0") == 0
    return out


def test_every_hour_is_out_or_accounted_for(dialogues, converted):
    listed = json.loads(dialogues.index.read_text())
    frames_in = sum(entry[2] for split in listed.values() for entry in split.values())
    report = json.loads((converted / "conversion.json").read_text())
    store = Store(converted)
    frames_out = sum(int(np.sum(store.lengths(split))) for split in listed)
    dropped = sum(item["frames"] for item in report["dropped"])
    assert report["frames"] == {"in": frames_in, "out": frames_out, "dropped": dropped, "cut_at_ends": 1}
    assert frames_in == frames_out + dropped + 1
    assert report["hours"]["in"] == pytest.approx(frames_in / 90_000)
    assert sum(split["frames"] for split in store.manifest["splits"].values()) == frames_out


def test_what_is_broken_is_named_with_its_reason_and_the_rest_arrives(dialogues, converted):
    report = json.loads((converted / "conversion.json").read_text())
    assert {item["name"]: item["reason"] for item in report["dropped"]} == BROKEN
    text = (converted / "CONVERSION.md").read_text()
    assert all(name in text for name in BROKEN)
    store = Store(converted)
    names = {split: [entry["name"] for entry in store.records(split)] for split in ("train", "val", "test")}
    expected = {split: [f"pair{i}" for i in numbers] for split, numbers in
                (("train", (0, 1, 4, 5, 8, 9)), ("val", (2, 6, 10)), ("test", (3, 7, 11)))}  # fmt: skip
    assert names == expected


def test_what_arrives_is_what_was_there_bit_for_bit(dialogues, converted):
    store = Store(converted)
    with dialogues.open() as read:
        for entry in dialogues.entries():
            try:
                record = read(entry).record
            except SkippedEntry:
                continue
            i = [stored["name"] for stored in store.records(entry.split)].index(entry.name)
            stored = store.read(entry.split, i)
            for name in ("motion", "audio", "speech_mask"):
                assert getattr(stored, name).dtype == getattr(record, name).dtype
                np.testing.assert_array_equal(getattr(stored, name), getattr(record, name))


def test_a_process_of_its_own_writes_the_same_bytes_and_tells_how_far_it_is(dialogues, converted, tmp_path, caplog):
    with caplog.at_level("INFO", "unils_jax"):
        assert convert(dialogues, tmp_path / "store", "--workers", "1") == 0
    assert any(re.fullmatch(r"converted 0\.03 h, 100 %, about 0 s left", line) for line in caplog.messages)
    assert snapshot(tmp_path / "store") == snapshot(converted)


def test_parts_on_several_machines_make_the_same_store(dialogues, converted, tmp_path, capsys):
    for part in ("3/3", "1/3", "1/3"):
        assert convert(dialogues, tmp_path / "store", "--workers", "0", "--shard", part) == 0
        assert "shards of other parts are missing" in capsys.readouterr().out
    with pytest.raises(UserError, match="is no store"):
        Store(tmp_path / "store")
    assert convert(dialogues, tmp_path / "store", "--workers", "0", "--shard", "2/3") == 0
    assert snapshot(tmp_path / "store") == snapshot(converted)


def test_a_finished_conversion_is_left_as_it_is(dialogues, converted):
    before = {path: path.stat().st_mtime_ns for path in converted.rglob("*") if path.name != "conversion.lock"}
    assert convert(dialogues, converted, "--workers", "0") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_second_writer_is_refused(dialogues, tmp_path, capsys):
    out = tmp_path / "store"
    assert convert(dialogues, out, "--workers", "0", "--shard", "1/5") == 0
    # Record locks are per process: another one holds the byte of the second shard.
    hold = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, 2, 1, 1); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, out / "conversion.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        capsys.readouterr()
        assert convert(dialogues, out, "--workers", "0") == 2
        assert "another process is converting into" in capsys.readouterr().err
        assert convert(dialogues, out, "--workers", "0", "--shard", "3/5") == 0
        holder.stdin.close()
    assert convert(dialogues, out, "--workers", "0") == 0


def test_other_conversions_and_full_folders_are_refused(dialogues, converted, tmp_path, capsys):
    before = snapshot(converted)
    unfinished, full = tmp_path / "unfinished", tmp_path / "full"
    assert convert(dialogues, unfinished, "--workers", "0", "--shard", "1/2") == 0
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    for out, flags, message in (
        (converted, ["--dtype", "float32"], "holds another conversion"),
        (unfinished, ["--dtype", "float32"], "holds another conversion"),
        (unfinished, ["--shards", "2"], "holds another conversion"),
        (full, [], "already exists and is not empty"),
        (full / "thesis.txt" / "under", [], "cannot write to"),
        (tmp_path / "new", ["--shard", "3/2"], "shard must be i/n with i from 1 to n, got 3/2"),
        (tmp_path / "new", ["--shard", "x"], "--shard must be i/n like 2/8, got 'x'"),
        (tmp_path / "new", ["--shards", "0"], "shards must be from 1 to 99999, got 0"),
        (tmp_path / "new", ["--workers", "-1"], "workers must be at least 0"),
        (tmp_path / "new", ["--split", "train"], "--split is of folders of files"),
    ):
        capsys.readouterr()
        assert convert(dialogues, out, *flags) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert snapshot(converted) == before and not (tmp_path / "new").exists()
    assert list(full.iterdir()) == [full / "thesis.txt"]


def test_unpaired_motion_in_float32_is_kept_exactly(tmp_path):
    codes = {f"c{i}": motioncode(120 + i, i, dtype=np.float32) for i in range(4)}
    values = {name: npz(motioncode=code) for name, code in codes.items()}
    index = {"train": [[name, len(code)] for name, code in codes.items()] + [["c1", 121]], "val": [], "test": []}
    source = ReleaseSource(*write_lmdb(tmp_path / "release", values, index))
    assert convert(source, tmp_path / "store", "--workers", "0", "--dtype", "float32") == 0
    store = Store(tmp_path / "store")
    for i, (name, code) in enumerate(codes.items()):
        record = store.read("train", i)
        assert record.name == name and record.audio is None
        np.testing.assert_array_equal(record.motion[0], from_motioncode(code))
    report = json.loads((tmp_path / "store" / "conversion.json").read_text())
    assert [item["detail"] for item in report["dropped"]] == ["it is listed twice"]


def test_folders_of_files_are_converted(tmp_path, capsys):
    for i in range(4):
        write_dualtalk(
            tmp_path / "dualtalk" / ("test" if i == 3 else "train"), f"clip{i}", 110, i, silent="1" if i else ""
        )
        write_motion(tmp_path / "files" / f"take{i}.npz", 2, 110, i, "standin")
    for layout, splits in (("dualtalk", (3, 0, 1)), ("files", (2, 1, 1))):
        flags = ["--source", tmp_path / layout, "--out", tmp_path / f"{layout}_store", "--workers", "0"]
        assert run_unils("data", "convert", "--from", layout, *flags) == 0
        store = Store(tmp_path / f"{layout}_store")
        assert tuple(len(store.records(split)) for split in ("train", "val", "test")) == splits
    observed = Store(tmp_path / "dualtalk_store").read("test", 0).observed
    assert not observed[0].any() and observed[1].sum() == 54
    assert run_unils("data", "convert", "--from", "files", "--index", "x", *flags) == 2
    assert "--index is of --from release" in capsys.readouterr().err


def test_folders_that_are_no_split_are_named(tmp_path, caplog):
    for split in ("train", "ood"):
        write_dualtalk(tmp_path / "dualtalk" / split, split, 110, 1)
    flags = ["--source", tmp_path / "dualtalk", "--out", tmp_path / "store", "--workers", "0"]
    assert run_unils("data", "convert", "--from", "dualtalk", *flags) == 0
    assert any("the folders ood are no split and are left out" in line for line in caplog.messages)
    assert [entry["name"] for entry in Store(tmp_path / "store").records("train")] == ["train"]


def test_a_plan_holds_every_entry_once_in_shards_of_about_equal_length():
    rng = random.Random(0)
    entries = [Entry("train", f"r{i}", (f"r{i}",), rng.randint(102, 9000)) for i in range(500)]
    entries += [Entry("test", f"t{i}", (f"t{i}",), 3000) for i in range(50)]
    plan = make_plan(Listed(entries), num_shards=20)
    assert [entry for part in plan.shards.values() for entry in part] == entries
    lengths = [sum(entry.frames for entry in part) for shard, part in plan.shards.items() if shard.split == "train"]
    assert len(lengths) == 19 and max(lengths) - min(lengths) <= 2 * 9000
    assert plan.counts() == {"train": 19, "val": 0, "test": 1}
    assert plan == make_plan(Listed(entries), num_shards=20)
    assert plan.settings["plan"] != make_plan(Listed(entries[1:]), num_shards=20).settings["plan"]


def test_a_name_in_two_splits_is_noted():
    entries = [Entry(split, "same", ("k",), 200) for split in ("train", "test")]
    assert "1 names are in more than one split, the first 'same'" in make_plan(Listed(entries)).notes[0]
    with pytest.raises(UserError, match="lists no sequence"):
        make_plan(Listed([]))


class Listed:
    """A source of entries that nobody reads."""

    def __init__(self, entries: list[Entry]):
        self.listed = entries

    def describe(self) -> dict:
        return {"layout": "listed"}

    def entries(self) -> list[Entry]:
        return self.listed

    def open(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        ("signal", UserError, "a worker ended with SIGSEGV at item signal"),
        ("refusal", UserError, "a bad value; mend it"),
        ("fault", RuntimeError, "ZeroDivisionError"),
    ],
)
def test_a_workers_end_is_told(item, kind, message):
    with pytest.raises(kind, match=message):
        run_in_processes(Ends(), ["x", item], 1, lambda value: None)


class Conversion:
    """`unils data convert` as a process of its own with two workers, to be killed."""

    def __init__(self, source: ReleaseSource, out: Path):
        self.out = out
        flags = ["--source", source.lmdb_path, "--index", source.index, "--out", out, "--shards", "5", "--workers", "2"]
        command = [sys.executable, "-m", "unils_jax.cli.main", "data", "convert", "--from", "release", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def kill(self) -> None:
        """Kills the parent alone and waits until its children are gone by themselves."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = listed.read_text().split() if listed.exists() else []
        self.process.kill()
        self.process.wait(30)
        self.process.stderr.close()
        deadline = time.monotonic() + 20
        while any(alive(child) for child in children):
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.02)

    def finish(self) -> None:
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors.decode()


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc; run on Linux")
def test_a_killed_conversion_goes_on_to_the_same_bytes(dialogues, converted, tmp_path):
    out = tmp_path / "store"
    conversion = Conversion(dialogues, out)
    deadline = time.monotonic() + 60
    while not list(out.glob("index/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    conversion.kill()
    assert not (out / "manifest.json").exists()
    Conversion(dialogues, out).finish()
    assert snapshot(out) == snapshot(converted)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc; run on Linux")
def test_kills_at_twenty_random_moments_never_show(dialogues, converted, tmp_path):
    rng = random.Random(time.time_ns())
    started = time.monotonic()
    Conversion(dialogues, tmp_path / "undisturbed").finish()
    whole_s = time.monotonic() - started
    kills = stores = 0
    while kills < 20:
        out = tmp_path / f"store{stores}"
        stores += 1
        while not (out / "manifest.json").exists() and kills < 20:
            conversion = Conversion(dialogues, out)
            time.sleep(rng.uniform(0.2, 1.0) * whole_s)
            conversion.kill()
            kills += 1
        Conversion(dialogues, out).finish()
        assert snapshot(out) == snapshot(converted), f"store {stores} after {kills} kills"
    assert stores >= 2
