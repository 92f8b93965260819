"""Figures and one HTML page of runs, from their record files. matplotlib and jinja2 are imported late."""

from geomcallbacks.report.analysis import plot_analysis
from geomcallbacks.report.data import Run, read_runs, turning_points
from geomcallbacks.report.single import plot_run, summary
from geomcallbacks.report.writing import Figure, describe_report, write_report

__all__ = [
    "Figure",
    "Run",
    "describe_report",
    "plot_analysis",
    "plot_run",
    "read_runs",
    "summary",
    "turning_points",
    "write_report",
]
