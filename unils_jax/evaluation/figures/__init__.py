"""Figures of a face that are judged by its voice, and what all figures are called."""
