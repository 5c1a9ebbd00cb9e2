"""The paper's comparison on synthetic conversations."""
