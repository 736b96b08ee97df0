"""Federated learning by MONAI's client: two hospitals, two rounds, averaged weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from dbisl.engines import SemiSupervisedTrainer
from dbisl.networks import DualTaskVNet
from scripts.make_demo_data import make_demo_data
from tests.bundle.commands import TINY

Weights = dict[str, torch.Tensor]


def average(of_clients: list[Weights]) -> Weights:
    return {
        name: torch.stack([weights[name].float() for weights in of_clients]).mean(dim=0).to(tensor.dtype)
        for name, tensor in of_clients[0].items()
    }


@pytest.fixture(params=["both have labels", "one has none"])
def clients(root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> list[MonaiAlgo]:
    made = []
    for index in range(2):
        data, bundle = tmp_path / f"data_{index}", tmp_path / f"client_{index}" / "bundle"
        make_demo_data(str(data), num_labeled=2, num_unlabeled=2, num_validation=1, seed=index)
        ignored = shutil.ignore_patterns("__pycache__", "*.pt", "*.ts", "*.onnx", "output", "*.egg-info")
        shutil.copytree(root / "bundle", bundle, ignore=ignored)
        places = {"bundle_root": str(bundle), "dataset_dir": str(data), "device": "cpu", "num_workers": 0}
        short = {**TINY, "patch_size": [24, 24, 24], "amp": False}
        files = ["configs/train.json"]
        if index == 1 and request.param == "one has none":
            shutil.rmtree(data / "labels")
            (data / "val.list").unlink()
            files.append("configs/no_labels.json")
        client = MonaiAlgo(
            bundle_root="bundle",
            config_train_filename=files,
            config_evaluate_filename=[*files, "configs/evaluate.json"],
            local_epochs=1,
            send_weight_diff=False,
            train_kwargs={**places, **short},
            eval_kwargs={**places, "features": 4, "amp": False},
        )
        extra = {ExtraItems.CLIENT_NAME: f"client_{index}", ExtraItems.APP_ROOT: str(bundle.parent)}
        client.initialize(extra)
        made.append(client)
    return made


def test_two_clients_learn_together(clients: list[MonaiAlgo]) -> None:
    torch.manual_seed(0)
    shared: Weights = DualTaskVNet(out_channels=3, features=4, levels=4, dropout=0.2).state_dict()
    for _ in range(2):
        sent = []
        for client in clients:
            taught: list[bool] = []

            def compare(engine: SemiSupervisedTrainer, shared: Weights = shared, taught: list[bool] = taught) -> None:
                assert engine.teacher is not None
                teacher = engine.teacher.state_dict()
                taught.append(all(torch.allclose(teacher[name], tensor) for name, tensor in shared.items()))

            # Attached last: after the teacher has been set.
            with client.trainer.add_event_handler(Events.STARTED, compare):
                client.train(ExchangeObject(weights=shared))
            assert taught == [True]
            received = client.get_weights()
            assert received.weight_type == WeightType.WEIGHTS
            assert any(not torch.equal(received.weights[name], tensor) for name, tensor in shared.items())
            sent.append({name: tensor.clone() for name, tensor in received.weights.items()})
        shared = average(sent)
    metrics = clients[0].evaluate(ExchangeObject(weights=shared)).metrics
    assert 0 <= metrics["val_mean_dice"] <= 1
    for client in clients:
        best = client.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
        assert set(best) == set(shared)
        client.finalize()
    network = DualTaskVNet(out_channels=3, features=4, levels=4, fused_output=True).eval()
    network.load_state_dict(shared)
    assert network(torch.zeros(1, 1, 16, 16, 16)).isfinite().all()
