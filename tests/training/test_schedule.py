# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Learning rates: those of optax to the last bit, though they are arguments of the program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.schedule import Schedule, make_optimizer


def rates(schedule: Schedule, updates: int) -> np.ndarray:
    one = jax.jit(lambda schedule, count: schedule(count))
    return np.array([one(schedule, np.int32(count)) for count in range(updates)])


@pytest.mark.parametrize("updates", [1, 2, 14, 300, 777])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("peak", [1e-5, 3e-4])
def test_rates_are_those_of_optax_to_the_last_bit(updates, warmup, peak):
    config = TrainConfig(learning_rate=peak, warmup=warmup)
    ascent = round(warmup * updates)
    expected = optax.warmup_cosine_decay_schedule(0.0, peak, ascent, updates)
    one = jax.jit(expected)
    wanted = np.array([one(np.int32(count)) for count in range(updates)], np.float32)
    np.testing.assert_array_equal(rates(Schedule.of(config, updates), updates), wanted)


def test_a_constant_rate_stays_after_the_warm_up():
    config = TrainConfig(learning_rate=1e-4, warmup=0.1, lr_scheduler_type="constant")
    found = rates(Schedule.of(config, 100), 100)
    assert (found[10:] == np.float32(1e-4)).all()
    assert found[0] == 0 and (np.diff(found[:11]) > 0).all()


def test_a_run_that_is_all_warm_up_has_rates():
    assert np.isfinite(rates(Schedule.of(TrainConfig(warmup=1.0), 10), 10)).all()


def test_an_update_is_that_of_adamw():
    config = TrainConfig(learning_rate=1e-2, warmup=0.2, weight_decay=0.1, clip_norm=0.5)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 4, 20)
    adamw = optax.adamw(schedule, b2=config.adam_b2, weight_decay=0.1)
    plain = optax.chain(optax.clip_by_global_norm(0.5), adamw)
    params = {"w": jax.random.normal(jax.random.key(0), (5, 3))}
    ours = TrainState.create(params, make_optimizer(config), schedule=Schedule.of(config, 20))
    theirs = TrainState.create(params, plain)
    step = jax.jit(lambda state, grads: state.apply_gradients(grads, make_optimizer(config)))
    reference = jax.jit(lambda state, grads: state.apply_gradients(grads, plain))
    for i in range(20):
        grads = {"w": jax.random.normal(jax.random.key(i + 1), (5, 3))}
        ours, theirs = step(ours, grads), reference(theirs, grads)
        np.testing.assert_array_equal(ours.params["w"], theirs.params["w"])


@pytest.mark.parametrize(
    "old, new, done, same",
    [
        # (steps, warm-up, type) as they were and as they are now
        ((14, 0.0, "constant"), (20, 0.0, "constant"), 14, True),
        ((100, 0.1, "constant"), (200, 0.05, "constant"), 100, True),
        ((100, 0.1, "constant"), (200, 0.1, "constant"), 5, False),
        ((100, 0.1, "constant"), (200, 0.1, "constant"), 1, True),  # the first rate is 0
        ((100, 0.1, "cosine"), (200, 0.05, "cosine"), 10, True),  # the warm-up alone is done
        ((100, 0.1, "cosine"), (200, 0.05, "cosine"), 12, False),
        ((14, 0.0, "cosine"), (20, 0.0, "cosine"), 14, False),
        ((14, 0.0, "cosine"), (14, 0.0, "cosine"), 14, True),
        ((14, 0.0, "cosine"), (20, 0.0, "cosine"), 0, True),
    ],
)
def test_schedules_agree_where_the_rates_of_what_is_done_are_the_same(old, new, done, same):
    schedules = [
        Schedule.of(TrainConfig(warmup=warmup, lr_scheduler_type=kind), steps)
        for steps, warmup, kind in (old, new)
    ]
    assert schedules[1].agrees(schedules[0].as_numbers(), done) == same


def test_no_program_depends_on_the_number_of_steps():
    def lowered(steps: int, peak: float) -> str:
        config = TrainConfig(learning_rate=peak)
        optimizer, schedule = make_optimizer(config), Schedule.of(config, steps)
        state = TrainState.create({"w": jnp.ones(3)}, optimizer, schedule=schedule)
        step = jax.jit(lambda state: state.apply_gradients(state.params, optimizer))
        return step.lower(state).as_text()

    assert lowered(14, 1e-4) == lowered(20, 3e-5)
