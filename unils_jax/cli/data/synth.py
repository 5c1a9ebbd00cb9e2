"""`unils data synth`: a store of synthetic conversations."""

import argparse
import logging
from dataclasses import dataclass

from data_pipelines.synthetic import dataset
from data_pipelines.synthetic.bank.bank import Bank
from data_pipelines.synthetic.bank.engines import missing
from unils_jax.cli.arguments import Request
from unils_jax.cli.data.progress import Progress

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


def add_synth_arguments(synth: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils data synth`."""
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
            bank=chosen_bank(request.voices, request.bank),
        )
    )


def chosen_bank(voices: str, folder: str | None = None) -> Bank | None:
    """Returns the bank that the flags ask for, None for the built-in voices.

    Says why where `auto` takes those. Raises UserError where `bank` cannot be had.

    Args:
        voices: "auto", "builtin" or "bank".
        folder: The folder of the bank; None: in the user's cache.
    """
    lacking = "" if voices == "builtin" else missing()
    if voices == "auto" and lacking:
        log.info("the built-in voices speak: %s", lacking)
    if voices == "builtin" or (voices == "auto" and lacking):
        return None
    return Bank(folder, progress=lambda: Progress("spoke"))
