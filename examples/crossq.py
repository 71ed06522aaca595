"""CrossQ on a pendulum: reinforcement learning without a target network, with renorm in the critic.

    python examples/crossq.py

Bhatt et al. (2024): SAC whose critic is normalized needs no target network. Each step's transitions go
through the critic as one batch, what was done and what would be done next, so that its statistics are
of both:

    q, q' = critic([s, s'], [a, a']);   the loss is (q - (reward + 0.99 (min q' - alpha log p')))^2

The actor learns from the running statistics, and has no norm here. Gymnasium's Pendulum-v1, episodes of
200 steps; the best possible return is about -150. A learning step after each step of the environment,
all seeds at once by `jax.vmap`. Prints the mean return of each quarter of the training, and draws
all of it.
"""

from shared import flags

parser = flags.parser(
    "Return on Pendulum-v1 against steps: a critic with renorm, with batch norm and with no norm.",
    epochs=50,
    of_epochs="episodes of 200 steps in each run; the first is of random actions",
    batch_size=64,
    of_batch="transitions in a minibatch",
    seeds=5,
    digits=False,
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium.vector import AutoresetMode
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models import mlp
from shared import pictures, report
from shared.side_by_side import State

HIDDEN = 64
STEPS = 200
OBSERVED, ACTIONS = 3, 1
# CrossQ's own warm-up is 100,000 steps, of trainings of millions.
NORMS: dict[str, jbn.Norm | None] = {
    "renorm": jbn.renorm(**jbn.crossq_warmup(steps=1000), running="variance"),
    "batch norm": jbn.plain,
    "no norm": None,
}


def init(seed: Any, optimizer: optax.GradientTransformation, norm: jbn.Norm | None) -> State:
    """An actor, two critics, and the logarithm of the weight of the entropy."""
    actor_key, critic_key = jax.random.split(jax.random.key(seed))
    actor, _ = mlp.init(actor_key, (OBSERVED, HIDDEN, HIDDEN, 2 * ACTIONS), norm=None)
    sizes = (OBSERVED + ACTIONS, HIDDEN, HIDDEN, 1)
    critics, batch_stats = jax.vmap(lambda key: mlp.init(key, sizes, norm=norm))(
        jax.random.split(critic_key)
    )
    params = {"actor": actor, "critics": critics, "log_alpha": jnp.zeros(())}
    return State(params, batch_stats, optimizer.init(params))


def act(actor: Any, observations: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Random actions (N, 1) in (-1, 1), and their log-densities (N,)."""
    mean, log_std = jnp.split(mlp.apply(actor, [], observations, norm=None)[0], 2, axis=-1)
    std = jnp.exp(jnp.clip(log_std, -10, 2))
    u = mean + std * jax.random.normal(key, mean.shape)
    # log(1 - tanh(u)^2), which does not underflow.
    slope = 2 * (jnp.log(2) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), jnp.sum(jax.scipy.stats.norm.logpdf(u, mean, std) - slope, axis=-1)


def loss(
    params: Any, batch_stats: Any, batch: Any, key: jax.Array, norm: jbn.Norm | None
) -> tuple[jax.Array, Any]:
    """The sum of the losses of critics, actor and entropy weight, and the new statistics."""
    fixed = jax.lax.stop_gradient(params)
    alpha = jnp.exp(fixed["log_alpha"])

    def q_values(critics, batch_stats, observations, actions, *, train):
        apply = functools.partial(mlp.apply, norm=norm, train=train, momentum=0.99)
        x = jnp.concatenate([observations, actions], axis=-1)
        q, batch_stats = jax.vmap(apply, in_axes=(0, 0, None))(critics, batch_stats, x)
        return q[..., 0], batch_stats

    ends = np.cumsum([OBSERVED, ACTIONS, 1])
    observations, actions, rewards, following = jnp.split(batch, ends, axis=-1)
    next_key, key = jax.random.split(key)
    next_actions, next_log_p = act(fixed["actor"], following, next_key)
    both = jnp.concatenate([observations, following]), jnp.concatenate([actions, next_actions])
    q, batch_stats = q_values(params["critics"], batch_stats, *both, train=True)
    q, next_q = jnp.split(q, 2, axis=1)
    target = jax.lax.stop_gradient(rewards[:, 0] + 0.99 * (next_q.min(0) - alpha * next_log_p))

    new_actions, log_p = act(params["actor"], observations, key)
    new_q, _ = q_values(fixed["critics"], batch_stats, observations, new_actions, train=False)
    of_actor = jnp.mean(alpha * log_p - new_q.min(0))
    of_alpha = -params["log_alpha"] * jax.lax.stop_gradient(jnp.mean(log_p) - ACTIONS)
    return jnp.mean((q - target) ** 2) + of_actor + of_alpha, batch_stats


@functools.partial(jax.jit, static_argnames=("optimizer", "norm"))
def learn(states: State, batches: Any, keys: jax.Array, *, optimizer: Any, norm: Any) -> State:
    """A step of every seed."""

    def one(state, batch, key):
        of = jax.grad(loss, has_aux=True)
        grads, batch_stats = of(state.params, state.batch_stats, batch, key, norm)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return State(optax.apply_updates(state.params, updates), batch_stats, opt_state)

    return jax.vmap(one)(states, batches, keys)


def train(norm: jbn.Norm | None, args: Any, bar: tqdm) -> np.ndarray:
    """The return of each episode, (seeds, episodes)."""
    seeds = np.array(flags.seeds(args), np.uint32)
    # As in CrossQ, Adam forgets sooner than by default.
    optimizer = optax.adam(args.learning_rate, b1=0.5)
    states = jax.vmap(functools.partial(init, optimizer=optimizer, norm=norm))(seeds)
    keys = jax.random.split(jax.random.key(args.seed), (args.epochs * STEPS, 2, len(seeds)))
    rng, choose = np.random.default_rng(args.seed), jax.jit(jax.vmap(act))
    options = {"autoreset_mode": AutoresetMode.DISABLED}
    environments = gymnasium.make_vec("Pendulum-v1", len(seeds), vector_kwargs=options)
    replay = np.zeros((len(seeds), args.epochs * STEPS, 2 * OBSERVED + ACTIONS + 1), np.float32)
    for episode in range(args.epochs):
        now, _ = environments.reset(seed=None if episode else seeds.tolist())
        for step in range(episode * STEPS, (episode + 1) * STEPS):
            actions = rng.uniform(-1, 1, (len(seeds), ACTIONS))
            if episode:
                chosen, _ = choose(states.params["actor"], now[:, None], keys[step, 0])
                actions = np.asarray(chosen)[:, 0]
            following, rewards, *_ = environments.step(2 * actions)
            replay[:, step] = np.concatenate([now, actions, rewards[:, None], following], axis=1)
            now = following
            if episode:
                rows = rng.integers(step + 1, size=(len(seeds), args.batch_size, 1))
                batches = np.take_along_axis(replay, rows, axis=1)
                states = learn(states, batches, keys[step, 1], optimizer=optimizer, norm=norm)
        bar.update()
    rewards = replay[..., OBSERVED + ACTIONS]
    return rewards.reshape(len(seeds), args.epochs, STEPS).sum(-1)


def draw(returns: Mapping[str, np.ndarray]) -> Figure:
    """The return of each episode, the mean of it and the four before."""
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    window = min(5, *(values.shape[1] for values in returns.values()))
    for name, values in returns.items():
        smooth = np.lib.stride_tricks.sliding_window_view(values, window, axis=1).mean(-1)
        steps = STEPS * np.arange(window, values.shape[1] + 1)
        pictures.curve(axes, steps, smooth, name)
    axes.set(xlabel="steps of the environment", ylabel=f"return, mean of {window} episodes")
    axes.grid(alpha=0.3)
    pictures.legend_below(figure, axes, seeds=max(map(len, returns.values())), columns=3)
    return figure


def spread(values: np.ndarray) -> str:
    """The mean and, of two or more, the standard deviation."""
    return f"{values.mean():.0f}" + (f" ± {values.std(ddof=1):.0f}" if len(values) > 1 else "")


def main(argv: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Trains with each norm; returns the returns of each, (seeds, episodes)."""
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    returns = {}
    with tqdm(total=len(NORMS) * args.epochs, unit="episode") as bar:
        for name, norm in NORMS.items():
            bar.set_description(name)
            returns[name] = train(norm, args, bar)
    # Stretches of the training, after the random episode.
    stretches = np.array_split(np.arange(1, args.epochs), 4) if args.epochs > 4 else [np.arange(1)]
    headings = [f"episodes {part[0] + 1} to {part[-1] + 1}" for part in stretches]
    rows = {
        name: [spread(values[:, part].mean(1)) for part in stretches]
        for name, values in returns.items()
    }
    print(report.table("return", headings, rows))
    pictures.save(draw(returns), args.out / "crossq.png")
    return returns


if __name__ == "__main__":
    main()
