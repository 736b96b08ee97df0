"""Writing segmentations and maps as NIfTI files: the format, the file names, and the transform that saves maps."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import FolderLayoutBase, NibabelWriter
from monai.transforms import MapTransform, SaveImage

from dbisl.utils.errors import InputError
from dbisl.utils.files import EXTENSIONS, atomic_path, case_name

MAP_KEYS = {
    "probability": "pred",
    "sdm": "pred_sdm",
    "entropy": "pred_entropy",
    "disagreement": "pred_uncertainty",
}
"""The maps that :class:`SaveMapsd` can write, and the key that holds each."""

DUAL_TASK_MAPS = ("sdm", "disagreement")
"""The maps that need a prediction of each task."""


class WholeNibabelWriter(NibabelWriter):
    """MONAI writer of NIfTI files that every viewer shows in the place of their scan.

    It differs from ``NibabelWriter`` in three ways: a file is written whole or not at all, the image keeps all axes of
    its scan, even those of size 1, and its header gives millimetres as the unit.
    """

    @classmethod
    def convert_to_channel_last(
        cls,
        data: Any,
        channel_dim: int | Sequence[int] | None = 0,
        squeeze_end_dims: bool = True,
        spatial_ndim: int | None = 3,
        contiguous: bool = False,
    ) -> Any:
        """Move the channels to the end as MONAI does, but let ``squeeze_end_dims`` drop only a single channel.

        MONAI also drops spatial axes of size 1 before it.
        """
        single = squeeze_end_dims and channel_dim == 0 and data.shape[0] == 1
        axes = data.ndim - 1 if single else spatial_ndim
        data = super().convert_to_channel_last(data, channel_dim, False, axes, contiguous)
        return data[..., 0] if single else data

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """Set the affine as MONAI does, but call the resampler only to resample: it refuses images of two axes."""
        if resample:
            super().set_metadata(meta_dict, resample, **options)
        else:
            _, self.affine, _ = self.get_meta_info(meta_dict)

    @classmethod
    def create_backend_obj(cls, *args: Any, **kwargs: Any) -> Any:
        """Create the NIfTI image as MONAI does, with millimetres as its unit."""
        image = super().create_backend_obj(*args, **kwargs)
        image.header.set_xyzt_units("mm")
        return image

    def write(self, filename: Any, verbose: bool = False, **options: Any) -> None:
        """Write the image as MONAI does, but whole or not at all."""
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose, **options)


class ScanLayout(FolderLayoutBase):
    """MONAI folder layout that writes the images made from a scan to ``output_dir/NAME_POSTFIX.nii.gz``.

    ``NAME`` is the name of the scan's file or folder. For a scan deeper in ``dataset_dir`` the names of the folders
    between come first, as in ``patient_study_series``. MONAI's ``FolderLayout`` is not used, because it takes whatever
    follows the last dot for an extension: the folder of a DICOM series may be named by a UID, which contains dots.

    Args:
        output_dir: folder of the images; created when an image is written.
        postfix: end of the file names; "" for no more than the scan's name.
        separate_folder: whether each scan gets a folder of its own, ``output_dir/NAME``.
        dataset_dir: where the scans were found, as for :func:`dbisl.data.find_images`.

    Raises:
        InputError: when ``output_dir`` is not a path, or ``postfix`` contains a path separator.
    """

    def __init__(
        self,
        output_dir: str,
        postfix: str,
        separate_folder: bool = False,
        dataset_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        if not isinstance(output_dir, (str, os.PathLike)):
            raise InputError(f"output_dir is {output_dir!r}: expected the path of a folder.")
        if os.sep in str(postfix or ""):
            raise InputError(f"output_postfix is {postfix!r}: expected the end of a file name, without {os.sep!r}.")
        self.output_dir = Path(output_dir)
        self.postfix = postfix
        self.separate_folder = separate_folder
        listed = dataset_dir if isinstance(dataset_dir, (list, tuple)) else [dataset_dir]
        paths = [root for root in listed if isinstance(root, (str, os.PathLike))]
        self.roots = [os.path.abspath(Path(root).expanduser()) for root in paths]

    def path(self, subject: str, postfix: str | None = None) -> Path:
        """Return the path of an image made from a scan.

        Args:
            subject: path of the scan.
            postfix: end of the file name; None for the layout's own.
        """
        name = self._name(Path(os.path.abspath(subject)))
        postfix = self.postfix if postfix is None else postfix
        folder = self.output_dir / name if self.separate_folder else self.output_dir
        return folder / f"{name}{f'_{postfix}' if postfix else ''}{EXTENSIONS[0]}"

    def filename(self, subject: Any = "subject", idx: Any = None, **kwargs: Any) -> str:
        """Return :meth:`path` and create its folder, as MONAI's ``SaveImage`` expects."""
        path = self.path(str(subject))
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def with_postfix(self, postfix: str) -> ScanLayout:
        """Return a layout for other images of the same scans."""
        return ScanLayout(str(self.output_dir), postfix, self.separate_folder, self.roots)

    def _name(self, scan: Path) -> str:
        """Return the name of a scan, after the folders between ``dataset_dir`` and the scan."""
        for root in self.roots:
            between = scan.relative_to(root).parts[:-1] if scan.is_relative_to(root) else ()
            if between:
                return "_".join([*between, case_name(scan)])
        return case_name(scan)


class SaveMapsd(MapTransform):
    """MONAI transform that writes maps of a scan beside its segmentation, as float32 in ``NAME_MAP.nii.gz``.

    Args:
        maps: which maps to write: ``probability`` (``pred``), ``entropy`` (``pred_entropy``), ``sdm`` (``pred_sdm``)
            and ``disagreement`` (``pred_uncertainty``). :class:`dbisl.transforms.FuseTasksd` and
            :class:`dbisl.transforms.Entropyd` fill these keys.
        layout: where the segmentation goes.
        dual_task: whether there is a prediction of each task. ``sdm`` and ``disagreement`` need both.

    Raises:
        InputError: when ``maps`` is empty, or names a map that is unknown or that needs two predictions.
    """

    def __init__(self, maps: Sequence[str], layout: ScanLayout, dual_task: bool = True) -> None:
        available = [name for name in MAP_KEYS if dual_task or name not in DUAL_TASK_MAPS]
        listed = isinstance(maps, (list, tuple)) and len(maps) > 0
        if not listed or not all(isinstance(name, str) and name in available for name in maps):
            why = "" if dual_task else "; the others need the predictions of two tasks"
            raise InputError(f"maps is {maps!r}: expected a list of some of {available}{why}.")
        super().__init__([MAP_KEYS[name] for name in maps])
        self.savers = {
            MAP_KEYS[name]: SaveImage(
                output_dtype=np.float32,
                resample=False,
                folder_layout=layout.with_postfix(name),
                output_ext=EXTENSIONS[0],
                writer=WholeNibabelWriter,
                print_log=False,
            )
            for name in maps
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the maps and return the data as they are."""
        for key, save in self.savers.items():
            save(data[key])
        return dict(data)
