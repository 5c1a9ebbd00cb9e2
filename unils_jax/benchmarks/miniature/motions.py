"""The motion of every system of the miniature in the conversations that are scored."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from data_pipelines.record import Record
from data_pipelines.store.reader import Store
from data_pipelines.synthetic.bank.bank import Bank
from data_pipelines.synthetic.bank.talk import Cast
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation, splits, who_meets
from data_pipelines.windows import whole_sequence
from unils_jax.benchmarks.miniature.plan import MINUTES, SEED, SYSTEMS, Job
from unils_jax.benchmarks.miniature.scores import PROTOCOL
from unils_jax.checkpoints.loading import load
from unils_jax.evaluation.protocols import conversation_of
from unils_jax.files import atomic_output
from unils_jax.inference.conversations import Request, Sampling, decode_many, make_program
from unils_jax.motion import center_head, from_56_channels, to_56_channels
from unils_jax.systems.base import Inputs, Options

Motions = list[Float[np.ndarray, "2 T 108"]]  # of each record to score, in order


def held_out(job: Job) -> list[Record]:
    """Reads the conversations to score."""
    store = Store(Path(job.out) / "paired")
    return [store.read("test", i) for i in range(len(store.lengths("test")))]


def move(job: Job) -> None:
    """Writes a system's motion of both people in every record, float16 [records, 2, T, 108]."""
    make = MAKERS[SYSTEMS[job.name].motion]
    motion = np.stack(make(job, held_out(job))).astype(np.float16)
    with atomic_output(job.done) as partial_file, partial_file.open("wb") as file:
        np.savez(file, motion=motion)


def decoded(job: Job, records: Sequence[Record]) -> Motions:
    """Decodes a dialogue from both tracks."""
    model = load(job.workdir(SYSTEMS[job.name].run)).model
    sampling, seed = Sampling(PROTOCOL.tau, PROTOCOL.cfg, PROTOCOL.top_p), PROTOCOL.seed + job.seed
    requests = []
    for i, record in enumerate(records):
        conversation = conversation_of(record, PROTOCOL)
        requests.append(Request(*conversation.audio, conversation.style, sampling=sampling, seed=seed, name=str(i)))
    motions = {int(request.name): motion for request, motion in decode_many(make_program(model, people=2), requests)}
    return [motions[i] for i in range(len(records))]


def responses_to_truth(job: Job, records: Sequence[Record]) -> Motions:
    """Responds to the partner's true motion."""
    return _responses(job, records, [record.motion for record in records])


def responses_to_unils(job: Job, records: Sequence[Record]) -> Motions:
    """Responds to the partner's motion as UniLS decodes it."""
    return _responses(job, records, np.load(job.motion("unils"))["motion"].astype(np.float32))


def responses_to_nobody(job: Job, records: Sequence[Record]) -> Motions:
    """Responds to a partner who does not move."""
    return _responses(job, records, [np.zeros_like(record.motion) for record in records])


def _responses(job: Job, records: Sequence[Record], partners: Sequence[Float[np.ndarray, "2 T 108"]]) -> Motions:
    """Responds to the partners' motion. Channels that the system lacks are at the training mean."""
    checkpoint = load(job.workdir(SYSTEMS[job.name].run))
    generate = checkpoint.system.generate
    mean, _ = Store(Path(job.out) / "paired").statistics()
    lacking = mean - from_56_channels(to_56_channels(mean[None]))[0]
    motions = []
    for record, partner in zip(records, partners, strict=True):
        inputs = Inputs(*whole_sequence(record)["audio"], other_motion=partner)
        motions.append(generate(checkpoint.model, inputs, Options(people=2)).values + lacking)
    return motions


def mean_faces(job: Job, records: Sequence[Record]) -> Motions:
    """Freezes every face at the training mean."""
    mean, _ = Store(Path(job.out) / "paired").statistics()
    return [np.broadcast_to(mean, record.motion.shape) for record in records]


def retakes(job: Job, records: Sequence[Record]) -> Motions:
    """Makes the same words by the same people once more, with faces that move anew."""
    config = SynthConfig(minutes=MINUTES)
    numbers = splits(job.plan.conversations)["test"]
    meetings = zip(numbers, who_meets(numbers, config.meetings_per_person), strict=True)
    cast = Cast(Bank(), "test", SEED) if job.plan.voices == "bank" else None
    takes = [make_conversation(config, SEED, number, people, take=1, cast=cast) for number, people in meetings]
    by_name = {take.name: take.motion for take in takes}
    return [by_name[record.name] for record in records]


def recoded(job: Job, records: Sequence[Record]) -> Motions:
    """Reconstructs the truth by a codec, which no generator on that codec can surpass."""
    codec = load(job.workdir(SYSTEMS[job.name].run)).model.codec
    return [np.asarray(codec.reconstruct(jnp.asarray(center_head(r.motion), jnp.float32))) for r in records]


MAKERS: dict[str, Callable[[Job, Sequence[Record]], Motions]] = {
    "decode": decoded,
    "respond": responses_to_truth,
    "respond_to_unils": responses_to_unils,
    "respond_to_nobody": responses_to_nobody,
    "mean": mean_faces,
    "retake": retakes,
    "recode": recoded,
}
