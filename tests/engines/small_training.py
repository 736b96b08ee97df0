"""A training that takes a second: two streams of noisy balls, a small network, and the handlers around them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, ValidationHandler
from torch.nn import functional

from dbisl.bridge import SDMToSegmentation, SegmentationToSDM, signed_distance_map
from dbisl.data import IGNORE_LABEL
from dbisl.engines import SemiSupervisedTrainer
from dbisl.handlers import Checkpoints, MeanTeacher, PublishModel
from dbisl.losses import TERMS, DBiSLLoss
from dbisl.networks import DualTaskVNet

SIZE = (8, 8, 8)
WEIGHTS = dict.fromkeys(TERMS, 1.0)
ITERATIONS = 3
"""Iterations in each epoch."""


class Streams:
    """Endless seeded batches of two labeled and two unlabeled balls.

    Args:
        unlabeled: whether there is an unlabeled stream.
        poison: whether one voxel of the unlabeled images is NaN.
    """

    def __init__(self, unlabeled: bool = True, poison: bool = False) -> None:
        self.unlabeled, self.poison = unlabeled, poison

    def __iter__(self) -> Iterator[dict[str, dict[str, Any]]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            batch = {"labeled": self._batch("labeled", generator)}
            if self.unlabeled:
                batch["unlabeled"] = self._batch("unlabeled", generator)
            yield batch

    def _batch(self, stream: str, generator: torch.Generator) -> dict[str, Any]:
        grid = torch.stack(torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij"))
        centre = 2 + 4 * torch.rand(2, 3, 1, 1, 1, generator=generator)
        label = ((grid - centre).square().sum(dim=1, keepdim=True) < 6).long()
        image = label + 0.3 * torch.randn(2, 1, *SIZE, generator=generator)
        if self.poison and stream == "unlabeled":
            image[0, 0, 0, 0, 0] = math.nan
        batch: dict[str, Any] = {"image": MetaTensor(image), "weak_image": MetaTensor(0.9 * image)}
        batch["case"] = [f"{stream}_a.nii.gz", f"{stream}_b.nii.gz"]
        if stream == "labeled":
            one_hot = functional.one_hot(label[:, 0], 2).movedim(-1, 1)
            batch |= {"label": label, "sdm": signed_distance_map(one_hot, 3.0).half()}
        return batch


class PartlyAnnotatedStreams(Streams):
    """Streams whose labels are annotated only where ``valid_mask`` is true, ``2 x 1 x *spatial``."""

    def __init__(self, valid_mask: torch.Tensor) -> None:
        super().__init__()
        self.valid_mask = valid_mask

    def __iter__(self) -> Iterator[dict[str, dict[str, Any]]]:
        for batch in super().__iter__():
            labeled = batch["labeled"]
            label = torch.where(self.valid_mask, labeled["label"], IGNORE_LABEL).to(torch.uint8)
            sdm = torch.where(self.valid_mask, labeled["sdm"], math.nan)
            yield {**batch, "labeled": {**labeled, "label": label, "sdm": sdm}}


def make_loss(weights: Mapping[str, float] = WEIGHTS, gamma: float = 1.0) -> DBiSLLoss:
    """Make the loss for these streams."""
    return DBiSLLoss(
        weights=weights,
        sdm_to_segmentation=SDMToSegmentation(5.0),
        segmentation_to_sdm=SegmentationToSDM(3.0, sharpness=4.0),
        gamma=gamma,
    )


def make_network() -> DualTaskVNet:
    """Make a network that has the same weights each time."""
    torch.manual_seed(0)
    return DualTaskVNet(features=4, levels=2)


def make_trainer(network: torch.nn.Module, streams: Streams | None = None, **options: Any) -> SemiSupervisedTrainer:
    """Make a trainer of one short epoch on the CPU; ``options`` are arguments of the trainer."""
    options.setdefault("optimizer", torch.optim.SGD(network.parameters(), lr=0.05))
    options.setdefault("loss_function", make_loss())
    options.setdefault("max_epochs", 1)
    options.setdefault("epoch_length", ITERATIONS)
    options.setdefault("device", "cpu")
    return SemiSupervisedTrainer(
        train_data_loader=Streams() if streams is None else streams, network=network, **options
    )


class Session:
    """A training with everything that a checkpoint holds: student, teacher, optimizer and schedule.

    Args:
        folder: where the checkpoints and models are.
        epochs: number of epochs.
        resume: whether it goes on from the checkpoint in ``folder``.
        validation: number of validation scans.
        labeled: name of the labeled scan, for the record of published weights.
        validated_on: name of the validation scan; published weights that were trained on it are replaced.
        interval: epochs between two validations.
        weights: file of the weights to start from; None: new weights.
        publish: whether the trained network is published as ``model.pt``.
        recipe: the recipe of the training.
        unlabeled: paths of the unlabeled scans, for the recipe.
    """

    def __init__(
        self,
        folder: Path,
        epochs: int,
        resume: bool = False,
        validation: int = 1,
        labeled: str = "a.nii.gz",
        validated_on: str = "v.nii.gz",
        interval: int = 1,
        weights: Path | None = None,
        publish: bool = True,
        recipe: Mapping[str, Any] | None = None,
        unlabeled: Sequence[Path] = (),
    ) -> None:
        self.folder = folder
        self.network = make_network()
        if weights is not None:
            self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.ema = EMAHandler(self.network, momentum=0.1, handle_buffers="update")
        self.teacher = self.ema.ema_model
        self.evaluator = _make_evaluator(self.teacher, validation)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 6)
        checkpoints = Checkpoints(
            ckpt_dir=str(folder),
            model=self.teacher,
            state={
                "network": self.network,
                "teacher": self.teacher,
                "optimizer": self.optimizer,
                "schedule": scheduler,
            },
            evaluator=self.evaluator,
            resume=resume,
        )
        publish_model = PublishModel(
            ckpt_dir=str(folder),
            model=self.teacher,
            network=self.network,
            evaluator=self.evaluator,
            labeled=[{"image": labeled}],
            validation=[{"image": validated_on}],
            unlabeled=[{"image": str(path)} for path in unlabeled],
            recipe=recipe,
        )
        validate = ValidationHandler(interval, self.evaluator)
        self.trainer = make_trainer(
            self.network,
            optimizer=self.optimizer,
            max_epochs=epochs,
            train_handlers=[
                validate,
                checkpoints,
                *([publish_model] if publish else []),
                MeanTeacher(ema=self.ema),
            ],
        )
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: scheduler.step())

    def score_of_served(self) -> float:
        """Return the Dice of ``model.pt`` on the validation scans; the teacher then has its weights."""
        self.teacher.load_state_dict(torch.load(self.folder / "model.pt", weights_only=True))
        self.evaluator.run()
        return float(self.evaluator.state.metrics["dice"])


def _make_evaluator(network: torch.nn.Module, scans: int) -> SupervisedEvaluator:
    batch = next(iter(Streams()))["labeled"]
    one_hot = functional.one_hot(batch["label"][:, 0], 2).movedim(-1, 1).float()

    def rounded(output: list[dict[str, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [case["pred"].round() for case in output], [case["label"].round() for case in output]

    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=[{"image": batch["image"], "label": one_hot}] * scans,
        network=network,
        inferer=lambda image, network: network(image).logits.softmax(1),
        key_val_metric={"dice": MeanDice(include_background=False, output_transform=rounded)},
    )
