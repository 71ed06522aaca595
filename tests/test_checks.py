"""Every kind of bad input gets its own error, while tracing, and changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn import _checks

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
PARAMS, BATCH_STATS = jbn.init(4)
CUMULATIVE = jbn.init(4, momentum=None)[1]


def call(x=X, params=PARAMS, batch_stats=BATCH_STATS, train=True, **kwargs):
    return jbn.batch_norm(x, params, batch_stats, train=train, **kwargs)


BAD = {
    "axis too large": ({"axis": 2}, ValueError, r"`axis` .* must lie in \[-2, 2\) .* got 2"),
    "axis too small": ({"axis": -3}, ValueError, r"`axis` .* got -3"),
    "axis twice": ({"axis": (1, -1)}, ValueError, r"`axis` must name each axis once, got \(1, -1\)"),
    "axis empty": ({"axis": ()}, ValueError, "`axis` must name at least one feature axis"),
    "axis float": ({"axis": 1.0}, TypeError, "`axis` must be an integer .* got 1.0"),
    "axis of the batch": ({"axis": 0}, ValueError, r"params\['scale'\].* \(6,\), got \(4,\).*`axis`"),
    "scale size": (
        {"params": {"scale": np.ones(3, np.float32)}},
        ValueError,
        r"params\['scale'\]` must have the shape of the feature axes of `x`, \(4,\), got \(3,\)",
    ),
    "bias that does not broadcast": (
        {"params": {"bias": np.ones((2, 4), np.float32)}},
        ValueError,
        r"params\['bias'\]` .* got \(2, 4\).* broadcast against \(6, 4\)",
    ),
    "complex scale": (
        {"params": {"scale": np.ones(4, np.complex64)}},
        TypeError,
        r"params\['scale'\]` must be real where `x` is, got dtype complex64",
    ),
    "complex mean": (
        {"batch_stats": {**BATCH_STATS, "mean": np.zeros(4, np.complex64)}},
        TypeError,
        r"batch_stats\['mean'\]` must be real where `x` is",
    ),
    "mean size": (
        {"batch_stats": {**BATCH_STATS, "mean": np.zeros(1, np.float32)}},
        ValueError,
        r"batch_stats\['mean'\]` .* got \(1,\)",
    ),
    "unknown parameter": (
        {"params": {"gamma": np.ones(4)}},
        ValueError,
        r"`params` may hold.*\['gamma'\]",
    ),
    "params a list": ({"params": []}, TypeError, "`params` must be a mapping.* got list"),
    "batch_stats without var": (
        {"batch_stats": {"mean": np.zeros(4)}},
        ValueError,
        r"`batch_stats` must be a mapping with 'mean' and 'var'.* got \['mean'\]",
    ),
    "batch_stats None": ({"batch_stats": None}, ValueError, "`batch_stats` must be.* got NoneType"),
    "no count": (
        {"momentum": None},
        ValueError,
        r"`momentum=None`.*needs 'count'.*jbn.init\(features, mom",
    ),
    "count size": (
        {"momentum": None, "batch_stats": {**BATCH_STATS, "count": np.int32(0)}},
        ValueError,
        r"batch_stats\['count'\]` .* got \(\)",
    ),
    "epsilon zero": (
        {"epsilon": 0.0},
        ValueError,
        "`epsilon` must be a positive finite number, got 0.0",
    ),
    "epsilon negative": ({"epsilon": -1e-5}, ValueError, "`epsilon` .* got -1e-05"),
    "epsilon nan": ({"epsilon": float("nan")}, ValueError, "`epsilon` .* got nan"),
    "epsilon too small for float32": ({"epsilon": 1e-46}, ValueError, "`epsilon` .* got 1e-46"),
    "epsilon a string": ({"epsilon": "1e-5"}, TypeError, "`epsilon` must be a number.* got '1e-5'"),
    "epsilon None": ({"epsilon": None}, TypeError, "`epsilon` must be a number.* got None"),
    "momentum a string": ({"momentum": "0.9"}, TypeError, "`momentum` must be a number.* got '0.9'"),
    "integer statistics": (
        {"batch_stats": {"mean": [0] * 4, "var": [1] * 4}},
        TypeError,
        r"batch_stats\['mean'\]` must be floating-point.* got dtype int32",
    ),
    "integer output": ({"dtype": "int32"}, TypeError, "`dtype` must be a floating-point.* got 'int32'"),
    "momentum above": ({"momentum": 1.5}, ValueError, r"`momentum` must lie in \[0, 1\].* got 1.5"),
    "momentum below": ({"momentum": -0.1}, ValueError, "`momentum` .* got -0.1.*1 - m here"),
    "momentum nan": ({"momentum": float("nan")}, ValueError, "`momentum` .* got nan"),
    "mask shape": (
        {"mask": np.ones((5, 1))},
        ValueError,
        r"`mask` must broadcast against `x`, of shape \(6, 4\), got shape \(5, 1\)",
    ),
    "mask over the batch alone": ({"mask": np.ones(6)}, ValueError, r"mask\.reshape\(6, 1\)$"),
    "mask of other features": ({"mask": np.ones((6, 3))}, ValueError, "such as that of the features"),
    "statistics as parameters": ({"params": BATCH_STATS}, ValueError, "`batch_stats`, the argument"),
    "variables": ({"params": {"params": PARAMS}}, ValueError, r"such as variables\['params'\]"),
    "what init returns": ({"params": jbn.init(4)}, TypeError, "got tuple; jbn.init returns them and"),
    "mask of higher rank": ({"mask": np.ones((2, 6, 4))}, ValueError, "`mask` must broadcast"),
    "mask complex": ({"mask": np.ones(4, np.complex64)}, TypeError, "`mask` must be boolean or real"),
    "groups without a name": (
        {"axis_index_groups": [[0, 1]]},
        ValueError,
        "`axis_index_groups` .* needs `axis_name`",
    ),
    "groups that overlap": (
        {"axis_name": "i", "axis_index_groups": [[0, 1], [1]]},
        ValueError,
        "`axis_index_groups` must hold every index .* exactly once",
    ),
    "unbound axis": ({"axis_name": "i"}, NameError, "`axis_name`='i' is not bound here.*train=False"),
    "running variance": (
        {"running_variance": "sample"},
        ValueError,
        r"`running_variance` must be one of \('biased', 'unbiased'\), got 'sample'",
    ),
    "train a string": ({"train": "yes"}, TypeError, "`train` must be a bool"),
    "train an integer": ({"train": 1}, TypeError, "`train` must be a bool"),
    "boolean input": ({"x": np.ones((6, 4), bool)}, TypeError, "`x` must be an array of numbers.*bool"),
    "scalar input": ({"x": np.float32(1)}, ValueError, "`x` must have at least one axis"),
    "no input": ({"x": None}, TypeError, "`x` must be an array of numbers, got None"),
    "a random key": ({"x": jax.random.key(0)}, TypeError, "`x` must be an array of numbers, got .*key"),
    "unknown output": ({"dtype": "float33"}, TypeError, "`dtype` must be a floating.* got 'float33'"),
    "mask a string": ({"mask": "all"}, TypeError, "`mask` must be an array of numbers, got 'all'"),
    "infinite weights": ({"mask": np.full((6, 1), np.inf)}, ValueError, "`mask` .* >= 0, got inf"),
    "a norm as the form": ({"form": jbn.plain}, TypeError, "`form` must be .* given to a layer, as"),
    "negative weights": ({"mask": -np.ones((6, 1))}, ValueError, "`mask` .* weights >= 0, got -1.0"),
    "weights of NaN": ({"mask": np.full((6, 1), np.nan)}, ValueError, "`mask` .* got nan among them"),
    "groups in one list": (
        {"axis_name": "i", "axis_index_groups": [0, 1]},
        TypeError,
        r"`axis_index_groups` must be a sequence of sequences .* got \[0, 1\]",
    ),
    "axis name a number": ({"axis_name": 5}, NameError, "`axis_name`=5 is not bound here"),
}


@pytest.mark.parametrize("name", BAD)
def test_batch_norm_names_the_argument(name):
    kwargs, error, message = BAD[name]
    with pytest.raises(error, match=f"(?s){message}"):
        call(**kwargs)


@pytest.mark.parametrize("name", ["axis too large", "scale size", "mask shape", "epsilon zero"])
def test_errors_are_raised_while_tracing(name):
    kwargs, error, message = BAD[name]
    with pytest.raises(error, match=f"(?s){message}"):
        jax.eval_shape(lambda x: call(x, **kwargs), X)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epsilon": -1.0}, "`epsilon`"),
        ({"axis": 5}, "`axis`"),
        ({"params": {"scale": np.ones(3)}}, r"params\['scale'\]"),
        ({"moments": jbn.Moments(np.zeros(3), np.ones(3))}, "moments.mean"),
        ({"moments": jbn.Moments(np.zeros(4), np.ones(4), None, np.ones(3))}, "moments.remainder"),
        ({"moments": jbn.Moments(np.zeros(4), None)}, "moments.var` is needed here"),
        ({"moments": {"mean": 0, "var": 1}}, "`moments` must be a jbn.Moments.* got dict"),
    ],
)
def test_normalize_names_the_argument(kwargs, message):
    arguments = {"moments": jbn.Moments(np.zeros(4, np.float32), np.ones(4, np.float32)), **kwargs}
    with pytest.raises((ValueError, TypeError), match=message):
        jbn.normalize(X, **arguments)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mask": np.ones(6)}, "`mask`"),
        ({"axis": 2}, "`axis`"),
        ({"shift": np.zeros(3)}, "`shift` must have the shape of the feature axes"),
        ({"axis_index_groups": [[0]]}, "`axis_index_groups`"),
    ],
)
def test_moments_names_the_argument(kwargs, message):
    with pytest.raises(ValueError, match=message):
        jbn.moments(X, **kwargs)


def test_update_running_names_the_argument():
    m = jbn.moments(X)
    with pytest.raises(ValueError, match="`momentum`"):
        jbn.update_running(BATCH_STATS, m, momentum=2.0)
    with pytest.raises(ValueError, match="`running_variance`"):
        jbn.update_running(BATCH_STATS, m, running_variance="both")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`moments` must be a jbn.Moments.* got dict"):
        jbn.update_running(BATCH_STATS, {"mean": 0, "var": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`moments.count` is needed here"):
        jbn.update_running(BATCH_STATS, jbn.Moments(m.mean, m.var), running_variance="unbiased")
    with pytest.raises(ValueError, match=r"batch_stats\['mean'\]"):
        jbn.update_running(jbn.init(3)[1], m)


def test_batch_norm_backward_names_the_argument():
    with pytest.raises(ValueError, match="`dy` must have the shape of `x`"):
        jbn.batch_norm_backward(X[:2], X, PARAMS, jbn.moments(X))
    wrong_count = jbn.Moments(np.zeros(4), np.ones(4), np.ones(3))
    with pytest.raises(ValueError, match=r"moments\.count` .* \(4,\), got \(3,\)"):
        jbn.batch_norm_backward(X, X, PARAMS, wrong_count)
    with pytest.raises(ValueError, match=r"moments\.count.* got None"):
        jbn.batch_norm_backward(X, X, PARAMS, jbn.Moments(*jbn.init(4)[1].values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": -1}, "`features` must not be negative, got -1"),
        ({"features": "64"}, "`features` must be an integer or a sequence of integers, got '64'"),
        ({"features": 2.5}, "`features` must be an integer or a sequence of integers, got 2.5"),
        ({"features": 3, "dtype": jnp.int32}, "`dtype` must be a floating-point or complex dtype"),
        ({"features": 3, "momentum": "a"}, "`momentum` must be a number or a scalar array, got 'a'"),
    ],
)
def test_init_names_the_argument(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        jbn.init(**arguments)


@pytest.mark.parametrize("name", ["epsilon", "momentum"])
def test_a_traced_number_must_be_a_scalar(name):
    def traced(value):
        return call(**{name: value})

    jax.eval_shape(traced, jnp.float32(0.5))
    with pytest.raises(TypeError, match=rf"`{name}` must be a scalar .* got shape \(1, 4\)"):
        jax.eval_shape(traced, jnp.ones((1, 4)))


def test_groups_must_cover_the_axis():
    with pytest.raises(ValueError, match=r"`axis_index_groups` must hold every index of 'i'.* 0 to 3"):
        jax.vmap(lambda x: call(x[None], axis_name="i", axis_index_groups=[[0, 1]])[0], axis_name="i")(
            X[:4]
        )


@pytest.mark.parametrize(
    ("axis", "expected"),
    [(-1, (2,)), (1, (1,)), ((-1, 0), (0, 2)), ([1, 2], (1, 2)), (np.int64(1), (1,))],
)
def test_feature_axes_are_sorted_and_not_negative(axis, expected):
    assert _checks.feature_axes(axis, 3) == expected


def test_integers_become_float32_and_floats_stay():
    assert _checks.input_array(np.arange(3)).dtype == jnp.float32
    assert _checks.input_array(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
