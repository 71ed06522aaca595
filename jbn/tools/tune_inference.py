"""Which statistics to infer with, by the loss on validation data."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jbn import _dtypes
from jbn._norm import Norm
from jbn.tools.batches import check_batch, check_batches, shown, variables_and_batches
from jbn.tools.compilation import compiled, intercepted
from jbn.tools.norm_layers import innermost, interceptor, with_norms
from jbn.tools.norm_variables import norm_layers
from jbn.tools.recalibrate import recalibrate
from jbn.variants.weighted_inference import WeightedInference, weighted_inference

Loss = Callable[[Any, Any], Any]
Candidate = tuple[str, float | None]


@dataclasses.dataclass(frozen=True)
class InferenceChoice:
    """What `tune_inference` found; printed, it is a table.

    Attributes:
        statistics: "running" or "recalibrated".
        alpha: of `jbn.weighted_inference`; None leaves the norms as they are.
        losses: the mean loss of each (statistics, alpha), in the order they were tried.
        model: the Linen module as it was given; a copy of the NNX module, with the statistics and the
            norms chosen, in `eval()`.
        variables: those of Linen with the statistics chosen; None for NNX.
    """

    statistics: str
    alpha: float | None
    losses: dict[Candidate, float]
    model: Any
    variables: Any = None

    @property
    def gain(self) -> float:
        """By how much its loss is lower than that of the model as it was."""
        return self.losses["running", None] - self.losses[self.statistics, self.alpha]

    def apply(self, *args: Any, **options: Any) -> Any:
        """`model.apply(variables, *args, **options)` of a Linen module, with the norms chosen."""
        if isinstance(self.model, nnx.Module):
            raise TypeError("`apply` is for Linen; the chosen NNX model is `model`: call that")
        with _weighing(self.alpha):
            return self.model.apply(self.variables, *args, **options)

    def __str__(self):
        chosen = self.statistics, self.alpha
        lines = [f"{'statistics':12}  {'alpha':>8}  {'loss':>10}"]
        for (statistics, alpha), loss in self.losses.items():
            mark = "  chosen" if (statistics, alpha) == chosen else ""
            shown_alpha = "" if alpha is None else f"{alpha:g}"
            lines.append(f"{statistics:12}  {shown_alpha:>8}  {loss:10.6g}{mark}")
        return "\n".join([*lines, f"gained {self.gain:.3g} of {self.losses['running', None]:.3g}"])


def tune_inference(
    model: Any,
    /,
    *given: Any,
    loss: Loss,
    alphas: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    calibration: Iterable[Any] | None = None,
    layer_by_layer: bool = False,
    rngs: Any = None,
    progress: bool = False,
) -> InferenceChoice:
    """The statistics of the least loss: running or recalibrated, and how much of an example's own.

        (running | recalibrated) x (as it is | jbn.weighted_inference(alpha) for each of alphas)

    Recalibrated ones, by `jbn.tools.recalibrate`, are tried if there are `calibration` batches, which
    should be of the training data. Nothing is trained. The lowest of several losses is a little lower
    on these batches than on others: have more of them than candidates to tell apart.

    Args:
        model, variables, batches: a Linen module, its variables and the validation data; or an NNX
            module and the data, `tune_inference(model, batches, ...)`, which stays as it is. They are
            iterated for each candidate: a list, a loader, no generator.
        loss: `loss(model, batch)`, in inference: an array of losses, of each example or position, or a
            scalar, which counts as one. The mean of all is what is compared. With Linen, `lambda model,
            batch: cross_entropy(model(batch["image"], train=False), batch["label"])`.
        alphas: of `jbn.weighted_inference`, in place of the norms at the core of the layers; a model
            that has it already is tried with its own and with these. Default 0.02, 0.05, 0.1, 0.2.
        calibration: batches as those of the data, for `loss` calls the model on them. Default None.
        layer_by_layer, rngs: see `jbn.tools.recalibrate`.
        progress: show a bar, by tqdm. Default False.

    Returns:
        An `InferenceChoice`. Of losses that are equal the first is chosen; NaN never, unless all are.

    Raises:
        ValueError: an alpha is not in [0, 1], there is no batch or no layer, or the inference of a norm
            is not plain, as that of `jbn.inplace`: take `alphas=()`.
        TypeError: an argument is not of the form above.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> model = jbn.linen.BatchNorm(use_running_average=True)
        >>> batches = [jnp.array([[2.], [4.]]), jnp.array([[6.], [8.]])]
        >>> variables = model.init(jax.random.key(0), batches[0])     # mean 0, variance 1
        >>> def loss(model, x):
        ...     return 1 + (model(x) - (x - 5) / jnp.sqrt(5)) ** 2
        >>> choice = jbn.tools.tune_inference(
        ...     model, variables, batches, loss=loss, alphas=(0.1,), calibration=batches)
        >>> print(choice)
        statistics       alpha        loss
        running                    27.5276
        running            0.1     6.87121
        recalibrated                     1  chosen
        recalibrated       0.1     1.01481
        gained 26.5 of 27.5
        >>> y = choice.apply(batches[0])
    """
    variables, batches = variables_and_batches(model, given)
    check_batches("batches", batches, "jbn.tools.tune_inference")
    if not norm_layers(model if isinstance(model, nnx.Module) else variables[0]):
        raise ValueError("`model` must have batch norm layers with running statistics, got none")
    models = {"running": (model, *variables)}
    if calibration is not None:
        again = nnx.clone(model) if isinstance(model, nnx.Module) else model
        options = {"layer_by_layer": layer_by_layer, "rngs": rngs}
        new = recalibrate(again, *variables, calibration, call=loss, **options)
        models["recalibrated"] = (again,) if new is None else (model, new)
    candidates: list[Candidate] = list(itertools.product(models, (None, *alphas)))
    losses = {
        (statistics, alpha): _mean_loss(batches, *models[statistics], loss=loss, alpha=alpha, rngs=rngs)
        for statistics, alpha in shown(candidates, progress, "candidates")
    }
    best = min(candidates, key=lambda c: math.inf if math.isnan(losses[c]) else losses[c])
    chosen, *variables = models[best[0]]
    if isinstance(model, nnx.Module):
        chosen = nnx.clone(_evaluated(chosen, best[1]))
    return InferenceChoice(*best, losses, chosen, *variables)


def _weighted(alpha: float | None) -> Callable[[Norm], Norm]:
    def change(norm):
        if alpha is None:
            return norm
        if isinstance(norm, WeightedInference):
            return dataclasses.replace(norm, alpha=alpha)
        return weighted_inference(alpha, norm)

    return functools.partial(innermost, change=change)


def _mean_loss(batches, model, *variables, loss, alpha, rngs):
    if isinstance(model, nnx.Module):
        structure, state = nnx.split(_evaluated(model, alpha))
        step = functools.partial(compiled(_nnx_loss, structure, loss), state)
    else:
        step = functools.partial(compiled(_linen_loss, model, loss, alpha), *variables, rngs)
    totals = []
    for batch in batches:
        check_batch(batch)
        totals.append(jax.device_get(step(batch)))
    if not totals:
        raise ValueError("`batches` must hold a batch, got none")
    total, count = (math.fsum(map(float, values)) for values in zip(*totals, strict=True))
    return total / count if count else math.nan


def _linen_loss(model, loss, alpha, variables, rngs, batch):
    with _weighing(alpha):
        return _total_and_count(model.apply(variables, batch, method=loss, rngs=rngs))


def _weighing(alpha):
    return intercepted(interceptor(_weighted(alpha)), "tune_inference", alpha)


def _nnx_loss(structure, loss, state, batch):
    return _total_and_count(loss(nnx.merge(structure, state), batch))


def _total_and_count(losses):
    if losses is None:
        raise TypeError("`loss` must return a loss, or an array of them, got None")
    losses = jnp.asarray(losses)
    return jnp.sum(losses.astype(_dtypes.promote(losses.dtype))), losses.size


def _evaluated(model, alpha):
    copy, _ = with_norms(model, _weighted(alpha))
    copy.eval()
    return copy
