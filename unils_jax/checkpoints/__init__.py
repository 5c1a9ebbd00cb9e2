"""Weights of any origin in, weights in any layout out."""
