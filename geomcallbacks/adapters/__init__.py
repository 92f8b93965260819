"""Hooks, steps and trackers of the training frameworks. Nothing outside this room imports one before it is used."""
