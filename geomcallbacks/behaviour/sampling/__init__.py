"""Completions drawn from a model, and how right and how various samples are."""
