"""Copy a data set with training labels that are annotated in some slices only, to measure what that costs.

    python scripts/make_partial_labels.py --dataset_dir DATA --output_dir PARTIAL --every 5
    python scripts/benchmarks/compare.py --dataset_dir PARTIAL --output_dir COMPARISON --labels "[8]"

In each training label, every fifth slice along the last axis keeps its classes; all other voxels become 255, which
means not annotated. Images and validation labels are links to the originals.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import fire
import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from dbisl.data import IGNORE_LABEL, find_cases, write_label
from dbisl.utils import case_name


def make_partial_labels(dataset_dir: str, output_dir: str, every: int = 5) -> None:
    """Make the copy.

    Args:
        dataset_dir: data set in a layout that training reads.
        output_dir: folder of the copy; it must not exist.
        every: distance of the annotated slices, in slices; the first annotated slice is ``every // 2``.

    Raises:
        FileExistsError: when ``output_dir`` exists.
    """
    source, output = Path(dataset_dir).resolve(), Path(output_dir)
    cases = find_cases(source)
    output.mkdir(parents=True)
    (output / "labels").mkdir()
    (output / "images").mkdir()
    for case in (*cases.labeled, *cases.unlabeled, *cases.validation):
        (output / "images" / Path(case["image"]).name).symlink_to(case["image"])
    for name, listed in (("train", (*cases.labeled, *cases.unlabeled)), ("val", cases.validation)):
        names = [f"{case_name(case['image'])}\n" for case in listed]
        (output / f"{name}.list").write_text("".join(names))
    for case in cases.validation:
        (output / "labels" / Path(case["label"]).name).symlink_to(case["label"])
    shares = []
    for case in cases.labeled:
        label = cast(SpatialImage, nib.load(case["label"]))
        classes = np.asanyarray(label.dataobj).astype(np.uint8)
        annotated = np.arange(classes.shape[2]) % every == every // 2
        classes[:, :, ~annotated] = IGNORE_LABEL
        shares.append(annotated.mean())
        write_label(output / "labels" / Path(case["label"]).name, classes, like=label)
    print(f"{len(shares)} labels, {100 * np.mean(shares):.0f}% of their slices annotated")


if __name__ == "__main__":
    fire.Fire(make_partial_labels)
