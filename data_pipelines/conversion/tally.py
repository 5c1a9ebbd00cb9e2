"""What checking a store counts: findings, ranges, histograms; in parts that are merged in order."""

from typing import Any

import numpy as np

from data_pipelines.conversion.alignment import LAGS
from data_pipelines.statistics import ChannelStatistics
from unils_jax.motion import MOTION_DIM

MAX_LISTED = 200
# Histograms: name -> the edges; what lies beyond falls into the outermost bins.
EDGES = {
    "expression": np.linspace(-5, 5, 101),
    "head": np.linspace(-1, 1, 101),
    "jaw": np.linspace(-0.2, 0.8, 101),
    "eyes": np.linspace(-1, 1, 101),
    "loudness_db": np.linspace(-80, 0, 81),
    "seconds": np.linspace(0, 600, 61),
    "speech_share": np.linspace(0, 1, 41),
    "offset_frames": np.arange(LAGS[0] - 0.5, LAGS[-1] + 1),
}
# What is added up where tallies are merged.
_SUMMED = (
    *("masked_frames", "speaking_frames", "together_frames", "dialogue_frames"),
    *("curve", "curve_frames", "aligned", "offsets"),
)


class Findings:
    """Problems or warnings: all are counted, the first `MAX_LISTED` are kept."""

    def __init__(self) -> None:
        self.count, self.first = 0, []

    def add(self, text: str) -> None:
        """Counts a finding, and keeps it among the first."""
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first.append(text)

    def merge(self, other: "Findings") -> None:
        """Adds findings that come after these."""
        self.count += other.count
        self.first += other.first[: MAX_LISTED - len(self.first)]

    def to_json(self) -> dict[str, Any]:
        """Returns the number of all and the first of them."""
        return {"count": self.count, "first": self.first}


class Tally:
    """All that is counted over the records."""

    def __init__(self) -> None:
        self.problems, self.warnings = Findings(), Findings()
        self.statistics = ChannelStatistics.zero()
        self.train = ChannelStatistics.zero()
        self.low = np.full(MOTION_DIM, np.inf)
        self.high = np.full(MOTION_DIM, -np.inf)
        self.counts = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in EDGES.items()}
        self.masked_frames = self.speaking_frames = self.together_frames = self.dialogue_frames = 0
        self.curve, self.curve_frames = np.zeros(len(LAGS)), 0
        self.aligned, self.offsets = 0, []  # people whose lag was measured; the lags that are clear

    def count(self, name: str, values: np.ndarray) -> None:
        """Adds values to a histogram."""
        edges = EDGES[name]
        low, bins_per_unit = float(edges[0]), (len(edges) - 1) / float(edges[-1] - edges[0])
        bins = (values.astype(np.float32) - low) * bins_per_unit
        places = np.clip(bins, 0, len(edges) - 2).astype(np.int64)  # all bins of a histogram are equally wide
        self.counts[name] += np.bincount(places.ravel(), minlength=len(edges) - 1)

    def merge(self, other: "Tally") -> None:
        """Adds what was counted elsewhere, in records that come after these."""
        self.problems.merge(other.problems)
        self.warnings.merge(other.warnings)
        self.statistics = self.statistics.merge(other.statistics)
        self.train = self.train.merge(other.train)
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        for name, counts in other.counts.items():
            self.counts[name] += counts
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
