"""Figures and one HTML page of runs, from their record files. matplotlib and jinja2 are imported late."""

from geomcallbacks.report.analysis import plot_analysis
from geomcallbacks.report.data import read_runs
from geomcallbacks.report.page import Figure
from geomcallbacks.report.run import Run, describe_phases
from geomcallbacks.report.writing import describe_report, write_report

__all__ = ["Figure", "Run", "describe_phases", "describe_report", "plot_analysis", "read_runs", "write_report"]
