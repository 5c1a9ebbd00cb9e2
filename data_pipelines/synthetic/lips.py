"""Lip targets in time: painted one after another, led before the sound, blended with neighbours."""

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter1d

LIPS = ("open", "round", "spread", "close", "teeth")


class LipTargets:
    """The five latents of lips and jaw over a time grid, as targets and how firmly each holds.

    Silence holds the lips together as firmly as a vowel holds its own.
    """

    def __init__(self, num_points: int, points_per_s: int, lead_s: float):
        self._points_per_s, self._lead_s = points_per_s, lead_s
        self._targets = {name: np.zeros(num_points) for name in LIPS}
        self._holds = {name: np.ones(num_points) for name in LIPS}

    def paint(self, start_s: float, end_s: float, values: Mapping[str, tuple[float, float]]) -> None:
        """Sets `(target, hold)` of latents from `start_s` to `end_s` of the sound."""
        first, last = (max(0, round((t - self._lead_s) * self._points_per_s)) for t in (start_s, end_s))
        for name, (target, hold) in values.items():
            self._targets[name][first:last] = target * hold
            self._holds[name][first:last] = hold

    def blended(self, coarticulation_s: float) -> dict[str, np.ndarray]:
        """Returns each latent as the mean of neighbouring targets.

        A target weighs by how firmly it holds and how near in time it is (after Cohen and Massaro's
        dominance model).
        """
        # The width of the Gaussian at half its height is the time over which targets blend.
        sigma = coarticulation_s / 2.355 * self._points_per_s
        groups = (self._targets, self._holds)
        targets, holds = ({name: gaussian_filter1d(track, sigma) for name, track in g.items()} for g in groups)
        return {name: targets[name] / holds[name] for name in LIPS}
