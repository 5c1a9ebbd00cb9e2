"""`unils demo` and `unils miniature`: everything from data to figures at laptop size.

The demo proves that each stage has learnt; the miniature compares what the paper compares.
"""

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
from unils_jax.benchmarks.miniature.plan import RUNS, Plan, config_file
from unils_jax.benchmarks.miniature.run import run as run_plan
from unils_jax.cli.arguments import Request
from unils_jax.cli.data import SynthRequest, chosen_bank, synth
from unils_jax.cli.decode import DecodeRequest, decode
from unils_jax.cli.evaluate import EvaluateRequest, evaluate
from unils_jax.cli.motion import ViewRequest, view
from unils_jax.errors import UserError
from unils_jax.files import check_output, write_text
from unils_jax.motion import FPS, SAMPLE_RATE, load_motion, save_motion
from unils_jax.outputs.page import page_script

log = logging.getLogger(__name__)

CONVERSATIONS, MINUTES = 120, 0.6
SHOWN_S = 20  # of the conversation that is decoded, filmed and made a page


@dataclass(frozen=True, kw_only=True)
class DemoRequest(Request):
    """The flags of `unils demo`."""

    out: str | None = None  # results folder; None: runs/demo, or runs/demo_live with --live
    live: bool = False  # windows of 0.4 s
    times: int | None = None  # factor on the smoke configs' steps; None: about three quarters
    # As of `unils data synth`. The built-in ones are the same on every machine, and need no bank.
    voices: str = "builtin"

    def __post_init__(self):
        if self.times is not None and self.times < 1:
            raise UserError(f"--times must be at least 1, got {self.times}")

    @property
    def folder(self) -> Path:
        """The results folder."""
        return Path(self.out or ("runs/demo_live" if self.live else "runs/demo"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils demo`, with working examples."""
    parser.description = (
        "Makes synthetic conversations, trains ear, codec, prior and dialogue on them, proves on held-out "
        "conversations that each has learnt, decodes one and renders it. Minutes on two CPU cores; run again it "
        "continues."
    )
    parser.epilog = (
        "example:\n  unils demo --out runs/demo\n  unils demo --live\n  unils demo --out runs/longer --times 3"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="results folder (default: runs/demo, or runs/demo_live with --live)"
    )
    parser.add_argument(
        "--live", action="store_true", help="train windows of 0.4 s, which answer while one still speaks"
    )
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
    out = request.folder
    results_file = check_output(out / "results.json")
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
            steps.train(stage, out, request.times, live=request.live)
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
    write_text(results_file, json.dumps(results, indent=1))
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


@dataclass(frozen=True, kw_only=True)
class MiniatureRequest(Request):
    """The flags of `unils miniature`."""

    out: str = "runs/miniature"
    conversations: int = 200
    seeds: int = 3  # trainings of each system
    times: float = 1.0  # factor on the steps of every training
    configs: str | None = None  # folder of other configs; None: ours
    jobs: int | None = None  # trainings at a time; None: a core each, at most 6
    voices: str = "auto"  # as of `unils data synth`

    def __post_init__(self):
        problems = []
        if self.conversations < 20:
            problems.append(f"--conversations must be at least 20, got {self.conversations}")
        if self.seeds < 1:
            problems.append(f"--seeds must be at least 1, got {self.seeds}")
        if not 0 < self.times < 1000:
            problems.append(f"--times must be above 0 and below 1000, got {self.times}")
        if self.jobs is not None and self.jobs < 1:
            problems.append(f"--jobs must be at least 1, got {self.jobs}")
        if self.configs is not None:
            files = [config_file(self.configs, name) for name in sorted({run.config for run in RUNS.values()})]
            if missing := [file.stem for file in files if not file.exists()]:
                problems.append(f"--configs {self.configs} lacks {', '.join(missing)}")
        if problems:
            raise UserError("; ".join(problems))

    def plan(self, voices: str) -> Plan:
        """Returns what is compared: as many people alone as the conversations have people."""
        configs = "" if self.configs is None else str(Path(self.configs).absolute())
        return Plan(self.conversations, 2 * self.conversations, self.seeds, self.times, configs, voices)


def add_miniature_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils miniature`, with a working example."""
    parser.description = (
        "Trains UniLS, three of its ablations and two other systems on synthetic conversations, each with the same "
        "budget and three seeds, and scores them with a frozen face and another take of the truth on people nobody "
        "has seen: a table with intervals beside the paper's rows, what of the paper's order holds, and a picture. "
        "Within an hour on two CPU cores; run again it continues."
    )
    parser.epilog = "example:\n  unils miniature --out runs/miniature"
    defaults = MiniatureRequest
    parser.add_argument("--out", default=defaults.out, metavar="DIR", help="results folder (default: %(default)s)")
    parser.add_argument(
        "--conversations",
        type=int,
        default=defaults.conversations,
        metavar="N",
        help="a tenth is scored (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=defaults.seeds, metavar="N", help="trainings of each (default: %(default)s)"
    )
    parser.add_argument(
        "--times", type=float, default=defaults.times, metavar="X", help="train X times as long (default: %(default)s)"
    )
    parser.add_argument("--configs", metavar="DIR", help="other miniature configs, as for larger models")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: a core each, at most 6)")
    parser.add_argument(
        "--voices",
        choices=("auto", "builtin", "bank"),
        default=defaults.voices,
        help="of the conversations, as `unils data synth` takes them (default: %(default)s)",
    )
    parser.set_defaults(run=run_miniature)


def run_miniature(args: argparse.Namespace) -> None:
    """Does all work that is not done yet and prints the table."""
    request = MiniatureRequest.from_args(args)
    bank = chosen_bank(request.voices)
    plan = request.plan("builtin" if bank is None else "bank")
    print(run_plan(Path(request.out), plan, request.jobs, bank))
