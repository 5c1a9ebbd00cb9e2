"""An experiment on a finished miniature: how much a system's own history costs it.

Each system decodes after its own motion, after its own without guidance and top-p, and after the
true motion before every chunk.

A minute a system on a core, seed 0:

    python -m unils_jax.benchmarks.miniature.history runs/miniature unils no_prior
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.store.reader import Store
from unils_jax.benchmarks.miniature.motions import held_out
from unils_jax.benchmarks.miniature.plan import Job, Plan
from unils_jax.benchmarks.miniature.scores import PROTOCOL, score
from unils_jax.checkpoints.loading import load
from unils_jax.evaluation.metrics import mesh_of
from unils_jax.evaluation.protocols import Conversation, conversation_of
from unils_jax.face.standin import standin_asset
from unils_jax.inference.conversations import Request, Sampling, decode_many, make_program
from unils_jax.motion import SAMPLES_PER_FRAME, WINDOW_FRAMES

FIGURES = ("unils/speaking/LVE", "unils/listening/FDD", "fid/both/expression_fid")
CHUNK_SAMPLES = WINDOW_FRAMES * SAMPLES_PER_FRAME
SAMPLING = Sampling(PROTOCOL.tau, PROTOCOL.cfg, PROTOCOL.top_p)


def on_their_own(conversations: Sequence[Conversation]) -> list[list[Request]]:
    """Makes one request a conversation, as it is scored everywhere."""
    return [
        [Request(*c.audio, c.style, sampling=SAMPLING, seed=PROTOCOL.seed, name=f"{i} 0")]
        for i, c in enumerate(conversations)
    ]


def as_they_are(conversations: Sequence[Conversation]) -> list[list[Request]]:
    """Makes the requests of `on_their_own` without guidance and top-p."""
    plain = Sampling(PROTOCOL.tau, cfg=1.0, top_p=1.0)
    return [[replace(request, sampling=plain) for request in of] for of in on_their_own(conversations)]


def after_the_truth(conversations: Sequence[Conversation]) -> list[list[Request]]:
    """Makes one request a chunk, each after the true motion; the first has none before it."""

    def chunk(i: int, c: Conversation, k: int) -> Request:
        audio = c.audio[:, k * CHUNK_SAMPLES : (k + 1) * CHUNK_SAMPLES]
        before = c.motion[:, (k - 1) * WINDOW_FRAMES : k * WINDOW_FRAMES] if k else None
        return Request(*audio, c.style, before, SAMPLING, PROTOCOL.seed + k, name=f"{i} {k}")

    return [[chunk(i, c, k) for k in range(c.motion.shape[1] // WINDOW_FRAMES)] for i, c in enumerate(conversations)]


def main(folder: Path, *systems: str) -> None:
    """Prints the mean figures of every system, decoded in all three ways."""
    plan = Plan(**json.loads((folder / "plan.json").read_text()))
    mean, std = Store(folder / "paired").statistics()
    for system in systems:
        job = Job("move", system, 0, str(folder), plan, 1)
        records = held_out(job)
        conversations = [conversation_of(record, PROTOCOL) for record in records]
        program = make_program(load(job.workdir(system)).model, people=2)
        for requests_of in (on_their_own, as_they_are, after_the_truth):
            chunks = requests_of(conversations)
            decoded = {request.name: motion for request, motion in decode_many(program, sum(chunks, []))}
            motions = [[np.concatenate([decoded[request.name] for request in of], axis=1)] for of in chunks]
            metrics = score(records, motions, mesh_of(standin_asset()), mean, std)["metrics"]
            figures = ", ".join(f"{name} {metrics[name]['mean']:.2f}" for name in FIGURES)
            print(f"{system} {requests_of.__name__}: {figures}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
