"""Ignite handlers: everything that a training or an evaluation does around its iterations."""

from dbisl.handlers.checkpoints import Checkpoints
from dbisl.handlers.collapse_guard import CollapseGuard
from dbisl.handlers.finite import FiniteCheck, NotFiniteError
from dbisl.handlers.mean_teacher import MeanTeacher
from dbisl.handlers.monitor import Monitor
from dbisl.handlers.previews import Previews, draw_case
from dbisl.handlers.publish import ModelVersions, PublishModel
from dbisl.handlers.ramp import Ramp, RampUp

__all__ = [
    "Checkpoints",
    "CollapseGuard",
    "FiniteCheck",
    "MeanTeacher",
    "ModelVersions",
    "Monitor",
    "NotFiniteError",
    "Previews",
    "PublishModel",
    "Ramp",
    "RampUp",
    "draw_case",
]
