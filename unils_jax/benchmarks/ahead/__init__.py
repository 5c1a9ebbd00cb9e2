"""Compiles programs for accelerators that are not there, and reads what came out."""
