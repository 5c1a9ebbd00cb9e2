"""`unils data ...`: makes training data, brings other people's into a store, checks it."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.conversion import convert as conversion
from data_pipelines.conversion import verify as verification
from data_pipelines.conversion.report import empty_splits_note
from data_pipelines.conversion.unitalker_pca import write_pca
from data_pipelines.resampling import check_rate
from data_pipelines.sources import FOLDERS
from data_pipelines.sources.base import Source, folders_left_out, parse_shares
from data_pipelines.sources.tracks import TrackOptions, TracksSource
from data_pipelines.sources.unils_lmdb import ReleaseSource, find_index
from data_pipelines.sources.unitalker import PCA_FILE
from data_pipelines.speech_loader import parse_sets
from data_pipelines.statistics import ChannelStatistics
from data_pipelines.store.reader import Store
from data_pipelines.store.writer import Dtypes
from data_pipelines.synthetic import dataset
from data_pipelines.synthetic.bank.bank import Bank
from data_pipelines.synthetic.bank.engines import missing
from data_pipelines.tracks.mapping import parse_keys, parse_rotations
from data_pipelines.tracks.names import LAYOUTS
from data_pipelines.tracks.rotations import WIDTHS
from unils_jax.cli.arguments import Request
from unils_jax.errors import UserError, counted
from unils_jax.evaluation.analyses import imbalance, imbalance_report
from unils_jax.evaluation.report import store_page, write_files
from unils_jax.files import atomic_output, check_output
from unils_jax.motion import EXPRESSION, EYES, FPS, HEAD, JAW, channel_names

EXAMPLES = {
    "synth": "unils data synth --out data/synthetic --conversations 60 --minutes 2 --seed 0\n"
    "  unils data synth --out data/alone --unpaired 200 --minutes 0.5\n"
    "  unils data synth --out data/plain --voices builtin",
    "convert": "unils data convert --from release --source seamless/lmdb --index seamless.json --out data/seamless\n"
    "  unils data convert --from dualtalk --source dualtalk --out data/dualtalk --workers 8\n"
    "  unils data convert --from files --source recordings --out data/own\n"
    "  unils data convert --from tracks --source tracked --layout smirk --fps 29.97 --out data/tracked\n"
    "  srun unils data convert ... --shard $((SLURM_PROCID + 1))/$SLURM_NTASKS",
    "verify": "unils data verify data/seamless",
    "pca": "unils data pca D2_meshtalk=0.001 --components 647 --batch_size 1095",
    "stats": "unils data stats data/seamless data/talk --out stats.json",
    "imbalance": "unils data imbalance data/seamless --out imbalance.json",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SynthRequest(Request):
    """The flags of `unils data synth`."""

    out: str
    conversations: int = 60
    unpaired: int | None = None  # so many single persons instead of conversations
    minutes: float = 2.0  # of each record
    seed: int = 0
    voices: str = "auto"  # auto, builtin or bank
    bank: str | None = None  # the folder of the bank; None: in the user's cache


@dataclass(frozen=True, kw_only=True)
class ConvertRequest(Request):
    """The flags of `unils data convert`."""

    layout: str
    source: str
    out: str
    index: str | None = None  # the release's; None: the one beside the LMDB
    split: str | None = None  # of a whole folder of files; None: as its folders or hashes tell
    splits: str | None = None  # shares of train, val and test of a folder of files; None: 80/10/10
    tracker: str = TrackOptions.layout  # whose names a tracker's files have; auto: found out
    keys: str | None = None  # parts and arrays of a tracker's files; None: by their names
    rotations: str | None = None  # kinds of a tracker's rotations; None: by their widths
    fps: float | None = None  # of a tracker's files; None: as they or their videos say
    max_gap: float = TrackOptions.max_gap_s  # seconds of lost tracking that are interpolated
    shards: int | None = None  # None: by the hours
    workers: int | None = None  # None: one a core
    shard: str = "1/1"  # part i/n of the work, for several machines
    dtype: str = "float16"  # of motion; audio is int16 with float16

    @property
    def track_flags(self) -> dict[str, object]:
        """The flags that only a tracker's files take, as far as they are given."""
        given = {"--layout": self.tracker, "--keys": self.keys, "--rotations": self.rotations}
        given |= {"--fps": self.fps, "--max_gap": self.max_gap}
        usual = {"--layout": TrackOptions.layout, "--max_gap": TrackOptions.max_gap_s}
        return {flag: value for flag, value in given.items() if value != usual.get(flag)}

    @property
    def part(self) -> tuple[int, int]:
        """The number of this part, from 1, and the number of parts."""
        number, slash, of = self.shard.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise UserError(f"--shard must be i/n like 2/8, got {self.shard!r}")
        return int(number), int(of)


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(Request):
    """The flags of `unils data verify`."""

    store: str
    out: str | None = None  # None: verify.json in the store

    def __post_init__(self):
        if "://" in self.store and not self.out:
            raise UserError(f"the report on {self.store} needs a place on this machine; give --out FILE.json")


@dataclass(frozen=True, kw_only=True)
class StatsRequest(Request):
    """The flags of `unils data stats`."""

    stores: list[str]
    out: str | None = None  # None: nothing is written


@dataclass(frozen=True, kw_only=True)
class PcaRequest(Request):
    """The flags of `unils data pca`."""

    set: str
    out: str | None = None  # None: in the set, where training and evaluation find it
    components: int = 512
    batch_size: int = 1024  # frames
    seed: int = 0  # of the frames' order

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ImbalanceRequest(Request):
    """The flags of `unils data imbalance`."""

    store: str
    out: str | None = None  # None: imbalance.json in the store
    frames: int = imbalance.Settings.frames
    pictured: int = imbalance.Settings.pictured  # frames of the t-SNE picture; 0: none
    seed: int = imbalance.Settings.seed

    def __post_init__(self):
        if "://" in self.store and not self.out:
            raise UserError(f"the report on {self.store} needs a place on this machine; give --out FILE.json")
        if self.frames < 1 or self.pictured < 0 or self.seed < 0:
            raise UserError(
                f"--frames must be at least 1, --pictured and --seed not negative, got {self.frames}, {self.pictured}, "
                f"{self.seed}"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-commands of `unils data`, each with a working example."""
    parser.description = "Make training data, convert it, check it. See `unils data convert --help` and so on."
    parser.epilog = "\n  ".join(["examples:", *EXAMPLES.values()])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(
        dest="data_command", metavar="{synth,convert,verify,stats,pca,imbalance}", required=True
    )

    def kind(
        name: str, run: Callable[[argparse.Namespace], None], summary: str, description: str
    ) -> argparse.ArgumentParser:
        added = kinds.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    _add_synth_arguments(
        kind(
            "synth",
            run_synth,
            "a deterministic synthetic dialogue set",
            "Makes a store of synthetic conversations: motion, two audio tracks, speech masks, events. "
            "The same flags give the same data; about 80/10/10 of the conversations are train, val and test, and "
            "nobody is in two of them. With --unpaired: single persons without audio, for codec and prior.",
        )
    )
    _add_convert_arguments(
        kind(
            "convert",
            run_convert,
            "any known source into a store; resumable",
            "Converts the published release (LMDB and JSON index), a published folder, or one of .wav and motion\n"
            ".npz into a store. Run again after any interruption it goes on and ends in the same bytes. What cannot\n"
            "be used is left out and listed, with its hours, in conversion.json and CONVERSION.md of the store.",
        )
    )
    verify = kind(
        "verify",
        run_verify,
        "checks a store",
        "Checks checksums, schema, values, lengths, ranges, speech masks, and that mouths move with voices.\n"
        "Writes a report (JSON, Markdown, HTML with histograms). Exit status 2 where there is a problem.",
    )
    verify.add_argument("store", metavar="DIR", help="the store")
    verify.add_argument(
        "--out", metavar="FILE.json", help="the report; .md and .html stand beside (default: DIR/verify.json)"
    )
    stats = kind(
        "stats",
        run_stats,
        "channel statistics of one store or of several together",
        "Mean and standard deviation of the 108 channels over the train splits, merged exactly.",
    )
    stats.add_argument("stores", nargs="+", metavar="DIR", help="the stores")
    stats.add_argument("--out", metavar="FILE.json", help="all 108 channels as JSON")
    _add_pca_arguments(
        kind(
            "pca",
            run_pca,
            "the PCA of a large annotation, for UniTalker",
            "Fits scikit-learn's incremental PCA (extra `pca`) to the training frames of a set in UniTalker's layout,\n"
            "less their subjects' templates, and writes it into the set, where training and evaluation find it.",
        )
    )

    _add_imbalance_arguments(
        kind(
            "imbalance",
            run_imbalance,
            "how much of the motion each audio explains",
            "Predicts expression, jaw, head and eyes from own and other audio, while speaking and while listening,\n"
            "by a ridge regression and a small network (scikit-learn, extra `analysis`), tested on unseen people.\n"
            "Writes a report (JSON, Markdown, HTML) with the t-SNE picture of audio and motion.",
        )
    )


def _add_synth_arguments(synth: argparse.ArgumentParser) -> None:
    synth.add_argument("--out", required=True, metavar="DIR", help="folder of the store, new or empty")
    kind = synth.add_mutually_exclusive_group()
    kind.add_argument(
        "--conversations",
        type=int,
        default=SynthRequest.conversations,
        metavar="N",
        help="at least 3 (default: %(default)s)",
    )
    kind.add_argument(
        "--unpaired", type=int, metavar="N", help="N single persons instead: monologue, idle, laughing, reading"
    )
    synth.add_argument(
        "--minutes", type=float, default=SynthRequest.minutes, metavar="M", help="of each (default: %(default)s)"
    )
    synth.add_argument(
        "--seed", type=int, default=SynthRequest.seed, metavar="S", help="not negative (default: %(default)s)"
    )
    synth.add_argument(
        "--voices",
        choices=("auto", "builtin", "bank"),
        default=SynthRequest.voices,
        help="bank: flite and espeak-ng, with phones; builtin: needs neither; auto: bank where both are installed",
    )
    synth.add_argument(
        "--bank", metavar="DIR", help="where the bank is kept, 2 minutes to make once (default: the user's cache)"
    )


def _add_convert_arguments(convert: argparse.ArgumentParser) -> None:
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
        "--layout",
        dest="tracker",
        choices=("auto", *LAYOUTS),
        default=ConvertRequest.tracker,
        help="whose names a tracker's files have (default: auto, by the names; `--from tracks`, as the next four)",
    )
    convert.add_argument(
        "--keys", metavar="PART=NAME[A:B],...", help="arrays and columns, as expression=exp,jaw=pose[3:6]"
    )
    convert.add_argument("--rotations", metavar="[PART=]KIND,...", help=f"kinds of rotations: {', '.join(WIDTHS)}")
    convert.add_argument("--fps", type=float, metavar="F", help="frames a second (default: as files or videos say)")
    convert.add_argument(
        "--max_gap",
        type=float,
        default=ConvertRequest.max_gap,
        metavar="S",
        help="seconds of lost tracking that are interpolated; longer gaps are cut out (default: %(default)s)",
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


def _add_pca_arguments(pca: argparse.ArgumentParser) -> None:
    pca.add_argument("set", metavar="DIR=SCALE", help="the set, scaled as in training")
    pca.add_argument("--out", metavar="FILE.npz", help="where to write (default: DIR/pca.npz)")
    pca.add_argument(
        "--components", type=int, default=PcaRequest.components, metavar="N", help="to keep (default: %(default)s)"
    )
    pca.add_argument(
        "--batch_size",
        type=int,
        default=PcaRequest.batch_size,
        metavar="B",
        help="frames, at least N; full ones only (default: 1024)",
    )
    pca.add_argument(
        "--seed", type=int, default=PcaRequest.seed, metavar="S", help="of the frames' order (default: %(default)s)"
    )


def _add_imbalance_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="DIR", help="a store of dialogues with audio")
    parser.add_argument("--out", metavar="FILE.json", help="the report (default: DIR/imbalance.json)")
    for name, meaning in (
        ("frames", "frames that are drawn, at most"),
        ("pictured", "frames in the picture; 0: none"),
        ("seed", "of the draws"),
    ):
        default = getattr(ImbalanceRequest, name)
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")


def run_synth(args: argparse.Namespace) -> None:
    """Makes a synthetic store; where the same one is there already, says so."""
    synth(SynthRequest.from_args(args))


def synth(request: SynthRequest) -> None:
    """Makes a synthetic store and prints a line. Raises UserError as `dataset.write` and `Bank`."""
    unpaired = request.unpaired is not None
    print(
        dataset.write(
            request.out,
            request.unpaired if unpaired else request.conversations,
            minutes=request.minutes,
            seed=request.seed,
            unpaired=unpaired,
            bank=_chosen_bank(request),
        )
    )


def _chosen_bank(request: SynthRequest) -> Bank | None:
    """Returns the bank that the flags ask for, None for the built-in voices.

    Says why where `auto` takes those. Raises UserError where `bank` cannot be had.
    """
    lacking = "" if request.voices == "builtin" else missing()
    if request.voices == "auto" and lacking:
        log.info("the built-in voices speak: %s", lacking)
    if request.voices == "builtin" or (request.voices == "auto" and lacking):
        return None
    return Bank(request.bank, progress=lambda: Progress("spoke"))


def run_convert(args: argparse.Namespace) -> None:
    """Writes this part's shards; the part that completes the last one finishes the store."""
    request = ConvertRequest.from_args(args)
    source, out = open_source(request), Path(request.out)
    dtypes = Dtypes("float32", "float32") if request.dtype == "float32" else Dtypes()
    started = time.monotonic()
    if isinstance(source, TracksSource):
        # Before anything is converted, so that what was found out can be put right.
        print(source.mapping.table())
        source.check()
    plan = conversion.make_plan(source, num_shards=request.shards, dtypes=dtypes)
    workers = os.cpu_count() or 1 if request.workers is None else request.workers
    with Progress("converted") as progress:
        outcome = conversion.convert(
            source, out, plan, num_workers=workers, part=request.part, dtypes=dtypes, progress=progress
        )
    if not outcome.finished:
        left = "another part finishes it"
        if outcome.missing:
            left = (
                f"{counted(outcome.missing, 'shard')} of other parts {'is' if outcome.missing == 1 else 'are'} missing"
            )
        print(f"{out}: part {request.shard} is done; {left}")
        return
    report = outcome.report
    if report.get("empty_splits") and not request.split:
        log.warning("%s: %s", out, empty_splits_note(report["empty_splits"]))
    # A tracker's notes were printed as a table.
    for note in () if isinstance(source, TracksSource) else plan.notes:
        log.warning("%s: %s", out, note)
    if report.get("notices"):
        count, where = counted(len(report["notices"]), "notice"), out / conversion.SUMMARY
        log.warning("%s on gaps, damage or losses of files that were read: see %s", count, where)
    for reason, counts in report["reasons"].items():
        log.warning(
            "left out %s: %s (see %s)", counted(counts["entries"], "sequence"), reason, out / conversion.SUMMARY
        )
    print(
        f"{out}: {counted(report['records'], 'record')}, {report['hours']['out']:.2f} of "
        f"{report['hours']['in']:.2f} hours, {counted(len(report['dropped']), 'sequence')} left out, in "
        f"{time.monotonic() - started:.1f} s"
    )


def open_source(request: ConvertRequest) -> Source:
    """Returns the reader of the layout. Raises UserError for flags that another layout takes."""
    source = Path(request.source)
    if not source.exists():
        raise UserError(f"--source {source} does not exist; check the path")
    if request.layout != "tracks" and request.track_flags:
        raise UserError(f"{', '.join(request.track_flags)} is of --from tracks, not of --from {request.layout}")
    if request.layout not in FOLDERS:
        for flag, value in (("--split", request.split), ("--splits", request.splits)):
            if value is not None:
                raise UserError(f"{flag} is of folders of files; the release's index tells the splits, leave it out")
        return ReleaseSource(source, Path(request.index) if request.index else find_index(source))
    if request.index is not None:
        raise UserError(f"--index is of --from release, not of --from {request.layout}; leave it out")
    shares = None if request.splits is None else parse_shares(request.splits)
    others = [] if request.split else folders_left_out(source)
    if others:
        remedy = f"convert each apart, like --source {source / others[0]} --split test"
        log.warning("%s: the folders %s are no split and are left out; %s", source, ", ".join(others), remedy)
    if request.layout == "tracks":
        return TracksSource(source, request.split or "", shares, _track_options(request))
    return FOLDERS[request.layout](source, request.split or "", shares)


def _track_options(request: ConvertRequest) -> TrackOptions:
    """Returns what the flags say of a tracker's files. Raises UserError for a wrong one."""
    if request.fps is not None:
        check_rate(request.fps, "--fps")
    if not 0 <= request.max_gap <= 10:
        raise UserError(f"--max_gap must be 0 to 10 seconds, got {request.max_gap:g}")
    keys, rotations = parse_keys(request.keys or ""), parse_rotations(request.rotations or "")
    return TrackOptions(request.tracker, keys, rotations, request.fps, request.max_gap)


def run_verify(args: argparse.Namespace) -> None:
    """Writes the report on a store.

    Raises UserError, naming the first problem, where it has any.
    """
    request = VerifyRequest.from_args(args)
    out = check_output(request.out or Path(request.store) / "verify.json", ".json")
    with Progress("checked") as progress:
        report = verification.verify(request.store, progress)
    summary = verification.summary(report)
    paths = write_files(out, report, summary, store_page(report, summary))
    problems, warnings = report["problems"], report["warnings"]
    if problems["count"]:
        first, all_of_them = problems["first"][0], paths["markdown"]
        count = counted(problems["count"], "problem")
        raise UserError(f"{request.store} has {count}, the first: {first}; all in {all_of_them}")
    hours = sum(split["hours"] for split in report["splits"].values())
    offset = report["alignment"]["offset_frames"]
    aligned = "" if offset is None else f", the jaw {offset:+.1f} frames after the voice"
    remarks = counted(warnings["count"], "warning")
    print(f"{request.store}: sound, {hours:.2f} hours{aligned}, {remarks}; report {paths['html']}")


def run_stats(args: argparse.Namespace) -> None:
    """Prints the merged statistics by group of channels.

    Writes all channels where a file is named.
    """
    request = StatsRequest.from_args(args)
    out = check_output(request.out, ".json") if request.out else None
    stores = [Store(path) for path in request.stores]
    bases = sorted({store.expression_basis for store in stores})
    if len(bases) > 1:
        raise UserError(f"the stores are of different expression bases, {' and '.join(bases)}; give stores of one")
    merged = ChannelStatistics.zero()
    for store in stores:
        merged = merged.merge(store.channel_statistics())
    if out:
        values = {"expression_basis": bases[0], "channels": channel_names(bases[0]), **merged.to_json()}
        with atomic_output(out) as partial:
            partial.write_text(json.dumps(values | {"std": merged.std.tolist()}, indent=1) + "\n")
    rms = {
        name: float(np.sqrt(np.mean(merged.std[channels] ** 2)))
        for name, channels in (("expression", EXPRESSION), ("head", HEAD), ("jaw", JAW), ("eyes", EYES))
    }
    groups = ", ".join(f"{name} {value:.4g}" for name, value in rms.items())
    hours = int(merged.count.max()) / FPS / 3600
    print(
        f"{counted(len(stores), 'store')}, {hours:.2f} person-hours of train; deviations (root mean square): {groups}"
    )


def run_pca(args: argparse.Namespace) -> None:
    """Fits and writes the PCA of one set."""
    request = PcaRequest.from_args(args)
    (one,) = parse_sets([request.set])
    if not one.folder.is_dir():
        raise UserError(f"{one.folder} is no folder; give that of one of UniTalker's sets")
    out, started = check_output(request.out or one.folder / PCA_FILE, ".npz"), time.monotonic()
    frames = write_pca(out, one, request.components, request.batch_size, request.seed)
    seconds = time.monotonic() - started
    print(f"{out}: {request.components} components of {frames} training frames, in {seconds:.1f} s")


def run_imbalance(args: argparse.Namespace) -> None:
    """Writes the report on what audio explains, and prints its table."""
    request = ImbalanceRequest.from_args(args)
    out = check_output(request.out or Path(request.store) / "imbalance.json", ".json")
    settings = imbalance.Settings(request.frames, request.pictured, request.seed)
    report = imbalance.measure(Store(request.store), settings, log.info)
    text = imbalance_report.markdown(report)
    paths = write_files(out, report, text, imbalance_report.page(report))
    print(f"{text}\nreport {paths['html']}")


class Progress:
    """The progress of long work: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, verb: str):
        self.verb, self.started, self.last = verb, time.monotonic(), 0.0
        self.bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            layout = "{l_bar}{bar}| {postfix} [{elapsed} gone, {remaining} left]"
            self.bar = tqdm(total=1.0, file=sys.stderr, bar_format=layout, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, hours: float, share: float) -> None:
        """Shows the hours of conversation that are done, and the share of the work, 0 to 1."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.verb} {hours:.2f} h", refresh=False)
            self.bar.update(share - self.bar.n)
            return
        gone = time.monotonic() - self.started
        # Between the first line and the last, one every ten seconds is enough for a log file.
        if share < 1 and gone - self.last < 10:
            return
        self.last = gone
        left = gone / share - gone if share else 0.0
        log.info("%s %.2f h, %.0f %%, about %.0f s left", self.verb, hours, 100 * share, left)
