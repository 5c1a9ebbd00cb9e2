"""Checks a store from its checksums to the lips, and reports what is wrong and what there is.

A *problem* is data that must not be trained on; a *warning* names what deserves a check by eye. One
record is in memory at a time. Files and runs of records are checked apart, here or on a cluster,
and what was counted is merged in their order: the report is the same.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.cluster import Actors, each
from data_pipelines.conversion.alignment import CLEAR_CHANCE, LAGS, align, peak
from data_pipelines.conversion.convert import Progress
from data_pipelines.conversion.tally import EDGES, Tally
from data_pipelines.record import SPLITS, Record, validate
from data_pipelines.store.reader import Store
from unils_jax.audio import frame_loudness
from unils_jax.errors import UserError, counted
from unils_jax.files import markdown_table
from unils_jax.motion import FPS, GROUPS, JAW, MOTION_DIM, SAMPLES_PER_FRAME, center_head, channel_names

MAX_ROTATION = float(np.pi)
ODD_EXPRESSION = 30.0
MAX_OFFSET_FRAMES = 5.0
RUN_FRAMES = 45_000  # of a run of records, half an hour


@dataclass(frozen=True)
class _Run:
    """Records of one split that are checked one after the other."""

    split: str
    numbers: range


class _Checker:
    """Checks files and runs of records of a store."""

    def __init__(self, path: str | Path):
        self.store = Store(path)

    def __call__(self, unit: str | _Run) -> Iterator[int | Tally]:
        """Yields the frames of each record that was checked, at last all that was counted."""
        tally = Tally()
        if isinstance(unit, str):
            _check_file(self.store, unit, tally)
        else:
            yield from self._records(unit, tally)
        yield tally

    def _records(self, run: _Run, tally: Tally) -> Iterator[int]:
        index = self.store.index(run.split)
        for i in run.numbers:
            entry = index.describe(i)
            try:
                record = self.store.read(run.split, i)
                validate(record)
            except UserError as error:
                tally.problems.add(str(error))
            else:
                _check_record(record, run.split, entry, tally)
            yield entry["frames"]


def verify(
    path: str | Path, progress: Progress = lambda hours, share: None, actors: Actors | None = None
) -> dict[str, Any]:
    """Checks the store at `path`; returns the report, JSON-able.

    With `actors` those of a Ray cluster check, to the same report; None: this process. Raises
    UserError only where there is no store to check.
    """
    store, tally = Store(path), Tally()
    total, done = sum(int(np.sum(store.lengths(split))) for split in SPLITS), 0
    units = [*sorted(store.manifest["files"]), *(run for split in SPLITS for run in _runs(store, split))]
    parts: dict[int, Tally] = {}
    for number, results in each(partial(_Checker, path), units, actors):
        for result in results:
            if isinstance(result, Tally):
                parts[number] = result
            else:
                done += result
                progress(done / FPS / 3600, done / total)
    for number in range(len(units)):
        tally.merge(parts[number])
    names: dict[str, str] = {}
    for split in SPLITS:
        for entry in store.records(split):
            _check_name(entry["name"], split, names, tally)
    _check_statistics(store, tally)
    alignment = _judge_alignment(tally)
    return {
        "store": str(path),
        "expression_basis": store.expression_basis,
        "source": store.manifest["source"],
        "problems": tally.problems.to_json(),
        "warnings": tally.warnings.to_json(),
        "splits": {
            split: {key: value for key, value in store.manifest["splits"][split].items() if np.isscalar(value)}
            for split in SPLITS
        },
        "speech": _speech(tally),
        "alignment": alignment,
        "channels": _channels(store.expression_basis, tally),
        "histograms": {
            name: {"edges": EDGES[name].tolist(), "counts": counts.tolist()} for name, counts in tally.counts.items()
        },
    }


def _runs(store: Store, split: str) -> Iterator[_Run]:
    """Yields the records of a split in runs of about `RUN_FRAMES`."""
    first = frames = 0
    lengths = store.lengths(split)
    for i, length in enumerate(lengths, 1):
        frames += int(length)
        if frames >= RUN_FRAMES or i == len(lengths):
            yield _Run(split, range(first, i))
            first, frames = i, 0


def _check_file(store: Store, name: str, tally: Tally) -> None:
    try:
        with open(store.local_file(name), "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except (UserError, OSError) as error:
        tally.problems.add(str(error))
        return
    if digest != store.manifest["files"][name]["sha256"]:
        tally.problems.add(f"{name} is not the file that was written (its checksum differs); make the store again")


def _check_name(name: str, split: str, names: dict[str, str], tally: Tally) -> None:
    other = names.setdefault(name, split)
    if other != split:
        tally.warnings.add(f"record {name!r} is in {other} and in {split}")


def _check_record(record: Record, split: str, entry: dict[str, Any], tally: Tally) -> None:
    who = f"record {record.name!r} of {split}"
    read = {"name": record.name, "frames": record.num_frames, "people": record.num_people}
    wrong = {key: entry[key] for key, value in read.items() if entry[key] != value}
    if wrong:
        tally.problems.add(f"{who} is not what the index says: {wrong}")
    tally.count("seconds", np.array([record.num_frames / FPS]))
    for person in range(record.num_people):
        _check_motion(record, person, f"{who}, person {person + 1}", split, tally)
    if record.audio is not None:
        difference = record.audio.shape[1] / SAMPLES_PER_FRAME - record.num_frames
        if abs(difference) >= 2:
            tally.warnings.add(f"{who}: audio and motion differ by {difference:+.1f} frames")
    if record.speech_mask is not None:
        _count_speech(record, tally)
    _check_voices(record, who, tally)


def _check_motion(record: Record, person: int, who: str, split: str, tally: Tally) -> None:
    observed = np.ones(MOTION_DIM, bool) if record.observed is None else record.observed[person]
    if not observed.any():
        return
    motion = record.motion[person]
    low, high = motion.min(axis=0).astype(np.float64), motion.max(axis=0).astype(np.float64)
    tally.low = np.where(observed, np.minimum(tally.low, low), tally.low)
    tally.high = np.where(observed, np.maximum(tally.high, high), tally.high)
    for name, channels in GROUPS.items():
        seen = motion[:, channels][:, observed[channels]]
        if not seen.size:
            continue
        tally.count(name, seen)
        largest = float(np.abs(seen).max())
        if name == "expression" and largest > ODD_EXPRESSION:
            tally.warnings.add(f"{who}: expression reaches {largest:.4g}, coefficients rarely pass {ODD_EXPRESSION:g}")
        elif name != "expression" and largest > MAX_ROTATION:
            tally.problems.add(f"{who}: {name} reaches {largest:.4g} rad, rotations are within {MAX_ROTATION:.4f}")
    if (low == high).all():
        tally.warnings.add(f"{who}: the motion never moves")
    centred = center_head(record.motion[person : person + 1])
    tally.statistics = tally.statistics.add(centred, observed)
    if split == "train":
        tally.train = tally.train.add(centred, observed)


def _count_speech(record: Record, tally: Tally) -> None:
    mask = record.speech_mask
    tally.masked_frames += mask.size
    tally.speaking_frames += int(mask.sum())
    tally.count("speech_share", mask.mean(axis=1))
    if record.num_people == 2:
        tally.dialogue_frames += record.num_frames
        tally.together_frames += int(mask.all(axis=0).sum())


def _check_voices(record: Record, who: str, tally: Tally) -> None:
    """Checks loudness, that the mask is where the voice is, and that the mouth moves with it."""
    if record.audio is None:
        return
    audio = record.audio / np.float32(32768) if record.audio.dtype == np.int16 else record.audio
    aligned = []
    for person in range(record.num_people):
        loudness = frame_loudness(audio[person])[: record.num_frames]
        tally.count("loudness_db", loudness)
        mask = None if record.speech_mask is None else record.speech_mask[person]
        if mask is not None and 0 < mask[: len(loudness)].sum() < len(loudness):
            speech, silence = loudness[mask[: len(loudness)]].mean(), loudness[~mask[: len(loudness)]].mean()
            if speech < silence:
                levels = f"{speech:.0f} dB where the speech mask is set, {silence:.0f} dB where not"
                tally.warnings.add(f"{who}, person {person + 1}: {levels}")
        if record.observed is None or record.observed[person][JAW].all():
            curve = align(record.motion[person].astype(np.float32), audio[person], mask)
            aligned += [] if curve is None else [curve]
    for curve, frames, chance in aligned:
        tally.curve += curve * frames
        tally.curve_frames += frames
        tally.aligned += 1
        offset, _ = peak(curve)
        if chance < CLEAR_CHANCE:
            tally.offsets.append(offset)
            tally.count("offset_frames", np.array([offset]))
            if abs(offset) > MAX_OFFSET_FRAMES:
                tally.warnings.add(f"{who}: the jaw agrees best with the voice {offset:+.1f} frames away")


def _check_statistics(store: Store, tally: Tally) -> None:
    if not len(store.lengths("train")):
        return
    stated = store.channel_statistics()
    same = np.array_equal(stated.count, tally.train.count)
    close = all(
        np.allclose(getattr(stated, name), getattr(tally.train, name), rtol=1e-6, atol=1e-6) for name in ("mean", "std")
    )
    if not (same and close):
        tally.problems.add("the manifest's channel statistics are not those of the train split; convert again")


def _judge_alignment(tally: Tally) -> dict[str, Any]:
    """Judges the median of the people's clear offsets.

    It is a problem where most people have a clear offset. Where few have, it is a warning.
    """
    if not tally.curve_frames:
        return {
            "offset_frames": None,
            "correlation": None,
            "speaking_frames": 0,
            "people_with_speech": 0,
            "people_with_a_clear_offset": 0,
        }
    curve = tally.curve / tally.curve_frames
    clear = len(tally.offsets)
    offset = float(np.median(tally.offsets)) if clear else None
    if clear and abs(offset) > MAX_OFFSET_FRAMES:
        found = (
            f"of {clear} of {tally.aligned} people the jaw agrees best with the voice {offset:+.1f} frames away "
            f"(median), at most {MAX_OFFSET_FRAMES:g} are natural"
        )
        if 2 * clear >= tally.aligned:
            tally.problems.add(f"{found}; audio and motion are out of step")
        else:
            tally.warnings.add(f"{found}; the others show no clear offset")
    return {
        "offset_frames": offset,
        "correlation": peak(curve)[1],
        "speaking_frames": tally.curve_frames,
        "people_with_speech": tally.aligned,
        "people_with_a_clear_offset": clear,
        "share_within_2_frames": float(np.mean(np.abs(tally.offsets) <= 2)) if clear else None,
        "curve": {"lags": LAGS.tolist(), "correlation": curve.tolist()},
    }


def _speech(tally: Tally) -> dict[str, Any]:
    return {
        "hours_with_mask": tally.masked_frames / FPS / 3600,
        "share_speaking": tally.speaking_frames / tally.masked_frames if tally.masked_frames else None,
        "share_both_speak": tally.together_frames / tally.dialogue_frames if tally.dialogue_frames else None,
    }


def _channels(basis: str, tally: Tally) -> dict[str, dict[str, float | None]]:
    """Returns range, mean and deviation of every channel over the whole store.

    The range is that of the head as it is, mean and deviation are those of the centred head.
    """
    columns = (tally.low, tally.high, tally.statistics.mean, tally.statistics.std)
    return {
        name: {
            key: float(column[i]) if tally.statistics.count[i] else None
            for key, column in zip(("min", "max", "mean", "std"), columns, strict=True)
        }
        for i, name in enumerate(channel_names(basis))
    }


def summary(report: dict[str, Any]) -> str:
    """Returns the report in Markdown, without its histograms."""
    problems, warnings, alignment = report["problems"], report["warnings"], report["alignment"]
    hours = sum(split["hours"] for split in report["splits"].values())
    splits = [[name, split["count"], f"{split['hours']:.4f}"] for name, split in report["splits"].items()]
    lines = [
        "# Store",
        "",
        f"{report['store']}: {counted(sum(split['count'] for split in report['splits'].values()), 'record')}, "
        f"{hours:.4f} h, {report['expression_basis']} basis. **{counted(problems['count'], 'problem')}, "
        f"{counted(warnings['count'], 'warning')}.**",
        "",
        *markdown_table([["split", "records", "hours"], *splits]),
        "",
    ]
    speech = report["speech"]
    if speech["share_speaking"] is not None:
        both = "" if speech["share_both_speak"] is None else f", both at once {speech['share_both_speak']:.1%}"
        hours = f"{speech['hours_with_mask']:.4f} person-hours"
        lines += [f"Speech masks over {hours}: {speech['share_speaking']:.1%} speech{both}."]
    lines += _alignment_lines(alignment)
    for title, findings in (("Problems", problems), ("Warnings", warnings)):
        if findings["count"]:
            more = findings["count"] - len(findings["first"])
            lines += ["", f"## {title}", "", *(f"- {text}" for text in findings["first"])]
            lines += [f"- and {more} more"] if more else []
    return "\n".join(lines) + "\n"


def _alignment_lines(alignment: dict[str, Any]) -> list[str]:
    people, clear = alignment["people_with_speech"], alignment["people_with_a_clear_offset"]
    if not people:
        return []
    correlation = f"correlation {alignment['correlation']:.3f} over all speech"
    if not clear:
        who = "1 person" if people == 1 else f"{people} people"
        weak = f"no clear offset in {who} ({correlation}); an unrelated voice could agree as well"
        return [f"Jaw against loudness while speaking: {weak}. This is a remark, no fault."]
    place = f"best at {alignment['offset_frames']:+.2f} frames (positive: the motion is late)"
    count = f"the median of {clear} of {people} people"
    return [f"Jaw against loudness while speaking: {place}, {count}, {correlation}."]
