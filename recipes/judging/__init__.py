"""What a trained model is held against: rewards, cloze questions, n-grams."""
