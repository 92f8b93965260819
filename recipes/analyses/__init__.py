"""Numbers and tables of `analysis.py`."""
