"""The motion of every system of `unils miniature` in the conversations that are scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unils_jax.benchmarks.miniature.plan import MINUTES, SEED, SYSTEMS, Job


def held_out(job: Job) -> list[Any]:
    """The conversations to score."""
    from data_pipelines.store.reader import Store

    store = Store(Path(job.out) / "paired")
    return [store.read("test", i) for i in range(len(store.lengths("test")))]


def move(job: Job) -> None:
    """The motion of both people in every conversation to score, float16 [records, 2, T, 108]."""
    import numpy as np

    from unils_jax.files import atomic_output

    make = {
        "decode": decoded,
        "respond": responses,
        "respond_to_unils": responses,
        "respond_to_nobody": responses,
        "mean": mean_faces,
        "retake": retakes,
        "recode": recoded,
    }[SYSTEMS[job.name].motion]
    motion = np.stack(make(job, held_out(job))).astype(np.float16)
    with atomic_output(job.done) as partial_file, partial_file.open("wb") as file:
        np.savez(file, motion=motion)


def decoded(job: Job, records: Sequence[Any]) -> list[Any]:
    """A dialogue's."""
    from unils_jax.benchmarks.miniature.scores import PROTOCOL
    from unils_jax.checkpoints.loading import load
    from unils_jax.evaluation.protocols import conversation_of
    from unils_jax.inference.conversations import Request, Sampling, decode_many, make_program

    model = load(job.workdir(SYSTEMS[job.name].run)).model
    sampling, seed = Sampling(PROTOCOL.tau, PROTOCOL.cfg, PROTOCOL.top_p), PROTOCOL.seed + job.seed
    requests = []
    for i, record in enumerate(records):
        conversation = conversation_of(record, PROTOCOL)
        requests.append(Request(*conversation.audio, conversation.style, sampling=sampling, seed=seed, name=str(i)))
    motions = {int(request.name): motion for request, motion in decode_many(make_program(model, people=2), requests)}
    return [motions[i] for i in range(len(records))]


def responses(job: Job, records: Sequence[Any]) -> list[Any]:
    """DualTalk's, to the partner's true motion, to UniLS', or to none. What it lacks stands at the training mean."""
    import numpy as np

    from data_pipelines.store.reader import Store
    from data_pipelines.windows import whole_sequence
    from unils_jax.checkpoints.loading import load
    from unils_jax.motion import dualtalk_channels, from_dualtalk
    from unils_jax.systems.dualtalk.system import respond

    kind, model = SYSTEMS[job.name].motion, load(job.workdir("dualtalk")).model
    mean, _ = Store(Path(job.out) / "paired").statistics()
    lacking = mean - from_dualtalk(dualtalk_channels(mean[None]))[0]
    seen = None
    if kind == "respond_to_unils":
        seen = np.load(job.motion("unils"))["motion"].astype(np.float32)
    motions = []
    for i, record in enumerate(records):
        audio, partner = whole_sequence(record)["audio"], record.motion if seen is None else seen[i]
        partner = np.zeros_like(partner) if kind == "respond_to_nobody" else partner
        both = [respond(model, audio[p], audio[1 - p], partner[1 - p]) for p in range(2)]
        motions.append(np.stack(both) + lacking)
    return motions


def mean_faces(job: Job, records: Sequence[Any]) -> list[Any]:
    """Nobody ever moves."""
    import numpy as np

    from data_pipelines.store.reader import Store

    mean, _ = Store(Path(job.out) / "paired").statistics()
    return [np.broadcast_to(mean, record.motion.shape) for record in records]


def retakes(job: Job, records: Sequence[Any]) -> list[Any]:
    """The same words by the same people, their faces moved anew."""
    from data_pipelines.synthetic.conversation import SynthConfig
    from data_pipelines.synthetic.dataset import make_conversation, splits, who_meets

    config = SynthConfig(minutes=MINUTES)
    numbers = splits(job.plan.conversations)["test"]
    meetings = zip(numbers, who_meets(numbers, config.meetings_per_person), strict=True)
    takes = [make_conversation(config, SEED, number, people, take=1) for number, people in meetings]
    by_name = {take.name: take.motion for take in takes}
    return [by_name[record.name] for record in records]


def recoded(job: Job, records: Sequence[Any]) -> list[Any]:
    """The truth through a codec: what no generator on it can surpass."""
    import jax.numpy as jnp
    import numpy as np

    from unils_jax.checkpoints.loading import load
    from unils_jax.motion import center_head

    codec = load(job.workdir(SYSTEMS[job.name].run)).model.codec
    return [np.asarray(codec.reconstruct(jnp.asarray(center_head(r.motion), jnp.float32))) for r in records]
