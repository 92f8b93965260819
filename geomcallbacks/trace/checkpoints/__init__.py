"""Checkpoints: which there are, in which order they stand on a curve, and how one is loaded."""
