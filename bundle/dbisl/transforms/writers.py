"""Inference over an archive: a scan that cannot be segmented is reported, and the others go on."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from monai.data import FolderLayoutBase, NibabelWriter
from monai.transforms import MapTransform, SaveImage

from dbisl.utils.errors import InputError
from dbisl.utils.files import EXTENSIONS, case_name


class WholeNibabelWriter(NibabelWriter):
    """MONAI's writer of NIfTI files, for files that lie over their scan in every viewer.

    A file is there whole or not at all: it is written under a temporary name first. Its axes are those of the scan,
    also where one has the size 1, and its unit is the millimetre.
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
        """As MONAI's, but ``squeeze_end_dims`` drops a single channel alone, no spatial axis of size 1 before it."""
        single = squeeze_end_dims and channel_dim == 0 and data.shape[0] == 1
        axes = data.ndim - 1 if single else spatial_ndim
        data = super().convert_to_channel_last(data, channel_dim, False, axes, contiguous)
        return data[..., 0] if single else data

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """As MONAI's, but where nothing is to be resampled the resampler is left out: it takes no plane."""
        if resample:
            super().set_metadata(meta_dict, resample, **options)
        else:
            _, self.affine, _ = self.get_meta_info(meta_dict)

    @classmethod
    def create_backend_obj(cls, *args: Any, **kwargs: Any) -> Any:
        """As MONAI's, with the unit."""
        image = super().create_backend_obj(*args, **kwargs)
        image.header.set_xyzt_units("mm")
        return image

    def write(self, filename: Any, verbose: bool = False, **options: Any) -> None:
        path = Path(filename)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")  # ends as the name does: that decides the format
        try:
            super().write(temporary, verbose, **options)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class ScanLayout(FolderLayoutBase):
    """Where the images made of a scan go: ``output_dir/NAME_POSTFIX.nii.gz``.

    ``NAME`` is that of the scan's file or folder; of one deeper in ``dataset_dir`` it has the names of the folders
    between, as in ``patient_study_series``. MONAI's ``FolderLayout`` would take whatever follows the last dot for an
    extension; the name of a DICOM series may be a UID, which is full of dots.

    Args:
        output_dir: made when a file is to go there.
        postfix: what the name ends in; "" for the scan's own name.
        separate_folder: whether each scan has a folder of its name.
        dataset_dir: what the scans were found in, as of :func:`dbisl.data.find_images`.

    Raises:
        InputError: for an ``output_dir`` that is no path, or a ``postfix`` that is one.
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
            raise InputError(f"output_postfix is {postfix!r}: expected what a file name ends in, without {os.sep!r}.")
        self.output_dir = Path(output_dir)
        self.postfix = postfix
        self.separate_folder = separate_folder
        listed = dataset_dir if isinstance(dataset_dir, (list, tuple)) else [dataset_dir]
        paths = [root for root in listed if isinstance(root, (str, os.PathLike))]
        self.roots = [os.path.abspath(Path(root).expanduser()) for root in paths]

    def path(self, subject: str, postfix: str | None = None) -> Path:
        """Path of what is made of the scan at the path ``subject``, by another postfix if one is given."""
        name = self._name(Path(os.path.abspath(subject)))
        postfix = self.postfix if postfix is None else postfix
        folder = self.output_dir / name if self.separate_folder else self.output_dir
        return folder / f"{name}{f'_{postfix}' if postfix else ''}{EXTENSIONS[0]}"

    def filename(self, subject: Any = "subject", idx: Any = None, **kwargs: Any) -> str:
        """:meth:`path` for MONAI's ``SaveImage``; its folder is made."""
        path = self.path(str(subject))
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def with_postfix(self, postfix: str) -> ScanLayout:
        """The layout of another image of the same scans."""
        return ScanLayout(str(self.output_dir), postfix, self.separate_folder, self.roots)

    def _name(self, scan: Path) -> str:
        for root in self.roots:
            between = scan.relative_to(root).parts[:-1] if scan.is_relative_to(root) else ()
            if between:
                return "_".join([*between, case_name(scan)])
        return case_name(scan)


class SaveMapsd(MapTransform):
    """Writes maps of a segmented scan beside its segmentation, float32, each ``NAME_MAP.nii.gz``.

    Args:
        maps: of ``probability`` (``pred``), ``entropy`` (``pred_entropy``), ``sdm`` (``pred_sdm``) and ``disagreement``
            (``pred_uncertainty``), the keys that :class:`dbisl.transforms.FuseTasksd` and
            :class:`dbisl.transforms.Entropyd` fill. A network that gives one answer has neither of the last two.
        layout: of the segmentation.
        two_answers: whether the network gives one answer a task.

    Raises:
        InputError: for a map of another name or that the network does not give, or for none.
    """

    KEYS: ClassVar[dict[str, str]] = {
        "probability": "pred",
        "sdm": "pred_sdm",
        "entropy": "pred_entropy",
        "disagreement": "pred_uncertainty",
    }

    OF_TWO_ANSWERS = ("sdm", "disagreement")

    def __init__(self, maps: Sequence[str], layout: ScanLayout, two_answers: bool = True) -> None:
        known = [name for name in self.KEYS if two_answers or name not in self.OF_TWO_ANSWERS]
        named = isinstance(maps, (list, tuple)) and len(maps) > 0
        if not named or not all(isinstance(name, str) and name in known for name in maps):
            whose = "" if two_answers else ", all that a network with one answer gives"
            raise InputError(f"maps is {maps!r}: expected a list of some of {known}{whose}.")
        super().__init__([self.KEYS[name] for name in maps])
        self.savers = {
            self.KEYS[name]: SaveImage(
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
        for key, save in self.savers.items():
            save(data[key])
        return dict(data)
