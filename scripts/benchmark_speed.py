"""Measure what DBiSL costs beside its network: bridge, training step, loader, memory and several processes.

    python scripts/benchmark_speed.py --dataset_dir DATA/hippocampus --output speed.json

prints Markdown tables of medians and ratios, on a CUDA device where there is one, else on the CPU, and writes them as
JSON. What is compared runs in turns in one process, so that whatever else the machine does touches each alike.
:mod:`benchmark_bridge` and :mod:`benchmark_inference` beside this file compare bridges and sliding windows.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import torch
import torch.distributed as dist
from ignite.engine import Events
from ignite.handlers import EMAHandler
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.losses import DiceCELoss
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dbisl.bridge import SDMToSegmentation, SegmentationToSDM
from dbisl.data import CopyPaste
from dbisl.engines import SemiSupervisedTrainer
from dbisl.handlers import MeanTeacher
from dbisl.losses import DBiSLLoss
from dbisl.networks import DualTaskVNet
from dbisl.utils import keep_freed_memory, synchronise_batch_norm

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
BAND = 5.0
CLASSES = 3
STEPS = 3
"""Steps that are timed at a time."""
Rows = list[dict[str, Any]]


class Setting:
    """What every section has in common: device, precision, shapes, and seeded data of that shape."""

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

    def network(self, regression: bool = True, norm: str | tuple = "instance") -> nn.Module:
        torch.manual_seed(0)
        network = DualTaskVNet(
            out_channels=CLASSES, features=16, levels=4, dropout=0.2, norm=norm, regression=regression
        )
        return network.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def loss(self, weights: Mapping[str, float]) -> DBiSLLoss:
        return DBiSLLoss(
            weights=weights,
            sdm_to_segmentation=SDMToSegmentation(self.slope),
            segmentation_to_sdm=SegmentationToSDM(BAND, sharpness=self.sharpness),
            **self.loss_options,
        )

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def autocast(self, enabled: bool | None = None) -> torch.autocast:
        enabled = self.amp if enabled is None else enabled
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def matrix_rate(self) -> float:
        """Operations a second of a large matrix product in the precision of the step: what the device can do."""
        dtype = torch.bfloat16 if self.amp else torch.float32
        size = 8192 if self.device.type == "cuda" else 2048
        square = torch.randn(size, size, device=self.device).to(dtype)
        return 2 * size**3 / self.time({"product": lambda: square @ square})["product"]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, candidates: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        """Median seconds of each, all in turns; the first two rounds warm up."""
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
        """Most bytes of tensors alive in one run, beyond those alive before it."""
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


class Streams:
    """The same batch for ever, half of it labeled unless said otherwise: data that costs nothing."""

    def __init__(self, setting: Setting, labeled: int | None = None) -> None:
        half = setting.batch_size // 2 if labeled is None else labeled
        image, rest = setting.image[:half], setting.image[half:]
        labels = {"image": image, "label": setting.label[:half], "sdm": setting.sdm[:half], "case": ["a"] * half}
        self.batch: dict[str, Any] = {"labeled": labels}
        if len(rest):
            self.batch["unlabeled"] = {"image": rest, "weak_image": rest, "case": ["b"] * len(rest)}

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        while True:
            yield self.batch


class Batches:
    """The same labeled batch for ever, as MONAI's trainer takes it."""

    def __init__(self, setting: Setting) -> None:
        self.batch = {"image": setting.image, "label": setting.label}

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        while True:
            yield self.batch


# ---- steps: each candidate runs STEPS of them ----


def bare_steps(
    setting: Setting, compiled: bool = False, norm: str | tuple = "instance", channels_last: bool = True
) -> Callable[[], None]:
    """The network, the sum of its answers as the loss, and the optimizer: what any training costs."""
    network = setting.network(norm=norm)
    if not channels_last:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = setting.optimizer(network)
    answer = torch.compile(network) if compiled else network

    def run() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            with setting.autocast():
                logits, sdm = answer(setting.image)
            (logits.float().sum() + sdm.float().sum()).backward()
            optimizer.step()

    return run


def epochs_of(trainer: SupervisedTrainer) -> Callable[[], None]:
    """A trainer with all its events and handlers; each call is one more epoch."""
    trainer.state.max_epochs = 0

    def run() -> None:
        trainer.state.max_epochs += 1
        trainer.run()

    return run


def dbisl_steps(
    setting: Setting, network: nn.Module, teacher: bool, compiled: bool = False, parallel: nn.Module | None = None
) -> Callable[[], None]:
    """The whole step of DBiSL, every term at its full weight; without a teacher the network's answers teach itself.

    ``parallel`` is the network as several processes train it.
    """
    ema = EMAHandler(network, momentum=1 - setting.teacher_decay, handle_buffers="update") if teacher else None
    return epochs_of(
        SemiSupervisedTrainer(
            device=setting.device,
            max_epochs=1,
            epoch_length=STEPS,
            train_data_loader=Streams(setting),
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
    """The network under the setting's autocast: MONAI's trainer has it for CUDA alone."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.setting.autocast():
            answer: torch.Tensor = super().__call__(inputs, network, *args, **kwargs)
        return answer.float()


def supervised_steps(setting: Setting) -> dict[str, Callable[[], None]]:
    """``methods/supervised.yaml`` and MONAI's own trainer with MONAI's loss, both with the single-decoder network."""

    common: dict[str, Any] = {"device": setting.device, "max_epochs": 1, "epoch_length": STEPS}
    ours, theirs = setting.network(regression=False), setting.network(regression=False)
    return {
        "MONAI's SupervisedTrainer and DiceCELoss": epochs_of(
            SupervisedTrainer(
                train_data_loader=Batches(setting),
                network=theirs,
                optimizer=setting.optimizer(theirs),
                loss_function=DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True),
                inferer=AutocastInferer(setting),
                decollate=False,
                optim_set_to_none=True,
                **common,
            )
        ),
        "methods/supervised.yaml": epochs_of(
            SemiSupervisedTrainer(
                train_data_loader=Streams(setting, labeled=setting.batch_size),
                network=ours,
                optimizer=setting.optimizer(ours),
                loss_function=setting.loss({"segmentation": 1.0}),
                gradient_clip=setting.gradient_clip,
                amp=setting.amp,
                **common,
            )
        ),
    }


# ---- sections ----


def bridge(setting: Setting) -> Rows:
    """Forward and backward of both kernels and of the network, each alone."""
    networks = {amp: setting.network() for amp in {False, setting.amp}}
    scores = torch.randn(setting.batch_size, CLASSES, *setting.patch_size, device=setting.device)
    probabilities = (3 * scores).softmax(dim=1)

    def through_bridge(kernel: str) -> Callable[[], None]:
        module = SegmentationToSDM(BAND, kernel=kernel, sharpness=setting.sharpness)
        leaf = probabilities.clone().requires_grad_()
        return lambda: module(leaf).sum().backward()

    def through_network(amp: bool) -> None:
        with setting.autocast(amp):
            logits, sdm = networks[amp](setting.image)
        (logits.float().sum() + sdm.float().sum()).backward()

    candidates: dict[str, Callable[[], None]] = {
        f"network, {'bfloat16' if amp else 'float32'}": lambda amp=amp: through_network(amp)  # type: ignore[misc]
        for amp in networks
    }
    candidates |= {f"bridge, {kernel}": through_bridge(kernel) for kernel in ("gaussian", "exponential")}
    seconds = setting.time(candidates)
    fast = seconds["bridge, gaussian"]
    return [
        {"what": name, "ms": 1000 * value, "gaussian bridge / this": fast / value} for name, value in seconds.items()
    ]


def step(setting: Setting, compiled: bool = False) -> Rows:
    """The whole step beside the bare one, and the most memory of tensors that each has alive."""
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "bare step": lambda: bare_steps(setting),
        "DBiSL, no teacher": lambda: dbisl_steps(setting, setting.network(), teacher=False),
        "DBiSL (default)": lambda: dbisl_steps(setting, setting.network(), teacher=True),
    }
    if compiled:
        makers["bare step, compiled"] = lambda: bare_steps(setting, compiled=True)
        makers["DBiSL (default), compiled"] = lambda: dbisl_steps(
            setting, setting.network(), teacher=True, compiled=True
        )
    candidates = {name: make() for name, make in makers.items()}
    seconds = setting.time(candidates)
    memory = {name: setting.peak_memory(run) for name, run in candidates.items()}
    matrix_rate = setting.matrix_rate()
    rows = []
    for name, value in seconds.items():
        with FlopCounterMode(display=False) as counter:
            candidates[name.removesuffix(", compiled")]()  # what is compiled does the same, unseen by the counter
        rows.append(
            {
                "what": name,
                "ms": 1000 * value / STEPS,
                "ratio": value / seconds["bare step"],
                "patches a second": setting.batch_size * STEPS / value,
                "peak MiB": memory[name] / 2**20,
                "memory ratio": memory[name] / memory["bare step"],
                "of the matrix rate": counter.get_total_flops() / value / matrix_rate,
            }
        )
    return rows


def normalisation(setting: Setting) -> Rows:
    """The bare step with one normalisation or another, the channels last unless said otherwise."""
    of_pytorch: tuple[str, dict[str, Any]] = ("instance", {})
    candidates = {
        "batch": bare_steps(setting, norm="batch"),
        "instance (default)": bare_steps(setting),
        "instance, PyTorch's": bare_steps(setting, norm=of_pytorch),
        "instance, PyTorch's, channels first": bare_steps(setting, norm=of_pytorch, channels_last=False),
    }
    seconds = setting.time(candidates)
    first = next(iter(seconds.values()))
    return [{"what": name, "ms": 1000 * value / STEPS, "ratio": value / first} for name, value in seconds.items()]


def supervised(setting: Setting) -> Rows:
    """Supervised training beside MONAI's."""
    seconds = setting.time(supervised_steps(setting))
    first = next(iter(seconds.values()))
    return [{"what": name, "ms": 1000 * value / STEPS, "ratio": value / first} for name, value in seconds.items()]


def loader(setting: Setting, dataset_dir: str, config_file: Sequence[str], num_labeled: int, iterations: int) -> Rows:
    """The real training on real scans: how long the first epoch's preparation takes, then how long each step waits."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / "train.json"), *config_file])
    with tempfile.TemporaryDirectory() as folder:
        parser.update({"bundle_root": str(BUNDLE), "dataset_dir": dataset_dir, "num_labeled": num_labeled})
        parser.update({"output_dir": folder, "ckpt_dir": folder, "device": str(setting.device), "amp": setting.amp})
        parser.update(
            {
                "epochs": 2,
                "iterations_per_epoch": iterations,
                "val_interval": 10,
                "warm_up": 0,
                "min_dice": 0,
                "ramp_up": 0,
            }
        )
        parser.parse(True)
        started = time.perf_counter()
        scans = sum(len(parser.get_parsed_content(f"{stream}#dataset")) for stream in ("train", "unlabeled"))
        prepared = time.perf_counter() - started
        trainer = parser.get_parsed_content("train#trainer")
        waits: list[float] = []
        steps: list[float] = []
        marks: dict[str, float] = {}

        def mark(name: str, since: str | None = None, into: list[float] | None = None) -> Callable[[Any], None]:
            def handler(engine: Any) -> None:
                marks[name] = time.perf_counter()
                if into is not None and since in marks and engine.state.epoch == 2:
                    into.append(marks[name] - marks[since])

            return handler

        trainer.add_event_handler(Events.GET_BATCH_STARTED, mark("asked"))
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, mark("got", "asked", waits))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, mark("done", "asked", steps))
        trainer.run()
    wait, whole = sum(waits), sum(steps)
    return [
        {"what": f"preparation of {scans} scans (s)", "value": prepared},
        {"what": f"step, median of {len(steps)} (ms)", "value": 1000 * statistics.median(steps)},
        {"what": "wait for data, mean (ms)", "value": 1000 * wait / len(waits)},
        {"what": "wait / step", "value": wait / whole},
    ]


def ranks(setting: Setting) -> Rows:
    """The default step on one process and on two, each with its own batch and one thread (on CUDA: its own device)."""
    rows: Rows = []
    settings = [(1, False), (2, False), (2, True)]
    if setting.device.type == "cuda" and torch.cuda.device_count() < 2:
        settings = settings[:1]
    for world_size, synchronised in settings:
        with tempfile.TemporaryDirectory() as folder:
            places = (f"{folder}/rendezvous", f"{folder}/seconds.json")
            arguments = (world_size, synchronised, setting.options, *places)
            torch.multiprocessing.spawn(_rank, args=arguments, nprocs=world_size)
            seconds = json.loads(Path(folder, "seconds.json").read_text())
        patches = world_size * setting.batch_size * STEPS / seconds
        name = f"{world_size} process{'es' if world_size > 1 else ''}{', synchronised statistics' * synchronised}"
        rows.append({"what": name, "ms": 1000 * seconds / STEPS, "patches a second": patches})
        rows[-1]["efficiency"] = patches / rows[0]["patches a second"] / world_size
    return rows


def _rank(
    rank: int, world_size: int, synchronised: bool, options: dict[str, Any], rendezvous: str, output: str
) -> None:
    cuda = options["device"].startswith("cuda")
    if cuda:
        options = {**options, "device": f"cuda:{rank}"}
    keep_freed_memory()
    torch.set_num_threads(1)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    setting = Setting(**options)
    network = setting.network()
    if synchronised:
        network = synchronise_batch_norm(network)
    parallel = nn.parallel.DistributedDataParallel(network, device_ids=[rank] if cuda else None)
    seconds = setting.time({"step": dbisl_steps(setting, network, teacher=True, parallel=parallel)})["step"]
    if rank == 0:
        Path(output).write_text(json.dumps(seconds))
    dist.destroy_process_group()


def benchmark(
    dataset_dir: str | None = None,
    output: str | None = None,
    device: str | None = None,
    amp: bool = True,
    patch_size: Sequence[int] = (40, 56, 40),
    batch_size: int = 4,
    repeats: int = 9,
    sections: Sequence[str] = ("bridge", "step", "normalisation", "supervised", "loader", "ranks"),
    compiled: bool = False,
    config_file: Sequence[str] = (),
    num_labeled: int = 4,
    iterations: int = 40,
) -> None:
    """Print the tables.

    Args:
        dataset_dir: scans for the section ``loader``, as training takes them; without it that section is left out.
        output: JSON file for the same figures.
        device: CUDA if there is one, unless named.
        amp: bfloat16 autocast.
        patch_size, batch_size: of the synthetic batches; half of each is labeled.
        repeats: of each measurement, whose median counts.
        sections: which of the sections to run.
        compiled: also the steps with a network that ``torch.compile`` has compiled.
        config_file: override files after train.json for the section ``loader``.
        num_labeled: labeled scans of the section ``loader``.
        iterations: timed iterations of the section ``loader``, after as many that warm up.
    """
    keep_freed_memory()  # as the bundle does
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(device, amp, patch_size, batch_size, repeats)
    files = [config_file] if isinstance(config_file, str) else list(config_file)
    runs: dict[str, Callable[[], Rows]] = {
        "bridge": lambda: bridge(setting),
        "step": lambda: step(setting, compiled),
        "normalisation": lambda: normalisation(setting),
        "supervised": lambda: supervised(setting),
        "loader": lambda: loader(setting, str(dataset_dir), files, num_labeled, iterations),
        "ranks": lambda: ranks(setting),
    }
    unknown = sorted(set(sections) - set(runs))
    if unknown:
        raise SystemExit(f"sections has {unknown}: expected some of {list(runs)}.")
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    machine = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    precision = "bfloat16 autocast" if amp else "float32"
    print(f"{machine}; {batch_size} patches of {' x '.join(map(str, patch_size))}, {precision}, median of {repeats}")
    results: dict[str, Any] = {"machine": machine, **setting.options}
    for section in sections:
        if section == "loader" and dataset_dir is None:
            continue
        results[section] = runs[section]()
        _print_table(section, results[section])
        if output is not None:
            Path(output).write_text(json.dumps(results, indent=4) + "\n")


def _print_table(title: str, rows: Rows) -> None:
    columns = list(rows[0])
    print(f"\n| {title} | {' | '.join(columns[1:])} |")
    print("| --- " * len(columns) + "|")
    for row in rows:
        values = [f"{row[column]:.3g}" if row[column] < 100 else f"{row[column]:.0f}" for column in columns[1:]]
        print(f"| {row['what']} | {' | '.join(values)} |")


if __name__ == "__main__":
    fire.Fire(benchmark)
