"""A box of a labeled patch is pasted: image, label and SDM in the same box, and nothing outside it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dbisl.bridge import DualTaskOutput
from dbisl.data import CopyPaste

SIZE = (10, 8, 6)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Return two labeled patches, three unlabeled ones, and a teacher's logits and SDM (``r``) for these three."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 1, *SIZE), generator=generator)
    return {
        "images": torch.randn(5, 1, *SIZE, generator=generator),
        "label": label,
        "sdm": 2 * torch.rand(2, 3, *SIZE, generator=generator) - 1,
        "logits": torch.randn(3, 3, *SIZE, generator=generator),
        "r": 2 * torch.rand(3, 3, *SIZE, generator=generator) - 1,
    }


def test_the_box_holds_the_labeled_patch_and_the_rest_stays_unchanged(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    before = {name: tensor.clone() for name, tensor in batch.items()}
    teacher = DualTaskOutput(batch["logits"], batch["r"])
    images, (logits, r) = CopyPaste(1.0)(batch["images"], batch["label"], batch["sdm"], teacher)
    assert r is not None
    assert all(torch.equal(batch[name], before[name]) for name in batch)
    assert torch.equal(images[:2], batch["images"][:2])
    for index, source in enumerate((0, 1, 0)):
        pasted = images[2 + index, 0] != batch["images"][2 + index, 0]
        assert torch.equal(images[2 + index, 0][pasted], batch["images"][source, 0][pasted])
        # It is a box, with edges of 0.4 to 0.8 of the patch's.
        extent = [int(coordinates.max() - coordinates.min()) + 1 for coordinates in pasted.nonzero().T]
        assert pasted.sum() == torch.tensor(extent).prod()
        assert all(0.4 <= edge / size <= 0.8 + 1 / size for edge, size in zip(extent, SIZE, strict=True))
        # In the box the output is the truth, and elsewhere the teacher's.
        assert torch.equal(logits[index].argmax(dim=0)[pasted], batch["label"][source, 0][pasted])
        probabilities = torch.softmax(logits[index], dim=0).amax(dim=0)
        assert (probabilities[pasted] > 0.9999).all()
        assert torch.equal(r[index][:, pasted], batch["sdm"][source][:, pasted])
        assert torch.equal(logits[index][:, ~pasted], batch["logits"][index][:, ~pasted])
        assert torch.equal(r[index][:, ~pasted], batch["r"][index][:, ~pasted])


def test_only_annotated_voxels_are_pasted(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    valid_mask = torch.rand(2, 1, *SIZE) < 0.5
    sdm = torch.where(torch.rand(2, 3, *SIZE) < 0.9, batch["sdm"], torch.nan)
    teacher = DualTaskOutput(batch["logits"], batch["r"])
    images, (logits, r) = CopyPaste(1.0, 1.0, 1.0)(batch["images"], batch["label"], sdm, teacher, valid_mask)
    assert r is not None and not r.isnan().any()
    for index, source in enumerate((0, 1, 0)):
        pasted = valid_mask[source, 0] & ~sdm[source].isnan().any(dim=0)
        assert torch.equal(images[2 + index, 0] == batch["images"][source, 0], pasted)
        assert torch.equal((logits[index] != batch["logits"][index]).all(dim=0), pasted)


def test_probability_and_network_with_a_single_task(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    teacher = DualTaskOutput(batch["logits"])
    images, (logits, r) = CopyPaste(0.0)(batch["images"], batch["label"], None, teacher)
    assert r is None and torch.equal(images, batch["images"]) and torch.equal(logits, batch["logits"])
    changed = 0
    for _ in range(100):
        images, _ = CopyPaste(0.3)(batch["images"], batch["label"], None, teacher)
        changed += sum(not torch.equal(one, other) for one, other in zip(images, batch["images"], strict=True))
    assert 0.2 < changed / 300 < 0.4


def test_two_axes() -> None:
    torch.manual_seed(0)
    label = torch.randint(0, 2, (1, 1, 8, 8))
    one_hot = functional.one_hot(label[:, 0], 2).movedim(-1, 1).float()
    images, (logits, _) = CopyPaste(1.0, 1.0, 1.0)(
        torch.randn(2, 1, 8, 8), label, None, DualTaskOutput(torch.randn(1, 2, 8, 8))
    )
    assert torch.equal(images[1], images[0]) and torch.equal(logits.argmax(dim=1), one_hot.argmax(dim=1))


def test_impossible_arguments_are_refused(batch: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"expected a prob in \[0, 1\]"):
        CopyPaste(1.5)
    with pytest.raises(ValueError, match="needs the SDM of the labels"):
        CopyPaste(1.0)(batch["images"], batch["label"], None, DualTaskOutput(batch["logits"], batch["r"]))
