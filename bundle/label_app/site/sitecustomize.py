"""Read by Python when it starts: lets MONAI Label import torchvision beside a PyTorch without CUDA.

The torchvision of the public index is built for CUDA. Beside another PyTorch its compiled part does not load, and it
fails where it registers the shapes of two operators that nothing here calls. Declaring these is enough.
"""

import importlib.metadata

if "+cpu" in importlib.metadata.version("torch"):
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
