"""The semi-supervised training workflow, as a MONAI ``SupervisedTrainer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from dbisl.bridge import DualTaskOutput
from dbisl.data.copy_paste import CopyPaste
from dbisl.data.partial_labels import IGNORE_LABEL
from dbisl.losses import DBiSLLoss


@dataclass(frozen=True)
class _Batch:
    """Both streams on the training device, as plain tensors.

    Attributes:
        images: labeled patches, then unlabeled ones, ``(B_l + B_u) x C x *spatial``.
        label: class indices, ``B_l x 1 x *spatial``; background where nothing was annotated.
        sdm: exact SDM of the labels, ``B_l x K x *spatial``; None where the loader has none.
        valid_mask: which voxels were annotated, ``B_l x 1 x *spatial``; None where all were.
        teacher_images: the teacher's view of the unlabeled patches, ``B_u x C x *spatial``; None while no pseudo-labels
            are needed.
    """

    images: torch.Tensor
    label: torch.Tensor
    sdm: torch.Tensor | None
    valid_mask: torch.Tensor | None
    teacher_images: torch.Tensor | None


class SemiSupervisedTrainer(SupervisedTrainer):
    """Trains on a labeled and an unlabeled stream, with one forward pass and one loss over both.

    The loader gives ``{"labeled": {image, label, sdm}, "unlabeled": {image, weak_image}}``
    (:class:`dbisl.data.TwoStreamLoader`), each with a ``case``, the names of its scans; either stream may be missing.

    ``engine.state.output`` holds the ``image`` and ``label`` of the labeled part and their ``valid_mask`` (or None),
    ``pred``, the logits of the labeled part, ``pred_unlabeled``, the logits of the unlabeled part (the teacher's while
    it predicts; without unlabeled scans there are no items), the ``loss``, ``terms``: the loss and each of its terms,
    and ``gradient_norm`` where gradients are clipped. They are not decollated. Handlers such as
    :class:`dbisl.handlers.Monitor` add to ``terms`` when the loss is completed.

    Args:
        teacher: network that makes the pseudo-labels from its own view of the unlabeled scans; None: the trained
            network's own predictions are used.
        teacher_view: key of the teacher's view in the unlabeled stream: ``weak_image``, without intensity changes, or
            ``image``.
        copy_paste: pastes labeled patches into the unlabeled ones whenever the teacher predicts; None: never.
        gradient_clip: largest norm of the gradient; None: no limit.
        amp: whether the networks run under autocast, also on the CPU (``amp_kwargs``: its dtype, bfloat16 by default).
        kwargs: the other arguments of MONAI's ``SupervisedTrainer``; ``loss_function`` is a
            :class:`dbisl.losses.DBiSLLoss`.

    Raises:
        ValueError: for ``accumulation_steps``, for copy-paste without a teacher, and for a network with fused output.
    """

    loss_function: DBiSLLoss

    def __init__(
        self,
        *,
        teacher: nn.Module | None = None,
        teacher_view: str = "weak_image",
        copy_paste: CopyPaste | None = None,
        gradient_clip: float | None = None,
        amp: bool = False,
        amp_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("accumulation_steps", 1) != 1:
            raise ValueError("accumulation_steps is not supported: choose the batch sizes of the two streams instead.")
        if copy_paste is not None and copy_paste.prob > 0 and teacher is None:
            raise ValueError("copy-paste changes a teacher's output: expected a teacher, or a copy_paste of 0.")
        if getattr(kwargs.get("network"), "fused_output", False):
            raise ValueError("fused_output is for inference and export: training needs the output of each task.")
        amp_kwargs = {"dtype": torch.bfloat16, **(amp_kwargs or {})}
        super().__init__(amp=amp, amp_kwargs=amp_kwargs, decollate=False, **kwargs)
        self.teacher = teacher
        self.teacher_view = teacher_view
        self.copy_paste = copy_paste
        self.gradient_clip = gradient_clip

    def run(self) -> None:  # type: ignore[override]
        """Train from the state's epoch to ``max_epochs``."""
        needs_scaling = self.amp and self.amp_kwargs["dtype"] == torch.float16  # bfloat16 has float32's range
        self.scaler: Any = torch.amp.GradScaler(self.state.device.type, enabled=needs_scaling)
        Workflow.run(self)  # past SupervisedTrainer.run, which makes a scaler for CUDA whatever the dtype

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = self._to_batch(batchdata)
        images, pseudo_labels, teacher = self._predict_teacher(batch)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)

        prediction = self._predict(images, self.network)
        engine.state.output = self._output(batch, images, prediction, teacher)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

        loss, terms = self.loss_function(prediction, batch.label, batch.sdm, pseudo_labels, batch.valid_mask)
        loss = self._over_all_weights(loss, prediction)
        engine.state.output[Keys.LOSS] = loss.detach()
        engine.state.output["terms"] = {"loss": loss.detach(), **terms}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

        self.scaler.scale(loss).backward()
        if self.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            engine.state.output["gradient_norm"] = clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)

        self.scaler.step(self.optimizer)
        self.scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _to_batch(self, batchdata: Mapping[str, Mapping[str, Any]]) -> _Batch:
        labeled = batchdata.get("labeled")
        unlabeled = batchdata.get("unlabeled") if self.loss_function.uses_unlabeled else None
        streams = [stream for stream in (labeled, unlabeled) if stream is not None]
        images = torch.cat([self._to_device(stream[Keys.IMAGE]) for stream in streams])
        teacher_images = None
        if self.teacher is not None and unlabeled is not None and self.loss_function.needs_pseudo_labels:
            teacher_images = self._to_device(unlabeled[self.teacher_view])
        if labeled is None:
            no_label = images.new_zeros(0, 1, *images.shape[2:], dtype=torch.uint8)
            return _Batch(images, no_label, None, None, teacher_images)
        label, sdm = labeled[Keys.LABEL], labeled.get("sdm")
        # Looked at where the loader left them: to look at a tensor on a GPU is to wait for it. A patch beside a region
        # that was not annotated may hold none of its voxels, and yet distances (NaN) that depend on them.
        is_partial = (label == IGNORE_LABEL).any() or (sdm is not None and sdm.isnan().any())
        label, sdm = self._to_device(label), None if sdm is None else self._to_device(sdm)
        if not is_partial:
            return _Batch(images, label, sdm, None, teacher_images)
        valid_mask = label != IGNORE_LABEL
        return _Batch(images, torch.where(valid_mask, label, 0), sdm, valid_mask, teacher_images)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A plain tensor on the device: metadata would be carried through every operation of the step."""
        plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        return plain.to(self.state.device, non_blocking=self.non_blocking)

    def _predict_teacher(self, batch: _Batch) -> tuple[torch.Tensor, DualTaskOutput | None, DualTaskOutput | None]:
        """The images with labeled boxes pasted in, what the pseudo-labels are made of, and the teacher's own output."""
        if self.teacher is None or batch.teacher_images is None:
            return batch.images, None, None
        self.teacher.eval()
        with torch.no_grad():
            teacher = self._predict(batch.teacher_images, self.teacher)
        if self.copy_paste is None or len(batch.label) == 0:
            return batch.images, teacher, teacher
        images, mixed = self.copy_paste(batch.images, batch.label, batch.sdm, teacher, batch.valid_mask)
        return images, mixed, teacher

    def _predict(self, images: torch.Tensor, network: nn.Module) -> DualTaskOutput:
        with torch.autocast(self.state.device.type, enabled=self.amp, **self.amp_kwargs):
            return DualTaskOutput.of(self.inferer(images, network))

    def _output(
        self, batch: _Batch, images: torch.Tensor, prediction: DualTaskOutput, teacher: DualTaskOutput | None
    ) -> dict[str, Any]:
        labeled = len(batch.label)
        logits = prediction.logits.detach()
        return {
            Keys.IMAGE: images[:labeled],
            Keys.LABEL: batch.label,
            "valid_mask": batch.valid_mask,
            Keys.PRED: logits[:labeled],
            "pred_unlabeled": logits[labeled:] if teacher is None else teacher.logits,
        }

    def _over_all_weights(self, loss: torch.Tensor, prediction: DualTaskOutput) -> torch.Tensor:
        """The loss, with a gradient (of 0) also for a decoder that no term reads at the moment.

        Each process of a distributed training waits for a gradient of every weight.
        """
        if not isinstance(self.network, DistributedDataParallel):
            return loss
        return loss + 0 * torch.stack([maps.sum() for maps in prediction if maps is not None]).sum()
