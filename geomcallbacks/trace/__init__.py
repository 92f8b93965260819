"""The callbacks' measurement over saved checkpoints: `geomcallbacks trace`, and `trace` for Python."""

from geomcallbacks.trace.checkpoints.loading import Reading
from geomcallbacks.trace.probe_source import ProbeSource
from geomcallbacks.trace.tracer import Summary, trace

__all__ = ["ProbeSource", "Reading", "Summary", "trace"]
