"""The workflow: one step over both streams, autocast, teacher, checkpoints, resuming, and what stops it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, ValidationHandler
from monai.metrics import DiceHelper
from monai.transforms import AsDiscrete
from torch.nn import functional

from dbisl.bridge import SDMToSegmentation, SegmentationToSDM, signed_distance_map
from dbisl.data import CopyPaste
from dbisl.engines import NotFiniteError, SemiSupervisedTrainer
from dbisl.handlers import Checkpoints, CollapseGuard, MeanTeacher, Ramp, RampUp
from dbisl.losses import LABELED_TERMS, TERMS, DBiSLLoss
from dbisl.networks import DualTaskVNet
from dbisl.utils import InputError

SIZE = (8, 8, 8)
WEIGHTS = dict.fromkeys(TERMS, 1.0)


class Streams:
    """Endless seeded batches of two labeled and two unlabeled balls."""

    def __init__(self, unlabeled: bool = True, poison: bool = False) -> None:
        self.unlabeled, self.poison = unlabeled, poison

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            batch = {"labeled": self._batch("labeled", generator)}
            if self.unlabeled:
                batch["unlabeled"] = self._batch("unlabeled", generator)
            yield batch

    def _batch(self, stream: str, generator: torch.Generator) -> dict[str, Any]:
        grid = torch.stack(torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij"))
        centre = 2 + 4 * torch.rand(2, 3, 1, 1, 1, generator=generator)
        label = ((grid - centre).square().sum(dim=1, keepdim=True) < 6).long()
        image = label + 0.3 * torch.randn(2, 1, *SIZE, generator=generator)
        if self.poison and stream == "unlabeled":
            image[0, 0, 0, 0, 0] = math.nan
        batch: dict[str, Any] = {"image": MetaTensor(image), "weak_image": MetaTensor(image)}
        batch["case"] = [f"{stream}_a.nii.gz", f"{stream}_b.nii.gz"]
        if stream == "labeled":
            one_hot = functional.one_hot(label[:, 0], 2).movedim(-1, 1)
            batch |= {"label": label, "sdm": signed_distance_map(one_hot, 3.0).half()}
        return batch


def make_loss(weights: Mapping[str, float] = WEIGHTS, gamma: float = 1.0) -> DBiSLLoss:
    return DBiSLLoss(
        weights=weights,
        sdm_to_segmentation=SDMToSegmentation(5.0),
        segmentation_to_sdm=SegmentationToSDM(3.0, sharpness=4.0),
        gamma=gamma,
    )


def make_network() -> DualTaskVNet:
    torch.manual_seed(0)
    return DualTaskVNet(features=4, levels=2)


def make_trainer(network: torch.nn.Module, streams: Streams | None = None, **options: Any) -> SemiSupervisedTrainer:
    options.setdefault("optimizer", torch.optim.SGD(network.parameters(), lr=0.05))
    options.setdefault("loss_function", make_loss())
    options.setdefault("max_epochs", 1)
    options.setdefault("epoch_length", 3)
    options.setdefault("device", "cpu")
    return SemiSupervisedTrainer(
        train_data_loader=Streams() if streams is None else streams, network=network, **options
    )


def test_one_step_is_plain_gradient_descent_on_the_loss() -> None:
    network = make_network()
    expected = copy.deepcopy(network).train()
    make_trainer(network, epoch_length=1).run()

    batch = next(iter(Streams()))
    images = torch.cat([batch[stream]["image"].as_tensor() for stream in ("labeled", "unlabeled")])
    loss, _ = make_loss()(expected(images), batch["labeled"]["label"], batch["labeled"]["sdm"])
    loss.backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.05 * parameter.grad
    for ours, theirs in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_was_not_annotated_has_no_part_in_the_step() -> None:
    known = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.5

    class Partial(Streams):
        def __iter__(self) -> Iterator[Mapping[str, Any]]:
            for batch in super().__iter__():
                label = torch.where(known, batch["labeled"]["label"], 255).to(torch.uint8)
                sdm = torch.where(known, batch["labeled"]["sdm"], math.nan)
                yield {**batch, "labeled": {**batch["labeled"], "label": label, "sdm": sdm}}

    network = make_network()
    expected = copy.deepcopy(network).train()
    trainer = make_trainer(network, Partial(), epoch_length=1)
    trainer.run()
    batch = next(iter(Streams()))
    label = torch.where(known, batch["labeled"]["label"], 0)
    sdm = torch.where(known, batch["labeled"]["sdm"], math.nan)
    images = torch.cat([batch[stream]["image"].as_tensor() for stream in ("labeled", "unlabeled")])
    answer = expected(images)
    loss, _ = make_loss()(answer, label, sdm, known=known)
    terms = trainer.state.output["terms"]
    torch.testing.assert_close(trainer.state.output["loss"], loss.detach())
    torch.testing.assert_close(terms["foreground_labeled"], label[known].float().mean())
    torch.testing.assert_close(terms["foreground_at_least"], label.float().mean())
    predicted = answer[0][:2].argmax(dim=1, keepdim=True)[known]
    dice = 2 * (predicted * label[known]).sum() / (predicted + label[known]).sum()
    torch.testing.assert_close(terms["dice"], dice)


def test_distances_may_be_unknown_in_a_patch_that_was_annotated_throughout() -> None:
    class Beside(Streams):
        def __iter__(self) -> Iterator[Mapping[str, Any]]:
            for batch in super().__iter__():
                sdm = batch["labeled"]["sdm"].clone()
                sdm[..., :3] = math.nan
                yield {**batch, "labeled": {**batch["labeled"], "sdm": sdm}}

    network = make_network()
    ema = EMAHandler(network, momentum=0.1)
    trainer = make_trainer(network, Beside(), teacher=ema.ema_model, copy_paste=CopyPaste(prob=1.0))
    trainer.run()
    assert all(value.isfinite() for value in trainer.state.output["terms"].values() if torch.is_tensor(value))


def test_dice_is_undefined_where_there_is_nothing_to_find() -> None:
    class Background(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([5.0, 0.0]))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.bias.view(1, 2, 1, 1, 1).expand(len(image), 2, *SIZE)

    class Empty(Streams):
        def __iter__(self) -> Iterator[Mapping[str, Any]]:
            for batch in super().__iter__():
                yield {"labeled": {**batch["labeled"], "label": torch.zeros_like(batch["labeled"]["label"])}}

    trainer = make_trainer(Background(), Empty(), loss_function=make_loss({"segmentation": 1.0}))
    trainer.run()
    assert trainer.state.output["terms"]["dice"].isnan()


def test_gradient_is_clipped_to_its_norm() -> None:
    norms = {}
    for clip in (None, 0.01):
        network = make_network()
        before = [parameter.detach().clone() for parameter in network.parameters()]
        make_trainer(network, epoch_length=1, gradient_clip=clip).run()
        steps = [(a.detach() - b).flatten() for a, b in zip(network.parameters(), before, strict=True)]
        norms[clip] = float(torch.cat(steps).norm()) / 0.05
    assert norms[None] > 0.01
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("amp", [False, True])
def test_training_reduces_every_labeled_term(amp: bool) -> None:
    network, history = make_network(), []
    loss = make_loss({name: 1.0 if name in LABELED_TERMS else 0.01 for name in TERMS})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    trainer = make_trainer(network, optimizer=optimizer, loss_function=loss, epoch_length=80, amp=amp)

    def remember(engine: Any) -> None:
        history.append({name: float(value) for name, value in engine.state.output["terms"].items()})

    trainer.add_event_handler(Events.ITERATION_COMPLETED, remember)
    trainer.run()
    for name in LABELED_TERMS:
        assert sum(step[name] for step in history[-10:]) < 0.6 * sum(step[name] for step in history[:10])
    assert set(history[-1]) == {*TERMS, "loss", "ramp", "dice", "foreground_labeled", "foreground_unlabeled"}
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_output_is_that_of_the_labeled_part() -> None:
    trainer = make_trainer(make_network())
    trainer.run()
    output = trainer.state.output
    assert output["image"].shape == output["label"].shape == (2, 1, *SIZE)
    assert output["pred"].shape == (2, 2, *SIZE)
    one_hot = AsDiscrete(argmax=True, to_onehot=2, dim=1)(output["pred"])
    dice = DiceHelper(include_background=False, get_not_nans=False)(
        one_hot.transpose(0, 1).flatten(1, 2)[None], output["label"].transpose(0, 1).flatten(1, 2)[None]
    )
    assert float(output["terms"]["dice"]) == pytest.approx(float(dice))
    foreground = [output["label"].float().mean(), output["terms"]["foreground_unlabeled"]]
    torch.testing.assert_close(output["terms"]["foreground_labeled"], foreground[0])
    torch.testing.assert_close(output["classes"], torch.tensor([[1 - value, value] for value in foreground]))


def test_without_unlabeled_scans_it_trains_on_the_labeled() -> None:
    trainer = make_trainer(make_network(), Streams(unlabeled=False))
    trainer.run()
    assert trainer.state.iteration == 3
    assert not any(name.startswith("pseudo") for name in trainer.state.output["terms"])


def test_a_loss_without_unlabeled_terms_never_shows_the_network_an_unlabeled_scan() -> None:
    seen: list[int] = []
    network = make_network()
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    make_trainer(network, loss_function=make_loss({"segmentation": 1.0})).run()
    assert seen == [2, 2, 2]


def test_gradient_that_is_not_finite_stops_before_the_step() -> None:
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    network.encoder.first[0].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NotFiniteError, match=r"iteration 1, because of the gradient.*labeled_a\.nii\.gz"):
        make_trainer(network, gradient_clip=1.0).run()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, before[name])


def test_teacher_is_asked_about_the_weak_view_only_when_it_counts() -> None:
    seen: list[torch.Tensor] = []

    class Teacher(DualTaskVNet):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert not self.training and not torch.is_grad_enabled()
            seen.append(image)
            return super().forward(image)

    loss = make_loss()
    loss.ramp = 0.0
    make_trainer(make_network(), teacher=Teacher(features=4, levels=2), loss_function=loss).run()
    assert not seen
    loss.ramp = 1.0
    make_trainer(make_network(), teacher=Teacher(features=4, levels=2), loss_function=loss, epoch_length=1).run()
    torch.testing.assert_close(seen[0], next(iter(Streams()))["unlabeled"]["weak_image"].as_tensor())


def test_labels_are_pasted_into_what_the_network_sees_and_not_into_what_the_teacher_sees() -> None:
    student, teacher = make_network(), make_network()
    seen: dict[str, torch.Tensor] = {}
    student.register_forward_pre_hook(lambda _, inputs: seen.update(student=inputs[0]))
    teacher.register_forward_pre_hook(lambda _, inputs: seen.update(teacher=inputs[0]))
    make_trainer(student, teacher=teacher, copy_paste=CopyPaste(1.0, low=1.0, high=1.0), epoch_length=1).run()
    batch = next(iter(Streams()))
    assert torch.equal(seen["teacher"], batch["unlabeled"]["weak_image"].as_tensor())
    assert torch.equal(seen["student"], torch.cat([batch["labeled"]["image"].as_tensor()] * 2))


def test_copy_paste_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a teacher, or a copy_paste of 0"):
        make_trainer(make_network(), copy_paste=CopyPaste(0.5))


def test_guard_holds_the_unlabeled_terms_until_the_foreground_is_back(caplog: pytest.LogCaptureFixture) -> None:
    loss = make_loss()
    ramp = Ramp(warm_up=0, length=0)
    guard = CollapseGuard(ramp=ramp, min_ratio=0.2, max_ratio=3.0)
    # Fraction of foreground on the unlabeled scans by epoch, with 0.1 in the labels: fine, collapsed twice, recovered,
    # everywhere, recovered.
    fractions = [0.05, 0.01, 0.019, 0.021, 0.31, 0.29, 0.1]
    ramps: list[float] = []

    def iteration(engine: Engine, batch: Any) -> dict[str, Any]:
        ramps.append(loss.ramp)
        values = {"foreground_labeled": 0.1, "foreground_unlabeled": fractions[engine.state.epoch - 1]}
        classes = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
        return {"terms": {name: torch.tensor(value) for name, value in values.items()}, "classes": classes}

    engine = Engine(iteration)
    RampUp(loss=loss, ramp=ramp).attach(engine)
    guard.attach(engine)
    engine.run([0, 1], max_epochs=7)
    assert ramps == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    warnings = [record.message for record in caplog.records if "labeled terms alone" in record.message]
    assert len(warnings) == 3 and warnings[0].startswith("epoch 2: the unlabeled scans show 10% of the foreground")
    assert warnings[2].startswith("epoch 5: the unlabeled scans show 310% of the foreground")


def test_guard_knows_that_slices_without_the_structure_are_rarely_annotated() -> None:
    ramp = Ramp(warm_up=0, length=0)
    terms = {"foreground_labeled": 0.5, "foreground_at_least": 0.05, "foreground_unlabeled": 0.05}

    def iteration(engine: Engine, batch: Any) -> dict[str, Any]:
        return {"terms": {name: torch.tensor(value) for name, value in terms.items()}, "classes": torch.ones(2, 2)}

    engine = Engine(iteration)
    CollapseGuard(ramp=ramp, min_ratio=0.2, max_ratio=3.0).attach(engine)
    engine.run([0])
    assert not ramp.paused
    terms["foreground_unlabeled"] = 0.009
    engine.run([0])
    assert ramp.paused


def test_guard_names_a_class_that_is_no_longer_found(caplog: pytest.LogCaptureFixture) -> None:
    ramp = Ramp(warm_up=0, length=0)
    classes = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.29, 0.01]])
    terms = {"foreground_labeled": classes[0, 1:].sum(), "foreground_unlabeled": classes[1, 1:].sum()}
    engine = Engine(lambda engine, batch: {"terms": terms, "classes": classes})
    CollapseGuard(ramp=ramp, min_ratio=0.2, max_ratio=3.0).attach(engine)
    engine.run([0, 1])
    (message,) = [record.message for record in caplog.records]
    assert message == (
        "epoch 1: the unlabeled scans show 10% of what the labels show of class 2 (expected at least 20%)."
    )
    assert not ramp.paused


def test_guard_waits_for_the_end_of_the_warm_up() -> None:
    ramp = Ramp(warm_up=4, length=0)
    guard = CollapseGuard(ramp=ramp, min_ratio=0.2, max_ratio=3.0)
    terms = {"foreground_labeled": torch.tensor(0.1), "foreground_unlabeled": torch.tensor(0.0)}
    engine = Engine(lambda engine, batch: {"terms": terms})
    RampUp(loss=make_loss(), ramp=ramp).attach(engine)
    guard.attach(engine)
    engine.run([0, 1], max_epochs=2)
    assert not ramp.paused
    with pytest.raises(ValueError, match="expected 0 <= min_ratio < 1 < max_ratio"):
        CollapseGuard(ramp=ramp, min_ratio=1.0, max_ratio=3.0)


def test_ramp_moves_before_each_iteration() -> None:
    loss, values = make_loss(), []
    trainer = make_trainer(
        make_network(),
        loss_function=loss,
        epoch_length=12,
        train_handlers=[RampUp(loss=loss, ramp=Ramp(warm_up=4, length=5))],
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: values.append(loss.ramp))
    trainer.run()
    assert values == pytest.approx([0.0] * 4 + [math.exp(-5 * (1 - t / 5) ** 2) for t in range(5)] + [1.0] * 3)


def test_ramp_hears_the_dice_of_the_labeled_patches() -> None:
    ramp = Ramp(warm_up=3, length=0, min_dice=0.99)
    trainer = make_trainer(make_network(), epoch_length=3, train_handlers=[RampUp(loss=make_loss(), ramp=ramp)])
    trainer.run()
    assert ramp.waiting and 0 < float(ramp.state_dict()["dice"]) < 0.99


def test_teacher_is_the_moving_average_and_starts_from_the_student() -> None:
    network = make_network()
    ema = EMAHandler(network, momentum=0.5, handle_buffers="update")
    start = {name: value.clone() + 1 for name, value in network.state_dict().items()}
    network.load_state_dict(start)  # as a checkpoint loaded when training starts does
    states: list[dict[str, torch.Tensor]] = []
    trainer = make_trainer(network, epoch_length=12, train_handlers=[MeanTeacher(ema=ema)])
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: states.append({k: v.clone() for k, v in network.state_dict().items()}),
    )
    trainer.run()
    expected = start
    for iteration, state in enumerate(states, start=1):
        decay = min(0.5, (1 + iteration) / (10 + iteration))
        expected = {name: decay * value + (1 - decay) * state[name] for name, value in expected.items()}
    for name, value in ema.ema_model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("where", ["input", "parameter"])
def test_loss_that_is_not_finite_stops_with_iteration_term_and_cases(where: str) -> None:
    network = make_network()
    if where == "parameter":
        torch.nn.init.constant_(network.regression.head.bias, math.nan)
    trainer = make_trainer(network, Streams(poison=where == "input"))
    before = copy.deepcopy(network.segmentation.head.state_dict())
    with pytest.raises(NotFiniteError) as error:
        trainer.run()
    message = str(error.value)
    assert "iteration 1" in message and "labeled_a.nii.gz" in message and "unlabeled_b.nii.gz" in message
    assert "regression" in message
    for name, value in network.segmentation.head.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_gradient_accumulation_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulation_steps is not supported"):
        make_trainer(make_network(), accumulation_steps=2)


class Session:
    """A training with everything that a checkpoint holds."""

    def __init__(
        self,
        folder: Path,
        epochs: int,
        resume: bool = False,
        validation: int = 1,
        labeled: str = "a.nii.gz",
        interval: int = 1,
        weights: Path | None = None,
    ) -> None:
        self.folder = folder
        self.network = make_network()
        if weights is not None:
            self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.ema = EMAHandler(self.network, momentum=0.1, handle_buffers="update")
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        batch = next(iter(Streams()))["labeled"]
        one_hot = functional.one_hot(batch["label"][:, 0], 2).movedim(-1, 1).float()
        cases = [{"image": batch["image"], "label": one_hot}] * validation
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=cases,
            network=self.ema.ema_model,
            inferer=lambda image, network: network(image)[0].softmax(1),
            key_val_metric={
                "dice": MeanDice(
                    include_background=False,
                    output_transform=lambda out: tuple(
                        [case[key].round() for case in out] for key in ("pred", "label")
                    ),
                )
            },
        )
        self.optimizer = optimizer
        state = {"network": self.network, "teacher": self.ema.ema_model, "optimizer": optimizer, "schedule": scheduler}
        self.trainer = make_trainer(
            self.network,
            optimizer=optimizer,
            max_epochs=epochs,
            train_handlers=[
                ValidationHandler(interval, self.evaluator),
                Checkpoints(
                    ckpt_dir=str(folder),
                    model=self.ema.ema_model,
                    state=state,
                    evaluator=self.evaluator,
                    labeled=[{"image": labeled}],
                    validation=[{"image": "v.nii.gz"}],
                    resume=resume,
                ),
                MeanTeacher(ema=self.ema),
            ],
        )
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: scheduler.step())


def test_checkpoints_are_whole_plain_and_of_the_teacher(tmp_path: Path) -> None:
    session = Session(tmp_path, epochs=2)
    session.trainer.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "model.json",
        "model.pt",
        "model_final.pt",
    ]
    final = torch.load(tmp_path / "model_final.pt", weights_only=True)
    for name, value in session.ema.ema_model.state_dict().items():
        torch.testing.assert_close(final[name], value)
    make_network().load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


def test_resumed_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Session(tmp_path, epochs=2)
    first.trainer.run()
    resumed = Session(tmp_path, epochs=4, resume=True)
    started: list[tuple[int, float]] = []
    resumed.trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: started.append((engine.state.iteration, resumed.optimizer.param_groups[0]["lr"])),
    )
    resumed.trainer.run()
    assert [iteration for iteration, _ in started] == [7, 8, 9, 10, 11, 12]
    rates = [0.5 * 1e-2 * (1 + math.cos(math.pi * epoch / 6)) for epoch in range(4)]
    # The schedule steps after the checkpoint is written: the resumed epoch repeats the last rate.
    assert started[0][1] == pytest.approx(rates[1])
    assert resumed.trainer.state.epoch == 4


def test_best_model_is_not_replaced_by_a_worse_one_after_resuming(tmp_path: Path) -> None:
    Session(tmp_path, epochs=1).trainer.run()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**checkpoint, "best": 2.0}, tmp_path / "checkpoint.pt")  # a Dice that nothing beats
    written = (tmp_path / "model.pt").stat().st_mtime_ns
    Session(tmp_path, epochs=3, resume=True).trainer.run()
    assert (tmp_path / "model.pt").stat().st_mtime_ns == written


def served_score(session: Session) -> float:
    session.ema.ema_model.load_state_dict(torch.load(session.folder / "model.pt", weights_only=True))
    session.evaluator.run()
    return float(session.evaluator.state.metrics["dice"])


def test_served_model_is_replaced_by_a_better_one_alone(tmp_path: Path) -> None:
    good = Session(tmp_path, epochs=8)
    good.trainer.run()
    record = json.loads((tmp_path / "model.json").read_text())
    served = (tmp_path / "model.pt").read_bytes()
    assert record["score"] == pytest.approx(served_score(good)) and record["trained_on"] == ["a.nii.gz"]
    # A worse training leaves it; it can be evaluated beside it.
    worse = Session(tmp_path, epochs=1)
    worse.trainer.run()
    assert worse.evaluator.state.metrics["dice"] < record["score"]
    assert (tmp_path / "model.pt").read_bytes() == served
    assert (tmp_path / "model_best.pt").is_file() and not (tmp_path / "versions").exists()
    # A better one takes its place, and it is kept.
    better = Session(tmp_path, epochs=12)
    better.trainer.run()
    assert (tmp_path / "model.pt").read_bytes() != served
    assert served_score(better) >= record["score"]
    (version,) = (tmp_path / "versions").glob("*.pt")
    assert version.read_bytes() == served and f"{record['score']:.4f}" in version.name


def test_a_training_too_short_to_be_validated_is_validated_at_its_end(tmp_path: Path) -> None:
    Session(tmp_path, epochs=8).trainer.run()
    served = (tmp_path / "model.pt").read_bytes()
    short = Session(tmp_path, epochs=1, interval=3)
    short.trainer.run()
    assert short.evaluator.state.epoch == 1
    assert (tmp_path / "model.pt").read_bytes() == served and not (tmp_path / "versions").exists()


def test_scans_of_the_weights_that_a_training_starts_from_are_remembered(tmp_path: Path) -> None:
    Session(tmp_path, epochs=8).trainer.run()
    Session(tmp_path, epochs=1, labeled="b.nii.gz", weights=tmp_path / "model.pt", interval=5).trainer.run()
    Session(tmp_path, epochs=12, labeled="b.nii.gz", resume=True).trainer.run()
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["trained_on"] == ["a.nii.gz", "b.nii.gz"]
    Session(tmp_path, epochs=40, labeled="c.nii.gz").trainer.run()  # from new weights
    assert json.loads((tmp_path / "model.json").read_text())["trained_on"] == ["c.nii.gz"]


def test_what_the_served_model_reaches_does_not_change_the_training(tmp_path: Path) -> None:
    finals = []
    for folder in ("new", "old"):
        (tmp_path / folder).mkdir()
        if folder == "old":
            torch.save(make_network().state_dict(), tmp_path / "old" / "model.pt")
        Session(tmp_path / folder, epochs=2).trainer.run()
        finals.append(torch.load(tmp_path / folder / "model_final.pt", weights_only=True))
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


@pytest.mark.parametrize("served", ["of another network", "trained on a validation scan"])
def test_a_served_model_that_says_nothing_here_is_replaced(tmp_path: Path, served: str) -> None:
    if served == "of another network":
        torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    else:
        Session(tmp_path, epochs=8, labeled="v.nii.gz").trainer.run()
    before = (tmp_path / "model.pt").read_bytes()
    Session(tmp_path, epochs=1).trainer.run()
    assert (tmp_path / "model.pt").read_bytes() != before
    assert [path.read_bytes() for path in (tmp_path / "versions").glob("*.pt")] == [before]


def test_without_validation_the_last_network_is_served(tmp_path: Path) -> None:
    Session(tmp_path, epochs=1, validation=0).trainer.run()
    best, final = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "model_final.pt"))
    assert all(torch.equal(best[name], final[name]) for name in final)


def test_failed_training_leaves_no_final_model(tmp_path: Path) -> None:
    session = Session(tmp_path, epochs=2)

    def fail(engine: Any) -> None:
        raise RuntimeError("power cut")

    session.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), fail)
    with pytest.raises(RuntimeError, match="power cut"):
        session.trainer.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "model_best.pt"]


def test_resuming_with_another_epoch_length_is_named(tmp_path: Path) -> None:
    Session(tmp_path, epochs=1).trainer.run()
    resumed = Session(tmp_path, epochs=2, resume=True)
    resumed.trainer.state.epoch_length = 5
    with pytest.raises(InputError, match="has 3 iterations an epoch, this one 5; expected the same"):
        resumed.trainer.run()


def test_resuming_without_or_with_another_methods_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.pt: not found; resuming needs"):
        Session(tmp_path, epochs=1, resume=True).trainer.run()
    torch.save({"network": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"holds \['network'\]; expected \['best', 'network'"):
        Session(tmp_path, epochs=1, resume=True).trainer.run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_never_waits_for_the_device_within_an_epoch() -> None:
    network = make_network().cuda()
    ema = EMAHandler(network, momentum=0.1, handle_buffers="update")
    trainer = make_trainer(
        network,
        device="cuda",
        teacher=ema.ema_model,
        epoch_length=6,
        gradient_clip=1.0,
        amp=True,
        non_blocking=True,
        train_handlers=[MeanTeacher(ema=ema)],
    )
    # The first iterations allocate and tune; the last one looks at what is still unchecked.
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: torch.cuda.set_sync_debug_mode("error"))
    trainer.add_event_handler(Events.ITERATION_STARTED(once=6), lambda: torch.cuda.set_sync_debug_mode("default"))
    try:
        trainer.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.iteration == 6
