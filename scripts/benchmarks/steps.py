"""The training steps that ``speed.py`` measures, and the data, network and loss that they run on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.handlers import EMAHandler
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.losses import DiceCELoss
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dbisl.bridge import SDMToSegmentation, SegmentationToSDM
from dbisl.data import CopyPaste
from dbisl.engines import SemiSupervisedTrainer
from dbisl.handlers import MeanTeacher
from dbisl.losses import DBiSLLoss
from dbisl.networks import DualTaskVNet
from scripts.benchmarks.common import BUNDLE

BAND = 5.0
"""Band of the signed distance maps, in voxels."""
CLASSES = 3
STEPS = 3
"""Steps that are timed together: each candidate runs as many per call."""


class Setting:
    """What all measurements share: device, precision, shapes, the config's defaults, and random data from one seed.

    Args:
        device: where everything runs, such as ``cpu`` or ``cuda``.
        amp: whether the networks run under bfloat16 autocast.
        patch_size: voxels of a patch along its three axes.
        batch_size: patches of a batch.
        repeats: timed repetitions of each measurement.
    """

    def __init__(self, device: str, amp: bool, patch_size: Sequence[int], batch_size: int, repeats: int) -> None:
        self.options = {"device": device, "amp": amp, "patch_size": patch_size, "batch_size": batch_size}
        self.options["repeats"] = repeats
        self.device = torch.device(device)
        self.amp = amp
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.repeats = repeats
        config = ConfigParser()
        config.read_config(str(BUNDLE / "configs" / "train.json"))
        self.loss_weights = config["loss_weights"]
        self.loss_options = {"pseudo_label": config["pseudo_label"], "gamma": config["uncertainty_gamma"]}
        self.loss_options["harden"] = config["harden"]
        self.slope, self.sharpness = config["sdm_slope"], config["bridge_sharpness"]
        self.gradient_clip, self.teacher_decay = config["gradient_clip"], config["teacher_decay"]
        self.copy_paste = config["copy_paste"]
        torch.manual_seed(0)
        shape = (batch_size, 1, *patch_size)
        self.image = torch.randn(shape, device=self.device)
        self.label = torch.randint(0, CLASSES, shape, device=self.device, dtype=torch.uint8)
        self.sdm = 2 * torch.rand(batch_size, CLASSES, *patch_size, device=self.device) - 1

    def network(self, dual_task: bool = True, norm: str | tuple = "instance") -> nn.Module:
        """Return a V-Net of the default size, with the same weights at each call."""
        torch.manual_seed(0)
        network = DualTaskVNet(out_channels=CLASSES, features=16, levels=4, dropout=0.2, norm=norm, dual_task=dual_task)
        return network.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def loss(self, weights: Mapping[str, float]) -> DBiSLLoss:
        """Return the loss with the config's options and these weights of its terms."""
        return DBiSLLoss(
            weights=weights,
            sdm_to_segmentation=SDMToSegmentation(self.slope),
            segmentation_to_sdm=SegmentationToSDM(BAND, sharpness=self.sharpness),
            **self.loss_options,
        )

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return an AdamW optimizer, as in the config."""
        return torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def autocast(self, enabled: bool | None = None) -> torch.autocast:
        """Return a bfloat16 autocast context, by default enabled as ``amp`` says."""
        enabled = self.amp if enabled is None else enabled
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def matrix_rate(self) -> float:
        """Return the operations per second of a large matrix product in the precision of the step.

        This is what the device can reach.
        """
        dtype = torch.bfloat16 if self.amp else torch.float32
        size = 8192 if self.device.type == "cuda" else 2048
        square = torch.randn(size, size, device=self.device).to(dtype)
        return 2 * size**3 / self.time({"product": lambda: square @ square})["product"]

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, candidates: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        """Return the median seconds of each candidate. They run in turns; the first two rounds warm up."""
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(self.repeats + 2):
            for name, run in candidates.items():
                self.synchronize()
                started = time.perf_counter()
                run()
                self.synchronize()
                seconds[name].append(time.perf_counter() - started)
        return {name: statistics.median(values[2:]) for name, values in seconds.items()}

    def peak_memory(self, run: Callable[[], Any]) -> int:
        """Return the largest number of bytes that tensors held during a run, beyond what they held before it."""
        run()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            run()
            return torch.cuda.max_memory_allocated(self.device) - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            run()
        assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        alive = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes()
            peak = max(peak, alive)
        return peak


class Repeated:
    """Data loader that gives the same batch forever, so that the data costs no time."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        while True:
            yield self.batch


def two_streams(setting: Setting, labeled: int) -> Repeated:
    """Return a loader for :class:`dbisl.engines.SemiSupervisedTrainer`: the first patches labeled, the rest not."""
    image, rest = setting.image[:labeled], setting.image[labeled:]
    label, sdm = setting.label[:labeled], setting.sdm[:labeled]
    batch: dict[str, Any] = {"labeled": {"image": image, "label": label, "sdm": sdm, "case": ["a"] * labeled}}
    if len(rest):
        batch["unlabeled"] = {"image": rest, "weak_image": rest, "case": ["b"] * len(rest)}
    return Repeated(batch)


def bare_steps(
    setting: Setting, compiled: bool = False, norm: str | tuple = "instance", channels_last: bool = True
) -> Callable[[], None]:
    """Return what any training costs: the network, the sum of its outputs as the loss, and the optimizer."""
    network = setting.network(norm=norm)
    if not channels_last:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = setting.optimizer(network)
    forward = torch.compile(network) if compiled else network

    def run() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            with setting.autocast():
                logits, sdm = forward(setting.image)
            (logits.float().sum() + sdm.float().sum()).backward()
            optimizer.step()

    return run


def _one_more_epoch(trainer: SupervisedTrainer) -> Callable[[], None]:
    """Return a function that trains one more epoch, with all events and handlers of the trainer."""
    trainer.state.max_epochs = 0

    def run() -> None:
        trainer.state.max_epochs += 1
        trainer.run()

    return run


def dbisl_steps(
    setting: Setting, network: nn.Module, teacher: bool, compiled: bool = False, parallel: nn.Module | None = None
) -> Callable[[], None]:
    """Return the whole step of DBiSL, with every term of the loss at its full weight.

    Args:
        setting: data, loss and optimizer.
        network: the network to train.
        teacher: whether a mean teacher gives the pseudo-labels; otherwise the network gives its own.
        compiled: whether ``torch.compile`` compiles the network.
        parallel: ``network`` wrapped for training on several processes.
    """
    ema = EMAHandler(network, momentum=1 - setting.teacher_decay, handle_buffers="update") if teacher else None
    return _one_more_epoch(
        SemiSupervisedTrainer(
            device=setting.device,
            max_epochs=1,
            epoch_length=STEPS,
            train_data_loader=two_streams(setting, labeled=setting.batch_size // 2),
            network=network if parallel is None else parallel,
            teacher=None if ema is None else ema.ema_model,
            copy_paste=None if ema is None else CopyPaste(setting.copy_paste),
            optimizer=setting.optimizer(network),
            loss_function=setting.loss(setting.loss_weights),
            gradient_clip=setting.gradient_clip,
            train_handlers=[] if ema is None else [MeanTeacher(ema=ema)],
            amp=setting.amp,
            compile=compiled,
        )
    )


class AutocastInferer(SimpleInferer):
    """MONAI inferer that runs the network under the setting's autocast; MONAI's trainer does so on CUDA only."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the output of the network in float32."""
        with self.setting.autocast():
            output: torch.Tensor = super().__call__(inputs, network, *args, **kwargs)
        return output.float()


def supervised_steps(setting: Setting) -> dict[str, Callable[[], None]]:
    """Return the steps of ``methods/supervised.yaml`` and of MONAI's trainer and loss, on the same V-Net."""
    common: dict[str, Any] = {"device": setting.device, "max_epochs": 1, "epoch_length": STEPS}
    ours, theirs = setting.network(dual_task=False), setting.network(dual_task=False)
    return {
        "MONAI's SupervisedTrainer and DiceCELoss": _one_more_epoch(
            SupervisedTrainer(
                train_data_loader=Repeated({"image": setting.image, "label": setting.label}),
                network=theirs,
                optimizer=setting.optimizer(theirs),
                loss_function=DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True),
                inferer=AutocastInferer(setting),
                decollate=False,
                optim_set_to_none=True,
                **common,
            )
        ),
        "methods/supervised.yaml": _one_more_epoch(
            SemiSupervisedTrainer(
                train_data_loader=two_streams(setting, labeled=setting.batch_size),
                network=ours,
                optimizer=setting.optimizer(ours),
                loss_function=setting.loss({"segmentation": 1.0}),
                gradient_clip=setting.gradient_clip,
                amp=setting.amp,
                **common,
            )
        ),
    }
