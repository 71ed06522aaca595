"""Statistics of their own for each of several domains: split, auxiliary, domain-specific batch norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jbn import _checks
from jbn._norm import Norm, plain
from jbn.variants.composition import check_inner
from jbn.variants.grouping import example_axes
from jbn.variants.per_example import PerExample
from jbn.variants.stacked import check_rows, repeated, rows, with_row


def domains(n: int, norm: Norm = plain, *, share_params: bool = True) -> Norm:
    """Batch norm with statistics of their own for each of `n` domains, tasks or kinds of input.

        batch_stats[k] = those of `norm`, for domain k = 0 ... n - 1
        y, batch_stats[k] = norm.apply(x, params, batch_stats[k])

    For domain adaptation, several tasks or sensors, simulated and real data; for adversarial training
    with clean and adversarial examples as two domains (auxiliary batch norm), and for augmented and
    clean ones (split batch norm). A domain that is not in a batch keeps its statistics as they are.

    Which domain is said at the call: an index for the batch, at the cost of `norm`; or one for each
    example, so that domains mix in a batch, in one pass over x: each example is normalized with the
    others of its domain. That costs what batch norm costs where examples have positions, and a few
    times as much on a CPU where they have none. A domain needs as many examples in a batch as batch
    norm does: three of 32 were too few in `examples/two_domains.py`. DSBN, scGPT, timm and detectron2
    have one index for the batch, or its order; none has one for each example.

    Args:
        n: how many domains.
        norm: what is applied in each: `jbn.plain` or a variant; with an index for each example
            `jbn.plain` alone.
        share_params: one scale and bias for all domains, or one for each, of shape (n, C).

    Returns:
        A `Norm`, whose statistics have a first axis of n. Its `apply`, and a Flax layer with it, takes
        `domain`: an int, an integer scalar that may be traced, or an integer array of shape (N,), N
        being the first axis that is reduced. A traced index outside 0 ... n - 1 changes no statistics,
        and what would be normalized by them is NaN.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> norm = jbn.domains(2)
        >>> params, batch_stats = norm.init(1)
        >>> x = jnp.array([[1.], [3.], [11.], [13.]])
        >>> y, batch_stats = norm.apply(
        ...     x, params, batch_stats, train=True, domain=jnp.array([0, 0, 1, 1]), momentum=0.0)
        >>> print(y.round(2).ravel(), batch_stats["mean"].ravel())
        [-1.  1. -1.  1.] [ 2. 12.]

    References:
        Chang et al. (2019), "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation",
        arXiv:1906.03950; Xie et al. (2020), "Adversarial Examples Improve Image Recognition",
        arXiv:1911.09665.
    """
    return Domains(n, norm, share_params)


@dataclasses.dataclass(frozen=True)
class Domains(Norm):
    """See `domains`."""

    n: int
    norm: Norm
    share_params: bool

    def __post_init__(self):
        _checks.positive_integer("n", self.n)
        check_inner("domains", self.norm, "domain")

    def init(self, features, **options):
        """Those of the norm, n times."""
        params, batch_stats = self.norm.init(features, **options)
        if not self.share_params:
            params = repeated(params, self.n)
        return params, repeated(batch_stats, self.n)

    def apply(self, x, params, batch_stats, *, train, domain=None, **options):
        """y and the updated statistics: see `jbn.batch_norm` and `jbn.domains`."""
        self.check(options)
        domain = self._index(domain)
        check_rows("batch_stats", batch_stats, self.n, "domains")
        if not self.share_params:
            check_rows("params", params, self.n, "domains")
        if jnp.ndim(domain) == 1:
            return self._mixed(x, params, batch_stats, train=train, domain=domain, **options)
        own = params if self.share_params else rows(params, domain)
        y, new = self.norm.apply(x, own, rows(batch_stats, domain), train=train, **options)
        return y, with_row(batch_stats, domain, new)

    def _mixed(self, x, params, batch_stats, *, axis=-1, domain, **options):
        if type(self.norm) is not Norm:
            raise ValueError(
                f"`domain` may be an index for each example with norm=jbn.plain, got {self.norm!r}, "
                f"which takes one for the batch"
            )
        x = _checks.input_array(x)
        axis = _checks.feature_axes(axis, x.ndim)
        examples, *positions = example_axes(axis, x.ndim)
        if domain.shape != (x.shape[examples],):
            raise ValueError(
                f"`domain` must be one index or one for each of the {x.shape[examples]} examples, got "
                f"shape {domain.shape}"
            )
        if not self.share_params:
            params = {
                name: jnp.expand_dims(jnp.moveaxis(p, 0, examples), positions)
                for name, p in rows(params, domain).items()
            }
        options.update(axis=axis, domain=domain)
        return PerExample(self.n).apply(x, params, batch_stats, **options)

    def _index(self, domain):
        if domain is None:
            raise TypeError("`domain` must be given in the call: an index, or one for each example")
        whole = isinstance(domain, int | np.integer | np.ndarray | jax.Array)
        if not whole or np.ndim(domain) > 1 or not jnp.issubdtype(jnp.result_type(domain), jnp.integer):
            raise TypeError(
                f"`domain` must be an integer or an array of integers of shape (N,), got "
                f"{_checks.described(domain)}"
            )
        if not isinstance(domain, Tracer):
            outside = np.asarray(domain)
            outside = outside[(outside < 0) | (outside >= self.n)]
            if outside.size:
                raise ValueError(f"`domain` must lie in 0 ... {self.n - 1}, got {outside.flat[0]}")
        # Sums and differences of narrower integers overflow.
        return domain if isinstance(domain, int) else jnp.asarray(domain).astype(jnp.int32)
