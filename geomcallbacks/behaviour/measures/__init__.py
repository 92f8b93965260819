"""A model in, numbers by name out: each class here is one measure, documented by its table of keys."""
