"""`jbn.tools.report` on models in Linen, NNX and pure functions, alone and against data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = 3 + 2 * jax.random.normal(jax.random.key(0), (64, 4))


class Linen(nn.Module):
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(
            jbn.linen.BatchNorm, use_running_average=not train, momentum=self.momentum
        )
        x = nn.relu(norm(name="first")(nn.Dense(6)(x)))
        return nn.Dense(2)(norm(name="second")(nn.LayerNorm()(x)))


class NNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden, self.output = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.first = jbn.nnx.BatchNorm(6, rngs=rngs)
        self.second = jbn.nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(self.hidden(x)))
        return self.output(self.second(self.dropout(x)))


@functools.cache
def linen():
    """Variables, the statistics of X in them, and the model in inference."""
    variables = jax.jit(Linen().init, static_argnames="train")(jax.random.key(1), X, train=False)
    train = functools.partial(Linen(momentum=0.0).apply, train=True, mutable=["batch_stats"])
    _, updated = jax.jit(train)(variables, X)
    return variables, updated, jax.jit(lambda v: Linen().apply(v, X, train=False))


def rows(report):
    return {row.layer: row for row in report.layers}


def test_variables_alone():
    variables, *_ = linen()
    for tree in (variables, {"state": variables}, variables["batch_stats"]):
        layers = jbn.tools.report(tree).layers
        assert [row.layer.rpartition("/")[2] for row in layers] == ["first", "second"]
        assert [row.stale for row in layers] == [6, 6]


def test_drift_of_a_layer_is_that_of_its_input():
    variables, updated, _ = linen()
    dense = variables["params"]["Dense_0"]
    hidden = np.asarray(X @ dense["kernel"] + dense["bias"], np.float64)
    row = rows(jbn.tools.report(variables, updated))["first"]
    assert row.drift == pytest.approx(np.max(np.abs(hidden.mean(0)) / hidden.std(0)), rel=1e-4)
    assert row.var_ratio == pytest.approx((1 / hidden.var(0).max(), 1 / hidden.var(0).min()), rel=1e-4)


@pytest.mark.parametrize("part", ["batch_stats", None])
def test_statistics_of_data_with_or_without_their_collection(part):
    variables, updated, _ = linen()
    report = jbn.tools.report(variables, updated if part is None else updated[part])
    assert all(row.drift > 0 for row in report.layers)


def test_layers_that_the_data_did_not_reach():
    variables, updated, apply = linen()
    report = jbn.tools.report(variables, {"first": updated["batch_stats"]["first"]}, apply)
    assert rows(report)["first"].drift > 0 and rows(report)["first"].output_change > 0
    assert rows(report)["second"].drift is rows(report)["second"].output_change is None


def test_output_change_is_that_of_each_layer_and_of_all():
    variables, updated, apply = linen()
    report = jbn.tools.report(variables, updated, apply)
    running = np.asarray(apply(variables), np.float64)

    def change(*layers):
        stats = {**variables["batch_stats"], **{n: updated["batch_stats"][n] for n in layers}}
        moved = np.asarray(apply({**variables, "batch_stats": stats}), np.float64) - running
        return pytest.approx(np.linalg.norm(moved) / np.linalg.norm(running - running.mean()))

    assert rows(report)["first"].output_change == change("first") != change("second")
    assert rows(report)["second"].output_change == change("second")
    assert report.output_change == change("first", "second") != change("first")


def test_the_datas_own_statistics_change_nothing():
    variables, updated, apply = linen()
    trained = {**variables, **updated}
    report = jbn.tools.report(trained, updated, apply)
    assert report.output_change == 0 and "nothing found" in str(report)
    assert all((row.drift, row.effect, row.output_change) == (0, 0, 0) for row in report.layers)


def test_nnx_modules_and_their_states():
    model = NNX()
    model.eval()
    for form in (
        model,
        nnx.state(model),
        nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))),
    ):
        assert set(rows(jbn.tools.report(form))) == {"first", "second"}
    trained = nnx.clone(model)
    trained.set_attributes(jbn.nnx.BatchNorm, momentum=0.0, use_running_average=False)
    trained(X)
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    # In training mode the function would update what it is given: a copy.
    model.set_attributes(jbn.nnx.BatchNorm, use_running_average=False, momentum=0.5)
    jbn.tools.report(model, nnx.state(trained, nnx.BatchStat), lambda model: model(X))
    model.eval()
    report = jbn.tools.report(model, trained, lambda model: model(X))
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    trained.eval()
    moved = np.linalg.norm(trained(X) - model(X)) / np.linalg.norm(model(X) - model(X).mean())
    assert report.output_change == pytest.approx(moved, rel=1e-4)


def test_variants_and_lists_of_layers():
    groups, domains = jbn.batch_group(2).init(6), jbn.domains(3, share_params=True).init(4)
    params, batch_stats = zip(groups, domains, strict=True)
    groups[1]["var"] = jnp.array([0.0, 1.5])
    domains[1]["mean"] = domains[1]["mean"].at[0].set(1.0)
    found = jbn.tools.report({"params": list(params), "batch_stats": list(batch_stats)}).layers
    assert [(row.channels, row.collapsed, row.stale) for row in found] == [(6, 3, 0), (12, 0, 8)]


def test_outputs_of_any_tree():
    variables, updated, _ = linen()
    constant = jbn.tools.report(variables, updated, lambda v: {"a": jnp.ones(2), "b": (1.0,)})
    assert constant.output_change == 0
    moved = jbn.tools.report(variables, updated, lambda v: v["batch_stats"]["first"]["mean"].sum())
    assert moved.output_change == np.inf


def test_thresholds():
    variables, *_ = linen()
    assert jbn.tools.report(variables, dead=2.0, epsilon=3.0).layers[0].dead == 6
    assert jbn.tools.report(variables, dead=2.0, epsilon=3.0).layers[0].collapsed == 6


class TestErrors:
    def test_no_batch_norm(self):
        params = linen()[0]["params"]
        for tree in (params, {"params": params}, {}, nnx.LayerNorm(3, rngs=nnx.Rngs(0)), None):
            with pytest.raises(ValueError, match="no batch norm found: expected a 'mean' and a 'var'"):
                jbn.tools.report(tree)

    def test_other_layers(self):
        variables, updated, _ = linen()
        other = {"third": updated["batch_stats"]["first"]}
        with pytest.raises(ValueError, match="layers of `variables`, first, second; got third"):
            jbn.tools.report(variables, {**updated["batch_stats"], **other})
        with pytest.raises(ValueError, match="layers of `variables`, first, second; got none"):
            jbn.tools.report(variables, {})

    def test_other_shapes(self):
        variables, updated, _ = linen()
        stats = {name: {"mean": np.zeros(6), "var": np.ones(5)} for name in updated["batch_stats"]}
        with pytest.raises(ValueError, match=r"shapes .*, \(6,\) for `var` of first, got \(5,\)"):
            jbn.tools.report(variables, stats)

    def test_apply_alone(self):
        variables, _, apply = linen()
        with pytest.raises(ValueError, match="`apply` needs `data_stats`"):
            jbn.tools.report(variables, apply=apply)

    @pytest.mark.parametrize("value", [-1.0, float("nan")])
    def test_thresholds(self, value):
        for name in ("dead", "drift"):
            with pytest.raises(ValueError, match=f"`{name}` must not be negative, got {value}"):
                jbn.tools.report(linen()[0], **{name: value})
        for epsilon in (value, 0):
            with pytest.raises(ValueError, match=f"`epsilon` must be positive, got {epsilon}"):
                jbn.tools.report(linen()[0], epsilon=epsilon)
