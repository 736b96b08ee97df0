"""Make a small synthetic dataset to try the bundle on, in a few seconds and without a download.

Each scan looks like a hippocampus scan of the Medical Segmentation Decathlon, but all voxels are drawn from a seed. The
structure to segment is a curved body of two adjoining parts, anterior (1) and posterior (2). It lies among folded grey
matter and neighbours of the same intensity. No threshold finds it: a network must learn its shape and place.

    python scripts/make_demo_data.py --output_dir demo/data --seed 0

writes::

    demo/data/images/CASE.nii.gz          all scans
    demo/data/labels/CASE.nii.gz          their labels, except for the unlabeled training scans
    demo/data/train.list                  training cases, one name per line, the labeled ones first
    demo/data/val.list                    validation cases
    demo/data/unseen/images, labels       scans for inference, and their labels
    demo/data/demo.json                   the arguments, and the Dice of the best threshold
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import fire
import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

ANTERIOR, POSTERIOR = 1, 2
FLUID, GREY, WHITE = 0.25, 0.62, 1.0
ANTERIOR_GREY, POSTERIOR_GREY = 0.58, 0.66
BODY_POINTS = 60
SPLITS = ("train", "val", "unseen")
NUM_UNSEEN = 3
RECORD = "demo.json"


class Scan(NamedTuple):
    """An image (int16) and its label (uint8), both ``H x W x D`` at 1 mm; the axes point right, anterior, superior."""

    image: np.ndarray
    label: np.ndarray


class Case(NamedTuple):
    """The place of a scan in the dataset."""

    split: str
    number: int
    labeled: bool = True

    @property
    def name(self) -> str:
        """Name of the case: the file name without its extension."""
        return f"{self.split}_{self.number:02d}"

    @property
    def image(self) -> Path:
        """Path of the image, relative to the dataset's folder."""
        return self._folder / "images" / f"{self.name}.nii.gz"

    @property
    def label(self) -> Path:
        """Path of the label, if it is written, relative to the dataset's folder."""
        return self._folder / "labels" / f"{self.name}.nii.gz"

    @property
    def _folder(self) -> Path:
        return Path("unseen") if self.split == "unseen" else Path()


class Tube(NamedTuple):
    """A bent tube of varying thickness.

    Attributes:
        centreline: points, ``N x 3``, in voxels.
        radius: radius at each point, ``N``, in voxels.
    """

    centreline: np.ndarray
    radius: np.ndarray

    def distance(self, coordinates: np.ndarray) -> np.ndarray:
        """Return the distance to the centreline over the radius there, which is 1 on the surface.

        Args:
            coordinates: where to compute it, ``3 x H x W x D``, in voxels.

        Returns:
            The relative distance, ``H x W x D``.
        """
        squared = np.full(coordinates.shape[1:], np.inf)
        for point, radius in zip(self.centreline, self.radius, strict=True):
            squared = np.minimum(squared, np.square((coordinates - point[:, None, None, None]) / radius).sum(axis=0))
        return np.sqrt(squared)


def _smooth_field(rng: np.random.Generator, shape: Sequence[int], sigma: float | Sequence[float]) -> np.ndarray:
    """Return smooth noise of mean 0 and deviation 1; ``sigma`` is the size of its features, in voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="reflect")
    return (field - field.mean()) / field.std()


def _bezier(start: np.ndarray, control: np.ndarray, end: np.ndarray, points: int) -> np.ndarray:
    """Return points on a quadratic Bézier curve, ``points x 3``."""
    along = np.linspace(0, 1, points)[:, None]
    return (1 - along) ** 2 * start + 2 * along * (1 - along) * control + along**2 * end


def _draw_body(rng: np.random.Generator, centre: np.ndarray) -> tuple[Tube, int]:
    """Draw a body with a thick head, a neck and a tapering tail; the parts meet at the neck.

    Returns:
        The body, and the index of the neck on its centreline.
    """
    half_length = rng.uniform(13.5, 16.5)
    bend = rng.uniform((-6, -2, -8), (-2, 2, -5))
    line = _bezier(np.array((1, half_length, -6)), bend, np.array((2, -half_length, 8)), points=BODY_POINTS)
    pose = Rotation.from_rotvec(rng.normal(0, 0.07, 3))
    shift = rng.uniform(-2, 2, 3)
    neck = rng.uniform(0.38, 0.46)
    thickness = rng.uniform(0.9, 1.1) * rng.uniform(0.95, 1.05, 5)
    radius = PchipInterpolator([0, 0.2, neck, 0.7, 1], thickness * [4.8, 6.3, 4.5, 5.2, 3.2])
    along = np.linspace(0, 1, BODY_POINTS)
    return Tube(centre + shift + pose.apply(line), radius(along)), int(np.argmin(np.abs(along - neck)))


def _label_parts(body: Tube, neck: int, coordinates: np.ndarray) -> np.ndarray:
    """Return the label, ``H x W x D``: the body, cut at the neck across its centreline."""
    to_head = body.centreline[neck - 1] - body.centreline[neck + 1]
    from_neck = coordinates - body.centreline[neck][:, None, None, None]
    part = np.where(np.tensordot(to_head, from_neck, axes=1) > 0, ANTERIOR, POSTERIOR)
    return np.where(body.distance(coordinates) < 1, part, 0).astype(np.uint8)


def _draw_neighbours(rng: np.random.Generator, body: Tube) -> list[Tube]:
    """Draw structures that look alike: a blob in front of the head, a tube beside the body, two tubes around it."""
    head, middle, tail = body.centreline[[0, BODY_POINTS // 2, -1]]
    ahead = head + rng.uniform((-4, 6, -3), (4, 9, 4))
    beside = middle + rng.uniform((10, -3, -5), (13, 3, 1))
    half_axis = (head - tail) / 2
    pairs = [(ahead - 1.5, ahead + 1.5), (beside - half_axis, beside + half_axis)]
    for _ in range(2):
        direction = rng.standard_normal(3)
        direction *= rng.uniform(6, 14) / np.linalg.norm(direction)
        start = middle + rng.uniform((-16, -22, -16), (16, 22, 16))
        pairs.append((start, start + direction))
    return [_draw_neighbour(rng, start, end) for start, end in pairs]


def _draw_neighbour(rng: np.random.Generator, start: np.ndarray, end: np.ndarray) -> Tube:
    """Draw a bent tube between two points."""
    line = _bezier(start, (start + end) / 2 + rng.normal(0, 4, 3), end, points=20)
    return Tube(line, rng.uniform(3, 5.5) * np.linspace(1, rng.uniform(0.7, 1.2), 20))


def _draw_horn(body: Tube) -> Tube:
    """Return the horn of the ventricle: fluid along the top of the body."""
    line = body.centreline[BODY_POINTS // 4 : -BODY_POINTS // 6] + np.array((0, 0, 5.5))
    return Tube(line, np.full(len(line), 2.5))


def _paint(tissue: np.ndarray, inside: np.ndarray, value: np.ndarray | float) -> None:
    """Write a structure into the tissue, with a thin white sheath around it."""
    tissue[ndimage.binary_dilation(inside)] = WHITE
    tissue[inside] = np.broadcast_to(value, inside.shape)[inside]


def _draw_folds(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Draw layers of white matter, folded grey matter and fluid, ``H x W x D``, as in the brain."""
    depth = _smooth_field(rng, shape, (2.5, 4, 2.5))
    return np.select([depth > -0.2, depth > -1.2], [WHITE, GREY], FLUID)


def _acquire(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    """Imitate a scanner: partial volume, texture, bias field, random contrast and scale, and noise."""
    blurred = ndimage.gaussian_filter(tissue, rng.uniform(0.5, 0.7))
    texture = 1 + 0.03 * _smooth_field(rng, tissue.shape, 1.5)
    bias = np.exp(0.1 * _smooth_field(rng, tissue.shape, 12))
    signal = (blurred * texture * bias) ** rng.uniform(0.8, 1.25)
    noisy = signal + rng.normal(0, rng.uniform(0.03, 0.06), tissue.shape)
    return np.clip(np.rint(rng.uniform(400, 1000) * noisy), 0, None).astype(np.int16)


def make_scan(rng: np.random.Generator) -> Scan:
    """Draw one scan of about 35 x 51 x 35 voxels at 1 mm, and its label."""
    shape = tuple(int(size) for size in rng.integers((33, 48, 34), (39, 55, 39)))
    body, neck = _draw_body(rng, centre=(np.array(shape) - 1) / 2)
    bumps = np.stack([_smooth_field(rng, shape, 4) for _ in shape])
    coordinates = np.indices(shape) + 0.6 * bumps
    label = _label_parts(body, neck, coordinates)

    tissue = _draw_folds(rng, shape)
    for neighbour in _draw_neighbours(rng, body):
        _paint(tissue, neighbour.distance(coordinates) < 1, rng.uniform(ANTERIOR_GREY, POSTERIOR_GREY))
    tissue[_draw_horn(body).distance(coordinates) < 1] = FLUID
    _paint(tissue, label > 0, np.where(label == ANTERIOR, ANTERIOR_GREY, POSTERIOR_GREY))
    return Scan(_acquire(rng, tissue), label)


def best_threshold_dice(scans: Iterable[Scan]) -> float:
    """Return the foreground Dice of the best interval of intensities, chosen by the labels.

    Images are z-scored first. All scans share one interval, and their voxels are counted together.
    """
    scans = list(scans)
    values = np.concatenate([((scan.image - scan.image.mean()) / scan.image.std()).ravel() for scan in scans])
    foreground = np.concatenate([scan.label.ravel() > 0 for scan in scans])
    edges = np.linspace(values.min(), values.max(), 257)
    chosen = _counts_in_intervals(values, edges)
    hits = _counts_in_intervals(values[foreground], edges)
    return float((2 * hits / (chosen + foreground.sum())).max())


def _counts_in_intervals(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count the values between each pair of edges: entry ``i, j`` is 0 where ``j`` is not above ``i``."""
    below = np.concatenate([[0], np.histogram(values, edges)[0].cumsum()])
    return np.triu(below[None, :] - below[:, None])


def _check_arguments(arguments: Mapping[str, int]) -> None:
    """Refuse a number that is not whole or too small."""
    for name, value in arguments.items():
        minimum = 1 if name == "num_labeled" else 0
        if type(value) is not int or value < minimum:
            raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}.")


def _list_cases(num_labeled: int, num_unlabeled: int, num_validation: int) -> list[Case]:
    """Return all cases of the dataset, the labeled training cases first."""
    train = [Case("train", number, labeled=number < num_labeled) for number in range(num_labeled + num_unlabeled)]
    validation = [Case("val", number) for number in range(num_validation)]
    return train + validation + [Case("unseen", number) for number in range(NUM_UNSEEN)]


def _holds_dataset(folder: Path, arguments: Mapping[str, int], cases: Sequence[Case]) -> bool:
    """Return whether a folder has every file of the dataset, and a record of the same arguments."""
    files = [Path(RECORD), Path("train.list"), Path("val.list")]
    files += [case.image for case in cases] + [case.label for case in cases if case.labeled]
    if not all((folder / file).is_file() for file in files):
        return False
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("arguments") == arguments


def _save(array: np.ndarray, path: Path) -> None:
    """Write an array as NIfTI at 1 mm, its centre at the origin."""
    affine = np.eye(4)
    affine[:3, 3] = -(np.array(array.shape) - 1) / 2
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def _write(folder: Path, scans: Mapping[Case, Scan]) -> None:
    """Write all scans and the lists of cases."""
    for case, scan in scans.items():
        _save(scan.image, folder / case.image)
        if case.labeled:
            _save(scan.label, folder / case.label)
    for split in ("train", "val"):
        names = [f"{case.name}\n" for case in scans if case.split == split]
        (folder / f"{split}.list").write_text("".join(names), encoding="utf-8")


def make_demo_data(
    output_dir: str | Path,
    seed: int = 0,
    num_labeled: int = 4,
    num_unlabeled: int = 20,
    num_validation: int = 8,
) -> None:
    """Write the dataset that the top of this file describes.

    The same seed gives the same scans. A scan depends on its name, not on the counts, so that trainings with more or
    fewer labels use the same scans.

    Args:
        output_dir: folder to make. If it holds this very dataset already, nothing is written.
        seed: seed of all scans, 0 or more.
        num_labeled: number of training scans with a label, 1 or more.
        num_unlabeled: number of training scans without a label.
        num_validation: number of validation scans, all with a label.

    Raises:
        FileExistsError: when ``output_dir`` exists and holds anything else.
        ValueError: when a number is not whole or too small.
    """
    output = Path(str(output_dir))  # the command line reads a name such as 2024 as a number
    counts = {"num_labeled": num_labeled, "num_unlabeled": num_unlabeled, "num_validation": num_validation}
    arguments = {"seed": seed, **counts}
    _check_arguments(arguments)
    cases = _list_cases(**counts)
    if output.exists():
        if not _holds_dataset(output, arguments, cases):
            raise FileExistsError(f"{output} exists and is not this dataset: remove it, or choose another output_dir.")
        print(f"{output} already holds this dataset and is left as it is.")
        return

    scans = {case: make_scan(np.random.default_rng([seed, SPLITS.index(case.split), case.number])) for case in cases}
    dice = best_threshold_dice(scans.values())
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        complete = Path(temporary) / output.name
        _write(complete, scans)
        record = {"arguments": arguments, "best_threshold_dice": round(dice, 4)}
        (complete / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        complete.rename(output)
    print(f"Wrote {len(cases)} scans to {output}.")
    print(f"best threshold Dice: {dice:.3f}")


if __name__ == "__main__":
    try:
        fire.Fire(make_demo_data)
    except (OSError, ValueError) as error:
        sys.exit(f"make_demo_data: {error}")
