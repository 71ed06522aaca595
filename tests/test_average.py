"""`jbn.tools.average_stats`: the statistics of devices that trained apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jbn
from tolerance import tolerance

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((4, 50, 3)) * 2 + np.arange(4)[:, None, None], jnp.float32)


def each_device(x):
    """Running statistics of each device alone, which are its batch's own."""
    return jbn.batch_norm(x, {}, jbn.init(3)[1], train=True, momentum=0.0)[1]


def merged(x):
    return jbn.tools.average_stats(each_device(x), "i")


@pytest.mark.parametrize("transform", [jax.vmap, jax.pmap])
def test_equal_batches_give_the_statistics_of_all_samples(transform):
    stats = transform(merged, axis_name="i")(X)
    whole = np.asarray(X, np.float64).reshape(-1, 3)
    for device in range(4):
        np.testing.assert_allclose(stats["mean"][device], whole.mean(0), **tolerance("float32", 200))
        np.testing.assert_allclose(stats["var"][device], whole.var(0), **tolerance("float32", 200))


@pytest.mark.several_devices
@pytest.mark.parametrize("check_vma", [True, False])
def test_under_shard_map_the_result_is_replicated(check_vma):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda x: merged(x[0]), mesh=mesh, in_specs=P("i"), out_specs=P(), check_vma=check_vma
    )
    whole = np.asarray(X, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(jax.jit(mapped)(X)["var"], whole.var(0), **tolerance("float32", 200))


def test_a_collection_of_layers_and_other_statistics():
    stats = jax.vmap(each_device)(X)
    collection = {
        "first": stats,
        "block": {"norm": {**stats, "count": jnp.arange(4), "extra": jnp.arange(4.0)}},
    }
    average = functools.partial(jbn.tools.average_stats, axis_name="i")
    result = jax.vmap(average, axis_name="i")(collection)
    jax.tree.map(np.testing.assert_array_equal, result["first"]["var"], result["block"]["norm"]["var"])
    np.testing.assert_array_equal(result["block"]["norm"]["count"], 1)
    np.testing.assert_array_equal(result["block"]["norm"]["extra"], 1.5)
    assert jax.tree.structure(result) == jax.tree.structure(collection)


@pytest.mark.parametrize("kind", ["FrozenDict", "nnx.State"])
def test_other_mappings_keep_their_type_and_count_the_spread(kind):
    stats = jax.vmap(each_device)(X)
    if kind == "FrozenDict":
        collection = FrozenDict(stats)
    else:
        state = nnx.state(jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.BatchStat)
        nnx.replace_by_pure_dict(state, stats)
        collection = state
    result = jax.vmap(lambda s: jbn.tools.average_stats(s, "i"), axis_name="i")(collection)
    assert isinstance(result, type(collection))
    whole = np.asarray(X, np.float64).reshape(-1, 3)
    var = jax.tree.leaves(result["var"])[0]
    np.testing.assert_allclose(var[0], whole.var(0), **tolerance("float32", 200))


def test_a_linen_collection(standard_promotion):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jbn.linen.BatchNorm(use_running_average=False)(nn.Dense(2)(x))

    variables = Network().init(jax.random.key(0), X[0])
    stats = jax.vmap(lambda x: Network().apply(variables, x, mutable=["batch_stats"])[1])(X)[
        "batch_stats"
    ]
    result = jax.vmap(lambda s: jbn.tools.average_stats(s, "i"), axis_name="i")(stats)
    assert jax.tree.structure(result) == jax.tree.structure(stats)
    np.testing.assert_allclose(
        result["BatchNorm_0"]["mean"][0], stats["BatchNorm_0"]["mean"].mean(0), rtol=1e-6
    )


def test_groups_average_among_themselves():
    stats = jax.vmap(each_device)(X)
    result = jax.vmap(
        lambda s: jbn.tools.average_stats(s, "i", axis_index_groups=[[0, 3], [1, 2]]), axis_name="i"
    )(stats)
    whole = np.asarray(X, np.float64)[np.array([0, 3])].reshape(-1, 3)
    np.testing.assert_allclose(result["var"][0], whole.var(0), **tolerance("float32", 100))
    np.testing.assert_array_equal(result["var"][0], result["var"][3])


def test_an_unbound_axis_is_named():
    with pytest.raises(NameError, match="`axis_name`='i' is not bound here"):
        jbn.tools.average_stats(jbn.init(3)[1], "i")


def test_stored_dtypes_are_kept():
    """Summed in float32: 256 + 1 in bfloat16 is 256."""
    stats = {"mean": jnp.array([[256], [1], [1], [1]], "bfloat16"), "var": jnp.ones((4, 1), "bfloat16")}
    result = jax.vmap(lambda s: jbn.tools.average_stats(s, "i"), axis_name="i")(stats)
    assert {v.dtype for v in jax.tree.leaves(result)} == {jnp.dtype("bfloat16")}
    assert result["mean"][0, 0] == jnp.bfloat16(64.75)


def test_what_is_no_layer_and_no_axis():
    with pytest.raises(ValueError, match=r"`batch_stats` must hold 'mean' and 'var'.* got \['mean'\]"):
        jax.vmap(lambda s: jbn.tools.average_stats(s, "i"), axis_name="i")({"mean": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match="`axis_name`") as error:
        jbn.tools.average_stats(jbn.init(3)[1], None)
    assert "axis_name=None" not in str(error.value).replace("got axis_name=None", "")
