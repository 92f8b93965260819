"""What measuring costs, beside what people use now, on one machine in one run: `make bench`.

Each section returns a `Section` of rows; `__main__.py` runs them, prints each as a table and writes one JSON file and
one Markdown file. Times are only ever compared within a section, whose sides are run in turn.
"""
