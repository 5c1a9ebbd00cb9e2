"""The console script `unils`: dispatches to one command and turns a user's mistake into one line and exit status 2."""

import argparse
import importlib
import sys
from typing import NoReturn

from unils_jax import __version__
from unils_jax.errors import UserError
from unils_jax.runtime import prepare

COMMANDS = {
    "demo": "the whole story at laptop size: data, three stages of training, decode, proof, video",
    "data": "make training data",
    "train": "train one stage",
    "decode": "audio of a conversation in, motion and video out",
    "evaluate": "every metric of a checkpoint or of motion files, as JSON, Markdown and HTML",
    "export": "a checkpoint as a release file, or its adapter alone",
    "render": "a motion file as a video",
    "bench": "throughput, latency, memory and utilisation of this machine",
    "view": "a motion file as a page for the browser",
    "convert-motion": "a motion file as CSV, glTF, blendshapes or another project's layout, and back",
    "miniature": "the paper's comparison on synthetic conversations: six systems trained and scored, in an hour",
    "doctor": "what is installed, and how to get what is missing",
}


class Parser(argparse.ArgumentParser):
    """Errors are one line; flags are never abbreviated."""

    def __init__(self, **kwargs):
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs})

    def error(self, message: str) -> NoReturn:
        print(f"unils: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: list[str] | None = None) -> int:
    """Runs one command. 0: done, 2: the user's mistake, told in one line; anything else escapes as a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="unils", description="UniLS: from a conversation's audio to the motion of its faces.")
    parser.add_argument("--version", action="version", version=f"unils {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary)
        if name == chosen:
            command = importlib.import_module(f"unils_jax.cli.{name.replace('-', '_')}")
            command.add_arguments(sub)
    args, unknown = parser.parse_known_args(argv)
    if args.command == "train" or getattr(args, "bench", None) == "train":
        args.overrides = [word.removeprefix("--config.") for word in unknown if word.startswith("--config.")]
        unknown = [word for word in unknown if not word.startswith("--config.")]
    if unknown:
        commands.choices[args.command].error(f"unknown argument {unknown[0]}")
    prepare()
    try:
        command.run(args)
    except UserError as error:
        print("unils: error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unils: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
