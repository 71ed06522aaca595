"""The oracles of the variants: the equations of their papers, in float64 NumPy.

Each takes x of shape (N, ..., C), params, batch_stats and the keywords of the call, and returns y and
the new statistics.
"""

import itertools
import math

import numpy as np

EPSILON, MOMENTUM = 1e-5, 0.9


def moments(x, weights, axes):
    """Weighted mean, variance and count over the axes, which are kept."""
    n = weights.sum(axes, keepdims=True)
    some = np.where(n > 0, n, 1)
    x = np.where(weights > 0, x, 0)
    mean = (weights * x).sum(axes, keepdims=True) / some
    var = (weights * (x - mean) ** 2).sum(axes, keepdims=True) / some
    return mean, var, n


def weights_of(x, mask):
    return np.broadcast_to(1.0 if mask is None else np.asarray(mask, np.float64), x.shape)


def examples(x):
    """All axes but that of the channels."""
    return tuple(range(x.ndim - 1))


def normalized(x, mean, var, params):
    """(x - mean) / sqrt(var + epsilon) * scale + bias."""
    y = (x - mean) / np.sqrt(var + EPSILON)
    return y * params.get("scale", 1.0) + params.get("bias", 0.0)


def updated(stats, mean, var, count):
    """The exponential average, and the old values where there are no samples."""
    new = dict(stats)
    for name, value in (("mean", mean), ("var", var)):
        average = MOMENTUM * stats[name] + (1 - MOMENTUM) * value.reshape(stats[name].shape)
        new[name] = np.where(count.reshape(stats[name].shape) > 0, average, stats[name])
    return new


class Constants(dict):
    """What no gradient flows through: the value at the first call, and at every other."""

    def __call__(self, name, value):
        return self.setdefault(name, value)


def plain(x, params, stats, *, train=True, mask=None, constants=None):
    if not train:
        return normalized(x, stats["mean"], stats["var"], params), stats
    m = moments(x, weights_of(x, mask), examples(x))
    return normalized(x, m[0], m[1], params), updated(stats, *m)


def ghost(x, params, stats, *, group_of, running="batch", train=True, mask=None, constants=None):
    """Group after group, each a batch with the others masked; `group_of` each example, repeated."""
    if not train:
        return plain(x, params, stats, train=False)
    weights = weights_of(x, mask)
    group_of = np.resize(group_of, len(x)).reshape(-1, *[1] * (x.ndim - 1))
    y, groups = np.zeros_like(x), []
    for group in range(np.max(group_of) + 1):
        member = group_of == group
        m = moments(x, weights * member, examples(x))
        y = np.where(member, normalized(x, m[0], m[1], params), y)
        groups.append(m)
    if running == "sequential":
        for m in groups:
            stats = updated(stats, *m)
        return y, stats
    mean, var, count = moments(x, weights, examples(x))
    if running == "groups":
        var = sum(n * v for _, v, n in groups) / np.where(count > 0, count, 1)
    return y, updated(stats, mean, var, count)


def renorm(
    x, params, stats, *, r_max, d_max, running="deviation", train=True, mask=None, constants=None
):
    if not train:
        return normalized(x, stats["mean"], stats["var"], params), stats
    constants = Constants() if constants is None else constants
    if "steps" in stats:
        r_max, d_max = r_max(stats["steps"]), d_max(stats["steps"])
        stats = {**stats, "steps": stats["steps"] + 1}
    mean, var, count = moments(x, weights_of(x, mask), examples(x))
    s, sigma = np.sqrt(var + EPSILON), np.sqrt(stats["var"] + EPSILON)
    r = constants("r", np.clip(s / sigma, 1 / r_max, r_max))
    d = constants("d", np.clip((mean - stats["mean"]) / sigma, -d_max, d_max))
    y = ((x - mean) / s * r + d) * params.get("scale", 1.0) + params.get("bias", 0.0)
    if running == "variance":
        return y, updated(stats, mean, var, count)
    stats = updated({**stats, "var": sigma}, mean, s, count)
    return y, {**stats, "var": stats["var"] ** 2 - EPSILON}


def conditional(x, params, stats, *, scale, bias, **kwargs):
    y, stats = plain(x, {}, stats, **kwargs)
    examples_first = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
    return y * scale.reshape(examples_first) + bias.reshape(examples_first), stats


def domains(x, params, stats, *, domain, train=True, mask=None, constants=None):
    """Domain after domain, each a batch with the others masked."""
    y, stats = np.zeros_like(x), {name: v.copy() for name, v in stats.items()}
    domain = np.broadcast_to(domain, len(x)).reshape(-1, *[1] * (x.ndim - 1))
    for k in np.unique(domain):
        member = domain == k
        own = {name: v[k] if v.ndim == 2 else v for name, v in params.items()}
        of_domain, new = plain(
            x,
            own,
            {name: v[k] for name, v in stats.items()},
            train=train,
            mask=weights_of(x, mask) * member,
        )
        y = np.where(member, of_domain, y)
        for name, v in new.items():
            stats[name][k] = v
    return y, stats


def timesteps(x, params, stats, *, step, **kwargs):
    last = len(stats["mean"]) - 1
    return domains(x, params, stats, domain=min(int(step), last), **kwargs)


def frozen(x, params, stats, *, train=True, mask=None, constants=None):
    constants = Constants() if constants is None else constants
    return normalized(x, stats["mean"], stats["var"], constants("params", params)), stats


def weighted_inference(x, params, stats, *, alpha, train=True, mask=None, constants=None):
    """By the averages of x and of its square, as in the paper."""
    if train:
        return plain(x, params, stats, mask=mask)
    positions = tuple(range(1, x.ndim - 1))
    own, own_var, count = moments(x, weights_of(x, mask), positions)
    alpha = np.where(count > 0, alpha, 0)
    mean = alpha * own + (1 - alpha) * stats["mean"]
    square = alpha * (own_var + own**2) + (1 - alpha) * (stats["var"] + stats["mean"] ** 2)
    return normalized(x, mean, square - mean**2, params), stats


def streaming(x, params, stats, *, train=True, mask=None, constants=None):
    """By the averages of x and of its square, which no variance between batches escapes."""
    if train:
        mean, var, count = moments(x, weights_of(x, mask), examples(x))
        square = updated(
            {**stats, "var": stats["var"] + stats["mean"] ** 2}, mean, var + mean**2, count
        )
        stats = {**square, "var": square["var"] - square["mean"] ** 2}
    return normalized(x, stats["mean"], stats["var"], params), stats


def batch_group(x, params, stats, *, groups, train=True, mask=None, constants=None):
    divided = (*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*examples(x), x.ndim)
    of_groups = [stats[name].reshape(groups, 1) for name in ("mean", "var")]
    if train:
        m = moments(x.reshape(divided), weights_of(x, mask).reshape(divided), axes)
        of_groups, stats = m[:2], updated(stats, *m)
    z = normalized(x.reshape(divided), *of_groups, {}).reshape(x.shape)
    return z * params["scale"] + params["bias"], stats


def derivative(function, order, step=1e-4):
    """d^order / dt1 ... dtorder of function(t1, ..., torder) at 0, by central differences."""
    total = 0.0
    for signs in itertools.product((1, -1), repeat=order):
        total += math.prod(signs) * function(*(step * s for s in signs))
    return total / (2 * step) ** order
