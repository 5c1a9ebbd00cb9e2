"""What a line of the log says: how far a run is, its losses and rates, and the time left."""

import pytest

from unils_jax.training.metrics import duration, step_line

RATES = {"steps_per_s": 2.5, "frames_per_s": 1000.0, "data_wait_share": 0.25, "flops_utilisation": 0.4}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (99.0, "99 s"),
        (150.0, "2 min"),
        (3590.0, "1 h 0 min"),
        (11_000.0, "3 h 3 min"),
        (360_000.0, "4 d 4 h"),
    ],
)
def test_a_time_is_shown_in_its_largest_units(seconds, text):
    assert duration(seconds) == text


def test_a_line_says_the_total_the_share_and_the_time_left():
    assert step_line("codec", 5000, 20_000, 0.12345, 0.2, RATES) == (
        "codec step 5,000 of 20,000 (25%), loss 0.1235, val loss 0.2000, 2.5 steps/s (1,000 frames/s), "
        "25% waiting for data, 40.0% of the matrix peak, about 1 h 40 min left"
    )


def test_a_line_leaves_out_what_is_unknown():
    assert step_line("codec", 1, 20_000, 1.0, None, {}) == "codec step 1 of 20,000 (0%), loss 1.0000"
    assert "left" not in step_line("codec", 20_000, 20_000, 1.0, None, RATES)
