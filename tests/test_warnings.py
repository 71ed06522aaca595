"""The one warning names the user's own line, once, and only where it means something."""

import threading
import warnings

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jbn
from jbn import _warnings

ONE = jnp.ones((1, 3))
PARAMS, BATCH_STATS = jbn.init(3)
MODULE = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
LAYER = jbn.linen.BatchNorm(use_running_average=False)
CALLS = {
    "function": lambda: jbn.batch_norm(ONE, PARAMS, BATCH_STATS, train=True),
    "under jit": lambda: jax.jit(lambda x: jbn.batch_norm(x, {}, BATCH_STATS, train=True)[0])(ONE),
    "in place": lambda: jbn.inplace().apply(ONE, PARAMS, BATCH_STATS, train=True),
    "nnx": lambda: MODULE(ONE),
    "linen": lambda: LAYER.apply(
        {"params": PARAMS, "batch_stats": BATCH_STATS}, ONE, mutable=["batch_stats"]
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_file_that_is_named_is_the_callers(name):
    with pytest.warns(UserWarning, match="one value per channel") as caught:
        CALLS[name]()
    assert [warning.filename for warning in caught] == [__file__]


def test_initialization_does_not_warn_and_leaves_the_filters_alone():
    """`catch_warnings` would make Python forget which warnings it has shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("the user's own", UserWarning, stacklevel=1)
            LAYER.init(jax.random.key(0), ONE)
    assert [str(warning.message) for warning in caught] == ["the user's own"]


def test_quiet_in_one_thread_alone():
    def elsewhere():
        with pytest.warns(UserWarning, match="one value per channel"):
            _warnings.warn_if_single(1)
        finished.append(True)

    finished = []
    with _warnings.initializing():
        _warnings.warn_if_single(1)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert finished
