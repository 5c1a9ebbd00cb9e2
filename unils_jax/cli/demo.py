"""`unils demo`: the whole story at laptop size, with the proof that each stage has learnt."""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.store.reader import Store
from data_pipelines.windows import whole_sequence
from unils_jax.audio import write_wav
from unils_jax.benchmarks import demo as steps
from unils_jax.cli.arguments import Request
from unils_jax.cli.data import SynthRequest, synth
from unils_jax.cli.decode import DecodeRequest, decode
from unils_jax.cli.evaluate import EvaluateRequest, evaluate
from unils_jax.cli.motion import ViewRequest, view
from unils_jax.errors import UserError
from unils_jax.files import atomic_output
from unils_jax.motion import FPS, SAMPLE_RATE, load_motion, save_motion
from unils_jax.outputs.page import page_script

log = logging.getLogger(__name__)

CONVERSATIONS, MINUTES = 120, 0.6
SHOWN_S = 20  # of the conversation that is decoded, filmed and made a page


@dataclass(frozen=True, kw_only=True)
class DemoRequest(Request):
    """The flags of `unils demo`."""

    out: str = "runs/demo"
    times: int | None = None  # factor on the smoke configs' steps; None: about three quarters
    # As of `unils data synth`. The built-in ones are the same on every machine, and need no bank.
    voices: str = "builtin"

    def __post_init__(self):
        if self.times is not None and self.times < 1:
            raise UserError(f"--times must be at least 1, got {self.times}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils demo`, with working examples."""
    parser.description = (
        "Makes synthetic conversations, trains ear, codec, prior and dialogue on them, proves on held-out "
        "conversations that each has learnt, decodes one and renders it. Minutes on two CPU cores; run again it "
        "continues."
    )
    parser.epilog = "example:\n  unils demo --out runs/demo\n  unils demo --out runs/longer --times 3"
    parser.add_argument("--out", default=DemoRequest.out, metavar="DIR", help="results folder (default: %(default)s)")
    parser.add_argument(
        "--times",
        type=int,
        metavar="N",
        help="train every stage N times as long as its smoke config says (default: three quarters, roughly)",
    )
    parser.add_argument(
        "--voices",
        choices=("auto", "builtin", "bank"),
        default=DemoRequest.voices,
        help="of the conversations, as `unils data synth` takes them (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs all phases. Exits with status 1 where a check fails: a broken build must not pass."""
    request = DemoRequest.from_args(args)
    out = Path(request.out)
    seconds: dict[str, float] = {}
    with phase("data", seconds):
        synth(
            SynthRequest(
                out=str(out / "data"),
                conversations=CONVERSATIONS,
                minutes=MINUTES,
                seed=steps.SEED,
                voices=request.voices,
            )
        )
    for stage in steps.STAGES:
        with phase(stage, seconds):
            steps.train(stage, out, request.times)
    with phase("checks", seconds):
        checks = steps.check_all(out)
    # From here on as a user would: the commands on the trained dialogue.
    with phase("evaluate", seconds):
        evaluate(
            EvaluateRequest(checkpoint=str(out / "dialogue"), data=str(out / "data"), out=str(out / "report.json"))
        )
    with phase("decode and render", seconds):
        decode_held_out(out)
        page = make_page(out)
        steps.plot_losses(out)
        steps.draw_stills(out)
    results = {"checks": [vars(check) for check in checks], "seconds": seconds}
    with atomic_output(out / "results.json") as partial:
        partial.write_text(json.dumps(results, indent=1))
    for check in checks:
        print(check.line())
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"time: {spent}; in all {sum(seconds.values()):.0f} s")
    files = f"conversation.mp4, {page}stills.png, motion.npz, loss_curves.png, report.html, results.json"
    print(f"{out}: {files}, and the workdirs of the four stages")
    if not all(check.passed for check in checks):
        raise SystemExit(1)


@contextmanager
def phase(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Logs a phase and notes how long it took."""
    log.info("--- %s", name)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def decode_held_out(out: Path) -> None:
    """Writes the first seconds of a test conversation's tracks as files, then decodes them."""
    audio = whole_sequence(Store(str(out / "data")).read("test", 0))["audio"][:, : SHOWN_S * SAMPLE_RATE]
    files = [str(out / f"speaker{person + 1}.wav") for person in range(2)]
    for path, track in zip(files, audio, strict=True):
        write_wav(path, track)
    decode(
        DecodeRequest(
            checkpoint=str(out / "dialogue"),
            audio=files[0],
            audio2=files[1],
            out=str(out / "motion.npz"),
            video=str(out / "conversation.mp4"),
        )
    )


def make_page(out: Path) -> str:
    """Makes conversation.html, the decode and the held-out truth.

    Returns its name for the list of files, "" where the page's script has not been built.
    """
    try:
        page_script()
    except UserError as error:
        log.info("no page: %s", error)
        return ""
    truth = whole_sequence(Store(str(out / "data")).read("test", 0))["motion"][:, : int(SHOWN_S * FPS)]
    basis = load_motion(out / "motion.npz").expression_basis
    save_motion(out / "truth.npz", truth, expression_basis=basis, source={"record": "test 0"})
    view(
        ViewRequest(
            motion=str(out / "motion.npz"),
            audio=str(out / "speaker1.wav"),
            audio2=str(out / "speaker2.wav"),
            truth=str(out / "truth.npz"),
            out=str(out / "conversation.html"),
            title="demo",
        )
    )
    return "conversation.html, "
