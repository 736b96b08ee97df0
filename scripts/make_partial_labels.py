"""A copy of a data set whose training labels are annotated in some slices only, to measure what that costs.

    python scripts/make_partial_labels.py --dataset_dir DATA --output_dir PARTIAL --every 5
    python scripts/benchmark.py --dataset_dir PARTIAL --output_dir COMPARISON --labels "[8]"

Of each training label every fifth slice along its last axis keeps its classes; all other voxels become 255, not
annotated. Images and validation labels are links to the originals.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import fire
import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from dbisl.data import IGNORE_LABEL, find_cases


def make_partial_labels(dataset_dir: str, output_dir: str, every: int = 5) -> None:
    """Make the copy.

    Args:
        dataset_dir: any that can be trained on.
        output_dir: a new folder.
        every: of so many slices one is annotated; the first is in the middle of the first so many.

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
        names = [f"{Path(case['image']).name.split('.nii')[0]}\n" for case in listed]
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
        header = label.header.copy()
        header.set_data_dtype(np.uint8)
        path = output / "labels" / Path(case["label"]).name
        temporary = path.with_name(f".{os.getpid()}.{path.name}")  # ends as the name does: that decides the format
        nib.save(nib.Nifti1Image(classes, label.affine, header), temporary)
        os.replace(temporary, path)
    print(f"{len(shares)} labels, {100 * np.mean(shares):.0f}% of their slices annotated")


if __name__ == "__main__":
    fire.Fire(make_partial_labels)
