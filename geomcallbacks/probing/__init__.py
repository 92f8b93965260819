"""Text in, token rows out: which texts make a probe, and which of their positions are read."""
