"""Slots: the state of conversations under way, on the device, and one chunk for many at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.inference.program import Chunk, Program, StepInputs
from unils_jax.inference.sampling import Sampling, make_controls, written
from unils_jax.motion import MOTION_DIM, Window

Clip = Float[np.ndarray, "P F 108"]  # of the window's `context_frames`


@dataclass(frozen=True)
class Turn:
    """The next chunk of one conversation."""

    row: int  # the conversation's, see `Slots.admit`
    audio: np.ndarray | None  # both tracks [2, N] of the window's `num_samples`; None for a prior
    sampling: Sampling
    seed: int  # the conversation's
    index: int  # the chunk's number in the conversation, from 0


@dataclass(frozen=True)
class Rows:
    """Features of all conversations on the device, [rows, P, F, C] each."""

    style: Array
    prev: Array  # of the last decoded chunks
    uncond_prev: Array  # the same, in the unconditional branch


jax.tree_util.register_dataclass(Rows, ["style", "prev", "uncond_prev"], [])


class Slots:
    """Up to `capacity` conversations, which take turns in the slots of one program.

    There may be more of them than slots. A conversation keeps its row until it is released; the
    slot of a turn is its place in `decode`'s list.
    """

    def __init__(self, program: Program, capacity: int):
        self.program = program
        self.capacity = capacity
        self._free = list(range(capacity))[::-1]
        zero = program.constants.features
        # One row more, never written, is what unused slots decode.
        rows = jnp.broadcast_to(zero, (capacity + 1, program.people, *zero.shape))
        self._rows = Rows(*(jnp.array(rows) for _ in range(3)))
        self._zero = rows[0]

    def admit(self, style: Clip | None = None, prev: Clip | None = None, uncond_prev: Clip | None = None) -> int:
        """Gives a row to a conversation that begins; clips that are not given are zero motion."""
        row = self._free.pop()
        self.restart(row, prev, uncond_prev)
        self.set_style(row, style)
        return row

    def restart(self, row: int, prev: Clip | None = None, uncond_prev: Clip | None = None) -> None:
        """Sets the previous motion of the chunk that follows, as at the beginning."""
        prev, uncond_prev = self._features(prev), self._features(uncond_prev)
        self._rows = _write(self._rows, np.array([row]), prev=prev[None], uncond_prev=uncond_prev[None])

    def set_style(self, row: int, style: Clip | None) -> None:
        """Sets the style of the chunks that follow."""
        self._rows = _write(self._rows, np.array([row]), style=self._features(style)[None])

    def release(self, row: int) -> None:
        """Frees the row of a finished conversation."""
        self._free.append(row)

    def decode(self, turns: Sequence[Turn], audio_features: Array | None = None) -> Chunk:
        """Runs the program: turn i in slot i, unused slots on silence.

        The arrays stay on the device. `audio_features` is `Program.encode` of the turns' `window`,
        where the encoder has run already (None: it runs here).
        """
        padding = self.program.slots - len(turns)
        controls = make_controls(
            [turn.sampling for turn in turns] + [Sampling(tau=0.0)] * padding,
            [turn.seed for turn in turns] + [0] * padding,
            [turn.index for turn in turns] + [0] * padding,
            len(self.program.scales),
        )
        rows = np.array([turn.row for turn in turns] + [self.capacity] * padding)
        taken = _read(self._rows, rows)
        audio = self.window(turns) if audio_features is None else audio_features
        inputs = StepInputs(audio, taken.style, taken.prev, taken.uncond_prev, controls)
        chunk, next_prev = self.program.chunk(inputs)
        if self.program.mesh is not None:
            # Rows are copied to every device: a conversation's next turn may fall to another one.
            next_prev = jax.device_put(next_prev, NamedSharding(self.program.mesh, PartitionSpec()))
        # The unused slots' row is left as it is: a number beyond the last row is not written.
        written = np.where(rows < self.capacity, rows, self.capacity + 1)
        self._rows = _write(self._rows, written, prev=next_prev, uncond_prev=next_prev)
        return chunk

    def window(self, turns: Sequence[Turn]) -> np.ndarray | None:
        """Returns the turns' audio [S, 2, N], silence in unused slots; None for a prior."""
        if turns[0].audio is None:
            return None
        window = np.zeros((self.program.slots, 2, self.program.window.num_samples), np.float32)
        for slot, turn in enumerate(turns):
            window[slot] = turn.audio
        return window

    def _features(self, clip: Clip | None) -> Array:
        return self._zero if clip is None else self.program.features(np.asarray(clip, np.float32))


@jax.jit
def _read(rows: Rows, index: Array) -> Rows:
    return jax.tree.map(lambda x: x[index], rows)


@partial(jax.jit, donate_argnames="rows")
def _write(rows: Rows, index: Array, **values: Array) -> Rows:
    written = {name: getattr(rows, name).at[index].set(value, mode="drop") for name, value in values.items()}
    return Rows(**{"style": rows.style, "prev": rows.prev, "uncond_prev": rows.uncond_prev, **written})


def clip_of(name: str, clip: np.ndarray | None, people: int, window: Window) -> np.ndarray | None:
    """Returns a style or previous clip for each person; a clip of one serves all.

    Raises UserError for other shapes.
    """
    if clip is None:
        return None
    frames = window.context_frames
    if clip.shape[0] not in (1, people) or clip.shape[1:] != (frames, MOTION_DIM):
        raise UserError(f"{name} must be [1 or {people}, {frames}, {MOTION_DIM}], got {list(clip.shape)}")
    return np.broadcast_to(clip, (people, *clip.shape[1:])).astype(np.float32)


def check_sampling(program: Program, sampling: Sampling) -> None:
    """Raises UserError where a program lacks the unconditional branch or has other scales."""
    if problem := sampling.scales_problem(len(program.scales)):
        raise UserError(problem)
    if sampling.guided and not program.guided:
        raise UserError(f"cfg {written(sampling.cfg)} needs both branches; make the program with guided=True")
