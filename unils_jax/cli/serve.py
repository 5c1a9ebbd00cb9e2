"""`unils serve`: live conversations over WebSocket; `unils bench serve` loads such a server."""

import argparse
import logging
import re
from dataclasses import dataclass, field, fields
from typing import Any

from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load, pretrained
from unils_jax.cli.arguments import Request, add_encoder_argument
from unils_jax.errors import UserError, install_hint
from unils_jax.files import check_output
from unils_jax.inference.program import Program, make_program
from unils_jax.inference.sampling import DTYPES
from unils_jax.models.unils import UniLS

try:
    from unils_jax.outputs.serving.access import make_access
    from unils_jax.outputs.serving.limits import Limits
    from unils_jax.outputs.serving.load import Load, Started, run_load, table
    from unils_jax.outputs.serving.page import page_files, write_page
    from unils_jax.outputs.serving.server import Server, Tls
except ModuleNotFoundError as error:
    raise UserError(f"serving needs {error.name}: {install_hint('serve')}") from None

PORT, SLOTS = 8765, 4
HELP = {
    "capacity": "streams that are open at a time",
    "max_message_kib": "KiB of one message",
    "streams_per_address": "connections of one IP address",
    "max_ahead_s": "seconds of audio beyond real time before a client is paused",
    "max_unread_s": "seconds of motion that a client may leave unread",
    "open_s": "seconds from connection to the open message",
    "idle_s": "seconds without any message",
    "life_s": "seconds of one connection",
    "grace_s": "seconds that open streams get after SIGTERM",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeRequest(Request):
    """The flags of `unils serve`, but for the limits."""

    checkpoint: str | None = None  # None: the package's live demo model
    audio_encoder: str | None = None
    host: str = "127.0.0.1"
    port: int = PORT  # 0: any that is free
    slots: int | None = None  # streams that one run of the program decodes; None: up to `SLOTS`
    dtype: str = "float32"
    token_file: str | None = None
    allow_origin: list[str] = field(default_factory=list)
    insecure: bool = False  # True: another host than this one may be served without a token
    tls_cert: str | None = None  # PEM files, as uvicorn takes them
    tls_key: str | None = None
    static: str | None = None  # folder to write the page into instead of serving
    server: str | None = None  # of the page in --static

    def __post_init__(self):
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"--port must be from 0 to 65535, got {self.port}")
        if self.slots is not None and self.slots < 1:
            raise UserError(f"--slots must be at least 1, got {self.slots}")
        if bool(self.static) != bool(self.server):
            raise UserError("--static DIR writes the page for a server elsewhere: give --server wss://HOST with it")
        if self.server and not re.fullmatch(r"wss?://[\w.\-:\[\]]+", self.server):
            raise UserError(f"--server must be like wss://example.org:8765, without a path, got {self.server!r}")
        if self.tls_key and not self.tls_cert:
            raise UserError("--tls-key goes with --tls-cert; give both")


@dataclass(frozen=True, kw_only=True)
class LoadRequest(Request):
    """The flags of `unils bench serve`."""

    url: str | None = None  # None: a server of the packaged model, or of --checkpoint, in a process of its own
    checkpoint: str | None = None
    clients: int = 8
    seconds: float = 30.0
    jitter_ms: float = 20.0
    stall: float = 0.0
    disconnect: float = 0.0
    slots: int | None = None
    capacity: int | None = None  # None: a place for each client
    check: bool = False
    token: str | None = None
    json: str | None = None

    def __post_init__(self):
        if self.json:
            check_output(self.json, ".json")
        problems = []
        if self.clients < 1:
            problems.append(f"--clients must be at least 1, got {self.clients}")
        for name in ("slots", "capacity"):
            if (value := getattr(self, name)) is not None and value < 1:
                problems.append(f"--{name} must be at least 1, got {value}")
        if self.url and self.capacity:
            problems.append("--capacity is of the server that is started here; leave it away with --url")
        if not 0 < self.seconds < 1e6:
            problems.append(f"--seconds must be above 0, got {self.seconds}")
        if not 0 <= self.jitter_ms <= 1000:
            problems.append(f"--jitter_ms must be from 0 to 1000, got {self.jitter_ms}")
        for name in ("stall", "disconnect"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"--{name} is a share of the clients, from 0 to 1, got {getattr(self, name)}")
        if problems:
            raise UserError("; ".join(problems))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils serve`, with working examples."""
    parser.description = (
        "Serves live conversations: audio in over WebSocket, motion out, and a page to talk to at /. See "
        "docs/serving.md for the protocol. SIGTERM lets open streams end, and exits with status 0."
    )
    parser.epilog = (
        "examples:\n  unils serve\n  unils serve --checkpoint runs/demo_live/dialogue --capacity 16 --slots 4\n"
        "  unils serve --host 0.0.0.0 --token-file tokens.txt --tls-cert cert.pem --tls-key key.pem\n"
        "  unils serve --static site --server wss://faces.example.org"
    )
    defaults = ServeRequest
    parser.add_argument("--checkpoint", metavar="PATH", help="a dialogue, live or not (default: our live demo model)")
    add_encoder_argument(parser)
    parser.add_argument("--host", default=defaults.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=defaults.port, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--slots", type=int, metavar="S", help=f"streams a run decodes (default: {SLOTS} at most)")
    parser.add_argument("--dtype", default=defaults.dtype, choices=DTYPES, help="precision (default: %(default)s)")
    parser.add_argument(
        *_spellings("--token-file"), metavar="FILE", help="tokens, one a line, any of which lets a client in"
    )
    parser.add_argument(
        *_spellings("--allow-origin"), nargs="+", default=[], metavar="URL", help="sites whose pages may connect"
    )
    parser.add_argument("--insecure", action="store_true", help="serve other machines without a token")
    parser.add_argument(*_spellings("--tls-cert"), metavar="PEM", help="certificate")
    parser.add_argument(*_spellings("--tls-key"), metavar="PEM", help="its key, where it is apart")
    parser.add_argument("--static", metavar="DIR", help="write the page for another web server, and serve nothing")
    parser.add_argument("--server", metavar="URL", help="the server of that page, wss://HOST")
    limits = parser.add_argument_group("limits")
    for limit in fields(Limits):
        kind = type(limit.default)
        text = f"{HELP[limit.name]} (default: {limit.default:g})"
        limits.add_argument(f"--{limit.name}", type=kind, default=limit.default, metavar="N", help=text)
    parser.set_defaults(run=run)


def _spellings(flag: str) -> tuple[str, str]:
    """Returns a flag with - and with _, as those of the other commands have it."""
    return flag, f"--{flag[2:].replace('-', '_')}"


def run(args: argparse.Namespace) -> None:
    """Serves until it is stopped, or writes the page."""
    request = ServeRequest.from_args(args)
    limits = Limits(**{limit.name: getattr(args, limit.name) for limit in fields(Limits)})
    access = make_access(request.host, request.token_file, request.allow_origin, request.insecure)
    checkpoint = load(request.checkpoint or pretrained("live"), audio_encoder=request.audio_encoder, stage="dialogue")
    if request.static and request.server:
        names = write_page(request.static, checkpoint.expression_basis, request.server)
        print(f"{request.static}: {', '.join(names)}")
        return
    if not isinstance(checkpoint.model, UniLS):
        raise UserError(f"streams are of UniLS and ARTalk, {request.checkpoint} is of {checkpoint.system.title}")
    try:
        page = page_files(checkpoint.expression_basis)
    except UserError as error:
        log.warning("no page at /: %s", error)
        page = None
    program = _program(checkpoint, request.slots or min(limits.capacity, SLOTS), request.dtype)
    server = Server(
        program,
        checkpoint.expression_basis,
        sampling=checkpoint.sampling,
        access=access,
        limits=limits,
        port=request.port,
        page=page,
        tls=Tls(request.tls_cert, request.tls_key),
    )
    if not access.tokens and request.insecure:
        log.warning("--insecure: anyone who reaches %s:%d may open streams", request.host, server.port)
    shown_host = f"[{request.host}]" if ":" in request.host else request.host
    log.info("serving http%s://%s:%d", "s" if request.tls_cert else "", shown_host, server.port)
    server.run()


def _program(checkpoint: Checkpoint, slots: int, dtype: str) -> Program:
    # A model of one audio decodes one person.
    people = 2 if checkpoint.config.prior.audio_condition == "pair" else 1
    return make_program(checkpoint.model, slots=slots, people=people, dtype=dtype)


def _to_check_with(request: LoadRequest) -> dict[str, Any]:
    """Returns program and sampling of the server that is loaded."""
    checkpoint = load(request.checkpoint or pretrained("live"), stage="dialogue")
    slots = request.slots or min(request.capacity or request.clients, SLOTS)
    return {"program": _program(checkpoint, slots, "float32"), "sampling": checkpoint.sampling}


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils bench serve`."""
    defaults = LoadRequest
    parser.add_argument("--url", help="ws://HOST:PORT of a server (default: one is started here)")
    parser.add_argument("--checkpoint", metavar="PATH", help="of the server that is started (default: ours)")
    parser.add_argument("--slots", type=int, metavar="S", help="of the server (default: as `unils serve` chooses)")
    parser.add_argument("--capacity", type=int, metavar="N", help="of the server that is started (default: --clients)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="decode each stream's audio once more, alone, and compare every bit; with --url, --checkpoint and --slots "
        "must be the server's",
    )
    parser.add_argument("--token", help="of the server at --url")
    parser.add_argument("--json", metavar="FILE", help="write every figure to FILE")
    for name, kind, meaning in (
        ("clients", int, "clients at a time, two tracks each"),
        ("seconds", float, "of audio that each sends, in real time"),
        ("jitter_ms", float, "each message is sent up to so much late"),
        ("stall", float, "share of clients that pause for two seconds, once"),
        ("disconnect", float, "share of clients that vanish half way"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> None:
    """Loads a server and prints the table."""
    from unils_jax.benchmarks.timing import write_json  # noqa: PLC0415 - serving itself needs no benchmark

    request = LoadRequest.from_args(args)
    load_ = Load(
        clients=request.clients,
        seconds=request.seconds,
        jitter_s=request.jitter_ms / 1000,
        stall=request.stall,
        disconnect=request.disconnect,
        token=request.token,
        check=request.check,
    )
    started = Started(request.checkpoint, request.slots, request.capacity)
    result = run_load(load_, request.url, started, **(_to_check_with(request) if request.check else {}))
    print(table(result))
    if request.json:
        write_json(request.json, result)
        print(f"\n{request.json}: every figure")
