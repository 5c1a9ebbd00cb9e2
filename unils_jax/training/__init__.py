"""Training: optimiser, step, checkpoints, loop."""
