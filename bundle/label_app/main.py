"""Interactive annotation with MONAI Label that learns from every scan, labeled or not.

The stock ``monaibundle`` app serves the bundle too. This app adds what it lacks: training on the scans without a label
as well, the scan that the model is least sure of as the next one, a bundle without weights, labels of some slices only.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
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
from dbisl.utils import InputError  # noqa: E402

logger = logging.getLogger(__name__)

HELD_OUT = 5
"""Of so many labels one is kept for validation."""


class DBiSLApp(MONAILabelApp):
    """Serves one bundle or several.

    Options (``--conf NAME VALUE``): ``bundles``, folders of bundles with a comma between them, each served under its
    folder's name (default: the bundle that this app lies in, as ``dbisl``); ``partial_labels``, whether slices of a
    submitted label without any structure are to count as not annotated (default: false).
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        named = conf.get("bundles", "")
        paths = [Path(path.strip()).expanduser().resolve() for path in named.split(",") if path.strip()]
        self.bundles = {path.name: path for path in paths} or {"dbisl": BUNDLE}
        if len(self.bundles) < len(paths):
            raise InputError(f"bundles has two folders of one name: {named}; expected different names.")
        for path in self.bundles.values():
            if not (path / "configs" / "metadata.json").is_file():
                raise InputError(
                    f"bundles has {path}, which is no bundle: expected a folder with configs/metadata.json."
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
        return {_of("uncertainty", name, self.bundles): Uncertainty(name, path) for name, path in self.bundles.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        strategies: dict[str, Strategy] = {}
        for name in self.bundles:
            for strategy, score, what in (
                ("uncertainty", "disagreement", "the two tasks disagree most"),
                ("entropy", "entropy", "the entropy is highest"),
            ):
                description = f"The scan of which {name} is least sure: {what}"
                strategies[_of(strategy, name, self.bundles)] = Epistemic(key=_score_key(name, score), desc=description)
        return {**strategies, "random": Random(), "first": First()}

    def on_save_label(self, image_id: str, label_id: str) -> None:
        super().on_save_label(image_id, label_id)
        path = self.datastore().get_label_uri(label_id, DefaultLabelTag.FINAL)
        if self.partial_labels and os.path.isfile(path):  # there is none while the label is a draft
            try:
                mark_file(path)
            except InputError as error:
                self.datastore().remove_label(label_id, DefaultLabelTag.FINAL)
                raise HTTPException(400, str(error)) from error


class Proposal(InferTask):
    """A bundle's segmentation of a scan, as soon as the bundle has weights."""

    def __init__(self, bundle: Path, conf: dict[str, str]) -> None:
        metadata = _metadata(bundle)
        channels = next(iter(metadata["network_data_format"]["outputs"].values()))["channel_def"]
        labels = {name.lower(): int(index) for index, name in channels.items() if name.lower() != "background"}
        super().__init__(InferType.SEGMENTATION, labels, 3, metadata["description"])
        self.bundle, self.conf = bundle, conf
        self._task: BundleInferTask | None = None

    def is_valid(self) -> bool:
        return True

    def config(self) -> dict[str, Any]:
        task = self._loaded()
        return {} if task is None else task.config()

    def get_path(self, validate: bool = True) -> str | None:
        task = self._loaded()
        return None if task is None else task.get_path(validate)

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[Any, dict[str, Any]]:
        task = self._loaded()
        if task is None:
            raise HTTPException(
                409,
                f"There is no model yet ({self.bundle / 'models' / 'model.pt'}): submit a label or more, then train.",
            )
        return task(request, callbacks)

    def _loaded(self) -> BundleInferTask | None:
        if self._task is None and (self.bundle / "models" / "model.pt").is_file():
            self._task = BundleInferTask(str(self.bundle), self.conf)
            # Which file is served is not the annotator's to choose: checkpoints of a running training lie beside it.
            self._task._config.pop("model_filename", None)
        return self._task


class SemiSupervisedTraining(BundleTrainTask):
    """Trains on the final labels and on every scan that has none.

    Of each five labels the latest is kept for validation, for good: a scan that a model was trained on would flatter
    that model ever after. Which ones they are stands with the images in the datastore (``split``).
    """

    def config(self) -> dict[str, Any]:
        options = {**super().config(), "max_epochs": 15}
        # Which file is trained on, and which scans are held out, is not to be chosen anew for each training.
        return {name: value for name, value in options.items() if name not in ("model_filename", "val_split")}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        self._unlabeled = [{"image": datastore.get_image_uri(name)} for name in datastore.get_unlabeled_images()]
        if not datastore.get_labeled_images():
            raise HTTPException(409, "There is no label yet: submit one and train.")
        self._validation = _held_out(datastore)
        # MONAI Label adds to the list of handlers that it read once.
        self.bundle_config = self._load_bundle_config(self.bundle_path, self.bundle_config_path)
        try:
            return dict(super().__call__({"max_epochs": 15, **request}, datastore))
        except SystemExit as error:  # a sentence for somebody at a terminal; here it would end the server
            raise HTTPException(500, str(error)) from error

    def _partition_datalist(
        self, datalist: Sequence[dict[str, str]], request: dict[str, Any], shuffle: bool = False
    ) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        parts: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
        for case in datalist:
            parts[os.path.realpath(case["image"]) in self._validation].append(case)
        logger.info(
            "training on %d labeled and %d unlabeled scans, validation on %d",
            *(len(part) for part in (parts[0], self._unlabeled, parts[1])),
        )
        return parts

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides["unlabeled#scans"] = self._unlabeled
        return overrides

    def _run_command(self, cmd: list[str], env: dict[str, str]) -> None:
        code = subprocess.run(cmd, env=env, check=False).returncode
        if code != 0:  # MONAI Label would call it a finished training
            raise HTTPException(500, f"The training ended with code {code}; the log says why.")


class Uncertainty(ScoringMethod):
    """Scores the scans without a label by how unsure the served model is of them."""

    def __init__(self, name: str, bundle: Path) -> None:
        super().__init__(f"How unsure {name} is of each scan without a label")
        self.name, self.bundle = name, bundle

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        weights = self.bundle / "models" / "model.pt"
        if not weights.is_file():
            logger.info("%s has no model yet: nothing is scored", self.name)
            return {"scored": 0, "failed": {}}
        model = weights.stat().st_mtime_ns
        scores = ScanScores(self.bundle, device=name_to_device(request.get("device", "cuda")))
        scored, failed = 0, {}
        for image in datastore.get_unlabeled_images():
            if datastore.get_image_info(image).get(_score_key(self.name, "model")) == model:
                continue
            try:
                values = scores(datastore.get_image_uri(image))
            except Exception as error:  # one scan that cannot be read must not keep the others from being scored
                logger.exception("%s cannot be scored", image)
                failed[image] = str(error)
                continue
            info = {_score_key(self.name, score): value for score, value in values.items()}
            datastore.update_image_info(image, {**info, _score_key(self.name, "model"): model})
            scored += 1
        return {"scored": scored, "failed": failed}


def _held_out(datastore: Datastore) -> set[str]:
    """Images of the validation labels; labels that are new since the last training are given to a split first."""
    labeled = datastore.get_labeled_images()
    splits = {name: datastore.get_image_info(name).get("split") for name in labeled}
    held_out = {name for name, split in splits.items() if split == "validation"}

    def submitted(name: str) -> int:
        return int(datastore.get_label_info(name, DefaultLabelTag.FINAL).get("ts", 0))

    new = sorted((name for name, split in splits.items() if split is None), key=submitted, reverse=True)
    for name in new:
        chosen = len(held_out) < len(labeled) // HELD_OUT
        held_out |= {name} if chosen else set()
        datastore.update_image_info(name, {"split": "validation" if chosen else "training"})
    return {os.path.realpath(datastore.get_image_uri(name)) for name in held_out}


def _of(what: str, name: str, bundles: dict[str, Path]) -> str:
    return what if len(bundles) == 1 else f"{what}_{name}"


def _score_key(name: str, score: str) -> str:
    return f"{name}_{score}"


def _metadata(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "configs" / "metadata.json").read_text()))
