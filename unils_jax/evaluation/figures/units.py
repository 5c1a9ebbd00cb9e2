"""What each figure is called, its unit, and the channels that it rests on."""

import numpy as np
from jaxtyping import Bool

from unils_jax.motion import GROUPS

_RADIANS = ("head", "jaw", "eyes")
_UNITS = {
    "LVE": "mm",
    "MHD": "mm",
    "FDD": "0.01 mm",
    "PDD": "0.01 rad",
    "JDD": "0.01 rad",
    "pose_fid": "rad^2",
    "sid": "bits",
    "sid_reversed": "bits",
    "blinks_per_minute": "1/min",
    "blink_duration_s": "s",
    "gaze_spectrum": "dB",
    "head_spectrum": "dB",
    "mouth_lag_s": "s",
    "head_offset": "rad",
    "jitter_expression": "1/s^3",
    **{f"jitter_{group}": "rad/s^3" for group in _RADIANS},
    **{f"spread_{part}{group}": "rad" for group in _RADIANS for part in ("", *(f"quarter{n}_" for n in range(1, 5)))},
}

# Groups of channels that figures rest on, where their names do not end in one.
_FACE, _MOUTH = {"expression", "jaw"}, {"jaw"}
_NEEDS = {
    **{name: _FACE for name in ("LVE", "MHD", "FDD", "bilabial_closure", "labiodental_closure")},
    **{name: _MOUTH for name in ("JDD", "mouth_shut_in_silence", "mouth_lag_s", "mouth_correlation")},
    **{name: _MOUTH for name in ("jaw_loudness", "jaw_shuffled_loudness", "jaw_to_true_jaw", "vowel_openness")},
    "jaw_spread_silence_over_speech": _MOUTH,
    **{name: {"head"} for name in ("PDD", "head_spectrum", "head_offset", "pose_fid")},
    **{name: {"expression"} for name in ("blinks_per_minute", "blink_duration_s", "expression_fid")},
    "gaze_spectrum": {"eyes"},
}


def unit(name: str) -> str:
    """Returns the unit of a figure by its path; "" for ratios, correlations and coefficients."""
    return next((_UNITS[part] for part in name.split("/")[::-1] if part in _UNITS), "")


def missing_groups(channel_mask: Bool[np.ndarray, "108"] | None) -> set[str]:
    """Returns the groups (expression, head, jaw, eyes) that have none of their channels."""
    if channel_mask is None:
        return set()
    return {group for group, channels in GROUPS.items() if not channel_mask[channels].any()}


def needed_groups(name: str) -> set[str]:
    """Returns the groups of channels that a figure rests on, by its path."""
    last = name.rpartition("/")[2]
    if last in _NEEDS:
        return _NEEDS[last]
    return {group for group in GROUPS if last == group or last.endswith(f"_{group}")}
