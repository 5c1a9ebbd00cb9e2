"""Protocols and metrics, for checkpoints and for motion files of any origin."""
