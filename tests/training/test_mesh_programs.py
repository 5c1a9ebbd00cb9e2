"""Compiled programs on eight simulated devices: every device does its own part, and activations stay where they are."""

import pytest
from mesh_programs import NUM_DEVICES, found_by


@pytest.mark.slow
def test_every_device_computes_its_own_part_of_the_positional_convolution():
    found = found_by("convolution")
    assert found["error"] <= 2e-6 and found["gradient_error"] <= 5e-6, found
    assert found["flops"] <= 1.2 * found["flops_of_one_device"] / NUM_DEVICES, found


@pytest.mark.slow
def test_the_dialogue_gathers_parameters_alone_and_exchanges_no_activations():
    found = found_by("dialogue")
    assert found["gathered"] and found["all_to_all"] == 0, found
    assert not [shape for shape in found["gathered"] if shape not in found["parameters"]], found
