"""Overlap and surface distances of each case, and their report."""

from dbisl.metrics.mean import MeanOfDefined
from dbisl.metrics.report import CaseMetrics, MetricsReport, MetricSummary, format_table, summarise
from dbisl.metrics.surface import MaskMetrics, surface_metrics

__all__ = [
    "CaseMetrics",
    "MaskMetrics",
    "MeanOfDefined",
    "MetricSummary",
    "MetricsReport",
    "format_table",
    "summarise",
    "surface_metrics",
]
