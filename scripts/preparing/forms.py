"""The forms in which public data sets come: how each is recognised, and which cases, channels and classes it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dbisl.data import is_nifti
from dbisl.utils import InputError, case_name
from scripts.preparing.cases import Case, Dataset, files_named
from scripts.preparing.dataset_json import case_files, has_channel_names, read_decathlon, read_nnunet
from scripts.preparing.dicom import dicom_files, find_series, read_segmentations, read_series
from scripts.preparing.volumes import label_reader, read_hdf5_volume, read_volume, require_hdf5

LA_SPACING = (0.625, 0.625, 0.625)
"""Millimetres of a voxel of the Left Atrium challenge. Its preprocessed files, ``mri_norm2.h5``, do not hold them."""
PANCREAS_LABEL = r"label\d{4}\.nii(\.gz)?"
BRATS_CHANNELS = ("flair", "t1", "t1ce", "t2")


@dataclass(frozen=True)
class Form:
    """A form of data set.

    Attributes:
        name: its name on the command line.
        meaning: what its folder holds, for messages.
        fits: whether a folder has this form.
        read: finds the cases of a folder, given the spacing on the command line (or None).
    """

    name: str
    meaning: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, Sequence[float] | None], Dataset]


def recognise(source: Path, name: str | None = None) -> Form:
    """Return the form of a folder.

    Args:
        source: the folder.
        name: name of the form, if it is known.

    Raises:
        InputError: when no form or several fit, or the named one does not.
    """
    known = "\n".join(f"  {form.name}: {form.meaning}" for form in FORMS)
    if not source.is_dir():
        raise InputError(f"source {source} is not a folder: expected one of the forms\n{known}")
    if name is not None and name not in {form.name for form in FORMS}:
        raise InputError(f"form is {name!r}: expected one of the forms\n{known}")
    fitting = [form for form in FORMS if name in (None, form.name) and form.fits(source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(form.name for form in fitting)
        raise InputError(f"source {source} fits the forms {names}: expected one of them as --form.")
    if (source / "images").is_dir():
        raise InputError(f"source {source} has a folder images, which training reads as it is: expected another form.")
    raise InputError(f"source {source} does not fit {'any form' if name is None else name}: expected\n{known}")


def _read_left_atrium(source: Path, spacing: Sequence[float] | None) -> Dataset:
    cases = []
    images = files_named(source, r"lgemri\.nrrd")
    # The challenge's test scans stay apart.
    training = [image for image in images if "test" not in str(image.relative_to(source).parent).lower()]
    for image in training or images:
        label = image.with_name("laendo.nrrd")
        reader = label_reader(label if label.is_file() else None)
        cases.append(Case(image.parent.name, (partial(read_volume, image),), reader))
    return Dataset(cases, ("LGE-MRI",), {"left atrium": [1, 255]})


def _read_hdf5(source: Path, spacing: Sequence[float] | None) -> Dataset:
    files = files_named(source, r".+\.(h5|hdf5)")
    require_hdf5(files[0])
    atrium = all(path.name == "mri_norm2.h5" for path in files)
    spacing = spacing or (LA_SPACING if atrium else None)
    if spacing is None:
        raise InputError(f"{files[0]} does not hold the size of a voxel: expected --spacing, as in [1.0,1.0,1.0].")
    one_name = len(files) > 1 and len({path.name for path in files}) == 1
    named = sorted((path.parent.name if one_name or atrium else path.stem, path) for path in files)
    cases = [
        Case(
            name,
            (partial(read_hdf5_volume, path, "image", spacing),),
            partial(read_hdf5_volume, path, "label", spacing),
        )
        for name, path in named
    ]
    lists = _lists(source, {name for name, _ in named})
    return Dataset(cases, ("image",), {"left atrium": [1]} if atrium else None, lists=lists)


def _lists(source: Path, names: set[str]) -> dict[str, list[str]]:
    """Return the training and validation cases that the lists of a source name; its test cases are in neither.

    The literature's lists name the file with or without its end, as ``CASE``, ``CASE/mri_norm2.h5`` or ``CASE_norm``.
    """
    listed: dict[str, list[str]] = {}
    for path in files_named(source, r"(train|val|test)\.(list|txt)"):
        kind, found = path.stem.lower(), []
        for line in filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())):
            short = re.sub(r"(/mri_norm2)?\.(h5|hdf5)$", "", line).rsplit("/", 1)[-1]
            found.append(short if short in names else f"{short}_norm")
            if kind != "test" and found[-1] not in names:
                raise InputError(f"{path} lists {line}, which has no .h5 file: expected one for each.")
        if listed.setdefault(kind, found) != found:
            raise InputError(f"{path} lists other cases than another list {kind} in {source}: expected one of them.")
    if listed and "train" not in listed:
        listed["train"] = sorted(names - {*listed.get("val", ()), *listed.get("test", ())})
    listed.pop("test", None)
    return listed


def _read_pancreas(source: Path, spacing: Sequence[float] | None) -> Dataset:
    labels = {re.sub(r"\D", "", case_name(path)): path for path in files_named(source, PANCREAS_LABEL)}
    series: dict[str, list[Path]] = {}
    for path in dicom_files(source):
        numbers = re.findall(r"PANCREAS_(\d{4})", path.as_posix())
        if numbers:
            series.setdefault(numbers[-1], []).append(path)
    cases = [
        Case(
            f"pancreas_{number}",
            (partial(read_series, tuple(slices)),),
            label_reader(labels.get(number)),
        )
        for number, slices in sorted(series.items())
    ]
    lost = sorted(set(labels) - set(series))
    problems = [f"{labels[number]} has no folder PANCREAS_{number} with DICOM files: expected one." for number in lost]
    return Dataset(cases, ("CT",), {"pancreas": [1]}, only_orientation=True, problems=problems)


def _read_brats(source: Path, spacing: Sequence[float] | None) -> Dataset:
    cases, problems = [], []
    for image in files_named(source, r".+_flair\.nii(\.gz)?"):
        name = case_name(image)[: -len("_flair")]
        ending = image.name[len(name) + len("_flair") :]
        channels = [image.with_name(f"{name}_{channel}{ending}") for channel in BRATS_CHANNELS]
        missing = [path.name for path in channels if not is_nifti(path)]
        if missing:
            problems.append(f"{image.parent} has no {missing[0]}: expected {', '.join(BRATS_CHANNELS)} of each case.")
            continue
        label = image.with_name(f"{name}_seg{ending}")
        reader = label_reader(label if is_nifti(label) else None)
        cases.append(Case(name, tuple(partial(read_volume, path) for path in channels), reader))
    classes = {"necrotic and non-enhancing core": [1], "edema": [2], "enhancing tumor": [4]}
    regions = {"whole tumor": [1, 2, 4], "tumor core": [1, 4], "enhancing tumor": [4]}
    return Dataset(cases, BRATS_CHANNELS, classes, regions, problems=problems)


def _read_acdc(source: Path, spacing: Sequence[float] | None) -> Dataset:
    cases, problems = [], []
    infos = files_named(source, r"Info\.cfg")
    training = [info for info in infos if "training" in info.relative_to(source).parts]
    infos = training or infos  # the challenge's test patients stay apart
    for info in infos:
        patient = info.parent.name
        frames = dict(re.findall(r"^(ED|ES)\s*:\s*(\d+)", info.read_text(), flags=re.MULTILINE))
        if set(frames) != {"ED", "ES"}:
            problems.append(f"{info} names the frames {frames}: expected ED and ES.")
            continue
        for phase, frame in frames.items():
            found = {case_name(path): path for path in sorted(info.parent.iterdir()) if is_nifti(path)}
            stem = f"{patient}_frame{int(frame):02d}"
            if stem not in found:
                problems.append(f"{info.parent} has no {stem}.nii.gz: expected the frame of {phase} in Info.cfg.")
                continue
            reader = label_reader(found.get(f"{stem}_gt"))
            cases.append(Case(f"{patient}_{phase.lower()}", (partial(read_volume, found[stem]),), reader))
    classes = {"right ventricle": [1], "myocardium": [2], "left ventricle": [3]}
    return Dataset(cases, ("cine MRI",), classes, problems=problems)


def _read_dicom(source: Path, spacing: Sequence[float] | None) -> Dataset:
    series, numbers, problems = find_series(source)
    names = [re.sub(r"[^\w.-]+", "_", one.patient).strip("._") or "series" for one in series]
    cases = []
    for index, (one, name) in enumerate(zip(series, names, strict=True)):
        if names.count(name) > 1 or name == "series":
            name = f"{name}_{names[: index + 1].count(name)}"
        slices = tuple(one.slices)
        label = partial(read_segmentations, one.segmentations, slices, numbers) if one.segmentations else None
        cases.append(Case(name, (partial(read_series, slices),), label))
    return Dataset(cases, ("image",), {name: [number] for name, number in numbers.items()}, problems=problems)


FORMS = (
    Form(
        "nnunet",
        "nnU-Net's raw data: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, dataset.json",
        has_channel_names,
        read_nnunet,
    ),
    Form(
        "decathlon",
        "the Medical Segmentation Decathlon: imagesTr/CASE.nii.gz, labelsTr/CASE.nii.gz, dataset.json",
        lambda source: bool(case_files(source / "imagesTr")) and not has_channel_names(source),
        read_decathlon,
    ),
    Form(
        "left_atrium",
        "the Left Atrium challenge: CASE/lgemri.nrrd and CASE/laendo.nrrd",
        lambda source: bool(files_named(source, r"lgemri\.nrrd")),
        _read_left_atrium,
    ),
    Form(
        "h5",
        "HDF5 files with the arrays image and label, as the semi-supervised literature shares them",
        lambda source: bool(files_named(source, r".+\.(h5|hdf5)")),
        _read_hdf5,
    ),
    Form(
        "pancreas",
        "NIH Pancreas-CT: folders PANCREAS_0001 with DICOM files, and label0001.nii.gz",
        lambda source: bool(files_named(source, PANCREAS_LABEL)),
        _read_pancreas,
    ),
    Form(
        "brats",
        "BraTS 2017 to 2021: CASE/CASE_flair.nii.gz, _t1, _t1ce, _t2 and _seg, also below HGG and LGG",
        lambda source: bool(files_named(source, r".+_flair\.nii(\.gz)?")),
        _read_brats,
    ),
    Form(
        "acdc",
        "ACDC: patient001/Info.cfg with patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz",
        lambda source: bool(files_named(source, r"Info\.cfg")),
        _read_acdc,
    ),
    Form(
        "dicom",
        "DICOM series with segmentations (DICOM-SEG) that refer to them",
        lambda source: next(dicom_files(source), None) is not None and not files_named(source, PANCREAS_LABEL),
        _read_dicom,
    ),
)
