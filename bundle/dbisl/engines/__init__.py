"""The workflows: semi-supervised training, inference over many scans, and how unsure a model is of a scan."""

from dbisl.engines.archive import ArchiveDataset, ArchiveEvaluator, check_options, pending_cases
from dbisl.engines.report import ArchiveReport, ScanResult
from dbisl.engines.trainer import SemiSupervisedTrainer
from dbisl.engines.uncertainty import ScanScores

__all__ = [
    "ArchiveDataset",
    "ArchiveEvaluator",
    "ArchiveReport",
    "ScanResult",
    "ScanScores",
    "SemiSupervisedTrainer",
    "check_options",
    "pending_cases",
]
