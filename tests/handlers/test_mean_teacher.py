"""The teacher is the moving average of the student."""

from __future__ import annotations

import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler

from dbisl.handlers import MeanTeacher
from tests.engines.small_training import make_network, make_trainer


def test_the_teacher_starts_as_the_student_and_follows_it() -> None:
    network = make_network()
    ema = EMAHandler(network, momentum=0.5, handle_buffers="update")
    start = {name: value.clone() + 1 for name, value in network.state_dict().items()}
    network.load_state_dict(start)  # as a handler does that loads weights when training starts
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


def test_weights_that_were_put_into_the_student_between_runs_reach_the_teacher() -> None:
    network = make_network()
    ema = EMAHandler(network, momentum=0.5)
    trainer = make_trainer(network, epoch_length=1, train_handlers=[MeanTeacher(ema=ema)])
    starts: list[bool] = []

    @trainer.on(Events.EPOCH_STARTED)
    def compare() -> None:
        pairs = zip(network.parameters(), ema.ema_model.parameters(), strict=True)
        starts.append(all(torch.equal(student, teacher) for student, teacher in pairs))

    for new_weights in (False, False, True):
        if new_weights:
            network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()
    assert starts == [True, False, True]
