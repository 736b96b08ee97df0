"""MONAI dictionary transforms: the regression's target, what becomes of a prediction, and its files."""

from dbisl.transforms.postprocessing import (
    Entropyd,
    FuseTasksd,
    IgnoreToBackgroundd,
    InvertArgmaxd,
    KeepLargestComponentd,
)
from dbisl.transforms.spacing import SpacingOfImagesd
from dbisl.transforms.targets import SignedDistanceMapd
from dbisl.transforms.writers import SaveMapsd, ScanLayout, WholeNibabelWriter

__all__ = [
    "Entropyd",
    "FuseTasksd",
    "IgnoreToBackgroundd",
    "InvertArgmaxd",
    "KeepLargestComponentd",
    "SaveMapsd",
    "ScanLayout",
    "SignedDistanceMapd",
    "SpacingOfImagesd",
    "WholeNibabelWriter",
]
