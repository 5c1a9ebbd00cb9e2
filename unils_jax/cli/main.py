"""The console script `unils`.

Runs one command; a user's mistake becomes one line and exit status 2.
"""

import argparse
import importlib
import os
import sys
import tempfile
from typing import NamedTuple, NoReturn

from unils_jax import __version__
from unils_jax.errors import UserError, shown
from unils_jax.runtime import disk_is_full, expand_home, no_room, outputs_held, prepare


class Command(NamedTuple):
    """A command: its module in this folder, its line of the help, and what adds its flags there.

    That function also sets the parser's default `run`, which takes the parsed flags.
    """

    module: str
    summary: str
    add_arguments: str = "add_arguments"


COMMANDS = {
    "demo": Command("demo", "the whole story at laptop size: data, four stages of training, decode, proof, video"),
    "data": Command("data", "make training data"),
    "train": Command("train", "train one stage"),
    "config": Command("train", "every setting of a config, its value and its meaning", "add_config_arguments"),
    "decode": Command("decode", "audio of a conversation in, motion and video out"),
    "evaluate": Command("evaluate", "every metric of a checkpoint or of motion files, as JSON, Markdown and HTML"),
    "study": Command("study", "a page on which people compare two systems, and what their answers say"),
    "export": Command("export", "a checkpoint as a release file or as ONNX, or its adapter alone"),
    "render": Command("motion", "a motion file as a video", "add_render_arguments"),
    "bench": Command("bench", "throughput, latency, memory and utilisation of this machine"),
    "serve": Command("serve", "live conversations over WebSocket, and a page to talk to"),
    "view": Command("motion", "a motion file as a page for the browser", "add_view_arguments"),
    "convert-motion": Command(
        "motion",
        "a motion file as CSV, glTF, blendshapes or another project's layout, and back",
        "add_convert_arguments",
    ),
    "miniature": Command(
        "demo",
        "the paper's comparison on synthetic conversations: six systems trained and scored, in an hour",
        "add_miniature_arguments",
    ),
    "doctor": Command("doctor", "what is installed, and how to get what is missing"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose flags are never abbreviated."""

    def __init__(self, **kwargs: object):
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Ends with exit status 2 and one line."""
        print(f"unils: error: {shown(message)} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0 is done and 2 the user's mistake, in one line; anything else escapes as a traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    prepare()  # before the command imports JAX, which reads its settings from the environment then
    try:
        parser, commands = make_parser(argv)
        args = parse(parser, commands, argv)
        with outputs_held():
            args.run(args)
    except UserError as error:
        print("unils: error:", shown(" ".join(str(error).splitlines())), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unils: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not (told := outside(error)):
            raise
        print(f"unils: error: {shown(told)}", file=sys.stderr)
        return 2
    return 0


def outside(error: Exception) -> str:
    """Returns one line for an error of the machine and not of the program; "" for any other."""
    if disk_is_full(error):
        name = getattr(error, "filename", None)
        where = os.path.dirname(os.path.abspath(name)) if isinstance(name, str) else tempfile.gettempdir()
        return f"cannot write {name or 'the output or a temporary file'}: {no_room(where)}"
    if isinstance(error, UnicodeEncodeError) and "surrogates not allowed" in str(error):
        return f"the name {ascii(error.object)[:200]} has bytes that are not UTF-8; rename the file or folder"
    return ""


def make_parser(argv: list[str]) -> tuple[Parser, "argparse._SubParsersAction[Parser]"]:
    """Builds the parser of all commands with the flags of the chosen one.

    Only that one is imported.
    """
    parser = Parser(prog="unils", description="UniLS: from a conversation's audio to the motion of its faces.")
    parser.add_argument("--version", action="version", version=f"unils {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.summary)
        # The others are listed by name alone: importing them would take seconds.
        if name == chosen:
            module = importlib.import_module(f"unils_jax.cli.{command.module}")
            getattr(module, command.add_arguments)(sub)
    return parser, commands


def parse(parser: Parser, commands: "argparse._SubParsersAction[Parser]", argv: list[str]) -> argparse.Namespace:
    """Parses the flags.

    Where a command has a default `overrides`, it collects --config.a.b=value there.
    """
    args, unknown = parser.parse_known_args([_with_home(word) for word in argv])
    # Settings of a config are many and nested, so that argparse cannot list them as flags.
    if hasattr(args, "overrides"):
        args.overrides = [word.removeprefix("--config.") for word in unknown if word.startswith("--config.")]
        unknown = [word for word in unknown if not word.startswith("--config.")]
    if unknown:
        commands.choices[args.command].error(f"unknown argument {unknown[0]}")
    return args


def _with_home(word: str) -> str:
    """Replaces a `~` behind `=`, which shells leave alone."""
    flag, equals, value = word.partition("=")
    return f"{flag}={expand_home(value)}" if word.startswith("--") and value.startswith("~") else word


if __name__ == "__main__":
    sys.exit(main())
