"""The report of a conversion: each frame came out, or is listed with the reason why not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_pipelines.record import SPLITS
from data_pipelines.sources.base import Entry, Reading, SkippedEntry
from unils_jax.errors import counted
from unils_jax.files import markdown_table
from unils_jax.motion import FPS

MAX_LISTED = 500  # notices in Markdown; JSON holds all


@dataclass
class ShardReport:
    """What became of the entries of one shard; people of a conversation share a frame."""

    entries: int = 0  # listed by the source
    records: int = 0  # written
    frames_in: int = 0  # of all entries, as their source has them
    frames_out: int = 0  # of all records
    cut: int = 0  # records that lost frames at their end
    dropped: list[dict[str, Any]] = field(default_factory=list)  # entries that became no record, and why
    notices: list[dict[str, Any]] = field(default_factory=list)  # records with what their files lack

    def keep(self, reading: Reading, entry: Entry) -> None:
        """Counts an entry that became a record or several, perhaps a frame shorter."""
        frames = sum(record.num_frames for record in reading.records)
        self.entries += 1
        self.records += len(reading.records)
        self.frames_in += reading.frames_in
        self.frames_out += frames
        self.cut += reading.frames_in > frames + sum(span.frames for span in reading.lost)
        self.dropped += [_dropped(entry, span) for span in reading.lost]
        about = {"split": entry.split, "name": entry.name}
        self.notices += [about | {"notice": notice} for notice in reading.notices]

    def drop(self, entry: Entry, skipped: SkippedEntry) -> None:
        """Counts an entry that became no record."""
        self.entries += 1
        self.frames_in += skipped.frames
        self.dropped.append(_dropped(entry, skipped))

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> "ShardReport":
        """Reads what `to_json` returned. Raises ValueError where it is of another kind."""
        kinds = {name: type(value) for name, value in cls().to_json().items()}
        dropped = {"split": str, "name": str, "frames": int, "reason": str, "detail": str}
        notice = {"split": str, "name": str, "notice": str}
        # An older version's part has no notices.
        values = {"notices": [], **values} if isinstance(values, dict) else values
        listed = _is_of(values, kinds) and all(_is_of(item, dropped) for item in values["dropped"])
        if not listed or not all(_is_of(item, notice) for item in values["notices"]):
            raise ValueError("it is no report of a shard")
        return cls(**values)


def _dropped(entry: Entry, skipped: SkippedEntry) -> dict[str, Any]:
    what = {"split": entry.split, "name": entry.name, "frames": skipped.frames}
    return what | {"reason": skipped.reason, "detail": skipped.detail}


def _is_of(values: object, kinds: dict[str, type]) -> bool:
    """Decides whether a JSON object has these keys and no others, and values of these types."""
    same = isinstance(values, dict) and set(values) == set(kinds)
    return same and all(type(values[name]) is kind for name, kind in kinds.items())


def checked_report(values: object) -> dict[str, Any]:
    """Returns what `conversion_report` made and a file gave back.

    Raises ValueError where what commands print of it is not there.
    """
    kinds = {"entries": int, "records": int, "hours": dict, "reasons": dict, "dropped": list}
    report = values if isinstance(values, dict) else {}
    hours, reasons = report.get("hours"), report.get("reasons")
    if not _is_of({name: report.get(name) for name in kinds}, kinds):
        raise ValueError("it is no report of a conversion")
    named = _is_of({name: hours.get(name) for name in ("in", "out")}, {"in": float, "out": float})
    if not named or not all(
        isinstance(counts, dict) and type(counts.get("entries")) is int for counts in reasons.values()
    ):
        raise ValueError("it is no report of a conversion")
    empty, notices = report.get("empty_splits", []), report.get("notices", [])  # an older version has none
    if not isinstance(notices, list) or not isinstance(empty, list) or not all(name in SPLITS for name in empty):
        raise ValueError("it is no report of a conversion")
    return report


def conversion_report(parts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Merges the reports of all shards, given with their splits and in their order."""
    splits: dict[str, Counter] = {}
    dropped: list[dict[str, Any]] = []
    notices: list[dict[str, Any]] = []
    for split, part in parts:
        dropped += part["dropped"]
        notices += part["notices"]
        splits.setdefault(split, Counter()).update({k: v for k, v in part.items() if isinstance(v, int)})
    reasons: dict[str, Counter] = {}
    for item in dropped:
        reasons.setdefault(item["reason"], Counter()).update(entries=1, frames=item["frames"])
    totals = sum(splits.values(), Counter())
    left_out = sum(item["frames"] for item in dropped)
    frames = {"in": totals["frames_in"], "out": totals["frames_out"], "dropped": left_out}
    frames["cut_at_ends"] = frames["in"] - frames["out"] - left_out
    return {
        "frames": frames,
        "hours": {name: _hours(count) for name, count in frames.items()},
        "entries": totals["entries"],
        "records": totals["records"],
        "records_cut_at_ends": totals["cut"],
        "splits": {split: dict(counts) for split, counts in splits.items()},
        "empty_splits": [split for split in SPLITS if not splits.get(split, Counter())["records"]],
        "reasons": {reason: dict(counts) for reason, counts in sorted(reasons.items())},
        "dropped": dropped,
        "notices": notices,
    }


def _hours(frames: int) -> float:
    return frames / FPS / 3600


def empty_splits_note(empty: Sequence[str]) -> str:
    """Returns a sentence on splits without a record: what cannot be done, and the remedy."""
    lacking = {"train": "nothing can be trained", "val": "training has no validation loss"}
    lacking |= {"test": "`unils evaluate` needs --split"}
    what = ", ".join(f"{split} ({lacking[split]})" for split in empty)
    return f"no record in {what}; more recordings, or --splits like 0.8,0.1,0.1, fill the splits"


def summary(report: dict[str, Any]) -> str:
    """Returns the report in Markdown: where every hour went."""
    frames = report["frames"]
    counts = [frames[name] for name in ("in", "out", "dropped", "cut_at_ends")]
    lines = [
        "# Conversion",
        "",
        f"In: {counted(report['entries'], 'sequence')} of {_hours(frames['in']):.4f} h. Out: "
        f"{counted(report['records'], 'record')} of {_hours(frames['out']):.4f} h. Left out: "
        f"{counted(len(report['dropped']), 'sequence')} of {_hours(frames['dropped']):.4f} h. Cut at their ends, where "
        f"lengths differed by a frame: {counted(report['records_cut_at_ends'], 'record')}, by "
        f"{counted(frames['cut_at_ends'], 'frame')} together.",
        "",
        *markdown_table([["frames", "in", "out", "left out", "cut at ends"], ["", *counts]]),
        "",
        *(f"- {note}" for note in report["notes"]),
        *([f"- {empty_splits_note(report['empty_splits'])}"] if report["empty_splits"] else []),
    ]
    if report["dropped"]:
        reasons = [[r, c["entries"], f"{_hours(c['frames']):.4f}"] for r, c in report["reasons"].items()]
        lines += ["", *markdown_table([["left out because", "sequences", "hours"], *reasons])]
        dropped = [[i["split"], i["name"], i["frames"], f"{i['reason']}: {i['detail']}"] for i in report["dropped"]]
        lines += ["", *markdown_table([["split", "sequence", "frames", "why"], *dropped])]
    if report["notices"]:
        kept = [[i["split"], i["name"], i["notice"]] for i in report["notices"][:MAX_LISTED]]
        lines += ["", *markdown_table([["split", "record", "kept, but"], *kept])]
        more = len(report["notices"]) - MAX_LISTED
        lines += ["", f"and {more} more in conversion.json"] if more > 0 else []
    return "\n".join(lines) + "\n"
