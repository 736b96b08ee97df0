"""Ignite handlers: everything that a training or an evaluation does around its iterations."""

from dbisl.handlers.checkpoints import Checkpoints
from dbisl.handlers.collapse_guard import CollapseGuard
from dbisl.handlers.epoch_line import EpochLine
from dbisl.handlers.finite import FiniteCheck, NotFiniteError
from dbisl.handlers.mean_teacher import MeanTeacher
from dbisl.handlers.monitor import Monitor
from dbisl.handlers.previews import Previews
from dbisl.handlers.progress import Progress
from dbisl.handlers.publish import ModelVersions, PublishModel, make_record
from dbisl.handlers.ramp import Ramp, RampUp
from dbisl.handlers.slices import CaseSlice, cut_slice, draw_slice
from dbisl.handlers.training_scans import warn_of_training_scans
from dbisl.handlers.weights_loader import WeightsLoader

__all__ = [
    "CaseSlice",
    "Checkpoints",
    "CollapseGuard",
    "EpochLine",
    "FiniteCheck",
    "MeanTeacher",
    "ModelVersions",
    "Monitor",
    "NotFiniteError",
    "Previews",
    "Progress",
    "PublishModel",
    "Ramp",
    "RampUp",
    "WeightsLoader",
    "cut_slice",
    "draw_slice",
    "make_record",
    "warn_of_training_scans",
]
