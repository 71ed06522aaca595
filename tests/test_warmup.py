"""The schedules of batch renormalization's limits."""

import jax
import numpy as np
import optax
import pytest

import jbn
from jbn.variants.warmup import Ramp


def test_ioffe_is_a_straight_line_between_the_steps_of_the_paper():
    limits = jbn.ioffe_warmup()
    steps = [0, 5_000, 15_000, 25_000, 40_000, 10**6]
    np.testing.assert_allclose(
        [limits["r_max"](s) for s in steps], [1, 1, 1 + 2 * 10 / 35, 1 + 2 * 20 / 35, 3, 3], rtol=1e-6
    )
    np.testing.assert_allclose([limits["d_max"](s) for s in steps], [0, 0, 2.5, 5, 5, 5], rtol=1e-6)


@pytest.mark.parametrize("name", ["r_max", "d_max"])
def test_crossq_is_a_switch(name):
    schedule = jbn.crossq_warmup(steps=10)[name]
    low, high = {"r_max": (1, 3), "d_max": (0, 5)}[name]
    values = jax.jit(jax.vmap(schedule))(np.arange(8, 13))
    np.testing.assert_array_equal(values, [low, low, high, high, high])


def test_a_ramp_is_a_linear_schedule():
    ours, theirs = Ramp(1.0, 3.0, 4, 8), optax.linear_schedule(1.0, 3.0, 4, 4)
    for step in range(12):
        np.testing.assert_allclose(ours(step), theirs(step), rtol=1e-6)


def test_what_would_end_before_it_begins():
    with pytest.raises(ValueError, match=r"`begin` must lie in 0 ... 25000"):
        jbn.ioffe_warmup(begin=30_000)
    with pytest.raises(ValueError, match="`r_max` must be at least 1"):
        jbn.crossq_warmup(r_max=0.5)
