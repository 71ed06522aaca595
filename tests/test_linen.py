"""`jbn.linen.BatchNorm` replaces `flax.linen.BatchNorm`: fields, variables, values, transforms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, serialization
from flax import linen as nn
from flax.core import meta

from jbn.linen import BatchNorm
from layers import (
    BF16,
    KEYWORDS,
    MASK,
    SHAPE,
    SPEC,
    close,
    data,
    equal,
    gained,
    randomized,
    recorder,
    specs,
    weighted,
)
from tolerance import tolerance

pytestmark = pytest.mark.usefixtures("standard_promotion")
KEY = jax.random.key(0)
TRAIN, EVAL = BatchNorm(use_running_average=False), BatchNorm(use_running_average=True)
FLAX_TRAIN, FLAX_EVAL = nn.BatchNorm(use_running_average=False), nn.BatchNorm(use_running_average=True)


def train(layer, variables, x, **kwargs):
    return layer.apply(variables, x, mutable=["batch_stats"], **kwargs)


def outputs(apply, variables, x):
    """y, the updated statistics, and the gradients for the parameters and x of a random weighting."""

    def loss(params, x):
        y, updated = apply({**variables, "params": params}, x)
        return weighted(y), (y, updated)

    argnums = (0, 1) if jnp.issubdtype(x.dtype, jnp.inexact) else (0,)
    run = jax.jit(jax.value_and_grad(loss, argnums, has_aux=True))
    (_, aux), grads = run(variables.get("params", {}), x)
    return aux, grads


PARITY = {
    "default": ({}, {}),
    "dtype": ({"dtype": BF16}, {}),
    "param_dtype": ({"param_dtype": BF16}, {}),
    "axis": ({"axis": 1}, {}),
    "axes": ({"axis": (1, -1)}, {}),
    "momentum": ({"momentum": 0.5}, {}),
    "epsilon": ({"epsilon": 0.3}, {}),
    "no_bias": ({"use_bias": False}, {}),
    "no_scale": ({"use_scale": False}, {}),
    "no_params": ({"use_bias": False, "use_scale": False}, {}),
    "slow_variance": ({"use_fast_variance": False}, {}),
    "half": ({}, {"dtype": jnp.float16}),
    "half_without_params": ({"use_bias": False, "use_scale": False}, {"dtype": BF16}),
    "half_throughout": ({"param_dtype": BF16}, {"dtype": BF16}),
    "integer": ({}, {"dtype": jnp.int32}),
    "complex": ({}, {"dtype": jnp.complex64}),
    "mask": ({}, {"mask": MASK}),
    "integer_mask": ({}, {"mask": np.random.default_rng(4).integers(0, 2, SHAPE)}),
}


EVALUATED = ("default", "dtype", "axis", "no_params", "half", "complex")


@pytest.mark.parametrize(
    ("name", "evaluate"),
    [
        *((name, False) for name in PARITY),
        *(
            pytest.param(name, True, marks=[] if name in EVALUATED else pytest.mark.slow)
            for name in PARITY
        ),
    ],
)
def test_parity_with_flax(name, evaluate):
    config, given = PARITY[name]
    x = data(dtype=given.get("dtype", jnp.float32))
    ours, theirs = (cls(evaluate, **config) for cls in (BatchNorm, nn.BatchNorm))
    variables = randomized(jax.eval_shape(theirs.init, KEY, x))
    kwargs = {"mask": given.get("mask"), "mutable": [] if evaluate else ["batch_stats"]}
    actual, expected = (
        outputs(functools.partial(layer.apply, **kwargs), variables, x) for layer in (ours, theirs)
    )
    close(actual, expected)


def test_fields_are_those_of_flax_and_then_ours():
    def fields(cls):
        every = [(field.name, field.default) for field in dataclasses.fields(cls)]
        return [field for field in every if field[0] not in ("parent", "name")]

    ours, theirs = fields(BatchNorm), fields(nn.BatchNorm)
    assert ours[: len(theirs)] == theirs
    added = ["running_variance", "norm", "mean_init", "var_init"]
    assert [name for name, _ in ours[len(theirs) :]] == added


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({}, {"bias": ((4,), "float32"), "scale": ((4,), "float32")}),
        ({"param_dtype": BF16}, {"bias": ((4,), "bfloat16"), "scale": ((4,), "bfloat16")}),
        ({"axis": (-1, 1), "use_bias": False}, {"scale": ((5, 4), "float32")}),
        ({"axis": 0, "use_scale": False}, {"bias": ((6,), "float32")}),
    ],
)
def test_golden_variables(config, params):
    variables = jax.eval_shape(BatchNorm(False, **config).init, KEY, SPEC)
    shape = next(iter(params.values()))[0]
    stats = {"mean": (shape, "float32"), "var": (shape, "float32")}
    assert specs(variables) == {"batch_stats": stats, "params": params}


def test_initial_values_are_those_of_flax():
    inits = {"scale_init": nn.initializers.normal(), "bias_init": nn.initializers.uniform()}
    equal(*(cls(False, **inits).init(KEY, data()) for cls in (BatchNorm, nn.BatchNorm)))


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [(FLAX_EVAL, EVAL), (EVAL, FLAX_EVAL)],
    ids=["to_ours", "to_flax"],
)
def test_checkpoint_of_one_loads_into_the_other(saved, loaded):
    variables = randomized(saved.init(KEY, data()))
    target = loaded.init(KEY, data())
    restored = serialization.from_bytes(target, serialization.to_bytes(variables))
    assert specs(restored) == specs(target)
    close(loaded.apply(restored, data()), saved.apply(variables, data()))


def test_initialization_leaves_the_statistics_alone():
    equal(TRAIN.init(KEY, data())["batch_stats"], {"mean": np.zeros(4), "var": np.ones(4)})


def test_initialization_normalizes_with_the_batch():
    close(*(layer.init_with_output(KEY, data())[0] for layer in (TRAIN, FLAX_TRAIN)))


def test_initialization_with_a_single_example_does_not_warn():
    TRAIN.init(KEY, data((1, 4)))


def test_initialization_does_not_touch_the_groups():
    layer = BatchNorm(False, axis_name="batch", axis_index_groups=[[0, 1], [2, 3]])
    assert layer.init_with_output(KEY, data())[0].shape == SHAPE


def test_strict_promotion_is_enough_in_float32():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        y, variables = TRAIN.init_with_output(KEY, data())
        close(train(TRAIN, variables, data())[0], y)


@pytest.mark.parametrize(
    ("field", "call", "mutable", "error"),
    [
        (None, None, ["batch_stats"], ValueError),
        (True, True, ["batch_stats"], ValueError),
        (False, None, [], errors.ModifyScopeVariableError),
    ],
    ids=["flag_missing", "flag_twice", "statistics_immutable"],
)
def test_same_error_as_flax(field, call, mutable, error):
    variables = EVAL.init(KEY, data())
    messages = []
    for cls in (BatchNorm, nn.BatchNorm):
        with pytest.raises(error) as raised:
            cls(field).apply(variables, data(), call, mutable=mutable)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("used", "error", "match"),
    [
        (True, errors.ScopeParamShapeError, r'"scale".*\(3,\).*\(4,\)'),
        (False, ValueError, r"batch_stats\['mean'\].*\(3,\).*\(4,\)"),
    ],
)
def test_wrong_number_of_features_names_the_variable(used, error, match):
    layer = BatchNorm(True, use_scale=used, use_bias=used)
    variables = layer.init(KEY, data())
    with pytest.raises(error, match=match):
        layer.apply(variables, data((6, 3)))


# What users of Flax's layer have met, by the number of the issue.


def test_flax_1250_reused_layer_with_a_named_axis_initializes_in_training_mode():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = BatchNorm(use_running_average=False, axis_name="batch")
            return norm(norm(x))

    variables = Twice().init(KEY, data())
    equal(variables["batch_stats"]["BatchNorm_0"], {"mean": np.zeros(4), "var": np.ones(4)})


def test_flax_2606_training_outside_the_named_axis_says_what_to_do():
    layer = BatchNorm(use_running_average=False, axis_name="devices")
    variables = layer.init(KEY, data())
    with pytest.raises(NameError, match=r"`axis_name`='devices'.*use_running_average=True"):
        train(layer, variables, data())


def test_flax_2606_inference_outside_the_named_axis_works():
    layer = BatchNorm(use_running_average=True, axis_name="devices")
    variables = randomized(layer.init(KEY, data()))
    close(layer.apply(variables, data()), FLAX_EVAL.apply(variables, data()))


def test_flax_3319_nested_vmap_shares_the_statistics_over_all_axes():
    share = {"variable_axes": {"params": None, "batch_stats": None}, "split_rngs": {"params": False}}
    nested = nn.vmap(nn.vmap(BatchNorm, axis_name="inner", **share), axis_name="outer", **share)
    nested, x = nested(use_running_average=False, axis_name=("outer", "inner")), data((3, 2, *SHAPE))
    variables = randomized(nested.init(KEY, x))
    close(train(nested, variables, x), train(FLAX_TRAIN, variables, x))


# It composes.


class Composed(nn.Module):
    """The layer called `norm` under the transformation `transform`."""

    layer: type
    transform: str

    @nn.compact
    def __call__(self, x):
        axis_name = "batch" if self.transform in ("shared_vmap", "jax_vmap") else None
        norm = self.layer(False, axis_name=axis_name, name="norm")
        share = {"split_rngs": {"params": False}}

        def call(norm, x):
            return norm(x)

        def over_time(norm, carry, x):
            return carry, norm(x)

        def over_layers(norm, x, _):
            return norm(x), None

        match self.transform:
            case "jit":
                return nn.jit(call)(norm, x)
            case "remat":
                return nn.remat(call)(norm, x)
            case "scan_over_time" if not self.is_initializing():
                lifted = {"variable_broadcast": "params", "variable_carry": "batch_stats"}
                return nn.scan(over_time, **lifted, **share)(norm, None, x)[1]
            case "scan_over_layers":
                lifted = {"variable_axes": {"params": 0, "batch_stats": 0}, "length": 2}
                return nn.scan(over_layers, **lifted, split_rngs={"params": True})(norm, x, None)[0]
            case "vmap":
                axes = {"params": None, "batch_stats": 0}
                return nn.vmap(call, variable_axes=axes, **share)(norm, x)
            case "shared_vmap":
                axes = {"params": None, "batch_stats": None}
                return nn.vmap(call, variable_axes=axes, axis_name="batch", **share)(norm, x)
            case _:
                return norm(x)


TRANSFORMS = ["jit", "remat", "scan_over_time", "scan_over_layers", "vmap", "shared_vmap", "jax_vmap"]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_composes_as_flax_does(transform):
    ours, theirs = (Composed(cls, transform) for cls in (BatchNorm, nn.BatchNorm))
    variables = randomized(jax.eval_shape(theirs.init, KEY, data()))
    assert specs(jax.eval_shape(ours.init, KEY, data())) == specs(variables)

    def apply(module):
        apply = functools.partial(module.apply, mutable=["batch_stats"])
        if transform != "jax_vmap":
            return apply
        return jax.vmap(apply, in_axes=(None, 0), out_axes=(0, None), axis_name="batch")

    close(outputs(apply(ours), variables, data()), outputs(apply(theirs), variables, data()))


# jbn's own.


def test_norm_adds_its_own_variables():
    variables = BatchNorm(False, norm=gained, param_dtype=BF16).init(KEY, data())
    assert variables["params"]["gain"] == 3 and variables["params"]["gain"].dtype == BF16
    assert variables["batch_stats"]["steps"] == 0


def test_norm_is_what_is_applied():
    layer = BatchNorm(False, norm=gained)
    y, updated = train(layer, layer.init(KEY, data()), data())
    close(y, 3 * train(FLAX_TRAIN, FLAX_TRAIN.init(KEY, data()), data())[0])
    assert updated["batch_stats"]["steps"] == 1


def test_norm_receives_every_keyword():
    norm, seen = recorder()
    layer = BatchNorm(True, norm=norm, **KEYWORDS)
    layer.apply(layer.init(KEY, data()), data(), mask=MASK)
    assert seen.pop("mask") is MASK
    assert seen == {"train": False, **KEYWORDS}


def test_running_variance_is_passed_on():
    layer = BatchNorm(False, momentum=0.0, running_variance="unbiased")
    _, updated = train(layer, layer.init(KEY, data()), data())
    expected = np.var(np.float64(data()), axis=(0, 1), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, **tolerance(jnp.float32, 30))


def test_momentum_none_averages_over_the_batches():
    layer = BatchNorm(False, momentum=None)
    variables = layer.init(KEY, data())
    batches = [data(seed=seed) for seed in (5, 6, 7)]
    for x in batches:
        variables |= train(layer, variables, x)[1]
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], np.mean(batches, (0, 1, 2)), **tolerance(jnp.float32, 90))
    equal(stats["count"], np.full(4, 3))


def test_statistics_initializers_set_the_first_values():
    inits = {"mean_init": nn.initializers.constant(2.0), "var_init": nn.initializers.constant(5.0)}
    stats = BatchNorm(True, **inits).init(KEY, data())["batch_stats"]
    equal(stats, {"mean": np.full(4, 2.0), "var": np.full(4, 5.0)})


PARTITIONED = BatchNorm(
    use_running_average=False,
    scale_init=nn.with_partitioning(nn.initializers.ones, ("model",)),
    mean_init=nn.with_partitioning(nn.initializers.zeros, ("model",)),
)


def test_partition_metadata_reaches_the_variables():
    spec = nn.get_partition_spec(PARTITIONED.init(KEY, data()))
    assert spec["params"] == {"scale": jax.P("model"), "bias": jax.P()}
    assert spec["batch_stats"] == {"mean": jax.P("model"), "var": jax.P()}


def test_partition_metadata_survives_an_update():
    variables = PARTITIONED.init(KEY, data())
    _, updated = train(PARTITIONED, variables, data())
    assert nn.get_partition_spec(updated)["batch_stats"] == {"mean": jax.P("model"), "var": jax.P()}
    close(meta.unbox(updated), train(TRAIN, meta.unbox(variables), data())[1])


@pytest.mark.parametrize("flag", [True, False])
def test_use_running_average_may_be_traced(flag):
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), data(), use_running_average=True)

    def run(flag):
        return layer.apply(variables, data(), use_running_average=flag, mutable=["batch_stats"])

    close(jax.jit(run)(flag), run(flag))


def test_a_string_is_no_flag():
    with pytest.raises(TypeError, match=r"`use_running_average` must be a bool.* got 'False'"):
        BatchNorm(use_running_average="False").init(jax.random.key(0), data())


@pytest.mark.parametrize(("dtype", "mean"), [("complex64", "complex64"), ("float64", "float64")])
def test_dtypes_of_the_statistics(dtype, mean, x64):
    variables = BatchNorm(use_running_average=False).init(jax.random.key(0), jnp.ones((3, 4), dtype))
    stats = variables["batch_stats"]
    assert stats["mean"].dtype == mean
    assert stats["var"].dtype == ("float64" if dtype == "float64" else "float32")


def test_the_number_of_features_is_no_argument():
    with pytest.raises(TypeError, match=r"`use_running_average` .* got 64; the number of features is"):
        BatchNorm(64).init(KEY, data())


def test_statistics_that_are_not_all_there_are_not_begun_anew():
    variables = BatchNorm(use_running_average=False).init(KEY, data())
    cumulative = BatchNorm(use_running_average=False, momentum=None)
    with pytest.raises(
        ValueError, match=r"must hold \['mean', 'var', 'count'\] .* got \['mean', 'var'\]"
    ):
        cumulative.apply(variables, data(), mutable=["batch_stats"])
    _, updated = cumulative.apply({"params": variables["params"]}, data(), mutable=["batch_stats"])
    assert set(updated["batch_stats"]) == {"mean", "var", "count"}
