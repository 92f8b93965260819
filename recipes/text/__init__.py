"""What the recipes train and test on: corpora, tokenizers, pairs, sums."""
