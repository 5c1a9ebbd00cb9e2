"""`unils data convert`: any known source into a store."""

import argparse
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines.cluster import Actors, check_engine
from data_pipelines.conversion import convert as conversion
from data_pipelines.conversion.report import empty_splits_note
from data_pipelines.conversion.workers import Engine, processes, ray_actors
from data_pipelines.record import SPLITS
from data_pipelines.sources import FOLDERS
from data_pipelines.sources.base import MappedSource, Shares, Source, folders_left_out, parse_shares
from data_pipelines.sources.seamless import SeamlessSource
from data_pipelines.sources.tracking import TrackOptions
from data_pipelines.sources.tracks import TracksSource
from data_pipelines.sources.unils_lmdb import ReleaseSource, find_index
from data_pipelines.store.writer import Dtypes
from data_pipelines.tracks.voice_activity import DETECTORS, check_detector
from unils_jax.cli.arguments import TrackRequest, add_engine_arguments, add_track_arguments
from unils_jax.cli.data.progress import Progress
from unils_jax.errors import UserError, counted, shown

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConvertRequest(TrackRequest):
    """The flags of `unils data convert`."""

    layout: str
    source: str
    out: str
    index: str | None = None  # the release's; None: the one beside the LMDB
    split: str | None = None  # of a whole folder of files; None: as its folders or hashes tell
    splits: str | None = None  # shares of train, val and test of a folder of files; None: 80/10/10
    motion_source: str | None = None  # a tracker's files of Seamless; None: its own head alone
    vad: str | None = None  # what finds turns of speech that no file gives; None: nothing
    max_gap: float = TrackOptions.max_gap_s  # seconds of lost tracking that are interpolated
    shards: int | None = None  # None: by the hours
    workers: int | None = None  # None: one a core
    shard: str = "1/1"  # part i/n of the work, for several machines
    dtype: str = "float16"  # of motion; audio is int16 with float16
    engine: str = "local"  # local: processes of this machine; ray: actors of a cluster
    actors: int | None = None  # of Ray; None: one a CPU

    def __post_init__(self):
        check_engine(self.engine, self.actors)
        if self.engine == "ray" and self.workers is not None:
            raise UserError("--workers is of this machine's processes; with --engine ray give --actors")

    @property
    def track_flags(self) -> dict[str, object]:
        """The flags that only a tracker's files take, as far as they are given."""
        gap = {} if self.max_gap == TrackOptions.max_gap_s else {"--max_gap": self.max_gap}
        return super().track_flags | gap

    @property
    def part(self) -> tuple[int, int]:
        """The number of this part, from 1, and the number of parts."""
        number, slash, of = self.shard.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise UserError(f"--shard must be i/n like 2/8, got {self.shard!r}")
        return int(number), int(of)


def add_convert_arguments(convert: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils data convert`."""
    convert.add_argument(
        "--from", dest="layout", required=True, choices=("release", *FOLDERS), help="how the source is laid out"
    )
    convert.add_argument("--source", required=True, metavar="DIR", help="the LMDB, or the folder of files")
    convert.add_argument("--index", metavar="FILE", help="the release's JSON index (default: the one beside the LMDB)")
    convert.add_argument("--split", metavar="NAME", help="puts a whole folder of files into one split")
    convert.add_argument(
        "--splits",
        metavar="A,B,C",
        help="shares of train, val and test of a folder of files without splits (default: about 0.8,0.1,0.1, "
        "and fewer than three recordings are all train)",
    )
    convert.add_argument(
        "--motion_source", metavar="DIR", help="a FLAME tracker's files named by ids, for `--from seamless`"
    )
    add_track_arguments(convert, "`--from tracks` or with `--motion_source`, as the next four")
    convert.add_argument(
        "--max_gap",
        type=float,
        default=ConvertRequest.max_gap,
        metavar="S",
        help="seconds of lost tracking that are interpolated; longer gaps are cut out (default: %(default)s)",
    )
    convert.add_argument(
        "--vad",
        choices=DETECTORS,
        help="finds who speaks when, where no .rttm says it: by loudness, or by Silero's detector of voices (extra "
        "`vad`); `--from tracks`",
    )
    convert.add_argument("--out", required=True, metavar="DIR", help="folder of the store: new, empty or unfinished")
    convert.add_argument("--shards", type=int, metavar="N", help="about so many (default: by the hours)")
    convert.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    convert.add_argument(
        "--shard", default=ConvertRequest.shard, metavar="i/n", help="does part i of n, for several machines"
    )
    convert.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default=ConvertRequest.dtype,
        help="of motion; audio is int16 with float16",
    )
    add_engine_arguments(convert, "shards are written", "one a CPU")


def _engine(request: ConvertRequest) -> Engine:
    if request.engine == "ray":
        return ray_actors(Actors(request.actors, shared=(request.source, request.index, request.out)))
    return processes(os.cpu_count() or 1 if request.workers is None else request.workers)


def run_convert(args: argparse.Namespace) -> None:
    """Writes this part's shards; the part that completes the last one finishes the store."""
    request = ConvertRequest.from_args(args)
    source, out = open_source(request), Path(request.out)
    dtypes = Dtypes("float32", "float32") if request.dtype == "float32" else Dtypes()
    started = time.monotonic()
    if isinstance(source, MappedSource):
        # Before anything is converted, so that what was found out can be put right.
        print(source.table())
        source.check()
    plan = conversion.make_plan(source, num_shards=request.shards, dtypes=dtypes)
    engine = _engine(request)
    with Progress("converted") as progress:
        outcome = conversion.convert(
            source, out, plan, engine=engine, part=request.part, dtypes=dtypes, progress=progress
        )
    if not outcome.finished:
        left = "another part finishes it"
        if outcome.missing:
            left = (
                f"{counted(outcome.missing, 'shard')} of other parts {'is' if outcome.missing == 1 else 'are'} missing"
            )
        print(f"{shown(out)}: part {request.shard} is done; {left}")
        return
    report = outcome.report
    if report.get("empty_splits") and not request.split:
        log.warning("%s: %s", out, empty_splits_note(report["empty_splits"]))
    # What a source finds out by itself was printed as a table.
    for note in () if isinstance(source, MappedSource) else plan.notes:
        log.warning("%s: %s", out, note)
    if report.get("notices"):
        count, where = counted(len(report["notices"]), "notice"), out / conversion.SUMMARY
        log.warning("%s on gaps, damage or losses of files that were read: see %s", count, where)
    for reason, counts in report["reasons"].items():
        log.warning(
            "left out %s: %s (see %s)", counted(counts["entries"], "sequence"), reason, out / conversion.SUMMARY
        )
    print(
        f"{shown(out)}: {counted(report['records'], 'record')}, {report['hours']['out']:.2f} of "
        f"{report['hours']['in']:.2f} hours, {counted(len(report['dropped']), 'sequence')} left out, in "
        f"{time.monotonic() - started:.1f} s"
    )


def open_source(request: ConvertRequest) -> Source:
    """Returns the reader of the layout. Raises UserError for flags that another layout takes."""
    source = Path(request.source)
    if not source.exists():
        raise UserError(f"--source {source} does not exist; check the path")
    if request.motion_source is not None and request.layout != "seamless":
        raise UserError(f"--motion_source is of --from seamless, not of --from {request.layout}; leave it out")
    if request.layout != "tracks" and request.motion_source is None and request.track_flags:
        where = f"--from tracks or --motion_source, not of --from {request.layout}"
        raise UserError(f"{', '.join(request.track_flags)} is of {where}; leave it out")
    if request.vad and request.layout != "tracks":
        raise UserError(f"--vad is of --from tracks, not of --from {request.layout}; leave it out")
    if request.layout not in FOLDERS:
        for flag, value in (("--split", request.split), ("--splits", request.splits)):
            if value is not None:
                raise UserError(f"{flag} is of folders of files; the release's index tells the splits, leave it out")
        return ReleaseSource(source, Path(request.index) if request.index else find_index(source))
    if request.index is not None:
        raise UserError(f"--index is of --from release, not of --from {request.layout}; leave it out")
    shares = None if request.splits is None else parse_shares(request.splits)
    if request.layout == "seamless":
        return _seamless(request, source, shares)
    others = [] if request.split else folders_left_out(source)
    if others:
        remedy = f"convert each apart, like --source {source / others[0]} --split test"
        log.warning("%s: the folders %s are no split and are left out; %s", source, ", ".join(others), remedy)
    if request.layout == "tracks":
        return TracksSource(source, request.split or "", shares, _track_options(request))
    return FOLDERS[request.layout](source, request.split or "", shares)


def _seamless(request: ConvertRequest, source: Path, shares: Shares | None) -> SeamlessSource:
    """Returns the reader of Seamless Interaction with a tracker's files, where these are given."""
    if request.split not in (None, *SPLITS):
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, got {request.split!r}")
    motion = None if request.motion_source is None else Path(request.motion_source)
    if motion is not None:
        if not motion.is_dir():
            raise UserError(f"--motion_source {motion} is no folder; check the path")
        inner, outer = motion.resolve(), source.resolve()
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise UserError(f"--motion_source {motion} must lie apart from --source {source}; move one of them")
    return SeamlessSource(source, request.split or "", shares, motion, _track_options(request))


def _track_options(request: ConvertRequest) -> TrackOptions:
    """Returns what the flags say of a tracker's files. Raises UserError for a wrong one."""
    if not 0 <= request.max_gap <= 10:
        raise UserError(f"--max_gap must be 0 to 10 seconds, got {request.max_gap:g}")
    if request.vad:
        check_detector(request.vad)
    return replace(request.track_options(request.max_gap), vad=request.vad)
