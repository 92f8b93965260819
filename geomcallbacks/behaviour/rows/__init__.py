"""Text in, token rows out: what the measures of behaviour are taken on."""
