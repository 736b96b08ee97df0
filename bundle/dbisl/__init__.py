"""DBiSL: bidirectional dual-task learning for semi-supervised 3D segmentation, as a MONAI bundle (arXiv 2602.09378)."""

__version__ = "0.6.0"
