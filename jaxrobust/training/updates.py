"""Updates by any transformation of optax, those that ask for more than the gradient too."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import optax


def update(
    optimizer: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    *,
    value: jax.Array,
    value_fn: Callable[[Any], jax.Array],
) -> tuple[Any, Any]:
    """Return the updates and the next state of any transformation of optax.

    All are offered what some ask for: the value (`reduce_on_plateau`, Polyak step sizes,
    Momo), with it the gradient and the function (line searches, L-BFGS), the function under
    another name (Sophia), the function's gradient (SAM). The function is the loss of this
    step: the same batch, keys and statistics; the adversary attacks anew.
    """

    def function(params, *, obj_fn=None, grad_fn=None):
        del obj_fn, grad_fn  # a line search hands on to it what it does not know
        return value_fn(params)

    offered: dict[str, Any] = dict(
        value=value,
        grad=grads,
        value_fn=function,
        obj_fn=function,
        grad_fn=lambda params, _=None: jax.grad(function)(params),
    )
    accepting = optax.with_extra_args_support(optimizer).update
    parameters = inspect.signature(accepting).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    extra = {n: v for n, v in offered.items() if takes_all or n in parameters}
    try:
        return accepting(grads, opt_state, params, **extra)
    except TypeError as error:
        if not re.search("unexpected keyword|required keyword-only", str(error), re.I):
            raise
        raise TypeError(
            f"this optimizer does not fit: {error}. jr.training.fit can give it "
            f"{', '.join(offered)}, as keyword arguments; in optax.chain each "
            "transformation must take **extra_args besides its own. For one that needs "
            "more write the loop with the objective and optax, see "
            "notebooks/06_adversarial_training."
        ) from error


def optimizer_program(optimizer: optax.GradientTransformation) -> Callable[[Any], Any]:
    """Return params -> (first state, a step) on a loss that is always the same."""

    def value_fn(params):
        return optax.tree.norm(params, squared=True)

    def program(params):
        state = optimizer.init(params)
        value, grads = jax.value_and_grad(value_fn)(params)
        return state, update(
            optimizer, grads, state, params, value=value, value_fn=value_fn
        )

    return program
