"""The semi-supervised training workflow, as a MONAI ``SupervisedTrainer``."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
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

from dbisl.data.copy_paste import CopyPaste
from dbisl.data.partial_labels import IGNORE_LABEL
from dbisl.losses import DBiSLLoss


class NotFiniteError(ValueError):
    """The loss became NaN or infinite."""


class SemiSupervisedTrainer(SupervisedTrainer):
    """One forward pass over a labeled and an unlabeled stream, and a loss over both.

    The loader gives ``{"labeled": {image, label, sdm}, "unlabeled": {image, weak_image}}``
    (:class:`dbisl.data.TwoStreamLoader`), each with a ``case``, the names that a message needs; one of the two may be
    missing. ``engine.state.output`` holds the ``image`` and ``label`` of the labeled part, ``pred``, its logits, the
    ``loss``, and ``terms``: the loss, each of its terms, the ``ramp``, the Dice of the labeled part (NaN without any
    structure), and the fraction of foreground in the labels (of the annotated voxels, and beside it of all where that
    is less) and in what is predicted on the unlabeled scans, by the teacher while it is asked (a collapse to
    background shows there first). With unlabeled scans ``classes`` has these fractions of each class, a row for the
    labels (of all voxels) and one for the unlabeled scans. They are not decollated.

    The host never waits for a GPU: whether an iteration was finite is read while the next one is computed.

    Args:
        teacher: network whose answers on the unaugmented view (``weak_image``) of the unlabeled scans are the
            pseudo-labels; None: the network's own.
        copy_paste: mixes labeled patches into the unlabeled ones when the teacher is asked about these; None: never.
        gradient_clip: largest norm of the gradient; None: no limit.
        amp: whether the networks run under autocast, on the CPU too (``amp_kwargs``: its dtype; bfloat16 if not given).
        kwargs: the other arguments of MONAI's ``SupervisedTrainer``; ``loss_function`` is a
            :class:`dbisl.losses.DBiSLLoss`.
    """

    loss_function: DBiSLLoss

    def __init__(
        self,
        *,
        teacher: nn.Module | None = None,
        copy_paste: CopyPaste | None = None,
        gradient_clip: float | None = None,
        amp: bool = False,
        amp_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("accumulation_steps", 1) != 1:
            raise ValueError("accumulation_steps is not supported: choose the batch sizes of the two streams instead.")
        if copy_paste is not None and copy_paste.prob > 0 and teacher is None:
            raise ValueError("copy-paste changes the answers of a teacher: expected a teacher, or a copy_paste of 0.")
        amp_kwargs = {"dtype": torch.bfloat16, **(amp_kwargs or {})}
        super().__init__(amp=amp, amp_kwargs=amp_kwargs, decollate=False, **kwargs)
        self.teacher = teacher
        self.copy_paste = copy_paste
        self.gradient_clip = gradient_clip
        self._unchecked: deque[tuple[int, Any, list[str], torch.Tensor, dict[str, list[str]]]] = deque()

    def run(self) -> None:  # type: ignore[override]
        """Train from the state's epoch to ``max_epochs``."""
        # Only float16 needs its gradients scaled.
        needed = self.amp and self.amp_kwargs["dtype"] == torch.float16
        self.scaler: Any = torch.amp.GradScaler(self.state.device.type, enabled=needed)
        Workflow.run(self)  # past SupervisedTrainer's own, which makes a scaler for CUDA whatever the dtype

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        unlabeled = batchdata.get("unlabeled") if self.loss_function.uses_unlabeled else None
        images, label, sdm = self._images_and_label(batchdata.get("labeled"), unlabeled)
        label, known = self._known(batchdata.get("labeled"), label)
        taught = mixed = self._teach(unlabeled)
        if taught is not None and self.copy_paste is not None and len(label) > 0:
            images, mixed = self.copy_paste(images, label, sdm, taught, known)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        output: dict[str, Any] = {Keys.IMAGE: images[: len(label)], Keys.LABEL: label}
        engine.state.output = output

        prediction = self._answer(images, self.network)
        output[Keys.PRED] = prediction[0][: len(label)].detach()
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

        loss, terms = self.loss_function(prediction, label, sdm, mixed, known)
        if isinstance(self.network, DistributedDataParallel):
            # Every process waits for a gradient of every weight, also of a decoder that no term asks at the moment.
            loss = loss + 0 * torch.stack([answer.sum() for answer in prediction if answer is not None]).sum()
        output[Keys.LOSS] = loss.detach()
        watched = {"loss": loss.detach(), **terms}
        output["terms"] = {**watched, **self._monitor(output, prediction[0].detach(), label, known, taught)}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

        self.scaler.scale(loss).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            norm = clip_grad_norm_(self.network.parameters(), self.gradient_clip)
            # A float16 gradient that overflows is the scaler's to skip; any other one would destroy the weights.
            if not self.scaler.is_enabled():
                watched = {**watched, "the gradient": norm}
        self._require_finite(watched, batchdata)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _images_and_label(
        self, labeled: Mapping[str, Any] | None, unlabeled: Mapping[str, Any] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The images of both streams, and label and SDM of the labeled one (of no items, where there is none)."""
        images = [] if unlabeled is None else self._to_device(unlabeled[Keys.IMAGE])
        if labeled is None:
            (image,) = images
            return image, image.new_zeros(0, 1, *image.shape[2:], dtype=torch.uint8), None
        image, label, sdm = self._to_device(labeled[Keys.IMAGE], labeled[Keys.LABEL], labeled.get("sdm"))
        return torch.cat([image, *images]), label, sdm

    def _known(
        self, labeled: Mapping[str, Any] | None, label: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The label with background for what was not annotated, and which voxels were; None where all were.

        A patch beside a region that was not annotated may hold none of its voxels, and yet distances (NaN) that
        depend on them.
        """
        # Looked for where the loader left them: on a GPU, to look is to wait.
        if labeled is None or not (
            (labeled[Keys.LABEL] == IGNORE_LABEL).any() or ("sdm" in labeled and labeled["sdm"].isnan().any())
        ):
            return label, None
        known = label != IGNORE_LABEL
        return torch.where(known, label, 0), known

    def _to_device(self, *tensors: torch.Tensor | None) -> list[Any]:
        """Plain tensors on the device: metadata would be carried through every operation of the step."""
        plain = [tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor for tensor in tensors]
        options = {"device": self.state.device, "non_blocking": self.non_blocking}
        return [None if tensor is None else tensor.to(**options) for tensor in plain]

    def _answer(self, images: torch.Tensor, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``(logits, sdm)`` of a dual-task network; of one that gives logits alone, ``(logits, None)``."""
        with torch.autocast(self.state.device.type, enabled=self.amp, **self.amp_kwargs):
            answer = self.inferer(images, network)
        return (answer, None) if isinstance(answer, torch.Tensor) else (answer[0], answer[1])

    @torch.no_grad()
    def _teach(self, unlabeled: Mapping[str, Any] | None) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        if self.teacher is None or unlabeled is None or not self.loss_function.needs_pseudo_labels:
            return None
        self.teacher.eval()
        (images,) = self._to_device(unlabeled["weak_image"])
        return self._answer(images, self.teacher)

    def _monitor(
        self,
        output: dict[str, Any],
        logits: torch.Tensor,
        label: torch.Tensor,
        known: torch.Tensor | None,
        taught: tuple[torch.Tensor, torch.Tensor | None] | None,
    ) -> dict[str, torch.Tensor | float]:
        logits = logits.to(torch.float32, memory_format=torch.contiguous_format)  # reductions over classes want it
        values: dict[str, torch.Tensor | float] = {"ramp": self.loss_function.ramp}
        if len(label) > 0:
            values["dice"] = _hard_dice(logits[: len(label)], label, known)
            foreground = (label > 0).sum()
            values["foreground_labeled"] = foreground / (label.numel() if known is None else known.sum().clamp(min=1))
            if known is not None:
                values["foreground_at_least"] = foreground / label.numel()
        if len(logits) > len(label):
            unlabeled = logits[len(label) :] if taught is None else taught[0].float()
            fractions = _class_fractions(unlabeled.max(dim=1).indices, logits.shape[1])
            values["foreground_unlabeled"] = fractions[1:].sum()
            if len(label) > 0:
                output["classes"] = torch.stack([_class_fractions(label, logits.shape[1]), fractions])
        return values

    def _require_finite(self, values: Mapping[str, Any], batchdata: Mapping[str, Mapping[str, Any]]) -> None:
        """Stop at what is not finite: at once on the CPU, one iteration later on a GPU, where to look is to wait."""
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        finite = torch.stack([value.isfinite() for value in tensors.values()]).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if self.state.device.type == "cuda" else None
        if copied is not None:
            copied.record()
        cases = {stream: list(batch["case"]) for stream, batch in batchdata.items()}
        self._unchecked.append((self.state.iteration, copied, list(tensors), finite, cases))
        # Checkpoints are written after an epoch: by then nothing may be left unchecked.
        last = self.state.iteration % self.state.epoch_length == 0
        while len(self._unchecked) > (0 if copied is None or last else 1):
            iteration, copied_before, names, flags, cases = self._unchecked.popleft()
            if copied_before is not None:
                copied_before.synchronize()
            if not flags.all():
                raise NotFiniteError(_not_finite(iteration, names, flags.tolist(), cases))


def _class_fractions(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The fraction of voxels of each class."""
    voxels = classes.flatten().long()
    counts = torch.zeros(num_classes, device=classes.device)
    return counts.scatter_add_(0, voxels, torch.ones_like(voxels, dtype=torch.float32)) / len(voxels)


def _hard_dice(logits: torch.Tensor, label: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Mean Dice, over the annotated voxels of the batch, of the foreground classes in the label or in the answer.

    NaN where neither has any: a batch without a structure says nothing of how well structures are found.
    """
    predicted = logits == logits.amax(dim=1, keepdim=True)
    if known is not None:
        predicted &= known
    true = torch.zeros_like(predicted).scatter_(1, label.long(), True)
    overlap, total = (sums.flatten(2).sum(dim=(0, 2))[1:] for sums in (predicted & true, predicted.int() + true))
    return (2 * overlap / total.clamp(min=1)).sum() / (total > 0).sum()


def _not_finite(iteration: int, names: list[str], finite: list[bool], cases: Mapping[str, list[str]]) -> str:
    culprits = [name for name, fine in zip(names, finite, strict=True) if not fine and name != "loss"]
    listed = "; ".join(f"{stream}: {', '.join(names)}" for stream, names in cases.items())
    return (
        f"the loss is not finite at iteration {iteration}, because of {', '.join(culprits) or 'the sum of its terms'}; "
        f"cases of the batch: {listed}."
    )
