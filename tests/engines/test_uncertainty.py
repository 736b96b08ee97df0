"""How unsure the model is of a scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from dbisl.engines import ScanScores
from scripts.make_demo_data import make_demo_data


def test_scores_are_sums_over_what_was_segmented(root: Path, tmp_path: Path) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=1, num_unlabeled=1, num_validation=1, seed=0)
    image = next((tmp_path / "data" / "images").iterdir())
    scores = ScanScores(root / "bundle")
    found = scores(image)

    scan = scores.preprocessing({"image": str(image)})["image"].as_tensor()[None]
    options = {"sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.5}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        p, r = sliding_window_inference(
            scan, (40, 56, 40), predictor=lambda x: tuple(y.float() for y in scores.network(x)), **options
        )
    p, p_r = p.softmax(1)[0].numpy(), (10 * r).softmax(1)[0].numpy()
    fused = (p + p_r) / 2
    segmented = (fused.argmax(axis=0) > 0).sum()
    divergence = np.nan_to_num(jensenshannon(p, p_r, base=3) ** 2).sum() / segmented  # NaN: rounding below 0
    assert found["entropy"] == pytest.approx(entropy(fused, base=3).sum() / segmented, rel=0.05)
    assert found["disagreement"] == pytest.approx(divergence, rel=0.1)


def test_a_scan_in_which_nothing_is_found_comes_first(root: Path, tmp_path: Path) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=1, num_unlabeled=1, num_validation=1, seed=0)
    image = next((tmp_path / "data" / "images").iterdir())
    scores = ScanScores(root / "bundle")
    some = scores(image)
    with torch.no_grad():  # background everywhere, in both tasks, but not for sure
        for parameter in scores.network.parameters():
            parameter.zero_()
    nothing = scores(image)
    assert nothing["entropy"] > some["entropy"]
