"""The variants against the libraries that have them; each test is skipped where its library is not."""

import functools
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def by_path(package, path):
    """A file of an installed package, without what the package itself imports."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"could not import {package!r}")
    file = Path(found.submodule_search_locations[0]) / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batches(number=5, shape=(6, 3, 4)):
    """Batches that drift, so that running statistics and the batch's own differ."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(i + (1 + i) * rng.standard_normal(shape), jnp.float32) for i in range(number)]


def trained(norm, xs, stats, dys=None, params=None, **options):
    """y, dx and the statistics after each batch."""
    params = norm.init(4)[0] if params is None else params

    @jax.jit
    def step(x, stats):
        y, vjp, stats = jax.vjp(
            lambda x: norm.apply(x, params, stats, train=True, **options), x, has_aux=True
        )
        return y, vjp(jnp.cos(x))[0], stats

    results = []
    for x in xs:
        y, dx, stats = step(x, stats)
        results.append((y, dx, stats))
    return results


@pytest.mark.parametrize("clipping", [None, {"rmax": 1.5, "rmin": 1 / 1.5, "dmax": 0.5}], ids=str)
def test_renorm_is_keras_renorm_step_by_step(clipping, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layer = keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-3, renorm=True, renorm_clipping=clipping, renorm_momentum=0.9
    )
    layer.build((6, 3, 4))
    limits = {"r_max": 1.5, "d_max": 0.5} if clipping else {"r_max": math.inf, "d_max": math.inf}
    # Keras' deviation, of which epsilon is a part, begins at 1.
    stats = {"mean": jnp.zeros(4), "var": jnp.full(4, 1 - 1e-3)}
    ours = trained(jbn.renorm(**limits), batches(), stats, momentum=0.9, epsilon=1e-3)
    for x, (y, _, stats) in zip(batches(), ours, strict=True):
        close(y, np.asarray(layer(x, training=True)))
        moving = layer.moving_mean, layer.moving_variance
        close((stats["mean"], stats["var"]), tuple(np.asarray(v.value) for v in moving))
    inference = jbn.renorm().apply(x, jbn.init(4)[0], stats, train=False, epsilon=1e-3)[0]
    close(inference, np.asarray(layer(x, training=False)))


def test_renorm_is_crossqs_where_epsilon_is_small():
    layers = by_path("sbx", "common/jax_layers.py")
    layer = layers.BatchRenorm(use_running_average=False, momentum=0.9, epsilon=1e-12, warmup_steps=2)
    xs = [x.reshape(-1, 4) for x in batches()]
    variables = layer.init(jax.random.key(0), xs[0])
    norm = jbn.renorm(**jbn.crossq_warmup(steps=2), running="variance")
    stats = norm.init(4)[1]
    ours = trained(norm, xs, stats, momentum=0.9, epsilon=1e-12)
    for x, (y, dx, stats) in zip(xs, ours, strict=True):

        def theirs(x, variables=variables):
            y, updated = layer.apply(variables, x, mutable=["batch_stats"])
            return y, updated["batch_stats"]

        expected, vjp, updated = jax.vjp(theirs, x, has_aux=True)
        close((y, dx), (expected, vjp(jnp.cos(x))[0]))
        close(stats, {name: updated[name] for name in stats})
        variables = {**variables, "batch_stats": updated}


def test_crossqs_gradient_is_not_a_number_at_variance_0_and_ours_is():
    layers = by_path("sbx", "common/jax_layers.py")
    layer = layers.BatchRenorm(use_running_average=False, warmup_steps=0)
    x = jnp.ones((4, 4))
    variables = layer.init(jax.random.key(0), x)

    def theirs(x):
        return jnp.sum(layer.apply(variables, x, mutable=["batch_stats"])[0] ** 2)

    def ours(x):
        return jnp.sum(jbn.renorm().apply(x, *jbn.init(4), train=True, epsilon=1e-3)[0] ** 2)

    assert np.isnan(jax.grad(theirs)(x)).all()
    assert np.isfinite(jax.grad(ours)(x)).all()


def test_sequential_ghosts_are_those_of_tabnet():
    torch = pytest.importorskip("torch")
    tabnet = pytest.importorskip("pytorch_tabnet.tab_network")
    layer = tabnet.GBN(4, virtual_batch_size=4, momentum=0.1)
    norm = jbn.ghost(size=4, running="sequential")
    xs = [x[:, 0] for x in batches(shape=(12, 1, 4))]
    ours = trained(norm, xs, norm.init(4)[1], momentum=0.9, running_variance="unbiased")
    for x, (y, dx, stats) in zip(xs, ours, strict=True):
        given = torch.tensor(np.array(x), requires_grad=True)
        expected = layer(given)
        expected.backward(torch.tensor(np.array(jnp.cos(x))))
        close((y, dx), (expected.detach().numpy(), given.grad.numpy()))
        close(stats["mean"], layer.bn.running_mean.numpy())
        close(stats["var"], layer.bn.running_var.numpy())


def test_renorm_is_torchrls_below_twice_its_warmup():
    torch = pytest.importorskip("torch")
    layer = by_path("torchrl", "modules/models/batchrenorm.py").BatchRenorm1d(
        4, momentum=0.1, warmup_steps=3
    )
    norm = jbn.renorm(**jbn.crossq_warmup(steps=3), running="variance")
    xs = [x[:, 0] for x in batches()]
    ours = trained(norm, xs, norm.init(4)[1], momentum=0.9, running_variance="unbiased")
    for x, (y, dx, stats) in zip(xs, ours, strict=True):
        given = torch.tensor(np.array(x), requires_grad=True)
        expected = layer(given)
        expected.backward(torch.tensor(np.array(jnp.cos(x))))
        close((y, dx), (expected.detach().numpy(), given.grad.numpy()))
        close((stats["mean"], stats["var"]), (layer.running_mean.numpy(), layer.running_var.numpy()))


def test_conditional_is_haikus_scale_and_offset_of_the_call():
    hk = pytest.importorskip("haiku")

    def network(x, scale, offset):
        layer = hk.BatchNorm(create_scale=False, create_offset=False, decay_rate=0.9, eps=1e-5)
        return layer(x, is_training=True, scale=scale, offset=offset)

    x, scale, bias = batches()[1], *(v[:, :1] for v in batches()[2:4])
    model = hk.transform_with_state(network)
    params, state = model.init(None, x, scale, bias)
    (theirs, _), vjp = jax.vjp(lambda *a: model.apply(params, state, None, *a), x, scale, bias)

    def ours(x, scale, bias):
        stats = jbn.init(4)[1]
        given = {"scale": scale[:, 0], "bias": bias[:, 0]}
        return jbn.conditional().apply(x, {}, stats, train=True, **given)[0]

    y, our_vjp = jax.vjp(ours, x, scale, bias)
    close(y, theirs)
    dy = jnp.cos(x)
    no_state = jax.tree.map(jnp.zeros_like, model.apply(params, state, None, x, scale, bias)[1])
    close(our_vjp(dy), vjp((dy, no_state)))


def test_domains_of_each_example_are_a_torch_layer_for_each_subset():
    torch = pytest.importorskip("torch")
    layers = [torch.nn.BatchNorm1d(4, momentum=0.1) for _ in range(3)]
    norm, domain = jbn.domains(3), np.array([2, 0, 2, 0, 0, 2])
    ours = trained(
        norm,
        [jnp.swapaxes(x, 1, 2) for x in batches()],
        norm.init(4)[1],
        momentum=0.9,
        running_variance="unbiased",
        axis=1,
        domain=jnp.asarray(domain),
    )
    for x, (y, dx, stats) in zip(batches(), ours, strict=True):
        given = torch.tensor(np.array(jnp.swapaxes(x, 1, 2)), requires_grad=True)
        expected = torch.zeros_like(given)
        for k in (0, 2):
            expected = expected.index_put((torch.tensor(domain == k),), layers[k](given[domain == k]))
        expected.backward(torch.cos(given.detach()))
        close((y, dx), (expected.detach().numpy(), given.grad.numpy()))
        for k, layer in enumerate(layers):
            close(stats["mean"][k], layer.running_mean.numpy())
            close(stats["var"][k], layer.running_var.numpy())


def test_domains_are_timms_splits():
    torch = pytest.importorskip("torch")
    splits = by_path("timm", "layers/split_batchnorm.py")
    layer = splits.convert_splitbn_model(torch.nn.BatchNorm2d(4, momentum=0.1), num_splits=2)
    norm = jbn.domains(2)
    xs = [jnp.asarray(x.transpose(0, 2, 1)[..., None]) for x in batches()]
    options = {"momentum": 0.9, "running_variance": "unbiased", "axis": 1}
    ours = trained(norm, xs, norm.init(4)[1], domain=jnp.repeat(jnp.arange(2), 3), **options)
    for x, (y, _, stats) in zip(xs, ours, strict=True):
        close(y, layer(torch.tensor(np.array(x))).detach().numpy())
        close(stats["mean"][0], layer.running_mean.numpy())
        close(stats["var"][1], layer.aux_bn[0].running_var.numpy())
    inference, _ = norm.apply(x, norm.init(4)[0], stats, train=False, domain=0, axis=1)
    close(inference, layer.eval()(torch.tensor(np.array(x))).detach().numpy())


def test_frozen_is_torchvisions(torchvision):
    torch = pytest.importorskip("torch")
    layer = torchvision.ops.FrozenBatchNorm2d(4)
    rng = np.random.default_rng(0)
    values = {
        name: rng.uniform(0.5, 2, 4).astype(np.float32)
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    layer.load_state_dict({name: torch.tensor(v) for name, v in values.items()})
    scale, bias, mean, var = map(jnp.asarray, values.values())
    x = batches()[1][..., None].transpose(0, 2, 1, 3)
    given = torch.tensor(np.array(x), requires_grad=True)
    expected = layer(given)
    expected.backward(torch.cos(given.detach()))

    def ours(x):
        params, stats = {"scale": scale, "bias": bias}, {"mean": mean, "var": var}
        return jbn.frozen().apply(x, params, stats, train=True, axis=1)[0]

    y, vjp = jax.vjp(ours, x)
    close((y, vjp(jnp.cos(x))[0]), (expected.detach().numpy(), given.grad.numpy()))


def test_streaming_is_equinoxs_ema_with_the_variance_between_batches():
    eqx = pytest.importorskip("equinox")
    norm = jbn.streaming()

    def theirs(x, state, layer):
        return jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    def compared(xs):
        layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="ema", momentum=0.9)
        _, state = theirs(xs[0], state, layer)
        mean, var = state.get(layer.ema_state_index)
        ours = trained(norm, xs[1:], {"mean": mean, "var": var}, momentum=0.9)
        for x, (y, dx, stats) in zip(xs[1:], ours, strict=True):
            expected, vjp, state = jax.vjp(lambda x, s=state: theirs(x, s, layer), x, has_aux=True)
            mean, var = state.get(layer.ema_state_index)
            yield (y, dx, stats["mean"], stats["var"]), (expected, vjp(jnp.cos(x))[0], mean, var)

    xs = [x[:, 0] for x in batches()]
    # Of batches that have one mean there is no variance between them.
    for ours, expected in compared([x - x.mean(0) for x in xs]):
        close(ours, expected)
    one_by_one = list(compared(jnp.asarray(np.random.default_rng(0).standard_normal((80, 1, 4)))))
    (*_, our_var), (*_, their_var) = one_by_one[-1]
    assert np.all(np.asarray(their_var) == 0) and np.all(np.asarray(our_var) > 0.2)
