"""Domains that are mixed in one batch: which is said for each example."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from jbn import _checks, _collectives, _dtypes
from jbn._masking import as_weights, counted, present, weighted
from jbn._moments import moments
from jbn._normalize import normalize
from jbn._remat import named
from jbn._statistics import Moments
from jbn.variants.by_moments import ByMoments, normalized_by
from jbn.variants.mixture import pooled
from jbn.variants.stacked import rows


@dataclasses.dataclass(frozen=True)
class PerExample(ByMoments):
    """Batch norm with the statistics of the domain that each example is of.

    To the pass over x the examples are one more feature axis: it makes the moments of each. What is
    summed by domain has one value for each example and channel.
    """

    n: int

    def statistics_shape(self, features):
        """A set for each domain."""
        return self.n, *features

    def apply(self, x, params, batch_stats, *, train, domain, **options):
        """y and the updated statistics: see `jbn.batch_norm`."""
        return super().apply(x, params, batch_stats, train=train, domain=domain, **options)

    def in_training(self, x, params, batch_stats, *, average, domain, axis, **options):
        """The moments of all examples of a domain, on all devices."""
        names, groups = options.pop("axis_name"), options.pop("axis_index_groups")
        params, axis, examples = examples_as_features(x, params, axis)
        domain = _of_counted(domain, options["mask"], examples, self.n)

        def total(*values):
            sums = tuple(_by_domain(jnp.moveaxis(v, examples, 0), domain, self.n) for v in values)
            return sums if names is None else _collectives.psum(sums, names, groups)

        def back(s):
            return jnp.moveaxis(rows({"s": s}, domain)["s"], 0, examples)

        def of_domains(x, **options):
            alone = x.ndim == len(axis)
            of_examples = _of_values(x, options["mask"]) if alone else named(moments(x, **options))
            return pooled(of_examples, total, back)

        def of_examples(m, params):
            return Moments(back(m.mean), back(m.var), None, back(m.remainder)), params

        options.update(axis=axis, measure=of_domains, single=True)
        y, m = normalized_by(of_examples, x, params, **options)
        return y, average(batch_stats, m)

    def in_inference(
        self, x, params, batch_stats, *, domain, axis, epsilon=1e-5, mask=None, dtype=None, **_
    ):
        """The running statistics of each example's domain."""
        params, axis, examples = examples_as_features(x, params, axis)
        domain = _of_counted(domain, mask, examples, self.n)
        own = rows(batch_stats, domain)
        of_each = (jnp.moveaxis(own[name], 0, examples) for name in ("mean", "var"))
        options = {"axis": axis, "epsilon": epsilon, "mask": mask, "dtype": dtype}
        return normalize(x, Moments(*of_each), params, **options), batch_stats


def examples_as_features(x, params, axis):
    """Parameters and feature axes where the examples are features too, and the axis of those."""
    reduced = _checks.reduction_axes(axis, x.ndim)
    params = {
        name: p if p.ndim == x.ndim else lax.expand_dims(p, reduced) for name, p in params.items()
    }
    return params, tuple(sorted((reduced[0], *axis))), reduced[0]


def _of_counted(domain, mask, examples, n):
    """The index, and any that there is for an example of which nothing counts."""
    if mask is None:
        return domain
    others = [a for a in range(mask.ndim) if a != examples]
    counts = jnp.any(present(mask), axis=others)
    return jnp.where(counts, domain, jnp.clip(domain, 0, n - 1))


def _of_values(x, mask):
    """The moments of each value alone, where an example has no positions."""
    weights = as_weights(mask, x)
    count = weighted(weights, jnp.ones_like(x, dtype=_dtypes.real(x.dtype)))
    return Moments(counted(weights, x), jnp.zeros_like(count), count, jnp.zeros_like(x))


def _by_domain(v, domain, n):
    """Sums of the rows of a domain, in blocks: one long sum would lose its last digits."""
    size = math.isqrt(len(v)) + 1
    block = jnp.arange(len(v), dtype=domain.dtype) // size
    blocks = -(-len(v) // size)
    known = (domain >= 0) & (domain < n)
    sums = jax.ops.segment_sum(v, jnp.where(known, block * n + domain, -1), blocks * n)
    return jnp.sum(sums.reshape(blocks, n, *v.shape[1:]), 0)
