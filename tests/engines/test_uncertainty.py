"""How uncertain a model is about a scan."""

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


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(str(folder), num_labeled=1, num_unlabeled=1, num_validation=1, seed=0)
    return next((folder / "images").iterdir())


@pytest.fixture(scope="module")
def scores(root: Path) -> ScanScores:
    return ScanScores(root / "bundle")


@pytest.fixture(scope="module")
def found(scores: ScanScores, image: Path) -> dict[str, float]:
    return scores(image)


def test_scores_are_sums_over_the_foreground(scores: ScanScores, image: Path, found: dict[str, float]) -> None:
    scan = scores.preprocessing({"image": str(image)})["image"].as_tensor()[None]
    options = {"sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.5}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        p, r = sliding_window_inference(
            scan, (40, 56, 40), predictor=lambda x: tuple(y.float() for y in scores.network(x)), **options
        )
    p, p_r = p.softmax(1)[0].numpy(), (10 * r).softmax(1)[0].numpy()
    fused = (p + p_r) / 2
    foreground = (fused.argmax(axis=0) > 0).sum()
    divergence = np.nan_to_num(jensenshannon(p, p_r, base=3) ** 2).sum() / foreground  # NaN: rounding below 0
    assert found["entropy"] == pytest.approx(entropy(fused, base=3).sum() / foreground, rel=0.05)
    assert found["disagreement"] == pytest.approx(divergence, rel=0.1)


def test_a_scan_without_any_structure_ranks_first(
    root: Path, tmp_path: Path, scores: ScanScores, image: Path, found: dict[str, float]
) -> None:
    # With all weights 0, both tasks predict the background everywhere, but with little certainty.
    zeros = {name: torch.zeros_like(values) for name, values in scores.network.state_dict().items()}
    torch.save(zeros, tmp_path / "zeros.pt")
    assert ScanScores(root / "bundle", weights=tmp_path / "zeros.pt")(image)["entropy"] > found["entropy"]
