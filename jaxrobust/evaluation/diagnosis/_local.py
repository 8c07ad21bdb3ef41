"""Checks of a model at the inputs themselves: outputs, gradients, the loss along lines."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import losses, threats
from jaxrobust._core import batching
from jaxrobust.evaluation.diagnosis.diagnosis import Check, judged

# Points along each line through the loss surface.
_POINTS = 21


@jax.jit
def measure(logits_fn, x, y, threat, keys) -> dict[str, jax.Array]:
    """Measure everything that needs no attack; all results are `[B]` or `[B, C]`."""
    logits, pull = jax.vjp(lambda x: logits_fn(x), x)
    kind, logits = logits.dtype, logits.astype(jnp.float32)
    slopes = [
        jax.grad(lambda z, loss=loss: jnp.sum(loss(z, y)))(logits).astype(kind)
        for loss in (losses.cross_entropy, losses.margin)
    ]
    (grad_ce,), (grad,) = (pull(slope) for slope in slopes)
    # 2% of the radius: the ReLUs that switch are few, the change is above the noise.
    small = threat.steepest(grad, x, 0.02 * jnp.asarray(threat.eps))
    full = threat.steepest(grad, x, threat.eps)
    inside = threat.sample(keys, x)  # off the levels of any quantisation
    # One loop over all points: the model is compiled once.
    singles = [x + small, inside, _nudge(inside, threat), _other_half(x)]
    lines = [_line(x, full), _line(x, inside - x)]
    points = jnp.concatenate([*lines, jnp.stack(singles)]).astype(x.dtype)
    there = jax.lax.map(lambda point: logits_fn(point).astype(jnp.float32), points)
    margin = jax.vmap(losses.margin, (0, None))(there, y)
    margin = margin - losses.margin(logits, y)[None]
    # Rounding of a difference of two logits.
    noise = 8 * jnp.finfo(kind).eps * jnp.max(jnp.abs(logits), -1)
    expected, found = _dot(grad, small), margin[2 * _POINTS]
    larger = jnp.maximum(jnp.abs(expected), jnp.abs(found))
    values = margin[: 2 * _POINTS].reshape(2, _POINTS, -1)
    return {
        "logits": logits,
        "cross_entropy_gradient": _largest(grad_ce),
        "margin_gradient": _largest(grad),
        "reach": _dot(grad, full),  # what a linear model would gain in the ball
        "disagreement": jnp.abs(expected - found)
        / jnp.where(larger > noise, larger, jnp.inf),
        "roughness": jnp.max(jax.vmap(_roughness, (0, None))(values, noise), 0),
        "nudge": _relative(there[-3], there[-2]),
        "neighbours": jnp.where(
            jnp.arange(len(x)) < len(x) // 2, _relative(logits, there[-1][::-1]), 0
        ),
    }


def _line(x: jax.Array, delta: jax.Array) -> jax.Array:
    """Return points `[21, B, ...]` from the input to the end of `delta`."""
    return jax.vmap(lambda t: x + t * delta)(jnp.linspace(0, 1, _POINTS))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(batching.flatten(a.astype(jnp.float32) * b.astype(jnp.float32)), -1)


def _largest(grad: jax.Array) -> jax.Array:
    """Return the largest magnitude of each example, NaN if any is not finite."""
    flat = jnp.abs(batching.flatten(grad.astype(jnp.float32)))
    # XLA's maximum on the CPU may drop a NaN.
    return jnp.where(jnp.isfinite(flat).all(-1), jnp.max(flat, -1), jnp.nan)


def _relative(logits: jax.Array, other: jax.Array) -> jax.Array:
    """Return the change of each example's logits relative to their size."""
    gap = jnp.linalg.norm(logits - other, axis=-1)
    size = jnp.linalg.norm(logits, axis=-1)
    return gap / jnp.where(size > 0, size, 1)


def _other_half(x: jax.Array) -> jax.Array:
    """Turn the batch round and replace its second half by copies of the last example."""
    is_kept = jnp.arange(len(x)) < len(x) // 2
    return batching.where(is_kept, x, jnp.broadcast_to(x[-1:], x.shape))[::-1]


def _nudge(x: jax.Array, threat: Any) -> jax.Array:
    """Move every coordinate by about ten units of its last place, inside the bounds."""
    step = 10 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x))
    if threat.bounds is None:
        return (x + step).astype(x.dtype)
    lower, upper = threats.bounds_like(threat, x)
    return jnp.where(x > (lower + upper) / 2, x - step, x + step).astype(x.dtype)


def _roughness(values: jax.Array, noise: jax.Array) -> jax.Array:
    """Return total variation / range along a line: 1 if monotone, 2 for one hill."""
    extent = jnp.max(values, 0) - jnp.min(values, 0)
    variation = jnp.sum(jnp.abs(jnp.diff(values, axis=0)), 0)
    # Where rounding is a part of the range that counts, nothing can be said.
    return jnp.where(extent > 10 * noise, variation / extent, 1.0)


def checks(found: dict[str, np.ndarray], repeated: float, is_correct: np.ndarray):
    """Return the checks of what `measure` has found.

    Args:
      found: Results of `measure`, NumPy.
      repeated: Relative change of the logits between two calls.
      is_correct: `[B]`, the examples that are classified correctly; others do not count.

    Returns:
      A list of `Check`.
    """
    logits = found["logits"]
    found = {name: values[is_correct] for name, values in found.items()}
    return [
        *_output_checks(logits, found, repeated),
        *_gradient_checks(found),
        judged(
            "finite_differences",
            _share(found["disagreement"] > 0.5),
            0.25,
            "share of examples whose gradient is off by half of the actual change",
            "the gradient is not that of the function (masking, stop_gradient, a custom "
            "derivative): use BPDA, EOT or a black-box attack. A model wrapped in "
            "jr.bpda fails here by construction",
        ),
        judged(
            "loss_surface",
            _median(found["roughness"]),
            3.0,
            "total variation / range of the margin along lines in the ball (median)",
            "the surface is shattered or random: average gradients over noise (jr.eot "
            "with jr.transforms.add_noise) or use a black-box attack",
        ),
    ]


def _share(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else 1.0


def _output_checks(logits, found, repeated: float) -> list[Check]:
    finite = np.isfinite(logits).all(-1)
    sums = np.where(finite, logits.sum(-1), 0)
    is_softmax = (np.abs(sums - 1) < 1e-4) & (
        np.nan_to_num(logits, nan=-1).min(-1) >= 0
    )
    ordered = np.sort(found["logits"], -1)
    gap = ordered[:, -1] - ordered[:, -2]
    return [
        judged(
            "finite_outputs",
            _share(~finite),
            0,
            "share of examples with NaN or infinite logits",
            "repair the model: no attack can see these examples",
        ),
        judged(
            "softmax_outputs",
            # A row of logits may sum to 1 by accident, not most rows.
            _share(is_softmax),
            0.5,
            "share of rows in [0, 1] that sum to 1",
            "return the logits before the softmax: its gradient vanishes",
        ),
        judged(
            # Beyond 88 the probability of the runner-up underflows in float32 (e^-88 is
            # the smallest normal number), and with it the gradient of the cross-entropy.
            "saturated_outputs",
            _share(gap > 88),
            0.05,
            "share of examples whose cross-entropy has no gradient in float32",
            "attack the logits: loss=jr.losses.dlr or jr.losses.margin, or divide the "
            "logits by a constant",
            # Beyond 17 (2^-24) the cross-entropy is exactly 0, its gradient is not.
            warn_above=0.0,
        ),
        judged(
            # Far above the rounding of TF32 or bfloat16, far below the noise of a defence.
            "random_outputs",
            max(repeated, _median(found["nudge"])),
            0.02,
            "relative change of the logits between calls and between almost equal inputs",
            "the model is random, or as good as random: attack its expectation, jr.eot or "
            "jr.randomized, with enough samples for this figure to become small",
        ),
        judged(
            "neighbours",
            max(found["neighbours"], default=0.0) if repeated <= 0.02 else 0.0,
            0.02,
            "relative change of the logits with other examples in the batch",
            "the logits depend on the batch: put the model in evaluation mode",
        ),
    ]


def _gradient_checks(found) -> list[Check]:
    largest = found["cross_entropy_gradient"]
    is_zero = largest == 0
    margin = found["margin_gradient"]
    is_flat = _share(margin == 0) > 0.05
    spread = np.ptp(found["logits"], axis=-1)
    reach = np.where(np.isfinite(margin), found["reach"], 0)
    return [
        judged(
            "finite_gradients",
            _share(~np.isfinite(largest) | ~np.isfinite(margin)),
            0,
            "share of examples with NaN or infinite gradients",
            "rewrite the operation that makes them (sqrt or log at 0, 0 / 0), or use BPDA",
        ),
        judged(
            # One example in twenty: a few dead ReLUs are not a defence.
            "zero_gradients",
            _share(is_zero),
            0.05,
            "share of examples whose gradient of the cross-entropy is exactly 0",
            "the margin has no gradient either: use BPDA or a black-box attack"
            if is_flat
            else "the margin has one: use loss=jr.losses.dlr or jr.losses.margin",
            warn_above=0.0,
        ),
        judged(
            # The square of a number below 1e-19 underflows in float32.
            "vanishing_gradients",
            _share(~is_zero & (largest < 1e-19)),
            0.05,
            "share of examples whose gradient is too small to be squared in float32",
            "use loss=jr.losses.dlr or jr.losses.margin",
            warn_above=0.0,
        ),
        judged(
            # The margin cannot change by more than about twice the spread of the logits in
            # reach; a hundred times as much does not describe the function.
            "exploding_gradients",
            _share(reach > 100 * spread),
            0.05,
            "share of examples whose gradient promises 100 times the spread of the logits",
            "the gradient says nothing about the ball: use BPDA, or average it over noise "
            "(jr.eot with jr.transforms.add_noise)",
        ),
    ]
