"""One run: when it measures, what that costs, what its file holds, and on what its processes agree."""
