"""Which value of a traced program goes where."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from jbn.tools.compilation import traced_apart

_PREFIX = "jbn.tools.fold"
# Each of their operands is an input of the program that they hold, and each result an output of it.
_CALLS = ("jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def traced(function: Callable[..., Any], state: Any, inputs: tuple[Any, ...]) -> "Dataflow":
    """The program of `function(state, *inputs)`, inputs that are no arrays being as they are."""
    leaves, structure = jax.tree.flatten(inputs)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape")]

    def run(state, arrays):
        rest = iter(arrays)
        given = [next(rest) if hasattr(leaf, "shape") else leaf for leaf in leaves]
        results = jax.tree.leaves(function(state, *structure.unflatten(given)))
        return [v for v in results if isinstance(v, jax.Array)]

    with traced_apart("fold"):
        return Dataflow(jax.make_jaxpr(run)(state, arrays))


class Tag(NamedTuple):
    """A value of the program that has been given a name; what comes out is the same value.

    Attributes:
        role: "in", "out", or the name of a variable of the module.
        path: of the module.
        operand, result: the value before and after.
        aval: its shape and dtype.
        at: how many operations came before.
    """

    role: str
    path: str
    operand: Any
    result: Any
    aval: Any
    at: int


class Use(NamedTuple):
    """What takes a value: a tag, or the name of a primitive, or "output"; and when."""

    by: "Tag | str"
    at: int


def tag(x: Any, role: str, path: str) -> Any:
    """`x`, by an equation that the program can be searched for."""
    return checkpoint_name(x, f"{_PREFIX} {jnp.ndim(x)} {role} {path}")


class Dataflow:
    """The values of a program, as `jax.make_jaxpr` returns it.

    Calls are written out; loops and branches are not looked into.

    Attributes:
        inputs: the values that the program is given.
        tags: by role and path, one for each time that the program comes there; none of what has been
            given more axes by `jax.vmap`.
        uses: of each value, what takes it, in the order of the program.
        makers: of each value but the inputs, what makes it: a tag or the name of a primitive.
    """

    def __init__(self, program: Any):
        self.tags: dict[tuple[str, str], list[Tag]] = collections.defaultdict(list)
        self.uses: dict[Any, list[Use]] = collections.defaultdict(list)
        self.makers: dict[Any, Tag | str] = {}
        self._operations = 0
        inputs = [object() for _ in program.jaxpr.invars]
        self.inputs = frozenset(inputs)
        for value in self._follow(program.jaxpr, inputs):
            self.uses[value].append(Use("output", self._operations))

    def used_outside(self, value: Any, first: Tag, last: Tag) -> bool:
        """Whether anything but tags takes a value before one tag or after another."""
        return any(
            not first.at < use.at < last.at for use in self.uses[value] if not isinstance(use.by, Tag)
        )

    def _follow(self, jaxpr, operands):
        """Records what becomes of the operands; returns the results.

        A program that is called twice is followed twice: its variables are other values each time.
        """
        values = dict(zip(jaxpr.invars, operands, strict=True))

        def read(v):
            return object() if isinstance(v, Literal) else values.setdefault(v, object())

        for equation in jaxpr.eqns:
            operands = [read(v) for v in equation.invars]
            called = _called(equation)
            if called is None:
                results = [object() for _ in equation.outvars]
                self._record(equation, operands, results)
            else:
                results = self._follow(called, operands)
            values.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _record(self, equation, operands, results):
        user, self._operations = equation.primitive.name, self._operations + 1
        if user == "name" and equation.params["name"].startswith(_PREFIX):
            _, ndim, role, path = equation.params["name"].split(" ", 3)
            aval = equation.outvars[0].aval
            user = Tag(role, path, operands[0], results[0], aval, self._operations)
            if user.aval.ndim == int(ndim):
                self.tags[role, path].append(user)
        for value in operands:
            self.uses[value].append(Use(user, self._operations))
        for value in results:
            self.makers[value] = user


def _called(equation):
    if equation.primitive.name not in _CALLS:
        return None
    jaxpr = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return getattr(jaxpr, "jaxpr", jaxpr)  # closed or not, as the primitive and the release have it
