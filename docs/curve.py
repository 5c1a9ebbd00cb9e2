"""Scores what `docs/live.md` trains for its curve: prints the table and draws docs/curve.png.

python docs/curve.py runs/curve data/synthetic

runs/curve holds SEED/window_4s, window_1s and window_04s, each with the workdir `dialogue`. All
are scored on the same frames of the store's test conversations, under `unils-clean`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from data_pipelines.record import Record
from data_pipelines.store.reader import Store
from unils_jax.benchmarks.miniature.scores import PROTOCOL, score
from unils_jax.checkpoints.loading import load
from unils_jax.evaluation.metrics import mesh_of
from unils_jax.evaluation.protocols import conversation_of
from unils_jax.face.standin import standin_asset
from unils_jax.files import markdown_table
from unils_jax.inference.conversations import Request, Sampling, decode_many, make_program
from unils_jax.motion import FPS

WINDOWS = {"4 s": "window_4s", "1 s": "window_1s", "0.4 s": "window_04s"}
FIGURES = {
    "LVE, speaking (mm)": "unils/speaking/LVE",
    "FDD, speaking": "unils/speaking/FDD",
    "PDD, speaking": "unils/speaking/PDD",
    "JDD, speaking": "unils/speaking/JDD",
    "FDD, listening": "unils/listening/FDD",
    "PDD, listening": "unils/listening/PDD",
    "JDD, listening": "unils/listening/JDD",
    "F-FID": "fid/both/expression_fid",
    "P-FID": "fid/both/pose_fid",
    "blinks a minute": "behaviour/both/blinks_per_minute",
    "bilabial closure, correlation": "behaviour/speaking/bilabial_closure",
    "border step, expression": "behaviour/both/border_jump_expression",
    "border step, head": "behaviour/both/border_jump_head",
}
DRAWN = ("LVE, speaking (mm)", "FDD, listening", "F-FID", "border step, expression")


def decoded(workdir: Path, records: list[Record], seed: int) -> list[np.ndarray]:
    """Returns the motion of both people in every record, [2, T, 108]."""
    sampling = Sampling(PROTOCOL.tau, PROTOCOL.cfg, PROTOCOL.top_p)
    requests = []
    for i, record in enumerate(records):
        c = conversation_of(record, PROTOCOL)
        requests.append(Request(*c.audio, c.style, sampling=sampling, seed=PROTOCOL.seed + seed, name=str(i)))
    program = make_program(load(workdir).model, people=2)
    motions = {request.name: motion for request, motion in decode_many(program, requests)}
    return [motions[str(i)] for i in range(len(records))]


def nats_per_second(workdir: Path) -> float:
    """Returns the validation loss of the last evaluation for a second of motion instead of a bit."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    loss = [row["loss"] for row in rows if row["split"] == "val"][-1]
    codec = codec_of(workdir)
    return loss * sum(codec["scales"]) * codec["code_dim"] * FPS / codec["scales"][-1]


def codec_of(workdir: Path) -> dict[str, Any]:
    """Returns the settings of the codec."""
    return json.loads((workdir / "config.json").read_text())["model"]["codec"]


def cell(entry: dict[str, Any], digits: int = 3) -> str:
    """Returns a figure with its interval over conversations, where it has one."""
    interval = entry.get("interval")
    around = f" ({interval[0]:.{digits}g} to {interval[1]:.{digits}g})" if interval else ""
    return f"{entry['mean']:.{digits}g}{around}"


def main(runs: str, data: str) -> None:
    """Writes the table and the picture."""
    store = Store(data)
    records = [store.read("test", i) for i in range(len(store.lengths("test")))]
    mesh, (mean, std) = mesh_of(standin_asset()), store.statistics()
    seeds = sorted(int(path.name) for path in Path(runs).iterdir() if (path / "window_04s" / "dialogue").is_dir())
    columns, scores = {}, {}
    for name, folder in WINDOWS.items():
        workdirs = [Path(runs) / str(seed) / folder / "dialogue" for seed in seeds]
        by_seed = [decoded(workdir, records, seed) for workdir, seed in zip(workdirs, seeds, strict=True)]
        window_frames = codec_of(workdirs[0])["scales"][-1]
        scores[name] = of = score(records, list(zip(*by_seed, strict=True)), mesh, mean, std, window_frames)
        column = [cell(of["metrics"][figure]) for figure in FIGURES.values()]
        for rates in of["reactions"].values():
            low, high = rates["above_chance"]
            column.append(f"{rates['rate']:.2f} ({low:.2f} to {high:.2f} above chance)")
        nats = [nats_per_second(workdir) for workdir in workdirs]
        columns[name] = [*column, f"{np.mean(nats):.0f} ({min(nats):.0f} to {max(nats):.0f} over seeds)"]
    rows = [*FIGURES, "nods answered", "smiles answered", "validation, nats a second"]
    table = [[name, *(columns[window][i] for window in WINDOWS)] for i, name in enumerate(rows)]
    print(f"{len(seeds)} seeds, {len(records)} conversations\n")
    print("\n".join(markdown_table([["", *WINDOWS], *table])))
    figure, axes = plt.subplots(1, len(DRAWN), figsize=(12, 2.8), layout="constrained")
    for axis, name in zip(axes, DRAWN, strict=True):
        entries = [scores[window]["metrics"][FIGURES[name]] for window in WINDOWS]
        means = np.array([entry["mean"] for entry in entries])
        edges = np.array([entry.get("interval") or [entry["mean"]] * 2 for entry in entries]).T
        axis.errorbar(list(WINDOWS), means, yerr=np.abs(edges - means), marker="o", capsize=4, color="tab:blue")
        if "truth" in entries[0]:
            axis.axhline(entries[0]["truth"], color="grey", linestyle=":")
        axis.set(title=name, xlabel="window", ylim=(0, None))
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
