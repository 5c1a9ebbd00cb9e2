"""`unils evaluate`: every metric of a checkpoint, or of anybody's motion files, against the truth of a store."""

import argparse
import datetime
import logging
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from unils_jax.evaluation import lip_errors as evaluate_sets

log = logging.getLogger(__name__)

NOTES = (
    "Figures compare with the published rows (Seamless Interaction, test, FLAME basis) only where data and basis are "
    "the same; LVE and MHD are over speaking frames.",
    "The release's code has no F-FID and P-FID: here they are Fréchet distances of per-frame expression (100) and head "
    "rotation (3) over all frames of the split, the table's column over both roles.",
    "Intervals are 95 % bootstrap intervals over conversations, of the mean over people and seeds.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Scores motion against the truth of a store, per role, under a named protocol: the motion that a dialogue, a "
        "DualTalk or a UniTalker checkpoint gives, or with --motion a folder of motion files by any system, one "
        "NAME.npz a record. Writes JSON, and beside it a Markdown table with the published rows and an HTML page with "
        "plots. Without --data a UniTalker is scored on sets in its own layout: lip errors per annotation, as JSON."
    )
    parser.epilog = """example:
  unils evaluate --checkpoint runs/demo/dialogue --data runs/demo/data --out runs/demo/report.json
  unils evaluate --checkpoint runs/unitalker --resources resources/binary_resources --out lips.json"""
    system = parser.add_mutually_exclusive_group(required=True)
    system.add_argument("--checkpoint", metavar="PATH", help="dialogue, DualTalk or UniTalker: workdir or file")
    system.add_argument("--motion", metavar="DIR", help="motion files named as the store's records")
    parser.add_argument("--data", metavar="DIR", help="store with the truth")
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument(
        "--protocol", default="unils-release", help="unils-release, unils-clean or dualtalk (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="decodes a conversation (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N conversations only")
    parser.add_argument("--audio_encoder", metavar="DIR", help="wav2vec2: transformers folder or hub name")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the decode (default: %(default)s)"
    )
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020, for the vertex metrics")
    parser.add_argument("--out", default="report.json", metavar="R.json", help="report to write (default: %(default)s)")
    evaluate_sets.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluates. Raises UserError for every mistake of the user, before anything is written."""
    from data_pipelines.store.reader import Store
    from unils_jax.evaluation.report import report_paths, write_report
    from unils_jax.evaluation.scoring import jsonable
    from unils_jax.files import check_output
    from unils_jax.motion import FPS

    started = time.time()
    protocol = check_flags(args)
    check_output(args.out, ".json")
    if not args.data:
        evaluate_sets.run(args, {"versions": versions(), "host": host()})
        return
    for path in report_paths(args.out).values():
        check_output(path)
    store = Store(args.data)
    checkpoint = load_checkpoint(args, store) if args.checkpoint else None
    stage = None if checkpoint is None else checkpoint.config.stage
    partner, decodes = stage == "dualtalk", stage == "dialogue"
    chosen, skipped = choose_records(store, args, protocol, partner)
    seeds = [protocol.seed + i for i in range(args.seeds)]
    mesh, notes = find_mesh(args.flame, store.expression_basis)
    predict, source = make_predict(args, checkpoint, store, protocol, [name for _, name in chosen])
    price = price_of(checkpoint.model, args, len(chosen)) if decodes and args.dtype != "float32" else None
    tally = score(store, args.split, chosen, protocol, predict, seeds, mesh)
    report = {
        "metrics": tally.metrics(),
        "clips": {"ranked_by": tally.ranking, **tally.extremes()},
        "settings": {
            "protocol": protocol.settings(decodes=decodes, partner=partner, alone=stage == "unitalker"),
            "seeds": seeds if decodes else [],
            "limit": args.limit,
            "motion_from": args.checkpoint or args.motion,
            "source": source,
            "audio_encoder": args.audio_encoder,
            "dtype": args.dtype if args.checkpoint else None,
            "bits_changed": price,
            "flame": args.flame,
            "expression_basis": store.expression_basis,
            "mesh": None if mesh is None else ("FLAME" if args.flame else "stand-in head"),
        },
        "data": {
            "store": str(args.data),
            "split": args.split,
            "conversations": len(chosen),
            "scored_hours": tally.frames / FPS / 3600,
            "made_with": store.manifest["settings"],
        },
        "skipped": skipped,
        "notes": [*NOTES, *notes],
        "versions": versions(),
        "per_conversation": tally.per_conversation(),
        "pictures": tally.pictures(),
        "time": {
            "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
            "seconds": time.time() - started,
        },
        "host": host(),
    }
    paths = write_report(args.out, jsonable(report), tally.traces())
    print(f"{', '.join(str(path) for path in paths.values())}: {len(chosen)} conversations, {headline(report)}")


def check_flags(args: argparse.Namespace) -> Any:
    """The protocol. Raises one UserError with every flag that is wrong."""
    from unils_jax.errors import UserError
    from unils_jax.evaluation.protocols import PROTOCOLS

    problems = []
    if args.protocol not in PROTOCOLS:
        problems.append(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {args.protocol!r}")
    if args.seeds < 1:
        problems.append(f"--seeds must be at least 1, got {args.seeds}")
    if args.limit is not None and args.limit < 1:
        problems.append(f"--limit must be at least 1, got {args.limit}")
    if args.motion and args.seeds > 1:
        problems.append(f"--motion holds one motion a record, got --seeds {args.seeds}; leave --seeds away")
    if args.motion and args.audio_encoder:
        problems.append("--audio_encoder belongs to --checkpoint; leave it away with --motion")
    if args.motion and not Path(args.motion).is_dir():
        problems.append(f"--motion {args.motion} is no folder; give the one with the motion files")
    if args.seeds > 1 and not args.data:
        problems.append(f"--seeds {args.seeds} goes with --data DIR; on its own sets UniTalker draws nothing")
    if args.motion and not args.data:
        problems.append("--motion is scored on a store; name it with --data DIR")
    if args.data and (args.sets or args.resources):
        problems.append("--data names a store, --sets and --resources are of UniTalker's own sets; give one of both")
    if problems:
        raise UserError("; ".join(problems))
    return PROTOCOLS[args.protocol]


def choose_records(
    store: Any, args: argparse.Namespace, protocol: Any, partner: bool
) -> tuple[list[tuple[int, str]], list[dict]]:
    """Number and name of the records to score, and what is left out with the reason. Raises UserError if none stays."""
    from unils_jax.errors import UserError
    from unils_jax.evaluation.protocols import skip_reason

    chosen, skipped = [], []
    for i, record in enumerate(store.records(args.split)):
        if args.limit is not None and len(chosen) == args.limit:
            break
        reason = skip_reason(record, protocol, needs_audio=args.checkpoint is not None, needs_partner=partner)
        if reason is None:
            chosen.append((i, record["name"]))
        else:
            skipped.append({"name": record["name"], "reason": reason})
    if not chosen:
        first = f"; {skipped[0]['name']}: {skipped[0]['reason']}" if skipped else ""
        raise UserError(f"split {args.split} of {args.data} holds no conversation to score{first}; give another split")
    return chosen, skipped


def find_mesh(flame: str | None, expression_basis: str) -> tuple[Any, list[str]]:
    """The mesh that fits the basis, or None, and notes on what that leaves out."""
    from unils_jax.errors import UserError
    from unils_jax.evaluation.behaviour_metrics import NO_LIDS
    from unils_jax.evaluation.scoring import mesh_of
    from unils_jax.face.flame_file import load_flame
    from unils_jax.face.standin import standin_asset

    if expression_basis == "standin":
        if flame:
            raise UserError(f"--flame {flame} measures FLAME's basis, the store is of 'standin'; leave --flame away")
        return mesh_of(standin_asset()), [
            "Vertices are of the stand-in head: millimetres of another face than FLAME's."
        ]
    notes = [f"Blinks are left out: {NO_LIDS}."]
    if flame is None:
        return None, [*notes, "LVE, MHD and FDD are left out: they need vertices; give --flame generic_model.pkl."]
    return mesh_of(load_flame(flame)), notes


def load_checkpoint(args: argparse.Namespace, store: Any) -> Any:
    """The dialogue, DualTalk or UniTalker (its head of our motion) that the flags name. Raises UserError where it is
    none, or does not fit the store."""
    from unils_jax.checkpoints.loading import load
    from unils_jax.errors import UserError
    from unils_jax.motion import MOTION_KIND

    names = {"dialogue": "UniLS", "dualtalk": "DualTalk", "unitalker": "UniTalker"}
    checkpoint = load(args.checkpoint, audio_encoder=args.audio_encoder, stage=tuple(names))
    check_basis(args.checkpoint, checkpoint.expression_basis, store)
    stage = checkpoint.config.stage
    if stage != "dialogue" and args.seeds > 1:
        raise UserError(f"{names[stage]} draws nothing: it gives one motion a conversation, got --seeds {args.seeds}")
    return checkpoint.with_kinds((MOTION_KIND,)) if stage == "unitalker" else checkpoint


def make_predict(
    args: argparse.Namespace, checkpoint: Any, store: Any, protocol: Any, names: list[str]
) -> tuple[Any, dict[str, Any]]:
    """What gives the motion of a conversation, and where it comes from."""
    from unils_jax.errors import UserError
    from unils_jax.evaluation.protocols import decode_with, respond_with, talk_with
    from unils_jax.motion import load_motion

    if checkpoint is not None:
        make = {"dialogue": decode_with, "dualtalk": respond_with, "unitalker": talk_with}[checkpoint.config.stage]
        return make(checkpoint.model, protocol, args.dtype), checkpoint.source
    files = {name: Path(args.motion) / f"{name}.npz" for name in names}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"{args.motion} lacks {len(missing)} of {len(files)} motion files: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; make them, or score fewer with --limit"
        )

    def predict(conversation: Any, seed: int) -> Any:
        file = load_motion(files[conversation.name])
        check_basis(files[conversation.name], file.expression_basis, store)
        return file.motion

    return predict, load_motion(files[names[0]]).source


def price_of(model: Any, args: argparse.Namespace, conversations: int) -> float:
    """The share of bits that --dtype changes in one window each of some conversations, at most eight."""
    from data_pipelines.loader import make_loader
    from unils_jax.evaluation.likelihood import bits_changed

    windows = make_loader(args.data, args.split, view="pair", batch_size=min(conversations, 8), seed=0)
    return bits_changed(model, next(iter(windows)), args.dtype)


def check_basis(what: Any, expression_basis: str, store: Any) -> None:
    """Raises UserError where motion and truth mean different things by their expression channels."""
    from unils_jax.errors import UserError

    if expression_basis != store.expression_basis:
        raise UserError(
            f"{what} is of the {expression_basis!r} expression basis, the store {store.path} of "
            f"{store.expression_basis!r}; score it on data of its own basis"
        )


def score(
    store: Any, split: str, chosen: list[tuple[int, str]], protocol: Any, predict: Any, seeds: list[int], mesh: Any
) -> Any:
    """The tally of all chosen records."""
    from tqdm import tqdm

    from unils_jax.evaluation.protocols import conversation_of, people_to_score
    from unils_jax.evaluation.scoring import ScoreTable

    tally = ScoreTable(mesh, store.expression_basis, *store.statistics())
    for done, (i, name) in enumerate(tqdm(chosen, "evaluate", disable=None, unit="conversation"), 1):
        conversation = conversation_of(store.read(split, i), protocol)
        motions = [predict(conversation, seed) for seed in seeds]
        tally.add(name, [people_to_score(conversation, motion, protocol) for motion in motions])
        if done % 10 == 0 or done == len(chosen):
            log.info("scored %d of %d conversations", done, len(chosen))
    return tally


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    from unils_jax import __version__

    packages = ("jax", "jaxlib", "flax", "numpy", "scipy")
    return {"unils": __version__, "python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def host() -> dict[str, Any]:
    """The machine the evaluation ran on."""
    import jax

    return {
        "name": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
    }


def headline(report: dict[str, Any]) -> str:
    """The figures of the summary line."""
    wanted = {
        "LVE": "unils/speaking/LVE",
        "speaking FDD": "unils/speaking/FDD",
        "listening FDD": "unils/listening/FDD",
        "F-FID": "fid/both/expression_fid",
        "P-FID": "fid/both/pose_fid",
    }
    metrics, changed = report["metrics"], report["settings"]["bits_changed"]
    said = [f"{name} {metrics[path]['mean']:.4g}" for name, path in wanted.items() if path in metrics]
    return ", ".join(said if changed is None else [*said, f"{changed:.2%} of the bits changed by the dtype"])
