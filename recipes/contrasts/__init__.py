"""From the folders of many stages to the verdicts, the table and the figure of `contrast.py`."""
