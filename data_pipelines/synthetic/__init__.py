"""Synthetic conversations of known truth."""
