"""Layers that every model of the project shares."""
