"""Hidden states in, numbers out: moments, eigenvalues, metrics with their reasons and intervals."""
