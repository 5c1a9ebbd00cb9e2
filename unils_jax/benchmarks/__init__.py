"""Throughput beside a PyTorch reference, and the paper in miniature."""
