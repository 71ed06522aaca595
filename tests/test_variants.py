"""Every variant of the table: values, statistics, derivatives, devices, dtypes, layers, programs."""

import dataclasses
import functools
import operator
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import variant_reference
from cases import VARIANTS
from tolerance import tolerance

by_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def close(actual, expected, dtype="float32"):
    """Within a few roundings of the largest value of each array."""
    bound = tolerance(dtype)["atol"] if dtype == "bfloat16" else 4 * tolerance(dtype, 40)["atol"]

    def check(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * max(1, np.max(np.abs(b), initial=0)))

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(check, actual, expected)


def in_float64(tree):
    def wide(v):
        v = np.asarray(v)
        return v.astype(np.float64) if v.dtype.kind == "f" else v

    return jax.tree.map(wide, tree)


def apply(variant, x, params, stats, options, *, train=True, **kwargs):
    options = {**variant.static, **options, **kwargs}
    return variant.norm.apply(x, params, stats, train=train, momentum=0.9, **options)


def oracle(variant, x, params, stats, options, **kwargs):
    x, params, stats, options = in_float64((x, params, stats, options))
    return variant.oracle(x, params, stats, **variant.static, **options, **kwargs)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["given", "rest"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of a call: x, parameters and options that are differentiated, then statistics, indices, mask."""

    given: Any
    rest: Any

    @classmethod
    def of(cls, variant, mask="weights", batch=6):
        x, params, stats, options = variant.make(batch)
        floating = {k: v for k, v in options.items() if jnp.issubdtype(v.dtype, jnp.inexact)}
        indices = {k: v for k, v in options.items() if k not in floating}
        mask = jnp.broadcast_to(variant.mask(mask, batch), x.shape).astype(jnp.float32)
        return cls((x, params, floating), (stats, indices, mask))

    @property
    def x(self):
        return self.given[0]

    def call(self, function, given=None, **kwargs):
        (x, params, floating), (stats, indices, mask) = given or self.given, self.rest
        return function(x, params, stats, {**floating, **indices}, mask=mask, **kwargs)

    def cotangent(self):
        return jnp.cos(jnp.arange(self.x.size, dtype=jnp.float32)).reshape(self.x.shape)

    def direction(self, seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda v: rng.standard_normal(v.shape).astype(np.float32), self.given)


def vjp_of(variant, arguments, dy, **kwargs):
    """(y, statistics, gradients)."""

    def function(given):
        return arguments.call(functools.partial(apply, variant), given, **kwargs)

    y, vjp, stats = jax.vjp(function, arguments.given, has_aux=True)
    return y, stats, *vjp(dy.astype(y.dtype))


@functools.cache
def step(variant):
    """One program for every mask."""
    return jax.jit(functools.partial(vjp_of, variant))


def check_derivative(variant, arguments, gradient, scalar, *others):
    """A gradient times a direction, against differences of the oracle along it (and along others)."""
    directions = (*others, arguments.direction(7))
    constants = variant_reference.Constants()
    given = in_float64(arguments.given)

    def at(*steps):
        moved = jax.tree.map(lambda v, *d: v + sum(map(operator.mul, steps, d)), given, *directions)
        y, _ = arguments.call(functools.partial(oracle, variant), moved, constants=constants)
        return np.sum(scalar(y))

    at(*[0.0] * len(directions))
    pairs = list(zip(jax.tree.leaves(gradient), jax.tree.leaves(directions[-1]), strict=True))
    expected = variant_reference.derivative(at, len(directions))
    size = sum(np.vdot(np.abs(g), np.abs(d)) for g, d in pairs)
    assert abs(sum(np.vdot(g, d) for g, d in pairs) - expected) <= 2e-6 * size


@by_variant
@pytest.mark.parametrize("mask", [None, "bool"])
@pytest.mark.parametrize("train", [True, False])
def test_values_and_statistics(variant, train, mask):
    x, params, stats, options = variant.make()
    mask = None if mask is None else variant.mask(mask)
    y, updated = apply(variant, x, params, stats, options, train=train, mask=mask)
    close((y, updated), oracle(variant, x, params, stats, options, train=train, mask=mask))
    assert y.dtype == x.dtype
    for name, value in updated.items():
        assert value.dtype == stats[name].dtype


@by_variant
def test_gradients(variant):
    for kind in ("full", "weights"):
        arguments = Arguments.of(variant, kind)
        dy = arguments.cotangent()
        y, stats, gradients = step(variant)(arguments, dy)
        close((y, stats), arguments.call(functools.partial(oracle, variant)))
        check_derivative(variant, arguments, gradients, lambda y, dy=dy: y * np.asarray(dy))


# The others are made of the same parts.
OF_THEIR_OWN = {"ghost", "conditional", "domains of each example"}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=[] if v.name in OF_THEIR_OWN else pytest.mark.slow) for v in VARIANTS],
    ids=lambda v: v.name,
)
def test_second_derivatives(variant):
    arguments = Arguments.of(variant)
    weight, along = arguments.cotangent(), arguments.direction(3)

    def loss(given):
        y, _ = arguments.call(functools.partial(apply, variant), given)
        return jnp.sum(jnp.sin(y) * weight)

    def reverse_over_reverse(given):
        gradients = jax.tree.leaves(jax.grad(loss)(given))
        return sum(map(jnp.vdot, gradients, jax.tree.leaves(along)))

    @jax.jit
    def both(given):
        return jax.jvp(jax.grad(loss), (given,), (along,))[1], jax.grad(reverse_over_reverse)(given)

    for gradient in both(arguments.given):
        scalar = lambda y: np.sin(y) * np.asarray(weight)  # noqa: E731
        check_derivative(variant, arguments, gradient, scalar, along)


@by_variant
def test_masked_values_and_channels_without_samples_poison_nothing(variant):
    arguments = Arguments.of(variant)
    (x, *given), (*rest, mask) = arguments.given, arguments.rest
    mask = mask.at[..., 1].set(0)
    here = mask > 0
    dy = here.astype(jnp.float32)
    expected = step(variant)(Arguments((x, *given), (*rest, mask)), dy)
    poisoned = Arguments((jnp.where(here, x, jnp.nan), *given), (*rest, mask))
    actual = step(variant)(poisoned, dy)
    for results in (actual, expected):
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(results[1:]))
    np.testing.assert_array_equal(jnp.where(here, actual[0], 0), jnp.where(here, expected[0], 0))
    jax.tree.map(np.testing.assert_array_equal, actual[1:], expected[1:])


@by_variant
def test_a_traced_flag_for_inference_poisons_no_more_than_a_static_one(variant):
    x, params, stats, options = variant.make()
    options |= variant.static
    bad = x.at[0, 1, 2].set(jnp.nan)

    def loss(x, train):
        y, _ = variant.norm.apply(x, params, stats, train=train, **options)
        return jnp.sum(jnp.where(jnp.isnan(bad), 0, y) ** 2)

    static = jax.jit(jax.grad(lambda x: loss(x, False)))(bad)
    traced = jax.jit(jax.grad(loss))(bad, False)
    np.testing.assert_array_equal(jnp.isnan(traced), jnp.isnan(static))


@by_variant
def test_vmap_of_gradients(variant):
    arguments = Arguments.of(variant)
    dy = arguments.cotangent()
    batched = jax.jit(jax.vmap(functools.partial(vjp_of, variant), (None, 0)))(
        arguments, jnp.stack([dy, -2 * dy])
    )
    close(jax.tree.map(lambda v: v[1], batched), step(variant)(arguments, -2 * dy))


@by_variant
def test_scan_over_a_traced_flag(variant):
    arguments = Arguments.of(variant)
    flags = (True, False, True)

    def one(arguments, flag):
        y, stats = arguments.call(functools.partial(apply, variant), train=flag)
        return Arguments(arguments.given, (stats, *arguments.rest[1:])), y

    last, ys = jax.jit(lambda arguments: jax.lax.scan(one, arguments, jnp.array(flags)))(arguments)
    for y, flag in zip(ys, flags, strict=True):
        wanted, stats = arguments.call(functools.partial(oracle, variant), train=flag)
        arguments = Arguments(arguments.given, (stats, *arguments.rest[1:]))
        close(y, wanted)
    close(last.rest[0], arguments.rest[0])


@functools.cache
def mesh():
    return jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))


@by_variant
@pytest.mark.several_devices
@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_across_devices(variant, check_vma):
    arguments = Arguments.of(variant, batch=12)
    dy = arguments.cotangent()

    in_specs = jax.tree.map(lambda v: P("i") if v.shape[:1] == (12,) else P(), (arguments, dy))

    def local(arguments, dy):
        y, stats, gradients = vjp_of(variant, arguments, dy, axis_name="i")
        if not check_vma:  # else what is replicated has a gradient that is summed
            gradients = jax.tree.map(
                lambda g, spec: g if spec else jax.lax.psum(g, "i"), gradients, in_specs[0].given
            )
        return y, stats, gradients

    out_specs = (P("i"), P(), in_specs[0].given)
    mapped = jax.shard_map(
        local, mesh=mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=check_vma
    )
    y, stats, gradients = jax.jit(mapped)(arguments, dy)
    close((y, stats), arguments.call(functools.partial(oracle, variant)))
    check_derivative(variant, arguments, gradients, lambda y: y * np.asarray(dy))


@by_variant
@pytest.mark.several_devices
def test_jit_over_sharded_arrays(variant):
    arguments = Arguments.of(variant)
    dy = arguments.cotangent()
    shardings = jax.tree.map(
        lambda v: NamedSharding(mesh(), P("i") if v.shape[:1] == (6,) else P()), (arguments, dy)
    )
    close(step(variant)(*jax.device_put((arguments, dy), shardings)), step(variant)(arguments, dy))


@by_variant
def test_half_precision(variant):
    """y and dx are those of float32 arithmetic on the same x, rounded once; x is kept as it is."""
    arguments = Arguments.of(variant, "full")
    x, *given = arguments.given
    # A cotangent whose mean is large loses its digits if it is rounded before that is taken off.
    dy = (100 + arguments.cotangent()).astype(jnp.bfloat16)
    half = Arguments((x.astype(jnp.bfloat16), *given), arguments.rest)
    wide = Arguments((half.x.astype(jnp.float32), *given), arguments.rest)
    y, stats, (dx, *_) = step(variant)(half, dy)
    exact = step(variant)(wide, dy.astype(jnp.float32))
    assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
    close((y, dx), (exact[0], exact[2][0]), dtype="bfloat16")
    close(stats, exact[1])

    def kept(given):
        return jax.vjp(lambda g: half.call(functools.partial(apply, variant), g)[0], given)[1]

    large = [v for v in jax.tree.leaves(jax.eval_shape(kept, half.given)) if v.size >= x.size]
    assert sum(v.dtype.itemsize for v in large if v.dtype != half.rest[-1].dtype) <= 2, large


@by_variant
def test_any_axis(variant):
    x, params, stats, options = variant.make()
    y, updated = apply(variant, x.swapaxes(1, 2), params, stats, options, axis=1)
    close((y.swapaxes(1, 2), updated), oracle(variant, x, params, stats, options))


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.like_plain], ids=lambda variant: variant.name
)
def test_is_plain_batch_norm_where_its_equations_say_so(variant):
    x, params, stats = jnp.cos(jnp.arange(72.0)).reshape(6, 3, 4), *jbn.init(4)
    norm, keywords = variant.like_plain
    y, updated = norm.apply(x, *norm.init(4), train=True, **keywords)
    momentum = keywords.get("momentum", 0.99)
    expected_y, expected = jbn.batch_norm(x, params, stats, train=True, momentum=momentum)
    updated = {name: updated[name].reshape(4) for name in stats}
    check = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    (check if variant.rounds_as_plain else close)((y, updated), (expected_y, expected))


@by_variant
def test_layers(variant):
    x, params, stats, options = variant.make()
    expected = oracle(variant, x, params, stats, options)
    options = {**variant.static, **options}

    layer = jbn.linen.BatchNorm(use_running_average=False, momentum=0.9, norm=variant.norm)
    variables = {"params": params, "batch_stats": stats}
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, **options))
    wanted = {collection: dict(v) for collection, v in variables.items() if v}
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, wanted)
    y, updated = layer.apply(variables, x, **options, mutable=["batch_stats"])
    close((y, updated["batch_stats"]), expected)

    module = jbn.nnx.BatchNorm(4, momentum=0.9, norm=variant.norm, rngs=nnx.Rngs(0))
    for name, value in {**params, **stats}.items():
        getattr(module, name).set_value(value)
    y = module(x, **options)
    close((y, {name: getattr(module, name)[...] for name in stats}), expected)


def large_passes(hlo: str, size: int) -> tuple[int, int]:
    """Reductions over so many values in the backward pass, and how often so many are written."""
    sizes = {
        name: np.prod([int(n) for n in shape.split(",") if n])
        for name, shape in re.findall(r"^ *(?:ROOT )?%?(\S+) = \w+\[([\d,]*)\]", hlo, re.M)
    }
    reduced = re.findall(r" (?:reduce|scatter)\(%?([\w.\-]+).*op_name=\"([^\"]*)\"", hlo)
    entry = hlo[hlo.index("ENTRY") :]
    written = re.findall(r"^ *(?:ROOT )?%?(\S+) = \w+\[\S+ (?:fusion|copy|while|call)\(", entry, re.M)
    return (
        sum(sizes.get(operand, 0) >= size and "transpose" in name for operand, name in reduced),
        sum(sizes.get(name, 0) >= size for name in written),
    )


@by_variant
@pytest.mark.cpu
def test_the_backward_pass_compiles_to_what_its_equations_need(variant):
    arguments = Arguments.of(variant, batch=36)
    (_, *given), (stats, indices, _) = arguments.given, arguments.rest
    x = jax.ShapeDtypeStruct((36, 8, 8, 4), jnp.float32)
    arguments = Arguments((x, *given), (stats, indices, None))
    hlo = jax.jit(functools.partial(vjp_of, variant)).lower(arguments, x).compile().as_text()
    assert large_passes(hlo, x.size) == (variant.reductions, variant.written)


@by_variant
def test_is_a_value(variant):
    assert pickle.loads(pickle.dumps(variant.norm)) == variant.norm
    assert hash(pickle.loads(pickle.dumps(variant.norm))) == hash(variant.norm)


@by_variant
def test_a_keyword_it_does_not_know_is_refused(variant):
    x, params, stats, options = variant.make()
    with pytest.raises(TypeError, match="takes no keyword `wrong`"):
        apply(variant, x, params, stats, options, wrong=1)
