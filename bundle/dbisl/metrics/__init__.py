"""Overlap and surface distances of each case, and their report."""

from dbisl.metrics.dice import ForegroundDice, dice_by_class
from dbisl.metrics.mean import MeanOfDefined
from dbisl.metrics.report import METRICS, CaseMetrics, MetricsReport, MetricSummary, format_table, summarise
from dbisl.metrics.surface import OUTCOMES, MaskMetrics, surface_metrics

__all__ = [
    "METRICS",
    "OUTCOMES",
    "CaseMetrics",
    "ForegroundDice",
    "MaskMetrics",
    "MeanOfDefined",
    "MetricSummary",
    "MetricsReport",
    "dice_by_class",
    "format_table",
    "summarise",
    "surface_metrics",
]
