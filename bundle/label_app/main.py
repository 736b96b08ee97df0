"""MONAI Label app for interactive annotation that learns from labeled and unlabeled scans.

MONAI Label's stock ``monaibundle`` app serves the bundle too. This app adds training on the unlabeled scans, a strategy
that offers the scan that the model is least sure of, bundles without weights, and labels of some slices only.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monai.bundle import ConfigParser
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import name_to_device, strtobool

BUNDLE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(BUNDLE))

from dbisl.data import mark_file  # noqa: E402
from dbisl.engines import ScanScores  # noqa: E402
from dbisl.utils import InputError, check_recipe, input_errors_as, read_recipe  # noqa: E402

logger = logging.getLogger(__name__)

LABELS_PER_VALIDATION = 5
"""One of this many labels is used for validation."""


class DBiSLApp(MONAILabelApp):
    """MONAI Label app that serves one or more bundles.

    Options (``--conf NAME VALUE``):

    - ``bundles``: folders of bundles, separated by commas. Each is served under its folder's name. Default: the bundle
      that contains this app, as ``dbisl``.
    - ``partial_labels``: whether slices without any structure in a submitted label count as not annotated. Default:
      false.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        folders = conf.get("bundles", "")
        paths = [Path(path.strip()).expanduser().resolve() for path in folders.split(",") if path.strip()]
        self.bundles = {path.name: path for path in paths} or {"dbisl": BUNDLE}
        if len(self.bundles) < len(paths):
            raise InputError(f"bundles has two folders of the same name: {folders}; expected different names.")
        for path in self.bundles.values():
            if not (path / "configs" / "metadata.json").is_file():
                raise InputError(
                    f"bundles has {path}, which is not a bundle: expected a folder with configs/metadata.json."
                )
        self.partial_labels = strtobool(conf.get("partial_labels", "false"))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="DBiSL",
            description="Segmentation that learns from labeled and unlabeled scans",
            version=_metadata(next(iter(self.bundles.values())))["version"],
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {name: Proposal(path, self.conf) for name, path in self.bundles.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {name: SemiSupervisedTraining(str(path), self.conf) for name, path in self.bundles.items()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {self._entry("uncertainty", name): Uncertainty(name, path) for name, path in self.bundles.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        strategies: dict[str, Strategy] = {}
        for name in self.bundles:
            for strategy, score, criterion in (
                ("uncertainty", "disagreement", "the two tasks disagree most"),
                ("entropy", "entropy", "the entropy is highest"),
            ):
                description = f"The scan that {name} is least sure of: {criterion}"
                strategies[self._entry(strategy, name)] = Epistemic(key=_score_key(name, score), desc=description)
        return {**strategies, "random": Random(), "first": First()}

    def _entry(self, method: str, bundle: str) -> str:
        """Return the name under which the server lists a method of a bundle."""
        return method if len(self.bundles) == 1 else f"{method}_{bundle}"

    def on_save_label(self, image_id: str, label_id: str) -> None:
        super().on_save_label(image_id, label_id)
        path = self.datastore().get_label_uri(label_id, DefaultLabelTag.FINAL)
        if self.partial_labels and os.path.isfile(path):  # a draft has no file there
            with _input_errors_as_response(400):
                try:
                    mark_file(path)
                except InputError:
                    self.datastore().remove_label(label_id, DefaultLabelTag.FINAL)
                    raise


class Proposal(InferTask):
    """MONAI Label task that segments a scan by a bundle, as soon as the bundle has weights.

    The labels are those that the weights were trained for, by their recipe. For weights without one, and before the
    first training, they are those of the bundle's metadata.
    """

    def __init__(self, bundle: Path, conf: dict[str, str]) -> None:
        self.weights = bundle / "models" / "model.pt"
        super().__init__(InferType.SEGMENTATION, _labels(bundle), 3, _metadata(bundle)["description"])
        self.bundle, self.conf = bundle, conf
        self._task: BundleInferTask | None = None
        self._dates: tuple[int, ...] = ()
        self._recipe: dict[str, Any] = {}
        self._is_checked = False

    def info(self) -> dict[str, Any]:
        self.labels = _labels(self.bundle)
        return dict(super().info())

    def is_valid(self) -> bool:
        return True

    def config(self) -> dict[str, Any]:
        task = self._task_with_weights()
        return {} if task is None else task.config()

    def get_path(self, validate: bool = True) -> str | None:
        task = self._task_with_weights()
        return None if task is None else task.get_path(validate)

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[Any, dict[str, Any]]:
        task = self._task_with_weights()
        if task is None:
            raise HTTPException(409, f"There is no model yet ({self.weights}): submit at least one label, then train.")
        if not self._is_checked:
            with _input_errors_as_response(409):
                check_recipe(self.weights, self._recipe_of_config())
            self._is_checked = True
        return task(request, callbacks)

    def _recipe_of_config(self) -> dict[str, Any]:
        """What the bundle's inference would do with the weights, to be compared with their recipe."""
        config = ConfigParser()
        config.read_config(str(self.bundle / "configs" / "inference.json"))
        config.update({"bundle_root": str(self.bundle), "ckpt_path": str(self.weights), "device": "cpu"})
        return dict(config.get_parsed_content("recipe"))

    def _task_with_weights(self) -> BundleInferTask | None:
        """Return the stock task, or None while the bundle has no weights.

        The stock task reads the config once, and the config takes its keys from the recipe. So weights of another
        recipe, as a restored version may be, need a new task.
        """
        record = self.weights.with_suffix(".json")
        dates = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in (self.weights, record))
        if dates != self._dates and self.weights.is_file():
            recipe = _recipe(self.weights)
            self._is_checked = False
            if self._task is None or recipe != self._recipe:
                if not recipe:
                    logger.warning("%s has no recipe: its labels are those of the bundle's metadata", self.weights)
                self._task = BundleInferTask(str(self.bundle), self.conf)
                self._task.labels = _labels(self.bundle)
                # Only model.pt may be served: the checkpoints of a running training lie beside it.
                self._task._config.pop("model_filename", None)
            self._dates, self._recipe = dates, recipe
        return self._task


class SemiSupervisedTraining(BundleTrainTask):
    """MONAI Label task that trains on the scans with a final label and on all other scans as unlabeled ones.

    The latest of every five labels is used for validation, permanently: a scan that a model was trained on would always
    favour that model. The datastore records the choice with each image (``split``).
    """

    def config(self) -> dict[str, Any]:
        options = {**super().config(), "max_epochs": 15}
        # A training always starts from model.pt, and the validation scans are chosen permanently: offer no choice.
        return {name: value for name, value in options.items() if name not in ("model_filename", "val_split")}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        self._unlabeled = [{"image": datastore.get_image_uri(name)} for name in datastore.get_unlabeled_images()]
        if not datastore.get_labeled_images():
            raise HTTPException(409, "There is no label yet: submit one and train.")
        self._validation = _validation_images(datastore)
        # MONAI Label inserts handlers into the config that it has read: read it again for every training.
        self.bundle_config = self._load_bundle_config(self.bundle_path, self.bundle_config_path)
        with _input_errors_as_response(500):
            return dict(super().__call__({"max_epochs": 15, **request}, datastore))

    def _partition_datalist(
        self, datalist: Sequence[dict[str, str]], request: dict[str, Any], shuffle: bool = False
    ) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        training, validation = [], []
        for case in datalist:
            (validation if os.path.realpath(case["image"]) in self._validation else training).append(case)
        logger.info(
            "training on %d labeled and %d unlabeled scans, validation on %d",
            len(training),
            len(self._unlabeled),
            len(validation),
        )
        return training, validation

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides["unlabeled#scans"] = self._unlabeled
        return overrides

    def _run_command(self, cmd: list[str], env: dict[str, str]) -> None:
        code = subprocess.run(cmd, env=env, check=False).returncode
        if code != 0:  # MONAI Label would report a finished training
            raise HTTPException(500, f"The training ended with exit code {code}: the log says why.")


class Uncertainty(ScoringMethod):
    """MONAI Label method that scores each unlabeled scan by how unsure the served model is of it."""

    def __init__(self, name: str, bundle: Path) -> None:
        super().__init__(f"How unsure {name} is of each unlabeled scan")
        self.name, self.bundle = name, bundle

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        weights = self.bundle / "models" / "model.pt"
        if not weights.is_file():
            logger.info("%s has no model yet: nothing is scored", self.name)
            return {"scored": 0, "failed": {}}
        model = weights.stat().st_mtime_ns
        with _input_errors_as_response(409):
            scores = ScanScores(self.bundle, device=name_to_device(request.get("device", "cuda")))
        scored, failed = 0, {}
        for image in datastore.get_unlabeled_images():
            if datastore.get_image_info(image).get(_score_key(self.name, "model")) == model:
                continue
            try:
                values = scores(datastore.get_image_uri(image))
            except Exception as error:  # a scan that cannot be read must not stop the scoring of the others
                logger.exception("%s cannot be scored", image)
                failed[image] = str(error)
                continue
            info = {_score_key(self.name, score): value for score, value in values.items()}
            datastore.update_image_info(image, {**info, _score_key(self.name, "model"): model})
            scored += 1
        return {"scored": scored, "failed": failed}


def _input_errors_as_response(status: int) -> AbstractContextManager[None]:
    """Turn an ``InputError`` of the block, which would end the server, into a response with an HTTP status."""
    return input_errors_as(lambda message: HTTPException(status, message))


def _validation_images(datastore: Datastore) -> set[str]:
    """Assign each new label to training or validation, permanently, and return the image files for validation."""
    labeled = datastore.get_labeled_images()
    splits = {name: datastore.get_image_info(name).get("split") for name in labeled}
    validation = {name for name, split in splits.items() if split == "validation"}

    def time_submitted(name: str) -> int:
        return int(datastore.get_label_info(name, DefaultLabelTag.FINAL).get("ts", 0))

    new = (name for name, split in splits.items() if split is None)
    for name in sorted(new, key=time_submitted, reverse=True):
        if len(validation) < len(labeled) // LABELS_PER_VALIDATION:
            validation.add(name)
        datastore.update_image_info(name, {"split": "validation" if name in validation else "training"})
    return {os.path.realpath(datastore.get_image_uri(name)) for name in validation}


def _score_key(bundle: str, score: str) -> str:
    """Return the key under which the datastore keeps a score of an image."""
    return f"{bundle}_{score}"


def _labels(bundle: Path) -> dict[str, int]:
    """Return the number of each structure by its name, as the served weights were trained for."""
    channels = next(iter(_metadata(bundle)["network_data_format"]["outputs"].values()))["channel_def"]
    names = [name for _, name in sorted((int(index), name) for index, name in channels.items())]
    names = _recipe(bundle / "models" / "model.pt").get("class_names", names)
    return {name.lower(): index for index, name in enumerate(names) if index > 0}


def _recipe(weights: Path) -> dict[str, Any]:
    """Return the recipe of weights, empty if they have none. A broken one is refused when a scan is segmented."""
    try:
        return read_recipe(weights, {})
    except InputError as error:
        logger.warning("%s", error)
        return {}


def _metadata(bundle: Path) -> dict[str, Any]:
    """Return the ``metadata.json`` of a bundle."""
    return dict(json.loads((bundle / "configs" / "metadata.json").read_text()))
