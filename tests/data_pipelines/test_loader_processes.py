"""The loader in real processes, and what reading costs in memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_records import dialogue, take

from data_pipelines.loader import make_loader
from data_pipelines.store.index import concatenate, load_index, save_index
from data_pipelines.store.reader import Store, write_store

ROOT = str(Path(__file__).parents[2])

SHARE = """
import sys
import numpy as np
from data_pipelines.loader import make_loader

def main():
    path, index, count, workers, stop, state, out = sys.argv[1:]
    options = {"process_index": int(index), "process_count": int(count), "num_workers": int(workers)}
    batches = iter(make_loader(path, "train", view="pair", batch_size=4, seed=9, **options))
    if state:
        batches.set_state(state.encode())
    rows = []
    while batches.step < int(stop):
        rows.append(next(batches))
    np.savez(out, state=batches.get_state(), **{k: np.stack([row[k] for row in rows]) for k in rows[0]})
    batches.close()

if __name__ == "__main__":
    main()
"""

MEMORY = """
import sys
from data_pipelines.loader import make_loader

def main():
    path, view, count = sys.argv[1:]
    batches = iter(make_loader(path, "train", view=view, batch_size=8, seed=0))
    for _ in range(int(count)):
        next(batches)
    # Not ru_maxrss, which starts at what the parent had when it forked.
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

if __name__ == "__main__":
    main()
"""


def run_all(file: Path, commands: list[list[str]]) -> list[str]:
    """Runs the program once for each list of arguments, all at the same time; what each printed."""
    env = os.environ | {"PYTHONPATH": ROOT}
    running = [
        subprocess.Popen(
            [sys.executable, str(file), *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for words in commands
    ]
    try:
        done = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), [err for _, err in done]
    return [out for out, _ in done]


@pytest.mark.slow
def test_four_real_processes_stop_and_two_with_workers_go_on(tmp_path):
    path = tmp_path / "store"
    write_store(path, [("train", dialogue(f"r{i}", 130 + 50 * i, i)) for i in range(3)])
    file = tmp_path / "share.py"
    file.write_text(SHARE)

    def joined(count: int, workers: int, stop: int, state: str) -> dict[str, np.ndarray]:
        outs = [tmp_path / f"{count}_{index}.npz" for index in range(count)]
        run_all(
            file, [[str(path), str(k), str(count), str(workers), str(stop), state, str(outs[k])] for k in range(count)]
        )
        parts = [dict(np.load(out)) for out in outs]
        assert len({bytes(part["state"].item()) for part in parts}) == 1
        state = parts[0]["state"].item().decode()
        return {k: np.concatenate([p[k] for p in parts], axis=1) for k in parts[0] if k != "state"} | {"state": state}

    first = joined(4, 0, 3, "")
    second = joined(2, 2, 6, first["state"])
    assert json.loads(second["state"])["step"] == 6
    whole = take(make_loader(path, "train", view="pair", batch_size=4, seed=9), 6)
    for name in whole[0]:
        together = np.concatenate([first[name], second[name]])
        np.testing.assert_array_equal(together, np.stack([batch[name] for batch in whole]))


def repeated(path: Path, times: int) -> None:
    """Makes a store of one shard of training data as long as `times` of it, by linking the shard and its index."""
    store = Store(path)
    index, _ = load_index(path / "index" / "train.npz")
    parts = []
    for copy in range(times):
        name = f"train.array_record-{copy:05d}"
        for folder in (path, path / "audio"):
            if copy:
                os.link(folder / "train.array_record-00000", folder / name)
        parts.append(replace(index, shard=index.shard + copy))
        for prefix in ("", "audio/"):
            store.manifest["files"][f"{prefix}{name}"] = store.manifest["files"][f"{prefix}train.array_record-00000"]
    save_index(path / "index" / "train.npz", concatenate(parts), {})
    size = (path / "index" / "train.npz").stat().st_size
    store.manifest["files"]["index/train.npz"]["bytes"] = size
    store.manifest["splits"]["train"]["count"] *= times
    (path / "manifest.json").write_text(json.dumps(store.manifest))


@pytest.mark.slow
def test_reading_ten_hours_takes_no_more_memory_than_one(tmp_path):
    path, file = tmp_path / "store", tmp_path / "memory.py"
    write_store(path, [("train", dialogue(f"r{i}", 3000, i)) for i in range(30)])
    file.write_text(MEMORY)
    peaks = {}
    for hours in (1, 10):
        if hours > 1:
            repeated(path, hours)
        assert Store(path).lengths("train").sum() == hours * 3600 * 25
        for view, batches in (("pair", 100), ("solo", 500)):
            (peak,) = run_all(file, [[str(path), view, str(batches)]])
            peaks[view, hours] = int(peak) / 1024
    print(f"peak memory in MiB: {peaks}")
    for view in ("pair", "solo"):
        assert peaks[view, 10] <= 1.2 * peaks[view, 1]
