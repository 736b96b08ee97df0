"""The evaluation's numbers against MedPy and against values worked out by hand, and its two files."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from medpy.metric import binary
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.engines.evaluator import SupervisedEvaluator
from monai.transforms.compose import Compose
from monai.transforms.utility.dictionary import CopyItemsd, Lambdad
from scipy.ndimage import gaussian_filter

from dbisl.metrics import MeanOfDefined, MetricsReport, surface_metrics
from dbisl.metrics.report import METRICS, OUTCOMES

TOLERANCE = 1e-4
CLASSES = ["background", "organ", "tumour"]
SPACING = (1.0, 1.0, 2.0)
SHAPE = (8, 8, 8)
CUBE = (slice(2, 5),) * 3
SHIFTED = (slice(2, 5), slice(2, 5), slice(3, 6))


def blob(shape: tuple[int, ...], seed: int, fraction: float = 0.3) -> np.ndarray:
    """A random mask of several rounded parts that fills the fraction of the image and meets its border."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.0)
    return field > np.quantile(field, 1 - fraction)


def filled(shape: tuple[int, ...], *regions: tuple[slice, ...] | tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for region in regions:
        mask[region] = True
    return mask


def assert_equals_medpy(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> None:
    ours = surface_metrics(prediction, reference, spacing)
    theirs = {
        "dice": binary.dc(prediction, reference),
        "jaccard": binary.jc(prediction, reference),
        "hd95_mm": binary.hd95(prediction, reference, voxelspacing=spacing),
        "asd_mm": binary.asd(prediction, reference, voxelspacing=spacing),
        "hd95_voxel": binary.hd95(prediction, reference),
        "asd_voxel": binary.asd(prediction, reference),
    }
    assert ours.outcome == "found"
    assert {name: getattr(ours, name) for name in theirs} == pytest.approx(theirs, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((40, 33), (1.0, 1.0)),
        ((17, 64), (0.7, 3.0)),
        ((24, 24, 24), (1.0, 1.0, 1.0)),
        ((35, 50, 35), (1.0, 1.0, 1.0)),
        ((48, 40, 20), (0.625, 0.625, 1.25)),
        ((30, 22, 9), (0.82, 0.82, 5.0)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_blobs_equal_medpy(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int) -> None:
    assert_equals_medpy(blob(shape, seed), blob(shape, seed + 100, fraction=0.1), spacing)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        pytest.param(filled((9, 8, 7), (3, 3, 3)), filled((9, 8, 7), (3, 3, 3)), id="one voxel, met"),
        pytest.param(filled((9, 8, 7), (0, 0, 0)), filled((9, 8, 7), (8, 7, 6)), id="one voxel, corner to corner"),
        pytest.param(np.ones((6, 7, 8), dtype=bool), np.ones((6, 7, 8), dtype=bool), id="the whole image"),
        pytest.param(np.ones((6, 7, 8), dtype=bool), filled((6, 7, 8), (2, 2, 2)), id="the whole image and a voxel"),
        pytest.param(filled((20, 20, 20), np.s_[:5, :9, :]), filled((20, 20, 20), np.s_[:7, 4:, :3]), id="border"),
        pytest.param(filled((40, 9, 9), np.s_[1:4, 2:6]), filled((40, 9, 9), np.s_[30:36, 2:6]), id="disjoint"),
        pytest.param(
            filled((30, 30, 5), np.s_[4:9, 4:9, 1:3], (29, 29, 4)),
            filled((30, 30, 5), np.s_[5:9, 4:9, 2:4]),
            id="stray voxel",
        ),
        pytest.param(filled((1, 12, 12), np.s_[:, 2:6, 2:6]), filled((1, 12, 12), np.s_[:, 3:9, 2:6]), id="one slice"),
    ],
)
def test_special_masks_equal_medpy(prediction: np.ndarray, reference: np.ndarray) -> None:
    assert_equals_medpy(prediction, reference, (0.5, 1.0, 2.5))
    assert_equals_medpy(reference, prediction, (0.5, 1.0, 2.5))


def test_margin_around_the_masks_changes_nothing() -> None:
    prediction, reference = blob((20, 18, 16), 3), blob((20, 18, 16), 4)
    alone = surface_metrics(prediction, reference, SPACING)
    assert surface_metrics(np.pad(prediction, 25), np.pad(reference, 25), SPACING) == alone


def test_tensors_equal_arrays() -> None:
    prediction, reference = blob((20, 18, 16), 5), blob((20, 18, 16), 6)
    tensors = torch.from_numpy(prediction), MetaTensor(torch.from_numpy(reference))
    assert surface_metrics(*tensors, SPACING) == surface_metrics(prediction, reference, SPACING)


def test_distances_by_hand() -> None:
    metrics = surface_metrics(filled(SHAPE, SHIFTED), filled(SHAPE, CUBE), SPACING)
    assert metrics.dice == pytest.approx(2 / 3)
    assert metrics.jaccard == pytest.approx(1 / 2)
    # Of the cube's 26 surface voxels the 9 of one face lie a slice away from the other cube, and the middle of the
    # opposite face lies inside of it, one voxel from its side.
    assert metrics.asd_voxel == pytest.approx(10 / 26)
    assert metrics.asd_mm == pytest.approx(19 / 26)
    assert metrics.hd95_voxel == pytest.approx(1.0)
    assert metrics.hd95_mm == pytest.approx(2.0)
    assert metrics.reference_ml == pytest.approx(27 * 2 / 1000)


@pytest.mark.parametrize(
    ("predicted", "present", "outcome", "dice"),
    [(False, True, "missed", 0.0), (True, False, "invented", 0.0), (False, False, "absent", math.nan)],
)
def test_outcomes_without_distances(predicted: bool, present: bool, outcome: str, dice: float) -> None:
    metrics = surface_metrics(np.full((4, 5, 6), predicted), np.full((4, 5, 6), present), SPACING)
    assert metrics.outcome == outcome
    assert [metrics.dice, metrics.jaccard] == pytest.approx([dice, dice], nan_ok=True)
    distances = (metrics.hd95_mm, metrics.asd_mm, metrics.hd95_voxel, metrics.asd_voxel)
    assert all(math.isnan(distance) for distance in distances)
    assert metrics.prediction_ml == pytest.approx(predicted * 4 * 5 * 6 * 2 / 1000)
    assert metrics.reference_ml == pytest.approx(present * 4 * 5 * 6 * 2 / 1000)


def test_no_volume_in_two_dimensions() -> None:
    assert math.isnan(surface_metrics(blob((9, 9), 0), blob((9, 9), 1), (1.0, 1.0)).reference_ml)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((4, 4, 5), SPACING, r"one shape, got \(4, 4, 5\) and \(4, 4, 4\)"),
        ((4, 4, 4), (1.0, 1.0), "spacing must be 3 positive numbers"),
        ((4, 4, 4), (1.0, 0.0, 1.0), "spacing must be 3 positive numbers"),
    ],
)
def test_masks_that_cannot_be_compared(shape: tuple[int, ...], spacing: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surface_metrics(np.ones(shape, dtype=bool), np.ones((4, 4, 4), dtype=bool), spacing)


def class_map(organ: tuple[slice, slice, slice], tumour: bool) -> torch.Tensor:
    """``1 x 8 x 8 x 8``: the organ in a region, the tumour in one voxel or nowhere."""
    classes = torch.zeros((1, *SHAPE))
    classes[0][organ] = 1
    classes[0, 6, 6, 6] = 2 if tumour else 0
    return classes


def meta(classes: torch.Tensor, path: str | None) -> MetaTensor:
    tensor = MetaTensor(classes, affine=torch.diag(torch.tensor([-1.0, -1.0, 2.0, 1.0])))
    if path is not None:
        tensor.meta["filename_or_obj"] = path
    return tensor


def case(path: str | None, predicted: torch.Tensor, reference: torch.Tensor) -> dict[str, MetaTensor]:
    return {"image": meta(predicted, None), "label": meta(reference, path)}


def four_cases() -> list[dict[str, MetaTensor]]:
    """The organ is one slice off in the first; the tumour is met, missed, invented, and rightly absent."""
    return [
        case("data/a.nii.gz", class_map(SHIFTED, True), class_map(CUBE, True)),
        case("data/b.nii", class_map(CUBE, False), class_map(CUBE, True)),
        case("data/c.nii.gz", class_map(CUBE, True), class_map(CUBE, False)),
        case("data/d.nii.gz", class_map(CUBE, False), class_map(CUBE, False)),
    ]


def without_tumour(classes: torch.Tensor) -> torch.Tensor:
    return torch.where(classes == 2, 0, classes)


def evaluator(cases: list[dict[str, MetaTensor]]) -> SupervisedEvaluator:
    """An evaluator that answers with the image, and whose segmentation branch never sees a tumour."""
    postprocessing = Compose(
        [CopyItemsd(keys="pred", names=["pred_segmentation"]), Lambdad(keys="pred_segmentation", func=without_tumour)]
    )
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=2),
        network=torch.nn.Identity(),
        postprocessing=postprocessing,
    )


def report(folder: Path, **changes: Any) -> MetricsReport:
    pred_keys = {"fused": "pred", "segmentation": "pred_segmentation"}
    return MetricsReport(**{"output_dir": folder, "class_names": CLASSES, "pred_keys": pred_keys, **changes})


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SupervisedEvaluator]:
    folder = tmp_path_factory.mktemp("evaluation") / "new"
    engine = evaluator(four_cases())
    report(folder).attach(engine)
    engine.run()
    engine.run()  # a second validation starts anew
    return folder, engine


def test_one_row_a_case_task_and_class(evaluated: tuple[Path, SupervisedEvaluator]) -> None:
    rows = read(evaluated[0] / "cases.csv")
    assert len(rows) == 4 * 2 * 2
    outcomes = {(row["case"], row["task"], row["class_name"]): row["outcome"] for row in rows}
    assert [outcomes[name, "fused", "tumour"] for name in "abcd"] == ["found", "missed", "invented", "absent"]
    assert [outcomes[name, "segmentation", "tumour"] for name in "abcd"] == ["missed", "missed", "absent", "absent"]
    assert {outcomes[name, task, "organ"] for name in "abcd" for task in ("fused", "segmentation")} == {"found"}


def test_cells_of_a_case(evaluated: tuple[Path, SupervisedEvaluator]) -> None:
    rows = {(row["case"], row["task"], row["class_index"]): row for row in read(evaluated[0] / "cases.csv")}
    organ = rows["a", "fused", "1"]
    expected = {"dice": 2 / 3, "jaccard": 0.5, "hd95_mm": 2, "asd_mm": 19 / 26, "hd95_voxel": 1, "asd_voxel": 10 / 26}
    assert {name: float(organ[name]) for name in METRICS} == pytest.approx(expected)
    assert float(organ["reference_ml"]) == pytest.approx(0.054)
    missed = rows["b", "fused", "2"]
    assert [missed[name] for name in METRICS] == ["0.0", "0.0", "", "", "", ""]
    assert [float(missed["reference_ml"]), float(missed["prediction_ml"])] == pytest.approx([0.002, 0.0])
    assert [rows["d", "fused", "2"][name] for name in METRICS] == [""] * 6


def summary_row(folder: Path, task: str, name: str, metric: str) -> dict[str, str]:
    rows = read(folder / "summary.csv")
    (row,) = [row for row in rows if (row["task"], row["class_name"], row["metric"]) == (task, name, metric)]
    return row


@pytest.mark.parametrize(
    ("task", "name", "metric", "values", "counts"),
    [
        ("fused", "organ", "dice", [2 / 3, 1, 1, 1], (4, 0, 0, 0)),
        ("fused", "organ", "asd_mm", [19 / 26, 0, 0, 0], (4, 0, 0, 0)),
        ("fused", "tumour", "dice", [1, 0, 0], (1, 1, 1, 1)),
        ("fused", "tumour", "hd95_mm", [0], (1, 1, 1, 1)),
        ("fused", "mean", "dice", [5 / 6, 0.5, 0.5, 1], (5, 1, 1, 1)),
        ("fused", "mean", "asd_mm", [19 / 52, 0, 0, 0], (5, 1, 1, 1)),
        ("segmentation", "tumour", "jaccard", [0, 0], (0, 2, 0, 2)),
        ("segmentation", "tumour", "hd95_mm", [], (0, 2, 0, 2)),
    ],
)
def test_summary(
    evaluated: tuple[Path, SupervisedEvaluator],
    task: str,
    name: str,
    metric: str,
    values: list[float],
    counts: tuple[int, ...],
) -> None:
    row = summary_row(evaluated[0], task, name, metric)
    assert int(row["n"]) == len(values)
    assert tuple(int(row[outcome]) for outcome in OUTCOMES) == counts
    if values:
        statistics = [np.mean(values), np.std(values), np.median(values)]
        assert [float(row[column]) for column in ("mean", "std", "median")] == pytest.approx(statistics)
    else:
        assert [row[column] for column in ("mean", "std", "median")] == ["", "", ""]


def test_state_holds_the_summary_and_no_other_file_is_left(evaluated: tuple[Path, SupervisedEvaluator]) -> None:
    folder, engine = evaluated
    summaries: Any = engine.state.report  # type: ignore[attr-defined]
    assert len(summaries) == len(read(folder / "summary.csv")) == 2 * 3 * len(METRICS)
    assert (summaries[0].task, summaries[0].class_index, summaries[0].metric) == ("fused", 1, "dice")
    assert summaries[-1].class_index is None
    assert sorted(path.name for path in folder.iterdir()) == ["cases.csv", "summary.csv"]


def run_plain(handler: MetricsReport, *outputs: dict[str, Any]) -> Engine:
    """Give the cases to the handler one by one, as an engine's output."""
    engine = Engine(lambda engine, batch: [batch])
    handler.attach(engine)
    engine.run(list(outputs))
    return engine


def output(path: str | None = "a.nii", **changes: Any) -> dict[str, Any]:
    classes = class_map(CUBE, True)
    return {"label": meta(classes, path), "pred": classes, "pred_segmentation": classes.int(), **changes}


def test_table_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_plain(report(tmp_path), output(), output("b.nii", pred=class_map(SHIFTED, False)))
    (table,) = [message for message in caplog.messages if message.startswith("2 cases")]
    lines = table.splitlines()
    assert lines[1].split()[:3] == ["task", "class", "Dice"]
    fused_organ, fused_tumour = lines[2].split(), lines[3].split()
    assert fused_organ[:5] == ["fused", "organ", "0.8333", "±", "0.1667"]
    assert fused_tumour[:5] == ["fused", "tumour", "0.5000", "±", "0.5000"]
    assert fused_tumour[-4:] == ["1", "1", "0", "0"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/la_1.nii.gz", "x/la_2.nii"], ["la_1", "la_2"]),
        (["x/p1/label.nii.gz", "x/p2/label.nii.gz", "x/p3.nii"], ["p1/label", "p2/label", "p3"]),
        (["x/p1.nii", "x/p1.nii"], ["x/p1", "x/p1 (2)"]),
        ([None, None], ["case_0", "case_1"]),
    ],
)
def test_every_case_has_its_own_name(tmp_path: Path, paths: list[str | None], names: list[str]) -> None:
    run_plain(report(tmp_path), *(output(path) for path in paths))
    assert [row["case"] for row in read(tmp_path / "cases.csv")][:: 2 * 2] == names


def test_image_names_the_case_when_the_label_does_not(tmp_path: Path) -> None:
    run_plain(report(tmp_path), output(None, image=meta(class_map(CUBE, True), "scan.nii.gz")))
    assert {row["case"] for row in read(tmp_path / "cases.csv")} == {"scan"}


def test_two_dimensions(tmp_path: Path) -> None:
    flat = {key: value[..., 3] for key, value in output().items()}
    run_plain(report(tmp_path), {**flat, "label": MetaTensor(flat["label"].as_tensor(), affine=torch.eye(4) * 0.5)})
    row = read(tmp_path / "cases.csv")[0]
    assert (row["dice"], row["hd95_mm"], row["reference_ml"]) == ("1.0", "0.0", "")


def test_processes_are_merged_and_a_repeated_case_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for the other process: it evaluated the same case, which the sampler repeated, and one more.
    def gather(cases: list) -> list:
        return [cases, [cases[0], [replace(row, case="b.nii") for row in cases[0]]]]

    monkeypatch.setattr("dbisl.metrics.report.idist.all_gather", gather)
    run_plain(report(tmp_path), output("a.nii"))
    assert [row["case"] for row in read(tmp_path / "cases.csv")][:: 2 * 2] == ["a", "b"]


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbisl.metrics.report.idist.get_rank", lambda: 1)
    engine = run_plain(report(tmp_path), output())
    assert not list(tmp_path.iterdir())
    assert engine.state.report[0].mean == 1.0  # type: ignore[attr-defined]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_plain(report(tmp_path), output())
    before = (tmp_path / "cases.csv").read_text(encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="no space left"):
        run_plain(report(tmp_path), output("b.nii"))
    assert (tmp_path / "cases.csv").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.csv", "summary.csv"]


def one_hot(classes: torch.Tensor) -> torch.Tensor:
    return torch.cat([classes == index for index in range(3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"pred": torch.zeros(1, 8, 8, 7)}, r"'pred' and 'label' of a.nii must have one shape"),
        (lambda: {"pred": one_hot(class_map(CUBE, True))}, "'pred' must be a class map of one channel"),
        (lambda: {"pred": torch.full((1, *SHAPE), 0.5)}, "'pred' must hold whole numbers from 0 to 2"),
        (lambda: {"label": meta(torch.full((1, *SHAPE), 3), "a.nii")}, "got values from 3 to 3"),
        (lambda: {"label": torch.zeros(1, *SHAPE)}, "'label' must be a MetaTensor"),
        (lambda: {"label": None}, "output must hold 'label'"),
    ],
)
def test_outputs_that_cannot_be_scored(tmp_path: Path, change: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_plain(report(tmp_path), output(**change()))


def test_output_that_is_not_decollated(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: batch)
    report(tmp_path).attach(engine)
    with pytest.raises(ValueError, match="decollate=True"):
        engine.run([output()])


@pytest.mark.parametrize("changes", [{"class_names": ["background"]}, {"pred_keys": {}}])
def test_nothing_to_report(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must name"):
        report(tmp_path, **changes)


def test_mean_leaves_out_what_is_undefined() -> None:
    mean = MeanOfDefined()
    engine = Engine(lambda engine, value: value)
    mean.attach(engine, "mean")
    assert engine.run([0.25, math.nan, torch.tensor(0.75)]).metrics["mean"] == pytest.approx(0.5)
    assert math.isnan(engine.run([math.nan]).metrics["mean"])
