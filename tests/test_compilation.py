"""`traced_apart`, `intercepted` and `compiled`: what is traced again."""

import jax
import jax.numpy as jnp
import pytest

from jbn.tools.compilation import compiled, traced_apart

X = jnp.ones(3)


class Counted:
    """A function that says how often it has been traced."""

    def __init__(self):
        self.times = 0

    def __call__(self, factor, x):
        self.times += 1
        return x * factor[0]


def test_what_means_something_else_is_traced_again():
    count = Counted()
    function = jax.jit(lambda x: count((2,), x))
    for meaning, times in [((), 1), (("a",), 2), (("b", 0.1), 3), (("a",), 3)]:
        with traced_apart(*meaning):
            function(X)
        assert count.times == (times if meaning else 1)
    function(X)
    with traced_apart("b", 0.1), traced_apart("a"):
        function(X)
    assert count.times == 5


@pytest.mark.parametrize(("static", "times"), [((3,), 1), ([3], 2)], ids=["hashable", "not"])
def test_what_cannot_be_hashed_is_compiled_for_the_caller(static, times):
    count = Counted()
    for _ in range(2):
        step = compiled(count, static)
        for _ in range(2):
            assert (step(X) == 3).all()
    assert count.times == times
