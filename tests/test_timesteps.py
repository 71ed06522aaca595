"""`jbn.timesteps`: scans of every library, lengths, the batch-normalized LSTM; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn

RNG = np.random.default_rng(0)
XS = jnp.asarray(RNG.standard_normal((5, 6, 4)) + np.arange(5)[:, None, None], jnp.float32)
NORM = jbn.timesteps(3)
PARAMS, STATS = NORM.init(4)
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def by_hand(xs, masks=None, last=2):
    """A batch norm of its own for each step, in a loop."""
    stats, ys = [jbn.init(4)[1] for _ in range(last + 1)], []
    for t, x in enumerate(xs):
        k, mask = min(t, last), None if masks is None else masks[t]
        y, stats[k] = jbn.batch_norm(x, PARAMS, stats[k], train=True, mask=mask)
        ys.append(y)
    return jnp.stack(ys), {name: jnp.stack([s[name] for s in stats]) for name in stats[0]}


def test_in_lax_scan_with_lengths():
    lengths = jnp.array([5, 3, 4, 2, 5, 1])
    masks = (jnp.arange(5)[:, None] < lengths[None])[..., None]

    def one(stats, step):
        t, x, mask = step
        return NORM.apply(x, PARAMS, stats, train=True, step=t, mask=mask)[::-1]

    stats, ys = jax.jit(lambda: jax.lax.scan(one, STATS, (jnp.arange(5), XS, masks)))()
    close((ys, stats), by_hand(XS, masks))


@pytest.mark.usefixtures("standard_promotion")
def test_in_linen_scan():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry, step):
            t, x = step
            return carry, jbn.linen.BatchNorm(use_running_average=False, norm=NORM)(x, step=t)

    scanned = nn.scan(
        Cell, variable_broadcast="params", variable_carry="batch_stats", split_rngs={"params": False}
    )()
    variables = Cell().init(jax.random.key(0), None, (0, XS[0]))
    (_, ys), updated = scanned.apply(variables, None, (jnp.arange(5), XS), mutable=["batch_stats"])
    close((ys, updated["batch_stats"]["BatchNorm_0"]), by_hand(XS))


@pytest.mark.usefixtures("standard_promotion")
def test_in_nnx_scan():
    layer = jbn.nnx.BatchNorm(4, norm=NORM, rngs=nnx.Rngs(0))

    @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))
    def run(layer, t, x):
        return layer, layer(x, step=t)

    layer, ys = run(layer, jnp.arange(5), XS)
    close((ys, {name: getattr(layer, name)[...] for name in STATS}), by_hand(XS))


def test_steps_beyond_the_last_in_inference():
    stats = {"mean": jnp.arange(12.0).reshape(3, 4), "var": jnp.ones((3, 4))}
    y = [NORM.apply(XS[0], PARAMS, stats, train=False, step=t)[0] for t in (2, 3, 100)]
    np.testing.assert_array_equal(y[0], y[1])
    np.testing.assert_array_equal(y[0], y[2])


def lstm(params, norms, stats, xs, h):
    """The LSTM of Cooijmans et al. (2017), over all steps."""
    h_norm, c_norm = norms

    def one(carry, step):
        (t, x), (h, c, stats) = step, carry
        options = {"train": True, "step": t}
        wh, stats_h = h_norm.apply(h @ params["h"], {"scale": params["scale"]}, stats["h"], **options)
        wx, stats_x = h_norm.apply(x @ params["x"], {"scale": params["scale"]}, stats["x"], **options)
        f, i, o, g = jnp.split(wh + wx, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        normalized, stats_c = c_norm.apply(c, {"scale": params["scale"][:3]}, stats["c"], **options)
        h = jax.nn.sigmoid(o) * jnp.tanh(normalized)
        return (h, c, {"h": stats_h, "x": stats_x, "c": stats_c}), h

    _, hs = jax.lax.scan(one, (h, jnp.zeros_like(h), stats), (jnp.arange(len(xs)), xs))
    return hs


def test_a_constant_first_state_makes_gradients_explode_and_noise_keeps_them():
    """Of variance 0, the first W_h h has gradients times 1 / sqrt(epsilon)."""
    norms = jbn.timesteps(5), jbn.timesteps(5)
    weights = {"h": (3, 12), "x": (4, 12)}
    params = {
        name: jnp.asarray(0.3 * RNG.standard_normal(shape), jnp.float32)
        for name, shape in weights.items()
    }
    params["scale"] = jnp.full(12, 0.1)
    stats = {"h": norms[0].init(12)[1], "x": norms[0].init(12)[1], "c": norms[1].init(3)[1]}
    noise = jnp.asarray(RNG.standard_normal((6, 3)), jnp.float32)

    @jax.jit
    def gradient(h):
        return jax.grad(lambda h: jnp.sum(lstm(params, norms, stats, XS, h)[-1] ** 2))(h)

    constant, noisy = (np.linalg.norm(gradient(scale * noise)) for scale in (1e-6, 0.1))
    assert np.isfinite(constant) and constant > 10 * noisy


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_steps": 0}, "`max_steps` must be a positive integer"),
        ({"max_steps": 2, "norm": NORM}, r"`norm` of jbn\.timesteps must not take `step`"),
    ],
    ids=str,
)
def test_wrong_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        jbn.timesteps(**keywords)


def test_wrong_calls():
    for wrong in (None, 1.0, jnp.arange(6)):
        with pytest.raises(TypeError, match="`step` must be an integer, given in the call"):
            NORM.apply(XS[0], PARAMS, STATS, train=True, step=wrong)
    with pytest.raises(ValueError, match="`step` must not be negative"):
        NORM.apply(XS[0], PARAMS, STATS, train=True, step=-1)


def test_of_domains_and_domains_of_them():
    for norm in (jbn.timesteps(3, jbn.domains(2)), jbn.domains(2, jbn.timesteps(3))):
        params, stats = norm.init(4)
        y, stats = norm.apply(XS[1], params, stats, train=True, step=1, domain=0)
        expected, own = jbn.batch_norm(XS[1], PARAMS, jbn.init(4)[1], train=True)
        close(y, expected)
        at = (1, 0) if isinstance(norm.norm, type(jbn.domains(2))) else (0, 1)
        close(stats["mean"][at], own["mean"])
        assert np.count_nonzero(stats["mean"]) == 4


@pytest.mark.parametrize("step", [-1, np.int64(-1), jnp.asarray(-1)], ids=["int", "numpy", "jax"])
def test_a_step_before_the_first(step):
    norm = jbn.timesteps(3)
    with pytest.raises(ValueError, match="`step` must not be negative"):
        norm.apply(jnp.ones((2, 4)), *norm.init(4), train=True, step=step)


def test_statistics_of_fewer_steps():
    params, stats = jbn.timesteps(2).init(4)
    with pytest.raises(
        ValueError, match=r"must have a first axis of 5, for 5 steps, got shape \(2, 4\)"
    ):
        jbn.timesteps(5).apply(jnp.ones((2, 4)), params, stats, train=True, step=0)
