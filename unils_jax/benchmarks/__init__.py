"""Throughput against a PyTorch reference, and the paper in miniature."""
