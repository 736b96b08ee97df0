"""Ignite handlers: all that a training or an evaluation does beside its iterations."""

from dbisl.handlers.checkpoints import Checkpoints
from dbisl.handlers.collapse_guard import CollapseGuard
from dbisl.handlers.mean_teacher import MeanTeacher
from dbisl.handlers.previews import Previews, draw_case
from dbisl.handlers.publish import ModelVersions
from dbisl.handlers.ramp import Ramp, RampUp

__all__ = [
    "Checkpoints",
    "CollapseGuard",
    "MeanTeacher",
    "ModelVersions",
    "Previews",
    "Ramp",
    "RampUp",
    "draw_case",
]
