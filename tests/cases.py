"""The registry: every case of a batch norm call that each transformation and oracle is tried on."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import jbn
import variant_reference


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to call `jbn.batch_norm`; `make` builds its arguments."""

    name: str
    shape: tuple[int, ...] = (6, 4)
    axis: Any = -1
    dtype: str = "float32"
    mask: str | None = None
    params: tuple[str, ...] = ("scale", "bias")
    momentum: float | None = 0.9
    running_variance: str = "biased"
    epsilon: float = 1e-5

    @property
    def features(self) -> tuple[int, ...]:
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        return tuple(self.shape[a] for a in sorted(a % len(self.shape) for a in axes))

    @property
    def reduced(self) -> int:
        """Number of values per channel."""
        return int(np.prod(self.shape) / max(1, np.prod(self.features)))

    def make(self, seed: int = 0):
        """x, params, batch_stats, and the keyword arguments."""
        rng = np.random.default_rng(seed)
        x = 1.0 + 2.0 * rng.standard_normal(self.shape)
        if jnp.issubdtype(self.dtype, jnp.complexfloating):
            x = x + 1j * rng.standard_normal(self.shape)
        if jnp.issubdtype(self.dtype, jnp.integer):
            x = 10 * x
        x = jnp.asarray(x).astype(self.dtype)
        real = jnp.finfo(x.dtype).dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32
        real = jnp.float64 if real == jnp.float64 else jnp.float32
        params = {n: jnp.asarray(rng.uniform(0.5, 2.0, self.features), real) for n in self.params}
        stats_dtype = jnp.complex64 if jnp.iscomplexobj(x) else real
        _, batch_stats = jbn.init(self.features, dtype=stats_dtype, momentum=self.momentum)
        batch_stats["mean"] = jnp.asarray(rng.standard_normal(self.features), stats_dtype)
        kwargs = {"axis": self.axis, "epsilon": self.epsilon}
        if self.mask is not None:
            kwargs["mask"] = self._mask(rng)
        return x, params, batch_stats, kwargs

    def running(self) -> dict[str, Any]:
        """The keyword arguments of `jbn.update_running`."""
        return {"momentum": self.momentum, "running_variance": self.running_variance}

    def cotangent(self, seed: int = 1):
        """A random cotangent of y."""
        return jnp.asarray(np.random.default_rng(seed).standard_normal(self.shape), jnp.float32)

    def _mask(self, rng):
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        features = {a % len(self.shape) for a in axes}
        shape = tuple(1 if a in features else n for a, n in enumerate(self.shape))
        if self.mask == "per_channel":
            shape = self.shape
        if self.mask == "weights":
            return jnp.asarray(rng.uniform(0.1, 3.0, shape), jnp.float32)
        keep = rng.random(shape) < 0.7
        keep.reshape(-1)[:2] = True, False
        return jnp.asarray(keep)


CASES = [
    Case("mlp"),
    Case("sequence", (3, 5, 4), mask="bool"),
    Case("nhwc", (2, 3, 3, 4), running_variance="unbiased"),
    Case("nchw", (2, 4, 3, 3), axis=1, params=("scale",)),
    Case("volume", (2, 2, 2, 3, 4), axis=-1, params=("bias",), momentum=None),
    Case("two_feature_axes", (5, 3, 4), axis=(1, 2), mask="weights"),
    Case("negative_axes", (3, 5, 4), axis=(-1, 0), params=()),
    Case("channel_mask", (7, 4), mask="per_channel", epsilon=1e-3),
]

DTYPES = [
    Case("float16", (6, 4), dtype="float16"),
    Case("bfloat16", (6, 4), dtype="bfloat16"),
    Case("int32", (6, 4), dtype="int32"),
    Case("complex64", (6, 4), dtype="complex64"),
]

NAMES = {case.name: case for case in CASES + DTYPES}


# Every public function of the package, as something to transform: x -> pytree. A new public name
# must be entered here, or test_batch_norm.py fails.
def _train(case, x):
    _, params, batch_stats, kwargs = case.make()
    return jbn.batch_norm(x, params, batch_stats, train=True, **kwargs, **case.running())


def _inference(case, x):
    _, params, batch_stats, kwargs = case.make()
    return jbn.batch_norm(x, params, batch_stats, train=False, **kwargs)


def _moments(case, x):
    _, _, _, kwargs = case.make()
    kwargs.pop("epsilon")
    return jbn.moments(x, **kwargs)


def _normalize(case, x):
    _, params, _, kwargs = case.make()
    return jbn.normalize(x, _moments(case, x), params, **kwargs)


def _update_running(case, x):
    _, _, batch_stats, _ = case.make()
    return jbn.update_running(batch_stats, _moments(case, x), **case.running())


def _inplace(case, x):
    _, params, batch_stats, kwargs = case.make()
    norm = jbn.inplace("leaky_relu")
    return norm.apply(x, params, batch_stats, train=True, **kwargs, **case.running())


def _batch_norm_backward(case, x):
    _, params, _, kwargs = case.make()
    return jbn.batch_norm_backward(case.cotangent(), x, params, _moments(case, x), **kwargs)


FUNCTIONS = {
    "batch_norm": _train,
    "batch_norm, inference": _inference,
    "moments": _moments,
    "normalize": _normalize,
    "update_running": _update_running,
    "batch_norm_backward": _batch_norm_backward,
    "inplace": _inplace,
}
# Public names that are no functions of x, and the tests that are theirs.
OTHER_PUBLIC_NAMES = {
    "init": "test_batch_norm.py",
    "Form": "test_form.py",
    "batch_group": "test_batch_group.py",
    "conditional": "test_conditional.py",
    "domains": "test_domains.py",
    "timesteps": "test_timesteps.py",
    "frozen": "test_frozen.py",
    "ghost": "test_ghost.py",
    "streaming": "test_streaming.py",
    "weighted_inference": "test_weighted_inference.py",
    "renorm": "test_renorm.py",
    "ioffe_warmup": "test_warmup.py",
    "crossq_warmup": "test_warmup.py",
    "Moments": "test_moments.py",
    "Norm": "test_norm.py",
    "plain": "test_norm.py",
    "remat_policy": "test_remat.py",
    "variants": "test_inplace.py",
    "linen": "test_linen.py",
    "nnx": "test_nnx.py",
    "tools": "test_average.py",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A norm, its oracle, and what the tests of every variant must know of it.

    Attributes:
        oracle: see variant_reference.py.
        options: the keywords of a call, from a random generator and the batch.
        static: keywords that are no arrays.
        like_plain: a norm, and the keywords of its call, that is plain batch norm.
        rounds_as_plain: and that to the last digit.
        reductions: over arrays of the size of x in the backward pass.
        written: arrays of the size of x in a step: y and dx.
    """

    name: str
    norm: jbn.Norm
    oracle: Any
    options: Any = None
    static: Any = dataclasses.field(default_factory=dict, hash=False)
    like_plain: Any = dataclasses.field(default=None, hash=False)
    rounds_as_plain: bool = True
    reductions: int = 2
    written: int = 2

    def make(self, batch: int = 6):
        """x, params, batch_stats, and the options."""
        rng = np.random.default_rng(0)
        x = jnp.asarray(1 + 2 * rng.standard_normal((batch, 3, 4)), jnp.float32)
        params, stats = self.norm.init(4)
        params = {n: jnp.asarray(rng.uniform(0.5, 2.0, v.shape), v.dtype) for n, v in params.items()}
        low = {"mean": -1.0, "var": 0.5}
        stats = {
            n: jnp.asarray(rng.uniform(low[n], 2.0, v.shape), v.dtype) if n in low else v
            for n, v in stats.items()
        }
        return x, params, stats, {} if self.options is None else self.options(rng, batch)

    def mask(self, kind: str, batch: int = 6):
        """A mask in which no group of three examples is left with one value."""
        rng = np.random.default_rng(1)
        keep = np.ones((batch, 3, 1), bool)
        keep[::2, 1] = keep[1::4, 0] = False
        if kind == "full":
            keep[:] = True
        return jnp.asarray(keep * rng.uniform(0.5, 2.0, keep.shape) if kind == "weights" else keep)


VARIANTS = [
    Variant(
        "ghost",
        jbn.ghost(groups=3),
        functools.partial(variant_reference.ghost, group_of=(0, 0, 1, 1, 2, 2)),
        like_plain=(jbn.ghost(groups=1), {}),
    ),
    Variant(
        "renorm",
        jbn.renorm(r_max=1.2, d_max=0.3),
        functools.partial(variant_reference.renorm, r_max=1.2, d_max=0.3),
        like_plain=(jbn.renorm(r_max=1.0, d_max=0.0, running="variance"), {}),
    ),
    Variant(
        "conditional",
        jbn.conditional(),
        variant_reference.conditional,
        options=lambda rng, batch: {
            "scale": jnp.asarray(rng.uniform(0.5, 2.0, (batch, 4)), jnp.float32),
            "bias": jnp.asarray(rng.standard_normal((batch, 4)), jnp.float32),
        },
        like_plain=(jbn.conditional(), {"scale": jnp.ones(4), "bias": jnp.zeros(4)}),
    ),
    Variant(
        "domains",
        jbn.domains(3),
        variant_reference.domains,
        static={"domain": 1},
        like_plain=(jbn.domains(1), {"domain": 0}),
    ),
    Variant(
        "domains of each example",
        jbn.domains(3, share_params=False),
        variant_reference.domains,
        options=lambda rng, batch: {"domain": jnp.resize(jnp.array([2, 0, 2, 0, 0, 2]), batch)},
        like_plain=(jbn.domains(1), {"domain": jnp.zeros(6, jnp.int32)}),
        rounds_as_plain=False,
    ),
    Variant(
        "timesteps",
        jbn.timesteps(3),
        variant_reference.timesteps,
        options=lambda rng, batch: {"step": jnp.asarray(7)},
        like_plain=(jbn.timesteps(1), {"step": 0}),
    ),
    Variant(
        "frozen",
        jbn.frozen(),
        variant_reference.frozen,
        reductions=0,
    ),
    Variant(
        "weighted_inference",
        jbn.weighted_inference(0.3),
        functools.partial(variant_reference.weighted_inference, alpha=0.3),
        like_plain=(jbn.weighted_inference(0.0), {}),
    ),
    Variant(
        "streaming",
        jbn.streaming(),
        variant_reference.streaming,
        like_plain=(jbn.streaming(), {"momentum": 0.0}),
    ),
    Variant(
        "batch_group",
        jbn.batch_group(2),
        functools.partial(variant_reference.batch_group, groups=2),
        like_plain=(jbn.batch_group(4), {}),
    ),
]
