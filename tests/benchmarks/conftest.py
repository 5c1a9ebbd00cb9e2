"""PyTorch on one core, for benches against the reference."""

import pytest


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")
    torch.set_num_threads(1)
    return torch
