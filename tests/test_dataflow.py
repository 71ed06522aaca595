"""The values of a program are followed through calls, and not into loops."""

import jax
import jax.numpy as jnp
import pytest

from jbn.tools.folding.dataflow import Dataflow, Tag, tag
from jbn.tools.folding.dataflow import traced as program


def flow(function, *args):
    return Dataflow(jax.make_jaxpr(function)(*args))


def users(found, value):
    return [use.by for use in found.uses[value]]


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))]
)
def test_a_value_is_the_same_within_calls_and_outside(wrap):
    def function(x, y):
        z = wrap(lambda x, y: tag(tag(x, "in", "a") + y, "out", "a"))(x, y)
        return tag(jnp.sin(z), "in", "b")

    found = flow(function, 1.0, 2.0)
    (a,), (out,), (b,) = (found.tags[key] for key in (("in", "a"), ("out", "a"), ("in", "b")))
    assert a.operand in found.inputs and a.operand not in found.makers
    assert users(found, a.result) == ["add"] and found.makers[out.operand] == "add"
    assert users(found, out.result) == ["sin"] and found.makers[out.result] == out
    assert users(found, b.result) == ["output"]


def test_each_use_is_counted():
    found = flow(lambda x: (tag(x, "in", "a") * x, x), 1.0)
    (x,) = found.inputs
    assert [isinstance(use, Tag) for use in users(found, x)] == [True, False, False]
    assert users(found, x)[1:] == ["mul", "output"]


def test_what_takes_a_value_between_two_tags_and_what_outside():
    def function(x, y):
        z = tag(tag(y, "in", "a") * x, "out", "a")
        return jax.vmap(lambda y: x + y)(jnp.ones(2)), z, y

    found = flow(function, jnp.ones(()), jnp.ones(()))
    (first,), (last,) = found.tags["in", "a"], found.tags["out", "a"]
    x, y = (next(v for v in found.inputs if by in users(found, v)) for by in ("mul", first))
    assert users(found, x) == ["mul", "add"] and found.used_outside(x, first, last)
    assert users(found, y) == [first, "output"] and found.used_outside(y, first, last)
    assert not found.used_outside(first.result, first, last)


def test_a_program_called_twice_is_followed_twice():
    inner = jax.jit(lambda x: tag(x, "in", "a"))
    found = flow(lambda x: inner(inner(x)), 1.0)
    first, second = found.tags["in", "a"]
    assert second.operand is first.result


def test_loops_and_branches_are_not_looked_into():
    def step(x, _):
        return tag(x, "in", "a"), None

    def function(x):
        x, _ = jax.lax.scan(step, x, length=2)
        return jax.lax.cond(x > 0, lambda x: tag(x, "in", "a"), lambda x: x, x)

    assert not flow(function, 1.0).tags["in", "a"]


def test_what_has_been_given_more_axes_is_left_out():
    def function(x):
        return tag(x, "in", "a") + tag(1.0, "in", "b")

    found = flow(jax.vmap(function), jnp.ones(3))
    assert not found.tags["in", "a"] and len(found.tags["in", "b"]) == 1


def test_paths_may_have_spaces_and_other_names_are_left_alone():
    def function(x):
        return jax.ad_checkpoint.checkpoint_name(tag(x, "in", "a b"), "other")

    found = flow(function, 1.0)
    assert found.tags["in", "a b"] and users(found, found.tags["in", "a b"][0].result) == ["name"]


def test_a_tag_changes_nothing():
    assert jax.grad(lambda x: tag(x, "in", "a") ** 2)(3.0) == 6


def test_what_was_compiled_before_is_traced_again():
    traced = []
    inner = jax.jit(lambda x: traced.append(x) or x)
    inner(jnp.ones(()))
    program(lambda _, x: inner(x), None, (jnp.ones(()),))
    assert len(traced) == 2
