"""Pickles of untrusted files, read without running them: plain data, NumPy arrays, .pt files."""
