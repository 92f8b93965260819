"""The ∞-gram model of a text: an index of one's own tokens, a public one by API, and what either says of answers."""
