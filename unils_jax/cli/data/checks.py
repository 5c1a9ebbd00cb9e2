"""`unils data verify | stats | pca | imbalance`: what stores and sets hold."""

import argparse
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.cluster import Actors, check_engine
from data_pipelines.conversion import verify as verification
from data_pipelines.conversion.unitalker_pca import write_pca
from data_pipelines.sources.unitalker import PCA_FILE
from data_pipelines.speech_loader import parse_sets
from data_pipelines.statistics import ChannelStatistics
from data_pipelines.store.reader import Store
from unils_jax.cli.arguments import Request, add_engine_arguments
from unils_jax.cli.data.progress import Progress
from unils_jax.errors import UserError, counted, shown
from unils_jax.evaluation.analyses import imbalance, imbalance_report
from unils_jax.evaluation.report import store_page, write_files
from unils_jax.files import check_output, write_text
from unils_jax.motion import EXPRESSION, EYES, FPS, HEAD, JAW, channel_names

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(Request):
    """The flags of `unils data verify`."""

    store: str
    out: str | None = None  # None: verify.json in the store
    engine: str = "local"  # local: this process; ray: actors of a cluster
    actors: int | None = None  # of Ray; None: one a CPU

    def __post_init__(self):
        check_engine(self.engine, self.actors)
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


def add_verify_arguments(verify: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils data verify`."""
    verify.add_argument("store", metavar="DIR", help="the store")
    verify.add_argument(
        "--out", metavar="FILE.json", help="the report; .md and .html stand beside (default: DIR/verify.json)"
    )
    add_engine_arguments(verify, "files and records are checked", "one a CPU")


def add_pca_arguments(pca: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils data pca`."""
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


def add_imbalance_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils data imbalance`."""
    parser.add_argument("store", metavar="DIR", help="a store of dialogues with audio")
    parser.add_argument("--out", metavar="FILE.json", help="the report (default: DIR/imbalance.json)")
    for name, meaning in (
        ("frames", "frames that are drawn, at most"),
        ("pictured", "frames in the picture; 0: none"),
        ("seed", "of the draws"),
    ):
        default = getattr(ImbalanceRequest, name)
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")


def run_verify(args: argparse.Namespace) -> None:
    """Writes the report on a store.

    Raises UserError, naming the first problem, where it has any.
    """
    request = VerifyRequest.from_args(args)
    out = check_output(request.out or Path(request.store) / "verify.json", ".json")
    actors = Actors(request.actors, shared=(request.store,)) if request.engine == "ray" else None
    with Progress("checked") as progress:
        report = verification.verify(request.store, progress, actors)
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
    print(f"{shown(request.store)}: sound, {hours:.2f} hours{aligned}, {remarks}; report {shown(paths['html'])}")


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
        write_text(out, json.dumps(values | {"std": merged.std.tolist()}, indent=1) + "\n")
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
    print(f"{shown(out)}: {request.components} components of {frames} training frames, in {seconds:.1f} s")


def run_imbalance(args: argparse.Namespace) -> None:
    """Writes the report on what audio explains, and prints its table."""
    request = ImbalanceRequest.from_args(args)
    out = check_output(request.out or Path(request.store) / "imbalance.json", ".json")
    settings = imbalance.Settings(request.frames, request.pictured, request.seed)
    report = imbalance.measure(Store(request.store), settings, log.info)
    text = imbalance_report.markdown(report)
    paths = write_files(out, report, text, imbalance_report.page(report))
    print(f"{text}\nreport {shown(paths['html'])}")
