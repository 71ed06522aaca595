"""What XLA makes of it: passes over the data, collectives, other platforms, export."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
from jbn import _across_devices

SHAPE = (32, 8, 8, 16)
PARAMS, BATCH_STATS = jbn.init(SHAPE[-1])
X = jax.ShapeDtypeStruct(SHAPE, jnp.float32)


def train(x, params, **kwargs):
    return jbn.batch_norm(x, params, BATCH_STATS, train=True, **kwargs)


def backward(x, params, dy):
    return jax.vjp(lambda x, p: train(x, p)[0], x, params)[1](dy)


def step(x, params, dy):
    y, vjp, stats = jax.vjp(train, x, params, has_aux=True)
    return y, stats, vjp(dy)


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def large_reductions(hlo: str) -> list[str]:
    """The reductions over an array of the size of x, each with the name of the branch it is in."""
    found = re.findall(r"^.* = f32\[16\]\S* reduce\(.*op_name=\"([^\"]*)\"", hlo, re.M)
    assert found
    return found


@pytest.mark.cpu
def test_the_backward_pass_is_two_reductions_and_one_elementwise_pass():
    hlo = compiled(step, X, PARAMS, X).as_text()
    reductions = [name for name in large_reductions(hlo) if "transpose" in name]
    assert len(reductions) == 2, reductions
    entry = hlo[hlo.index("ENTRY") :]
    written = re.findall(r"^ *%?(\S+) = f32\[32,8,8,16\]\S* (?!parameter)(\S+)\(", entry, re.M)
    assert len(written) == 2, written  # y and dx


@pytest.mark.cpu
def test_with_several_feature_axes_no_more_is_written():
    params, batch_stats = jbn.init((8, 16))

    def step(x, params, dy):
        def function(x, params):
            return jbn.batch_norm(x, params, batch_stats, train=True, axis=(2, 3))[0]

        y, vjp = jax.vjp(function, x, params)
        return y, vjp(dy)

    hlo = compiled(step, X, params, X).as_text()
    entry = hlo[hlo.index("ENTRY") :]
    written = re.findall(r"^ *%?(\S+) = f32\[32,8,8,16\]\S* (?!parameter)(\S+)\(", entry, re.M)
    assert len([kind for _, kind in written if kind == "fusion"]) == 2, written


@pytest.mark.cpu
def test_a_step_needs_no_memory_of_the_size_of_x_but_its_results():
    memory = compiled(step, X, PARAMS, X).memory_analysis()
    assert memory.temp_size_in_bytes < 4 * np.prod(SHAPE) / 8


@pytest.mark.cpu
def test_the_forward_pass_reads_well_conditioned_data_twice_for_its_statistics():
    hlo = compiled(step, X, PARAMS, X).as_text()
    forward = [name for name in large_reductions(hlo) if "transpose" not in name]
    taken = [name for name in forward if "while/body" not in name]
    assert len(taken) == 2, forward
    assert len(forward) == 4, forward


@pytest.mark.cpu
def test_inference_has_no_reduction():
    hlo = compiled(lambda x: jbn.batch_norm(x, PARAMS, BATCH_STATS, train=False), X).as_text()
    assert " reduce(" not in hlo
    assert len(re.findall(r"f32\[32,8,8,16\]\S* fusion\(", hlo)) == 1


def test_bfloat16_needs_no_more_memory_for_residuals_than_x():
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    _, vjp = jax.eval_shape(lambda x, p: jax.vjp(lambda x, p: train(x, p)[0], x, p), x, PARAMS)
    bytes_kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(vjp))
    assert bytes_kept <= 2 * np.prod(SHAPE) + 6 * 4 * SHAPE[-1]


def test_no_float64_creeps_in(x64):
    for dtype in (jnp.float32, jnp.bfloat16):
        jaxpr = str(jax.make_jaxpr(step)(X.update(dtype=dtype), PARAMS, X.update(dtype=dtype)))
        assert not re.search(r"f64\[\d", jaxpr)


@pytest.mark.parametrize("function", [train, backward, step], ids=lambda f: f.__name__)
def test_lowers_for_every_platform_at_once(function):
    arguments = (X, PARAMS) if function is train else (X, PARAMS, X)
    exported = export.export(jax.jit(function), platforms=("cpu", "cuda", "rocm", "tpu"))(*arguments)
    assert set(exported.platforms) == {"cpu", "cuda", "rocm", "tpu"}


@pytest.mark.cpu
@pytest.mark.parametrize("masked", [False, True])
def test_only_where_no_host_would_wait_is_it_decided_whether_to_sum_again(masked):
    mask = np.arange(SHAPE[0]).reshape(-1, 1, 1, 1) < 20 if masked else None

    def optimized(platform):
        unchecked = [export.DisabledSafetyCheck.platform()]
        function = jax.jit(lambda x, params: train(x, params, mask=mask))
        lower = export.export(function, platforms=(platform,), disabled_checks=unchecked)
        # XLA's simplifications of the other platform's program, on the machine at hand.
        return compiled(lower(X, PARAMS).call, X, PARAMS).as_text()

    # A loop of a known number of rounds is none that the host has to watch.
    undecided = [loop for loop in re.findall(r" while\(.*", optimized("cuda")) if '"n":"2"' not in loop]
    assert not undecided
    assert " conditional(" not in optimized("cuda")
    assert " while(" in optimized("cpu")
    assert " conditional(" in optimized("tpu")


def test_export_round_trip():
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    exported = export.export(jax.jit(step))(X, PARAMS, X)
    restored = export.deserialize(exported.serialize())
    actual = restored.call(x, PARAMS, jnp.cos(x))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(step(x, PARAMS, jnp.cos(x))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_symbolic_batch_size():
    rows = export.symbolic_shape("rows, 8, 8, 16")
    exported = export.export(jax.jit(lambda x: jbn.batch_norm(x, PARAMS, BATCH_STATS, train=False)[0]))(
        jax.ShapeDtypeStruct(rows, jnp.float32)
    )
    assert exported.call(jnp.ones((3, 8, 8, 16))).shape == (3, 8, 8, 16)


def test_symbolic_sizes_with_a_mask():
    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(s, scope=scope) for s in ("rows, steps, 16", "rows, steps, 1")]
    call = jax.jit(lambda x, mask: jbn.batch_norm(x, PARAMS, BATCH_STATS, train=True, mask=mask)[0])
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 16)), jnp.float32)
    mask = jnp.ones((3, 5, 1)).at[0, 3:].set(0)
    exported = export.export(call)(*arguments)
    np.testing.assert_allclose(exported.call(x, mask), call(x, mask), rtol=1e-5, atol=1e-5)


def test_ahead_of_time_compilation():
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    y, _ = compiled(train, X, PARAMS)(x, PARAMS)
    np.testing.assert_array_equal(y, jax.jit(train)(x, PARAMS)[0])


def mesh():
    return jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))


def collectives(function, *arguments):
    """Number of values each all-reduce of the compiled program sums, and the other collectives."""
    hlo = compiled(function, *arguments).as_text()
    results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", hlo)
    sizes = [re.findall(r"f32\[(.*?)\]", result) for result in results]
    reduced = [sum(np.prod(list(map(int, size.split(",")))) for size in shapes) for shapes in sizes]
    others = re.findall(r" (all-gather|all-to-all|collective-permute|reduce-scatter)", hlo)
    return sorted(reduced), others


@pytest.mark.several_devices
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(("fewest", "sums"), [(32, [4 * 4 * 16]), (3, [2 * 16, 4 * 16])])
def test_synchronized_forward_is_one_all_reduce_of_few_devices_else_two(
    check_vma, fewest, sums, monkeypatch
):
    """Of 4 devices, each of which adds 4 statistics of 16 channels."""
    monkeypatch.setattr(_across_devices, "_FEW_DEVICES", fewest)
    jax.clear_caches()

    def forward(x, params):
        return train(x, params, axis_name="i")[0]

    mapped = jax.shard_map(
        forward, mesh=mesh(), in_specs=(P("i"), P()), out_specs=P("i"), check_vma=check_vma
    )
    assert collectives(mapped, X, PARAMS) == (sums, [])
    jax.clear_caches()


@pytest.mark.several_devices
@pytest.mark.parametrize("check_vma", [True, False])
def test_synchronized_backward_adds_one_all_reduce(check_vma):
    def local(x, params, dy):
        y, vjp = jax.vjp(lambda x: train(x, params, axis_name="i")[0], x)
        return y, vjp(dy)[0]

    mapped = jax.shard_map(
        local, mesh=mesh(), in_specs=(P("i"), P(), P("i")), out_specs=P("i"), check_vma=check_vma
    )
    reduced, others = collectives(mapped, X, PARAMS, X)
    # XLA may sum some of the cotangents, which wait for nothing, together with the forward pass.
    assert (len(reduced), sum(reduced), others) == (2, (4 * 4 + 2) * 16, [])


@pytest.mark.several_devices
def test_synchronized_inference_has_no_collective():
    def forward(x):
        return jbn.batch_norm(x, PARAMS, BATCH_STATS, train=False, axis_name="i")[0]

    mapped = jax.shard_map(forward, mesh=mesh(), in_specs=P("i"), out_specs=P("i"))
    assert collectives(mapped, X) == ([], [])


@pytest.mark.cpu
@pytest.mark.several_devices
def test_jit_over_sharded_arrays_sums_once_where_data_is_well_conditioned():
    sharded = X.update(sharding=NamedSharding(mesh(), P("i")))
    hlo = compiled(train, sharded, PARAMS).as_text()
    entry = hlo[hlo.index("ENTRY") :]
    assert len(re.findall(r" all-reduce(?:-start)?\(", entry)) == 1
    assert not re.search(r" (all-gather|all-to-all|collective-permute|reduce-scatter)", hlo)
