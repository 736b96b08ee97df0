"""Let MONAI Label import torchvision beside a PyTorch without CUDA. Python runs this file when it starts.

The public torchvision is built for CUDA. Beside another PyTorch its compiled part does not load, and its import fails
when it registers the shapes of two operators. Nothing here calls these operators: declaring them is enough.
"""

import importlib.metadata

if "+cpu" in importlib.metadata.version("torch"):
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
