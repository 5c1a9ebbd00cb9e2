"""`unils data ...`: make training data."""

import argparse
import logging
import time
from pathlib import Path

EXAMPLE = """example:
  unils data synth --out data/synthetic --conversations 60 --minutes 2 --seed 0
"""

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the sub-commands of `unils data`."""
    parser.description = "Make training data. See `unils data synth --help`."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="data_command", metavar="{synth}", required=True)
    synth = kinds.add_parser(
        "synth",
        help="a deterministic synthetic dialogue set",
        description="Makes a store of synthetic conversations: motion, two audio tracks, speech masks, events. "
        "The same flags give the same data; about 80/10/10 of the conversations are train, val and test.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    synth.add_argument("--out", required=True, metavar="DIR", help="folder of the store, new or empty")
    synth.add_argument("--conversations", type=int, default=60, metavar="N", help="at least 3 (default: %(default)s)")
    synth.add_argument("--minutes", type=float, default=2.0, metavar="M", help="of each (default: %(default)s)")
    synth.add_argument("--seed", type=int, default=0, metavar="S", help="not negative (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Makes the store; where the same one is there already, says so and is done.

    Raises UserError for bad settings and for a folder that holds anything else.
    """
    from data_pipelines import store, synthetic
    from unils_jax.errors import UserError

    config = synthetic.SynthConfig(minutes=args.minutes)
    wanted = synthetic.settings(config, args.seed, args.conversations)
    out = Path(args.out)
    hours = args.conversations * config.duration_s / 3600
    described = f"{args.conversations} conversations, {hours:.2f} hours, seed {args.seed}"
    if (out / store.MANIFEST).exists():
        if store.read_manifest(out)["settings"] != wanted:
            raise UserError(f"{out} holds a store made with other settings; choose another folder or remove it")
        print(f"{out}: already there ({described})")
        return
    started = time.monotonic()
    records = _counted(synthetic.make_records(config, args.seed, args.conversations), args.conversations)
    store.write_store(out, records, settings=wanted)
    print(f"{out}: {described}, made in {time.monotonic() - started:.1f} s")


def _counted(records, total: int):
    """Passes records on and tells how far it is: a bar on a terminal, plain lines elsewhere."""
    import sys

    from tqdm import tqdm

    if sys.stderr.isatty():
        yield from tqdm(records, total=total, unit="conversation", file=sys.stderr)
        return
    for done, item in enumerate(records, start=1):
        yield item
        if done % max(1, total // 10) == 0 or done == total:
            log.info("made %d of %d conversations", done, total)
