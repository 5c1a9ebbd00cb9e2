"""Folders in UniTalker's layout, written from arrays."""

import json
from pathlib import Path

import numpy as np

from data_pipelines.sources.unitalker import TalkerSet


def write_set(
    folder: Path,
    kind: str,
    records: list[tuple[int, int, np.ndarray, np.ndarray]],
    template: np.ndarray,
    *,
    splits: tuple[str, ...] = ("train", "val", "test"),
    **settings,
) -> TalkerSet:
    """A set of records (subject, fps, annotation, audio .npy samples), alike in all its splits."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "id_template.npy", template)
    rows = []
    for i, (subject, fps, annotation, audio) in enumerate(records):
        np.save(folder / f"annot{i}.npy", annotation)
        np.save(folder / f"audio{i}.npy", audio)
        row = {"annot_path": f"annot{i}.npy", "audio_path": f"audio{i}.npy", "id": subject, "annot_type": kind}
        rows.append(row | {"dataset": folder.name, "fps": fps})
    index = {"info": {"id_list": [f"{folder.name}_{i}" for i in range(len(template))]}, "data": rows}
    for split in splits:
        (folder / f"{split}.json").write_text(json.dumps(index))
    return TalkerSet(folder, **settings)
