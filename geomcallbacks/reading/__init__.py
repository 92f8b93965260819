"""Token rows in, hidden states out: what of a model is called, where it is read, and nothing left behind."""
