"""`unils data ...`: make training data, bring other people's into a store, check it."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

EXAMPLES = {
    "synth": "unils data synth --out data/synthetic --conversations 60 --minutes 2 --seed 0\n"
    "  unils data synth --out data/alone --unpaired 200 --minutes 0.5",
    "convert": "unils data convert --from release --source seamless/lmdb --index seamless.json --out data/seamless\n"
    "  unils data convert --from dualtalk --source dualtalk --out data/dualtalk --workers 8\n"
    "  unils data convert --from files --source recordings --out data/own\n"
    "  srun unils data convert ... --shard $((SLURM_PROCID + 1))/$SLURM_NTASKS",
    "verify": "unils data verify data/seamless",
    "pca": "unils data pca D2_meshtalk=0.001 --components 647 --batch_size 1095",
    "stats": "unils data stats data/seamless data/talk --out stats.json",
}

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the sub-commands of `unils data`."""
    parser.description = "Make training data, convert it, check it. See `unils data convert --help` and so on."
    parser.epilog = "\n  ".join(["examples:", *EXAMPLES.values()])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="data_command", metavar="{synth,convert,verify,stats,pca}", required=True)

    def kind(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        epilog = f"example:\n  {EXAMPLES[name]}"
        return kinds.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _synth_arguments(
        kind(
            "synth",
            "a deterministic synthetic dialogue set",
            "Makes a store of synthetic conversations: motion, two audio tracks, speech masks, events. "
            "The same flags give the same data; about 80/10/10 of the conversations are train, val and test, and "
            "nobody is in two of them. With --unpaired: single persons without audio, for codec and prior.",
        )
    )
    _convert_arguments(
        kind(
            "convert",
            "any known source into a store; resumable",
            "Converts the published release (LMDB and JSON index), a DualTalk folder, or a folder of .wav and motion\n"
            ".npz into a store. Run again after any interruption it goes on and ends in the same bytes. What cannot\n"
            "be used is left out and listed, with its hours, in conversion.json and CONVERSION.md of the store.",
        )
    )
    verify = kind(
        "verify",
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
        "channel statistics of one store or of several together",
        "Mean and standard deviation of the 108 channels over the train splits, merged exactly.",
    )
    stats.add_argument("stores", nargs="+", metavar="DIR", help="the stores")
    stats.add_argument("--out", metavar="FILE.json", help="all 108 channels as JSON")
    _pca_arguments(
        kind(
            "pca",
            "the PCA of a large annotation, for UniTalker",
            "Fits scikit-learn's incremental PCA (extra `pca`) to the training frames of a set in UniTalker's layout,\n"
            "less their subjects' templates, and writes it into the set, where training and evaluation find it.",
        )
    )


def _pca_arguments(pca: argparse.ArgumentParser) -> None:
    pca.add_argument("set", metavar="DIR=SCALE", help="the set, scaled as in training")
    pca.add_argument("--out", metavar="FILE.npz", help="where to write (default: DIR/pca.npz)")
    pca.add_argument("--components", type=int, default=512, metavar="N", help="to keep (default: %(default)s)")
    pca.add_argument(
        "--batch_size", type=int, default=1024, metavar="B", help="frames, at least N; full ones only (default: 1024)"
    )
    pca.add_argument("--seed", type=int, default=0, metavar="S", help="of the frames' order (default: %(default)s)")


def _convert_arguments(convert: argparse.ArgumentParser) -> None:
    convert.add_argument(
        "--from",
        dest="layout",
        required=True,
        choices=("release", "dualtalk", "files"),
        help="how the source is laid out",
    )
    convert.add_argument("--source", required=True, metavar="DIR", help="the LMDB, or the folder of files")
    convert.add_argument("--index", metavar="FILE", help="the release's JSON index (default: the one beside the LMDB)")
    convert.add_argument("--split", metavar="NAME", help="puts a whole folder of files into one split")
    convert.add_argument("--out", required=True, metavar="DIR", help="folder of the store: new, empty or unfinished")
    convert.add_argument("--shards", type=int, metavar="N", help="about so many (default: by the hours)")
    convert.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    convert.add_argument("--shard", default="1/1", metavar="i/n", help="does part i of n, for several machines")
    convert.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of motion; audio is int16 with float16"
    )


def _synth_arguments(synth: argparse.ArgumentParser) -> None:
    synth.add_argument("--out", required=True, metavar="DIR", help="folder of the store, new or empty")
    kind = synth.add_mutually_exclusive_group()
    kind.add_argument("--conversations", type=int, default=60, metavar="N", help="at least 3 (default: %(default)s)")
    kind.add_argument(
        "--unpaired", type=int, metavar="N", help="N single persons instead: monologue, idle, laughing, reading"
    )
    synth.add_argument("--minutes", type=float, default=2.0, metavar="M", help="of each (default: %(default)s)")
    synth.add_argument("--seed", type=int, default=0, metavar="S", help="not negative (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Does what the sub-command says. Raises UserError for mistakes and for stores that are not sound."""
    commands = {"synth": _synth, "convert": _convert, "verify": _verify, "stats": _stats, "pca": _pca}
    commands[args.data_command](args)


def _synth(args: argparse.Namespace) -> None:
    """Makes the store; where the same one is there already, says so and is done.

    Raises UserError for bad settings and for a folder that holds anything else.
    """
    from data_pipelines.store import reader as store
    from data_pipelines.synthetic import dataset as synthetic
    from unils_jax.errors import UserError

    config = synthetic.SynthConfig(minutes=args.minutes)
    unpaired = args.unpaired is not None
    count, what = (args.unpaired, "single persons") if unpaired else (args.conversations, "conversations")
    wanted = synthetic.settings(config, args.seed, count, unpaired=unpaired)
    out = Path(args.out)
    described = f"{count} {what}, {count * config.duration_s / 3600:.2f} hours, seed {args.seed}"
    if (out / store.MANIFEST).exists():
        if store.read_manifest(out)["settings"] != wanted:
            raise UserError(f"{out} holds a store made with other settings; choose another folder or remove it")
        print(f"{out}: already there ({described})")
        return
    started = time.monotonic()
    make = synthetic.make_scenes if unpaired else synthetic.make_records
    store.write_store(out, _counted(make(config, args.seed, count), count, what), settings=wanted)
    print(f"{out}: {described}, made in {time.monotonic() - started:.1f} s")


def _counted(records, total: int, what: str):
    """Passes records on and tells how far it is: a bar on a terminal, plain lines elsewhere."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        yield from tqdm(records, total=total, unit=" " + what, file=sys.stderr)
        return
    for done, item in enumerate(records, start=1):
        yield item
        if done % max(1, total // 10) == 0 or done == total:
            log.info("made %d of %d %s", done, total, what)


def _convert(args: argparse.Namespace) -> None:
    """Writes this part's shards; the part that completes the last one finishes the store."""
    from data_pipelines.conversion import convert
    from data_pipelines.store.writer import Dtypes

    source, out = _source(args), Path(args.out)
    dtypes = Dtypes("float32", "float32") if args.dtype == "float32" else Dtypes()
    started = time.monotonic()
    plan = convert.make_plan(source, num_shards=args.shards, dtypes=dtypes)
    workers = os.cpu_count() or 1 if args.workers is None else args.workers
    with _Progress("converted") as progress:
        outcome = convert.convert(
            source, out, plan, num_workers=workers, part=_part(args.shard), dtypes=dtypes, progress=progress
        )
    if not outcome.finished:
        left = f"{outcome.missing} shards of other parts are missing" if outcome.missing else "another part finishes it"
        print(f"{out}: part {args.shard} is done; {left}")
        return
    report = outcome.report
    for reason, counts in report["reasons"].items():
        log.warning("left out %d sequences: %s (see %s)", counts["entries"], reason, out / convert.SUMMARY)
    print(
        f"{out}: {report['records']} records, {report['hours']['out']:.2f} of {report['hours']['in']:.2f} hours, "
        f"{len(report['dropped'])} sequences left out, in {time.monotonic() - started:.1f} s"
    )


def _source(args: argparse.Namespace) -> Any:
    """The reader of the layout. Raises UserError for flags that another layout takes."""
    from data_pipelines.sources.base import folders_left_out
    from data_pipelines.sources.dualtalk import DualTalkSource
    from data_pipelines.sources.folder import FilesSource
    from data_pipelines.sources.unils_lmdb import ReleaseSource, find_index
    from unils_jax.errors import UserError

    source = Path(args.source)
    if not source.exists():
        raise UserError(f"--source {source} does not exist; check the path")
    if args.layout == "release":
        if args.split is not None:
            raise UserError("--split is of folders of files; the release's index tells the splits, leave it out")
        return ReleaseSource(source, Path(args.index) if args.index else find_index(source))
    if args.index is not None:
        raise UserError(f"--index is of --from release, not of --from {args.layout}; leave it out")
    others = [] if args.split else folders_left_out(source)
    if others:
        remedy = f"convert each apart, like --source {source / others[0]} --split test"
        log.warning("%s: the folders %s are no split and are left out; %s", source, ", ".join(others), remedy)
    kind = DualTalkSource if args.layout == "dualtalk" else FilesSource
    return kind(source, args.split or "")


def _part(text: str) -> tuple[int, int]:
    from unils_jax.errors import UserError

    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise UserError(f"--shard must be i/n like 2/8, got {text!r}")
    return int(number), int(of)


def _verify(args: argparse.Namespace) -> None:
    """Writes the report; a store with problems is a UserError that names the first."""
    from data_pipelines.conversion import verify
    from unils_jax.errors import UserError
    from unils_jax.evaluation.report import store_page, write_files
    from unils_jax.files import check_output

    if "://" in args.store and not args.out:
        raise UserError(f"the report on {args.store} needs a place on this machine; give --out FILE.json")
    out = check_output(args.out or Path(args.store) / "verify.json", ".json")
    with _Progress("checked") as progress:
        report = verify.verify(args.store, progress)
    summary = verify.summary(report)
    paths = write_files(out, report, summary, store_page(report, summary))
    problems, warnings = report["problems"], report["warnings"]
    if problems["count"]:
        first, all_of_them = problems["first"][0], paths["markdown"]
        raise UserError(f"{args.store} has {problems['count']} problems, the first: {first}; all in {all_of_them}")
    hours = sum(split["hours"] for split in report["splits"].values())
    offset = report["alignment"]["offset_frames"]
    aligned = "" if offset is None else f", the jaw {offset:+.1f} frames after the voice"
    print(f"{args.store}: sound, {hours:.2f} hours{aligned}, {warnings['count']} warnings; report {paths['html']}")


def _stats(args: argparse.Namespace) -> None:
    """Prints the merged statistics by group; writes all channels where asked to."""
    import json

    import numpy as np

    from data_pipelines.statistics import ChannelStatistics
    from data_pipelines.store.reader import Store
    from unils_jax.errors import UserError
    from unils_jax.files import atomic_output, check_output
    from unils_jax.motion import EXPRESSION, EYES, FPS, HEAD, JAW, channel_names

    out = check_output(args.out, ".json") if args.out else None
    stores = [Store(path) for path in args.stores]
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
    print(f"{len(stores)} stores, {hours:.2f} person-hours of train; deviations (root mean square): {groups}")


def _pca(args: argparse.Namespace) -> None:
    """Fits and writes the PCA of one set."""
    from data_pipelines.conversion.unitalker_pca import write_pca
    from data_pipelines.sources.unitalker import PCA_FILE
    from data_pipelines.speech_loader import parse_sets
    from unils_jax.errors import UserError
    from unils_jax.files import check_output

    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    (one,) = parse_sets([args.set])
    if not one.folder.is_dir():
        raise UserError(f"{one.folder} is no folder; give that of one of UniTalker's sets")
    out, started = check_output(args.out or one.folder / PCA_FILE, ".npz"), time.monotonic()
    frames = write_pca(out, one, args.components, args.batch_size, args.seed)
    print(f"{out}: {args.components} components of {frames} training frames, in {time.monotonic() - started:.1f} s")


class _Progress:
    """Called with hours done and the share of the work: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, verb: str):
        self.verb, self.started, self.last = verb, time.monotonic(), 0.0
        self.bar = None

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{l_bar}{bar}| {postfix} [{elapsed} gone, {remaining} left]"
            self.bar = tqdm(total=1.0, file=sys.stderr, bar_format=layout, leave=False)
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, hours: float, share: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.verb} {hours:.2f} h", refresh=False)
            self.bar.update(share - self.bar.n)
            return
        gone = time.monotonic() - self.started
        if share < 1 and gone - self.last < 10:
            return
        self.last = gone
        left = gone / share - gone if share else 0.0
        log.info("%s %.2f h, %.0f %%, about %.0f s left", self.verb, hours, 100 * share, left)
