"""The two files and the table of an evaluation."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.engines.evaluator import SupervisedEvaluator
from monai.transforms.compose import Compose
from monai.transforms.utility.dictionary import CopyItemsd, Lambdad

from dbisl.metrics import METRICS, OUTCOMES, MetricsReport

CLASSES = ["background", "organ", "tumour"]
SHAPE = (8, 8, 8)
CUBE = (slice(2, 5),) * 3
SHIFTED = (slice(2, 5), slice(2, 5), slice(3, 6))
EACH_ONCE = dict.fromkeys(OUTCOMES, 1)


def class_map(organ: tuple[slice, slice, slice], *, tumour: bool = True) -> torch.Tensor:
    """Return a class map, ``1 x 8 x 8 x 8``, with the organ in a region and the tumour in one voxel or nowhere."""
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
    """Return four cases: the organ is one slice off in the first, and the tumour has a different outcome in each."""
    return [
        case("data/a.nii.gz", class_map(SHIFTED), class_map(CUBE)),
        case("data/b.nii", class_map(CUBE, tumour=False), class_map(CUBE)),
        case("data/c.nii.gz", class_map(CUBE), class_map(CUBE, tumour=False)),
        case("data/d.nii.gz", class_map(CUBE, tumour=False), class_map(CUBE, tumour=False)),
    ]


def without_tumour(classes: torch.Tensor) -> torch.Tensor:
    return torch.where(classes == 2, 0, classes)


def evaluator(cases: list[dict[str, MetaTensor]]) -> SupervisedEvaluator:
    """Return an evaluator that predicts the image itself, and whose segmentation branch never finds a tumour."""
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
    assert [outcomes[name, "fused", "tumour"] for name in "abcd"] == [
        "found",
        "false_negative",
        "false_positive",
        "absent",
    ]
    assert [outcomes[name, "segmentation", "tumour"] for name in "abcd"] == [
        "false_negative",
        "false_negative",
        "absent",
        "absent",
    ]
    assert {outcomes[name, task, "organ"] for name in "abcd" for task in ("fused", "segmentation")} == {"found"}


def test_cells_of_a_case(evaluated: tuple[Path, SupervisedEvaluator]) -> None:
    rows = {(row["case"], row["task"], row["class_index"]): row for row in read(evaluated[0] / "cases.csv")}
    organ = rows["a", "fused", "1"]
    expected = {"dice": 2 / 3, "jaccard": 0.5, "hd95_mm": 2, "assd_mm": 19 / 26, "hd95_voxel": 1, "assd_voxel": 10 / 26}
    assert {name: float(organ[name]) for name in METRICS} == pytest.approx(expected)
    assert float(organ["reference_ml"]) == pytest.approx(0.054)
    false_negative = rows["b", "fused", "2"]
    assert [false_negative[name] for name in METRICS] == ["0.0", "0.0", "", "", "", ""]
    assert [float(false_negative[name]) for name in ("reference_ml", "prediction_ml")] == pytest.approx([0.002, 0.0])
    assert [rows["d", "fused", "2"][name] for name in METRICS] == [""] * 6


def summary_row(folder: Path, task: str, name: str, metric: str) -> dict[str, str]:
    rows = read(folder / "summary.csv")
    (row,) = [row for row in rows if (row["task"], row["class_name"], row["metric"]) == (task, name, metric)]
    return row


@pytest.mark.parametrize(
    ("task", "name", "metric", "values", "counts"),
    [
        ("fused", "organ", "dice", [2 / 3, 1, 1, 1], {"found": 4}),
        ("fused", "organ", "assd_mm", [19 / 26, 0, 0, 0], {"found": 4}),
        ("fused", "tumour", "dice", [1, 0, 0], EACH_ONCE),
        ("fused", "tumour", "hd95_mm", [0], EACH_ONCE),
        ("fused", "mean", "dice", [5 / 6, 0.5, 0.5, 1], {**EACH_ONCE, "found": 5}),
        ("fused", "mean", "assd_mm", [19 / 52, 0, 0, 0], {**EACH_ONCE, "found": 5}),
        ("segmentation", "tumour", "jaccard", [0, 0], {"false_negative": 2, "absent": 2}),
        ("segmentation", "tumour", "hd95_mm", [], {"false_negative": 2, "absent": 2}),
    ],
)
def test_summary(
    evaluated: tuple[Path, SupervisedEvaluator],
    task: str,
    name: str,
    metric: str,
    values: list[float],
    counts: dict[str, int],
) -> None:
    row = summary_row(evaluated[0], task, name, metric)
    assert int(row["n"]) == len(values)
    assert {outcome: int(row[outcome]) for outcome in OUTCOMES if row[outcome] != "0"} == counts
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


def score(handler: MetricsReport, *outputs: dict[str, Any]) -> Engine:
    """Run an engine whose outputs are the cases, one by one, with the handler attached."""
    engine = Engine(lambda engine, batch: [batch])
    handler.attach(engine)
    engine.run(list(outputs))
    return engine


def output(path: str | None = "a.nii", **changes: Any) -> dict[str, Any]:
    classes = class_map(CUBE)
    return {"label": meta(classes, path), "pred": classes, "pred_segmentation": classes.int(), **changes}


def test_table_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        score(report(tmp_path), output(), output("b.nii", pred=class_map(SHIFTED, tumour=False)))
    (table,) = [message for message in caplog.messages if message.startswith("2 cases")]
    lines = table.splitlines()
    assert lines[1].split()[:3] == ["task", "class", "Dice"]
    assert lines[1].endswith("  found  false negative  false positive  absent")
    fused_organ, fused_tumour = lines[2].split(), lines[3].split()
    assert fused_organ[:5] == ["fused", "organ", "0.8333", "±", "0.1667"]
    assert fused_tumour[:5] == ["fused", "tumour", "0.5000", "±", "0.5000"]
    assert fused_tumour[-4:] == ["1", "1", "0", "0"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/la_1.nii.gz", "x/la_2.nii"], ["la_1", "la_2"]),
        (["x/sub.niigata.nii.gz", "x/SCAN.NII.GZ"], ["sub.niigata", "SCAN"]),
        (["x/p1/label.nii.gz", "x/p2/label.nii.gz", "x/p3.nii"], ["p1/label", "p2/label", "p3"]),
        (["x/p1.nii", "x/p1.nii"], ["x/p1", "x/p1 (2)"]),
        ([None, None], ["case_0", "case_1"]),
    ],
)
def test_every_case_has_its_own_name(tmp_path: Path, paths: list[str | None], names: list[str]) -> None:
    score(report(tmp_path), *(output(path) for path in paths))
    assert [row["case"] for row in read(tmp_path / "cases.csv")][:: 2 * 2] == names


def test_image_names_the_case_when_the_label_does_not(tmp_path: Path) -> None:
    score(report(tmp_path), output(None, image=meta(class_map(CUBE), "scan.nii.gz")))
    assert {row["case"] for row in read(tmp_path / "cases.csv")} == {"scan"}


def test_two_dimensions(tmp_path: Path) -> None:
    flat = {key: value[..., 3] for key, value in output().items()}
    score(report(tmp_path), {**flat, "label": MetaTensor(flat["label"].as_tensor(), affine=torch.eye(4) * 0.5)})
    row = read(tmp_path / "cases.csv")[0]
    assert (row["dice"], row["hd95_mm"], row["reference_ml"]) == ("1.0", "0.0", "")


def test_processes_are_merged_and_a_repeated_case_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This stands in for the other process, which scored the case that the sampler repeated and another one.
    def gather(cases: list) -> list:
        return [cases, [cases[0], [replace(row, case="b.nii") for row in cases[0]]]]

    monkeypatch.setattr("dbisl.metrics.report.idist.all_gather", gather)
    score(report(tmp_path), output("a.nii"))
    assert [row["case"] for row in read(tmp_path / "cases.csv")][:: 2 * 2] == ["a", "b"]


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbisl.metrics.report.idist.get_rank", lambda: 1)
    engine = score(report(tmp_path), output())
    assert not list(tmp_path.iterdir())
    assert engine.state.report[0].mean == 1.0  # type: ignore[attr-defined]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(report(tmp_path), output())
    before = (tmp_path / "cases.csv").read_text(encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="no space left"):
        score(report(tmp_path), output("b.nii"))
    assert (tmp_path / "cases.csv").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.csv", "summary.csv"]


def one_hot(classes: torch.Tensor) -> torch.Tensor:
    return torch.cat([classes == index for index in range(3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"pred": torch.zeros(1, 8, 8, 7)}, r"'pred' and 'label' of a.nii must have the same shape"),
        (lambda: {"pred": one_hot(class_map(CUBE))}, "'pred' must be a class map of one channel"),
        (lambda: {"pred": torch.full((1, *SHAPE), 0.5)}, "'pred' must hold whole numbers from 0 to 2"),
        (lambda: {"label": meta(torch.full((1, *SHAPE), 3), "a.nii")}, "got values from 3 to 3"),
        (lambda: {"label": torch.zeros(1, *SHAPE)}, "'label' must be a MetaTensor"),
        (lambda: {"label": None}, "output must hold 'label'"),
    ],
)
def test_outputs_that_cannot_be_scored(tmp_path: Path, change: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(report(tmp_path), output(**change()))


def test_output_that_is_not_decollated(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: batch)
    report(tmp_path).attach(engine)
    with pytest.raises(ValueError, match="decollate=True"):
        engine.run([output()])


@pytest.mark.parametrize("changes", [{"class_names": ["background"]}, {"pred_keys": {}}])
def test_nothing_to_report(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must name"):
        report(tmp_path, **changes)
