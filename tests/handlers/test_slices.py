"""The slice that a picture shows, and what the picture says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from dbisl.handlers import cut_slice, draw_slice

CLASSES = ["background", "organ", "tumour"]
SHAPE = (8, 10, 6)


def case_in(axcodes: str = "RAS", spacing: tuple[float, ...] = (1.0, 1.0, 3.0), **maps: torch.Tensor) -> dict[str, Any]:
    """Return a case whose maps are given in R, A, S order, stored in another orientation."""
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    turn = Orientation(axcodes=axcodes, labels=(("L", "R"), ("P", "A"), ("I", "S")))
    image = torch.arange(8 * 10 * 6).reshape(1, *SHAPE).float()
    return {key: turn(MetaTensor(map_, affine=affine)) for key, map_ in {"image": image, **maps}.items()}


def truth_and_prediction() -> dict[str, torch.Tensor]:
    label = torch.zeros(1, *SHAPE)
    label[0, 1:4, 2:5, 1:3] = 1
    label[0, 5, 5, 4] = 2
    pred = label.clone()
    pred[0, 1:4, 2:4, 2] = 0
    return {"label": label, "pred": pred}


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SLA"])
def test_a_slice_looks_the_same_in_every_orientation(axcodes: str) -> None:
    case = case_in(axcodes, **truth_and_prediction())
    cut = cut_slice(case, "a", [0.8, 1.0], 3, [1.0] * 3)
    # Radiology: R is on the left and A on top, so that both indices of R, A, S order run backwards.
    expected = np.arange(8 * 10 * 6).reshape(SHAPE)[::-1, ::-1, 2].T
    np.testing.assert_array_equal(cut.image, expected)
    np.testing.assert_array_equal(
        cut.masks["label"][0], truth_and_prediction()["label"][0, :, :, 2].numpy()[::-1, ::-1].T
    )
    assert cut.edges == ("R", "A") and cut.aspect == 1.0
    assert cut.masks["pred"].sum() == 3 and cut.masks["label"].sum() == 9


@pytest.mark.parametrize(
    ("spacing", "edges", "shape", "aspect"),
    [
        ((1.0, 1.0, 1.0), ("R", "A"), (10, 8), 1.0),  # axial
        ((1.0, 1.0, 1.05), ("R", "A"), (10, 8), 1.0),
        ((1.0, 1.05, 1.0), ("R", "A"), (10, 8), 1.05),
        ((1.0, 4.0, 2.0), ("R", "S"), (6, 8), 2.0),  # coronal
        ((3.0, 1.0, 0.5), ("A", "S"), (6, 10), 0.5),  # sagittal
        ((1.0, 3.0, 3.0), ("R", "A"), (10, 8), 3.0),  # no single thick axis
    ],
)
def test_the_plane_has_the_two_finest_spacings(
    spacing: tuple[float, ...], edges: tuple[str, str], shape: tuple[int, int], aspect: float
) -> None:
    cut = cut_slice(case_in(spacing=spacing, **truth_and_prediction()), "a", [0.8, 1.0], 3, [1.0] * 3)
    assert (cut.edges, cut.image.shape) == (edges, shape)
    assert cut.aspect == pytest.approx(aspect)


def test_the_slice_has_most_wrong_voxels_or_most_of_the_truth() -> None:
    maps = truth_and_prediction()
    assert cut_slice(case_in(**maps), "a", [0.8, 1.0], 3, [1.0] * 3).slice_text == "slice 3 of 6"
    right = cut_slice(case_in(label=maps["label"], pred=maps["label"]), "a", [1.0, 1.0], 3, [1.0] * 3)
    assert right.slice_text == "slice 2 of 6"
    assert cut_slice(case_in(), "a", [], 3, [1.0] * 3).slice_text == "slice 4 of 6"


def test_images_without_an_affine_have_the_given_spacing() -> None:
    case = {key: map_.as_tensor() for key, map_ in case_in(**truth_and_prediction()).items()}
    cut = cut_slice(case, "a", [0.8, 1.0], 3, [4.0, 1.0, 2.0])
    assert (cut.edges, cut.aspect) == (("A", "S"), 2.0)


def test_two_dimensions() -> None:
    case = {key: map_.as_tensor()[..., 2] for key, map_ in case_in(**truth_and_prediction()).items()}
    cut = cut_slice(case, "a", [0.8, 1.0], 3, [1.0, 2.0])
    assert (cut.image.shape, cut.slice_text, cut.aspect) == ((10, 8), "", 2.0)


def texts(figure: Any) -> str:
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return " | ".join([figure.get_suptitle(), *(axes.get_title() for axes in figure.axes), *legend])


def test_title_panels_and_legend() -> None:
    maps = truth_and_prediction()
    case = case_in(**maps, pred_sdm=torch.rand(3, *SHAPE), pred_uncertainty=torch.rand(1, *SHAPE))
    figure = draw_slice(cut_slice(case, "heart_1", [0.8, float("nan")], 3, [1.0] * 3), CLASSES)
    assert texts(figure) == (
        "heart_1, Dice 0.800, slice 3 of 6 | image | truth | prediction | "
        "truth and prediction | signed distance | uncertainty | organ 0.800 | tumour absent | truth | prediction"
    )
    bare = draw_slice(cut_slice(case_in(pred=maps["pred"]), "heart_2", [], 3, [1.0] * 3), CLASSES)
    assert texts(bare) == "heart_2, slice 2 of 6 | image | prediction | organ | tumour"


def test_contours_have_a_colour_for_each_class_and_a_line_for_each_mask() -> None:
    label, pred = torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE)
    label[0, 1:4, 1:4, 3], label[0, 5:7, 5:7, 3] = 1, 2
    pred[0, 2:5, 1:4, 3] = 1
    figure = draw_slice(cut_slice(case_in(label=label, pred=pred), "a", [0.7, 0.0], 3, [1.0] * 3), CLASSES)
    both = next(axes for axes in figure.axes if axes.get_title() == "truth and prediction")
    assert len(both.collections) == 3  # two classes of the truth, one of the prediction
    colours = [tuple(contour.get_edgecolor()[0]) for contour in both.collections]
    assert colours[0] == colours[2] != colours[1]
    dashed = [contour.get_linestyle()[0][1] is not None for contour in both.collections]
    assert dashed == [False, False, True]
