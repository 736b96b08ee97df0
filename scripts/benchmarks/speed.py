"""Measure what DBiSL costs beside its network: bridge, training step, data loading, memory and several processes.

    python scripts/benchmarks/speed.py --dataset_dir DATA/hippocampus --output speed.json

prints Markdown tables of medians and ratios and writes the same figures as JSON. It runs on a CUDA device where there
is one, else on the CPU. The candidates of a table run in turns in one process, so that other load on the machine slows
all of them alike. ``bridge.py`` and ``inference.py`` beside this file compare bridges and sliding windows.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dbisl.bridge import SegmentationToSDM
from dbisl.utils import keep_freed_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts import each other from the repository's root
from scripts.benchmarks.common import BUNDLE, markdown_table, write_json
from scripts.benchmarks.steps import BAND, CLASSES, STEPS, Setting, bare_steps, dbisl_steps, supervised_steps

Rows = list[dict[str, Any]]
"""A table: a row has a name (``what``) and numbers."""


def bridge(setting: Setting) -> Rows:
    """Measure forward and backward of both kernels of the bridge and of the network, each alone."""
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
    """Measure time and peak memory of the whole training step beside those of the bare one."""
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
            # The counter does not see into compiled networks, which compute the same.
            candidates[name.removesuffix(", compiled")]()
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
    """Measure the bare step with each normalisation, the channels last unless the name says otherwise."""
    pytorchs: tuple[str, dict[str, Any]] = ("instance", {})
    return _step_rows(
        setting,
        {
            "batch": bare_steps(setting, norm="batch"),
            "instance (default)": bare_steps(setting),
            "instance, PyTorch's": bare_steps(setting, norm=pytorchs),
            "instance, PyTorch's, channels first": bare_steps(setting, norm=pytorchs, channels_last=False),
        },
    )


def supervised(setting: Setting) -> Rows:
    """Measure the step of supervised training beside the step of MONAI's trainer."""
    return _step_rows(setting, supervised_steps(setting))


def _step_rows(setting: Setting, candidates: dict[str, Callable[[], None]]) -> Rows:
    """Return the milliseconds of each candidate's step, and their ratio to the first candidate's."""
    seconds = setting.time(candidates)
    first = next(iter(seconds.values()))
    return [{"what": name, "ms": 1000 * value / STEPS, "ratio": value / first} for name, value in seconds.items()]


def loader(setting: Setting, dataset_dir: str, config_file: Sequence[str], num_labeled: int, iterations: int) -> Rows:
    """Measure the real training on real scans: preparing the scans, then how long each step waits for data."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / "train.json"), *config_file])
    with tempfile.TemporaryDirectory() as folder:
        parser.update({"bundle_root": str(BUNDLE), "dataset_dir": dataset_dir, "num_labeled": num_labeled})
        parser.update({"output_dir": folder, "ckpt_dir": folder, "device": str(setting.device), "amp": setting.amp})
        parser.update({"epochs": 2, "iterations_per_epoch": iterations, "val_interval": 10})
        parser.update({"warm_up": 0, "min_dice": 0, "ramp_up": 0})
        parser.parse(True)
        started = time.perf_counter()
        scans = sum(len(parser.get_parsed_content(f"{stream}#dataset")) for stream in ("train", "unlabeled"))
        prepared = time.perf_counter() - started
        trainer = parser.get_parsed_content("train#trainer")
        waits: list[float] = []
        steps: list[float] = []
        marks: dict[str, float] = {}

        def mark(name: str, since: str | None = None, into: list[float] | None = None) -> Callable[[Any], None]:
            """Return a handler that notes the time; in the second epoch also the seconds since another mark."""

            def handler(engine: Any) -> None:
                marks[name] = time.perf_counter()
                if into is not None and since in marks and engine.state.epoch == 2:
                    into.append(marks[name] - marks[since])

            return handler

        trainer.add_event_handler(Events.GET_BATCH_STARTED, mark("asked"))
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, mark("got", "asked", waits))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, mark("done", "asked", steps))
        trainer.run()
    return [
        {"what": f"preparation of {scans} scans (s)", "value": prepared},
        {"what": f"step, median of {len(steps)} (ms)", "value": 1000 * statistics.median(steps)},
        {"what": "wait for data, mean (ms)", "value": 1000 * sum(waits) / len(waits)},
        {"what": "wait / step", "value": sum(waits) / sum(steps)},
    ]


def ranks(setting: Setting) -> Rows:
    """Measure the default step on one process and on two, each with its own batch and one thread or CUDA device."""
    rows: Rows = []
    for world_size in (1,) if setting.device.type == "cuda" and torch.cuda.device_count() < 2 else (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (world_size, setting.options, f"{folder}/rendezvous", f"{folder}/seconds.json")
            torch.multiprocessing.spawn(_measure_rank, args=arguments, nprocs=world_size)
            seconds = json.loads(Path(folder, "seconds.json").read_text())
        patches = world_size * setting.batch_size * STEPS / seconds
        name = f"{world_size} process{'es' if world_size > 1 else ''}"
        rows.append({"what": name, "ms": 1000 * seconds / STEPS, "patches a second": patches})
        rows[-1]["efficiency"] = patches / rows[0]["patches a second"] / world_size
    return rows


def _measure_rank(rank: int, world_size: int, options: dict[str, Any], rendezvous: str, output: str) -> None:
    """Run the steps of one process; the first process writes its seconds to ``output``."""
    cuda = options["device"].startswith("cuda")
    if cuda:
        options = {**options, "device": f"cuda:{rank}"}
    keep_freed_memory()
    torch.set_num_threads(1)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    setting = Setting(**options)
    network = setting.network()
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
    sections: str | Sequence[str] = ("bridge", "step", "normalisation", "supervised", "loader", "ranks"),
    compiled: bool = False,
    config_file: str | Sequence[str] = (),
    num_labeled: int = 4,
    iterations: int = 40,
) -> None:
    """Print one table per section.

    Args:
        dataset_dir: scans for the section ``loader``, in a layout that training reads; None: skip that section.
        output: JSON file for the same figures.
        device: device of the measurements; by default CUDA where there is a device, else the CPU.
        amp: whether the networks run under bfloat16 autocast.
        patch_size: voxels of the synthetic patches along their three axes.
        batch_size: patches of a synthetic batch; half of them are labeled.
        repeats: repetitions of each measurement; the tables show the median.
        sections: sections to run, in this order.
        compiled: whether the section ``step`` also measures networks compiled by ``torch.compile``.
        config_file: override file or files after ``train.json`` for the section ``loader``.
        num_labeled: number of labeled scans of the section ``loader``.
        iterations: timed iterations of the section ``loader``, after as many that warm up.

    Raises:
        SystemExit: when a section does not exist.
    """
    keep_freed_memory()  # as the bundle does
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(device, amp, patch_size, batch_size, repeats)
    runs: dict[str, Callable[[], Rows]] = {
        "bridge": lambda: bridge(setting),
        "step": lambda: step(setting, compiled),
        "normalisation": lambda: normalisation(setting),
        "supervised": lambda: supervised(setting),
        "loader": lambda: loader(setting, str(dataset_dir), ensure_tuple(config_file), num_labeled, iterations),
        "ranks": lambda: ranks(setting),
    }
    sections = ensure_tuple(sections)
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
        print(f"\n{_table(section, results[section])}")
        if output is not None:
            write_json(Path(output), results)


def _table(title: str, rows: Rows) -> str:
    """Return a section as Markdown; its title is the first column's."""
    columns = list(rows[0])[1:]
    values = [[row[column] for column in columns] for row in rows]
    cells = [[f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in line] for line in values]
    return markdown_table([title, *columns], [[row["what"], *line] for row, line in zip(rows, cells, strict=True)])


if __name__ == "__main__":
    fire.Fire(benchmark)
