"""The workflow: one step over both streams, autocast, partly annotated labels, and what the teacher is asked."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler

from dbisl.bridge import DualTaskOutput
from dbisl.data import CopyPaste
from dbisl.handlers import FiniteCheck, MeanTeacher, Monitor
from dbisl.losses import LABELED_TERMS, TERMS
from dbisl.networks import DualTaskVNet
from tests.engines.small_training import (
    ITERATIONS,
    SIZE,
    PartlyAnnotatedStreams,
    Streams,
    make_loss,
    make_network,
    make_trainer,
)


def test_one_step_is_gradient_descent_on_the_loss() -> None:
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


def test_voxels_that_were_not_annotated_do_not_count_in_the_loss() -> None:
    valid_mask = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.5
    network = make_network()
    expected = copy.deepcopy(network).train()
    trainer = make_trainer(network, PartlyAnnotatedStreams(valid_mask), epoch_length=1)
    trainer.run()
    output = trainer.state.output
    batch = next(iter(Streams()))
    label = torch.where(valid_mask, batch["labeled"]["label"], 0)
    sdm = torch.where(valid_mask, batch["labeled"]["sdm"], math.nan)
    images = torch.cat([batch[stream]["image"].as_tensor() for stream in ("labeled", "unlabeled")])
    prediction = expected(images)
    loss, _ = make_loss()(prediction, label, sdm, valid_mask=valid_mask)
    torch.testing.assert_close(output["loss"], loss.detach())
    torch.testing.assert_close(output["pred"], prediction.logits[:2].detach())
    assert torch.equal(output["label"], label) and torch.equal(output["valid_mask"], valid_mask)


def test_distances_may_be_undefined_in_a_patch_that_was_annotated_completely() -> None:
    class UndefinedDistances(Streams):
        def __iter__(self) -> Iterator[dict[str, dict[str, Any]]]:
            for batch in super().__iter__():
                sdm = batch["labeled"]["sdm"].clone()
                sdm[..., :3] = math.nan
                yield {**batch, "labeled": {**batch["labeled"], "sdm": sdm}}

    network = make_network()
    trainer = make_trainer(
        network,
        UndefinedDistances(),
        teacher=EMAHandler(network, momentum=0.1).ema_model,
        copy_paste=CopyPaste(prob=1.0),
        train_handlers=[Monitor()],
    )
    trainer.run()
    assert all(value.isfinite() for value in trainer.state.output["terms"].values() if torch.is_tensor(value))


def test_gradient_is_clipped_to_its_norm() -> None:
    norms, outputs = {}, {}
    for clip in (None, 0.01):
        network = make_network()
        before = [parameter.detach().clone() for parameter in network.parameters()]
        trainer = make_trainer(network, epoch_length=1, gradient_clip=clip)
        trainer.run()
        steps = [(a.detach() - b).flatten() for a, b in zip(network.parameters(), before, strict=True)]
        norms[clip], outputs[clip] = float(torch.cat(steps).norm()) / 0.05, trainer.state.output
    assert norms[None] > 0.01
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert float(outputs[0.01]["gradient_norm"]) == pytest.approx(norms[None], rel=1e-3)  # before clipping
    assert "gradient_norm" not in outputs[None]


@pytest.mark.parametrize("amp", [False, True])
def test_training_reduces_every_labeled_term(amp: bool) -> None:
    network, history = make_network(), []
    loss = make_loss({name: 1.0 if name in LABELED_TERMS else 0.01 for name in TERMS})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    trainer = make_trainer(
        network, optimizer=optimizer, loss_function=loss, epoch_length=80, amp=amp, train_handlers=[Monitor()]
    )

    def remember(engine: Any) -> None:
        history.append({name: float(value) for name, value in engine.state.output["terms"].items()})

    trainer.add_event_handler(Events.ITERATION_COMPLETED, remember)
    trainer.run()
    for name in LABELED_TERMS:
        assert sum(step[name] for step in history[-10:]) < 0.6 * sum(step[name] for step in history[:10])
    assert set(history[-1]) == {*TERMS, "loss", "ramp", "dice", "foreground_labeled", "foreground_unlabeled"}
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_output_holds_the_labeled_part_and_the_logits_of_the_unlabeled_part() -> None:
    trainer = make_trainer(make_network())
    trainer.run()
    output = trainer.state.output
    assert output["image"].shape == output["label"].shape == (2, 1, *SIZE)
    assert output["pred"].shape == output["pred_unlabeled"].shape == (2, 2, *SIZE)
    assert output["valid_mask"] is None
    assert set(output["terms"]) == {"loss", *TERMS}


def test_without_unlabeled_scans_it_trains_on_the_labeled_scans() -> None:
    trainer = make_trainer(make_network(), Streams(unlabeled=False))
    trainer.run()
    assert trainer.state.iteration == ITERATIONS
    assert not any(name.startswith("pseudo") for name in trainer.state.output["terms"])
    assert trainer.state.output["pred_unlabeled"].shape == (0, 2, *SIZE)


def test_a_loss_without_unlabeled_terms_never_shows_the_network_an_unlabeled_scan() -> None:
    seen: list[int] = []
    network = make_network()
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    make_trainer(network, loss_function=make_loss({"segmentation": 1.0})).run()
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("view", ["weak_image", "image"])
def test_teacher_sees_its_view_only_when_pseudo_labels_count(view: str) -> None:
    seen: list[torch.Tensor] = []

    class Teacher(DualTaskVNet):
        def forward(self, image: torch.Tensor) -> DualTaskOutput:
            assert not self.training and not torch.is_grad_enabled()
            seen.append(image)
            return super().forward(image)

    teacher = Teacher(features=4, levels=2)
    options = {"weak_image": {}, "image": {"teacher_view": "image"}}[view]
    loss = make_loss()
    loss.ramp = 0.0
    make_trainer(make_network(), teacher=teacher, loss_function=loss, **options).run()
    assert not seen
    loss.ramp = 1.0
    trainer = make_trainer(make_network(), teacher=teacher, loss_function=loss, epoch_length=1, **options)
    trainer.run()
    torch.testing.assert_close(seen[0], next(iter(Streams()))["unlabeled"][view].as_tensor())
    with torch.no_grad():
        torch.testing.assert_close(trainer.state.output["pred_unlabeled"], teacher(seen[0]).logits)


def test_labels_are_pasted_into_the_students_images_and_not_into_the_teachers() -> None:
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


def test_a_network_with_fused_output_is_refused() -> None:
    network = DualTaskVNet(features=4, levels=2, fused_output=True)
    with pytest.raises(ValueError, match="training needs the output of each task"):
        make_trainer(network)


def test_gradient_accumulation_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulation_steps is not supported"):
        make_trainer(make_network(), accumulation_steps=2)


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
        train_handlers=[Monitor(), FiniteCheck(), MeanTeacher(ema=ema)],
    )
    # The first iterations allocate and tune; the last one reads the flags that are still unchecked.
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: torch.cuda.set_sync_debug_mode("error"))
    trainer.add_event_handler(Events.ITERATION_STARTED(once=6), lambda: torch.cuda.set_sync_debug_mode("default"))
    try:
        trainer.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.iteration == 6
