"""Channel statistics that are computed in parts, anywhere, and merged in any order."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from unils_jax.errors import UserError
from unils_jax.motion import MOTION_DIM


@dataclass(frozen=True)
class ChannelStatistics:
    """Count, mean and sum of squared deviations of each of the 108 channels, in float64.

    Channels count apart, because frames of a source that lacks a channel say nothing about it.
    Merging follows Chan, Golub and LeVeque's pairwise update, so that the result does not depend on
    how frames were parted, but for rounding.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def zero(cls) -> "ChannelStatistics":
        """Returns the statistics of no frame at all."""
        return cls(np.zeros(MOTION_DIM, np.int64), np.zeros(MOTION_DIM), np.zeros(MOTION_DIM))

    def add(self, frames: np.ndarray, observed: np.ndarray | None = None) -> "ChannelStatistics":
        """Returns these with `frames [..., 108]` added, whose head rotation is already centred.

        Channels that are not `observed [108]` are left out; None: all are observed.
        """
        wide = frames.reshape(-1, MOTION_DIM).astype(np.float64)
        if not len(wide):
            return self
        count = np.full(MOTION_DIM, len(wide), np.int64)
        mean = wide.mean(axis=0)
        m2 = ((wide - mean) ** 2).sum(axis=0)
        if observed is not None:
            count, mean, m2 = (np.where(observed, values, 0) for values in (count, mean, m2))
        return self.merge(ChannelStatistics(count, mean, m2))

    def merge(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """Returns the statistics of both sets of frames together."""
        count = self.count + other.count
        total = np.maximum(count, 1)
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / total)
        m2 = self.m2 + other.m2 + difference**2 * (self.count * (other.count / total))
        return ChannelStatistics(count, mean, m2)

    def with_offsets(self, channels: slice, offsets: np.ndarray, frames: np.ndarray) -> "ChannelStatistics":
        """Adds an offset to each group of frames, all of mean zero so far, in these channels.

        `offsets [..., channels]` has one for each group, and `frames`, of the same shape, the
        number of frames of a group.
        """
        offsets, total = offsets.astype(np.float64), np.maximum(self.count[channels], 1)
        groups = tuple(range(offsets.ndim - 1))
        mean = (frames * offsets).sum(groups) / total
        m2 = (frames * (offsets - mean) ** 2).sum(groups)
        moved = ChannelStatistics(self.count, self.mean.copy(), self.m2.copy())
        moved.mean[channels] += mean
        moved.m2[channels] += m2
        return moved

    @property
    def std(self) -> np.ndarray:
        """The deviation per channel, dividing by the count; zero where no frame was counted."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))

    def normalisation(self, where: str) -> tuple[Float32[np.ndarray, "108"], Float32[np.ndarray, "108"]]:
        """Returns mean and standard deviation as a model keeps them.

        Raises UserError, naming `where` they come from, where no frame was counted.
        """
        if not self.count.any():
            raise UserError(f"{where}: no motion in the train split, so no statistics; train on another store")
        return self.mean.astype(np.float32), self.std.astype(np.float32)

    def to_json(self) -> dict[str, list]:
        """Returns plain lists; `from_json` reads them back exactly."""
        return {"count": self.count.tolist(), "mean": self.mean.tolist(), "m2": self.m2.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ChannelStatistics":
        """Reads what `to_json` returned.

        Raises UserError where the values are not three lists of 108 numbers.
        """
        try:
            arrays = [
                np.array(values[name], dtype) for name, dtype in (("count", np.int64), ("mean", float), ("m2", float))
            ]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"statistics are damaged ({type(error).__name__}: {error}); make the store again") from None
        if any(array.shape != (MOTION_DIM,) or not np.isfinite(array).all() for array in arrays):
            raise UserError(f"statistics must hold {MOTION_DIM} finite numbers each; make the store again")
        if min(arrays[0].min(), arrays[2].min()) < 0:
            raise UserError("statistics must have count and m2 of at least 0; make the store again")
        return cls(*arrays)
