"""`jbn.nnx.BatchNorm` replaces `flax.nnx.BatchNorm`: arguments, variables, modes, transforms."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx

import jbn
from jbn.nnx import BatchNorm
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


def make(cls=BatchNorm, features=4, **config):
    """A layer whose variables hold values that no initializer gives."""
    layer = cls(features, **config, rngs=nnx.Rngs(0))
    nnx.update(layer, randomized(nnx.state(layer)))
    return layer


flax_trained = functools.partial(make, nnx.BatchNorm)
flax_evaluated = functools.partial(make, nnx.BatchNorm, use_running_average=True)


def tree(layer):
    return nnx.to_pure_dict(nnx.state(layer))


def call(layer, x):
    return layer(x)


def outputs(apply, layer, x):
    """y, the variables after the call, and the gradients for the parameters and x."""

    def loss(layer, x):
        y = apply(layer, x)
        return weighted(y), y

    argnums = (0, 1) if jnp.issubdtype(x.dtype, jnp.inexact) else (0,)
    run = nnx.jit(nnx.value_and_grad(loss, argnums=argnums, has_aux=True))
    (_, y), grads = run(layer, x)
    return y, tree(layer), nnx.to_pure_dict(grads[0]), grads[1:]


PARITY = {
    "default": ({}, {}),
    "dtype": ({"dtype": BF16}, {}),
    "param_dtype": ({"param_dtype": BF16}, {}),
    "axis": ({"axis": 1, "features": 5}, {}),
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
    "mask": ({}, {"mask": MASK}),
    "promote_dtype": ({"promote_dtype": lambda arrays, dtype: arrays}, {"dtype": BF16}),
    "promote_dtype_and_dtype": ({"promote_dtype": lambda arrays, dtype: arrays, "dtype": BF16}, {}),
}


EVALUATED = ("default", "dtype", "axis", "no_params", "half", "integer")


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
    x, mask = data(dtype=given.get("dtype", jnp.float32)), given.get("mask")
    actual, expected = (
        outputs(lambda layer, x: layer(x, mask=mask), layer, x)
        for layer in (
            make(cls, use_running_average=evaluate, **config) for cls in (BatchNorm, nnx.BatchNorm)
        )
    )
    # With `dtype` of half precision Flax rounds x before it takes the statistics; jbn does not.
    close(actual, expected, BF16 if name == "dtype" else None)


def test_arguments_are_those_of_flax_and_then_ours():
    def arguments(cls):
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    ours, theirs = arguments(BatchNorm), arguments(nnx.BatchNorm)
    assert ours[: len(theirs)] == theirs
    added = ["mean_metadata", "var_metadata", "running_variance", "norm", "mean_init", "var_init"]
    assert [name for name, *_ in ours[len(theirs) :]] == added


def test_attributes_are_those_of_flax():
    config = {"momentum": 0.5, "axis_name": "i", "use_bias": False, "dtype": BF16}
    ours, theirs = make(BatchNorm, **config), make(nnx.BatchNorm, **config)
    plain = {n for n in vars(theirs) if not n.startswith("_") and n not in ("mean", "var", "scale")}
    assert {n: getattr(ours, n) for n in plain} == {n: getattr(theirs, n) for n in plain}


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({}, {"scale": ((4,), "float32"), "bias": ((4,), "float32")}),
        ({"param_dtype": BF16, "use_bias": False}, {"scale": ((4,), "bfloat16")}),
        ({"features": (5, 4), "axis": (1, 2), "use_scale": False}, {"bias": ((5, 4), "float32")}),
    ],
)
def test_golden_variables(config, params):
    layer = make(**config)
    layer(data())
    shape = next(iter(params.values()))[0]
    golden = dict.fromkeys(("mean", "var"), (nnx.BatchStat, (shape, "float32")))
    golden |= {name: (nnx.Param, spec) for name, spec in params.items()}
    flat = nnx.to_flat_state(nnx.state(layer))
    assert {path[0]: (type(v), (v.shape, v.dtype.name)) for path, v in flat} == golden


@pytest.mark.parametrize("use_scale", [True, False])
def test_initial_values_are_those_of_flax(use_scale):
    inits = {"scale_init": nnx.initializers.normal(), "bias_init": nnx.initializers.uniform()}
    config = {"use_scale": use_scale, **inits}
    equal(*(tree(cls(4, **config, rngs=nnx.Rngs(3))) for cls in (BatchNorm, nnx.BatchNorm)))


def test_initializers_are_not_in_the_graphdef():
    names = ("scale_init", "bias_init", "mean_init", "var_init")
    plain = nnx.graphdef(make())
    other = nnx.graphdef(make(**{name: nnx.initializers.constant(2.0) for name in names}))
    assert plain == other and hash(plain) == hash(other)


@pytest.mark.parametrize("classes", [(nnx.BatchNorm, BatchNorm), (BatchNorm, nnx.BatchNorm)])
def test_state_of_one_loads_into_the_other(classes):
    source = make(classes[0], use_running_average=True)
    target = classes[1](4, use_running_average=True, rngs=nnx.Rngs(0))
    nnx.update(target, nnx.state(source))
    close((tree(target), target(data())), (tree(source), source(data())))


@pytest.mark.several_devices
@pytest.mark.parametrize("name", ["scale", "bias", "mean", "var"])
def test_metadata_shards_the_variable_and_survives_training(name):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        metadata = {f"{name}_metadata": {"out_sharding": ("model",)}}
        layer = BatchNorm(4, **metadata, rngs=nnx.Rngs(0))
        layer(data())
        named = nnx.to_flat_state(nnx.get_partition_spec(nnx.state(layer)))
        assert [path for path, spec in named if spec.get_value() == jax.P("model")] == [(name,)]
        assert getattr(layer, name)[...].sharding.spec == jax.P("model")


# Modes and errors.


def test_eval_normalizes_with_the_running_statistics_and_keeps_them():
    layer = make()
    layer.eval()
    before = tree(layer)
    close(layer(data()), flax_evaluated()(data()))
    equal(tree(layer), before)


def test_train_undoes_eval():
    layer = make()
    layer.eval()
    layer.train()
    close(layer(data()), flax_trained()(data()))


def test_set_attributes_switches_the_mode():
    layer = make()
    layer.set_attributes(use_running_average=True)
    close(layer(data()), flax_evaluated()(data()))


def test_the_call_takes_precedence_over_the_attribute():
    close(make(use_running_average=True)(data(), use_running_average=False), flax_trained()(data()))


def test_view_switches_the_mode_of_the_view_alone():
    layer = make()
    view = nnx.view(layer, use_running_average=True)
    assert (layer.use_running_average, view.use_running_average) == (False, True)
    assert view.mean is layer.mean


def test_missing_use_running_average_is_an_error():
    with pytest.raises(ValueError, match="No `use_running_average` argument was provided"):
        make(use_running_average=None)(data())


def test_wrong_number_of_features_is_an_error():
    with pytest.raises(ValueError, match=r"`num_features` must be .* \(3,\) of \(6, 3\) .* got 4$"):
        make()(data((6, 3)))


# What users of Flax's layer have met, by the number of the issue.


class Model(nnx.Module):
    def __init__(self, **config):
        self.norm = make(**config)

    def __call__(self, x):
        return self.norm(x)


def test_flax_4734_eval_shape_of_a_model():
    model = Model()
    before = tree(model)
    assert specs(nnx.eval_shape(call, model, SPEC)) == (SHAPE, "float32")
    equal(tree(model), before)


def test_flax_4734_eval_shape_of_the_constructor():
    shapes = specs(tree(nnx.eval_shape(lambda: BatchNorm(4, rngs=nnx.Rngs(0)))))
    assert shapes == dict.fromkeys(("scale", "bias", "mean", "var"), ((4,), "float32"))


def test_flax_4734_eval_shape_of_a_captured_model_in_inference():
    assert nnx.eval_shape(Model(use_running_average=True), SPEC).shape == SHAPE


CAPTURING = {"4734": nnx.eval_shape, "4760": lambda model, x: nnx.vmap(model, in_axes=1)(x)}


@pytest.mark.parametrize("transform", CAPTURING.values(), ids=CAPTURING.keys())
def test_flax_4734_4760_a_captured_model_in_training_is_an_error_that_leaves_it_alone(transform):
    model = Model()
    before = tree(model)
    with pytest.raises(errors.TraceContextError, match="BatchStat"):
        transform(model, data())
    equal(tree(model), before)


@pytest.mark.parametrize("transform", CAPTURING.values(), ids=CAPTURING.keys())
def test_flax_4734_4760_a_captured_model_in_training_says_what_to_do(transform):
    with pytest.raises(errors.TraceContextError) as raised:
        transform(Model(), data())
    assert "as an argument" in "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


def test_flax_4760_vmapped_model_called_twice():
    model, plain = Model(axis_name="batch"), flax_trained()
    mapped = nnx.vmap(call, in_axes=(None, 1), out_axes=1, axis_name="batch")
    for _ in range(2):
        actual, expected = mapped(model, data()), plain(data())
    close((actual, tree(model.norm)), (expected, tree(plain)))


def test_flax_4760_vmapped_model_without_axis_name_names_the_statistic():
    with pytest.raises(ValueError, match=r"mean.*axis spec None but output was batched"):
        nnx.vmap(call, in_axes=(None, 1), out_axes=1)(Model(), data())


def test_flax_2606_training_outside_the_named_axis_says_what_to_do():
    with pytest.raises(NameError, match=r"`axis_name`='devices'.*use_running_average=True"):
        make(axis_name="devices")(data())


def test_flax_2606_inference_outside_the_named_axis_works():
    close(make(axis_name="devices", use_running_average=True)(data()), flax_evaluated()(data()))


# It composes.


def stacked(n, cls):
    """`n` layers in one, each with its own values."""
    inits = {"scale_init": nnx.initializers.normal(), "bias_init": nnx.initializers.normal()}
    keys = jax.random.split(jax.random.key(0), n)
    return nnx.vmap(lambda key: cls(4, **inits, rngs=nnx.Rngs(key)))(keys)


def over_time(layer, x):
    axes = nnx.StateAxes({nnx.Param: None, nnx.BatchStat: nnx.Carry})
    return nnx.scan(call, in_axes=(axes, 0), out_axes=0)(layer, x)


def jax_vmap(layer, x):
    graphdef, stats, rest = nnx.split(layer, nnx.BatchStat, ...)

    def one(stats, rest, x):
        layer = nnx.merge(graphdef, stats, rest)
        return layer(x), nnx.state(layer, nnx.BatchStat)

    axes = {"in_axes": (None, None, 0), "out_axes": (0, None), "axis_name": "batch"}
    y, stats = jax.vmap(one, **axes)(stats, rest, x)
    nnx.update(layer, stats)
    return y


shared = functools.partial(make, axis_name="batch")
COMPOSITIONS = {
    "jit": (nnx.jit(call), make),
    "remat": (nnx.remat(call), make),
    "scan_over_time": (over_time, make),
    "scan_over_layers": (
        nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry),
        functools.partial(stacked, 2),
    ),
    "vmap": (nnx.vmap(call), functools.partial(stacked, SHAPE[0])),
    "shared_vmap": (nnx.vmap(call, in_axes=(None, 0), axis_name="batch"), shared),
    "jax_vmap": (jax_vmap, shared),
}


@pytest.mark.parametrize(("composition", "make"), COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
def test_composes_as_flax_does(composition, make):
    close(*(outputs(composition, make(cls), data()) for cls in (BatchNorm, nnx.BatchNorm)))


# jbn's own.


def test_norm_adds_its_own_variables():
    layer = BatchNorm(4, norm=gained, rngs=nnx.Rngs(0))
    assert isinstance(layer.gain, nnx.Param) and layer.gain[...] == 3
    assert isinstance(layer.steps, nnx.BatchStat) and layer.steps[...] == 0


def test_norm_is_what_is_applied():
    layer = BatchNorm(4, norm=gained, rngs=nnx.Rngs(0))
    close(layer(data()), 3 * nnx.BatchNorm(4, rngs=nnx.Rngs(0))(data()))
    assert layer.steps[...] == 1


def test_norm_receives_every_keyword():
    norm, seen = recorder()
    make(features=5, norm=norm, **KEYWORDS)(data(), mask=MASK)
    assert seen.pop("mask") is MASK
    assert seen == {"train": True, **KEYWORDS}


def test_running_variance_is_passed_on():
    layer = make(momentum=0.0, running_variance="unbiased")
    layer(data())
    expected = np.var(np.float64(data()), axis=(0, 1), ddof=1)
    np.testing.assert_allclose(layer.var[...], expected, **tolerance(jnp.float32, 30))


def test_momentum_none_averages_over_the_batches():
    layer = BatchNorm(4, momentum=None, rngs=nnx.Rngs(0))
    batches = [data(seed=seed) for seed in (5, 6, 7)]
    for x in batches:
        layer(x)
    np.testing.assert_allclose(
        layer.mean[...], np.mean(batches, (0, 1, 2)), **tolerance(jnp.float32, 90)
    )
    equal(layer.count[...], np.full(4, 3))


def test_statistics_initializers_set_the_first_values():
    inits = {"mean_init": nnx.initializers.constant(2.0), "var_init": nnx.initializers.constant(5.0)}
    layer = BatchNorm(4, **inits, rngs=nnx.Rngs(0))
    equal((layer.mean[...], layer.var[...]), (np.full(4, 2.0), np.full(4, 5.0)))


def test_the_running_mean_of_complex_input_stays_complex():
    layer = BatchNorm(2, momentum=0.0, rngs=nnx.Rngs(0))
    x = jnp.asarray([[1 + 2j, 3], [2 - 1j, 5j]], jnp.complex64)
    layer(x)
    np.testing.assert_allclose(layer.mean[...], x.mean(0))


def test_view_info_reads_the_layer():
    assert "use_running_average" in nnx.view_info(make())


def test_printing_shows_what_a_user_gave():
    printed = repr(make(momentum=0.5))
    assert "momentum=0.5" in printed
    assert "<function" not in printed
    assert " at 0x" not in printed


@pytest.mark.parametrize("flag", [True, False])
def test_use_running_average_may_be_traced(flag):
    layer, same = make(), make()
    y = nnx.jit(lambda layer, x, flag: layer(x, use_running_average=flag))(layer, data(), flag)
    close(y, same(data(), use_running_average=flag))
    close(tree(layer), tree(same))


def test_a_string_is_no_flag():
    with pytest.raises(TypeError, match=r"`use_running_average` must be a bool.* got 'False'"):
        make()(data(), use_running_average="False")


@pytest.mark.parametrize("norm", [jbn.plain, jbn.inplace()], ids=repr)
def test_an_eager_call_traces_nothing_anew(norm, caplog):
    layer, x = make(norm=norm), data()
    for traced in (True, False):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            layer(x)
        # The second layer of equal settings is served by the first one's program.
        layer = make(norm=norm)
        if not traced:
            assert "tracing" not in caplog.text
