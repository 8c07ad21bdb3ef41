"""Expectation over transformations: attacks on random models and in the world.

A random model becomes a plain `LogitsFn`, so that every attack applies: the random numbers
are a function of the input's own bits. The same `x` gives the same answer, a moved `x`
gets new draws, and no example sees its neighbours.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust._core import batching, checks, pytree
from jaxrobust._core.representation import concise
from jaxrobust.types import Array, LogitsFn

AVERAGES = ("probs", "log_probs", "logits")


@pytree.register
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Expectation:
    """The average output of a random model, as a `LogitsFn`; made by `eot`, `randomized`.

    Athalye et al. 2018, arXiv:1707.07397. A pytree where `model_fn` is one; around a plain
    function it is compiled like a plain function.

    Args:
      model_fn: Random model `(x [B, ...], keys [B]) -> logits [B, C]`.
      key: A PRNG key.
      num_samples: Draws for each example at each iterate.
      average: What is averaged, see `eot`.
      fixed: The same draws at every iterate and for every example.
      num_deployed: Draws that one prediction of the deployed model averages, see `eot`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> model_fn = lambda x, key: x + jax.random.normal(key, x.shape)
      >>> model = jr.randomized(model_fn, key=jax.random.key(0), num_samples=4)
      >>> x = jnp.zeros((1, 2))
      >>> bool((model(x) == model(x)).all())  # a function of the input's bits
      True
    """

    model_fn: Callable
    key: Array
    num_samples: int = pytree.static(16)
    average: str = pytree.static("probs")
    fixed: bool = pytree.static(False)
    num_deployed: int | None = pytree.static(None)

    __repr__ = concise

    def __post_init__(self):
        for name in ("num_samples", "num_deployed"):
            count = getattr(self, name)
            is_left_out = name == "num_deployed" and count is None
            if not is_left_out and (not isinstance(count, int) or count < 1):
                raise ValueError(
                    f"{name}={count!r}: a whole number of at least 1 is needed."
                )
        if self.average not in AVERAGES:
            raise ValueError(f"average={self.average!r}: one of {AVERAGES} is needed.")
        # The dataclass is frozen; this only makes an older kind of key a typed one.
        object.__setattr__(self, "key", checks.typed_key(self.key))
        if self.key.shape != ():
            raise TypeError(
                f"key has shape {self.key.shape}: one PRNG key is needed, "
                "jax.random.key(seed)."
            )

    def __call__(self, x: Array) -> Array:
        """Return the averaged logits `[B, C]`, float32."""
        return self.averaged(self.draws(x))

    def draws(self, x: Array) -> Array:
        """Return the logits of each draw `[B, S, C]`, float32."""
        # One key for each example, spread over devices like the examples.
        of_example = _same_key if self.fixed else _fold_in_bits
        keys = jax.vmap(of_example, (None, 0))(self.key, x)

        def draw(sample: Array) -> Array:
            logits = self.model_fn(x, batching.fold_in(keys, sample))
            return logits.astype(jnp.float32)

        return jax.vmap(draw, out_axes=1)(jnp.arange(self.num_samples))

    def averaged(self, logits: Array) -> Array:
        """Return what the logits of the draws `[B, S, C]` are together, `[B, C]`."""
        if self.average == "logits":
            return jnp.mean(logits, 1)
        log_probs = jax.nn.log_softmax(logits)
        if self.average == "log_probs":
            return jnp.mean(log_probs, 1)
        return jax.nn.logsumexp(log_probs, 1) - np.log(logits.shape[1])


def eot(
    logits_fn: LogitsFn,
    transform: Callable[[Array, Array], Array],
    *,
    key: Array,
    num_samples: int = 16,
    average: str = "probs",
    fixed: bool = False,
    num_deployed: int | None = None,
) -> Expectation:
    """Return the expectation of a model over random transformations of its input.

    Athalye et al. 2018, arXiv:1707.07397: max over x' of E_t[log P(target | t(x'))], the
    turtle that is a rifle from every angle. What the logits are, and so what an attack
    maximises, depends on `average`:

    * `"probs"`, the log of the mean probability: the classifier that averages its
      predictions. Its cross-entropy, -log E[P(y)], climbs where a draw is still right and
      least sure of it, which is what counts in the end.
    * `"log_probs"`, the mean of log softmax. Its cross-entropy is that of the mean logits:
      draws with large logits drown the others. With `losses.negative_log_prob` it is the
      paper's objective.
    * `"logits"`, the mean: makes `losses.margin` of the mean, a lower bound of E[margin].

    `losses.expected(loss)` takes the loss of each draw and then the mean, whatever the
    average is; with `cross_entropy` it is the paper's objective again, and AutoAttack's. A
    random choice of two linear models, the surer of which cannot be broken: "probs" and the
    expected loss leave 50%, the optimum, "log_probs" and "logits" 100%
    (tests/surrogates/test_expectation.py).

    `jr.evaluate` knows the value that is returned, and judges points on draws that the
    attack has not seen. On your own, judge the result with another `key`.

    Args:
      logits_fn: Pure function from inputs `[B, ...]` to logits `[B, C]`.
      transform: Random differentiable map of one example, `(image, key) -> image`; see
        `jr.transforms`.
      key: A PRNG key.
      num_samples: Draws for each example at each iterate; memory grows with it.
      average: One of "probs", "log_probs", "logits".
      fixed: Common random numbers: the same draws at every iterate and for every
        example. A smooth deterministic function, which the attack may overfit.
      num_deployed: How many draws one prediction averages where the model is used, and so
        in `jr.evaluate`: 1 for a model that draws once, or an object seen once. By default
        num_samples.

    Returns:
      A `LogitsFn`; float32 logits.

    Raises:
      ValueError, TypeError: On settings that are not possible.

    Example:
      >>> import jax, jax.numpy as jnp, jaxrobust as jr
      >>> def shift(image, key):
      ...     return image + 0.1 * jax.random.normal(key)
      >>> model = eot(lambda x: x, shift, key=jax.random.key(0), num_samples=4)
      >>> x, y = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> print(jr.fgsm(model, x, y, threat=jr.Linf(0.25)).round(2))
      [[0.65 0.35]]
    """
    return Expectation(
        model_fn=_Transformed(logits_fn, transform),
        key=key,
        num_samples=num_samples,
        average=average,
        fixed=fixed,
        num_deployed=num_deployed,
    )


def randomized(
    model_fn: Callable[[Array, Array], Array],
    *,
    key: Array,
    num_samples: int = 16,
    average: str = "probs",
    fixed: bool = False,
    num_deployed: int | None = None,
) -> Expectation:
    """Return the expectation of a random model, such as one with dropout at test time.

    Athalye et al. 2018, arXiv:1802.00420, section 4.2: a random defence is attacked through
    its expectation. With `num_samples=1` this is the random model itself; where that is
    deployed, attack it with more, `num_samples=16, num_deployed=1`.

    Args:
      model_fn: `(x [1, ...], key) -> logits [1, C]`; called for one example at a time under
        `jax.vmap`, so that the draws of an example are its own.
      key: A PRNG key.
      num_samples: Draws for each example at each iterate; memory grows with it.
      average: What is averaged, see `eot`.
      fixed: Common random numbers, see `eot`.
      num_deployed: Draws that one prediction averages where the model is used, see `eot`.

    Returns:
      A `LogitsFn`; float32 logits.

    Raises:
      ValueError, TypeError: On settings that are not possible.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def dropout(x, key):
      ...     return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)
      >>> model = randomized(dropout, key=jax.random.key(0), average="logits",
      ...                    num_samples=1000)
      >>> print(model(jnp.ones((1, 2))).round())
      [[1. 1.]]
    """
    return Expectation(
        model_fn=_OneByOne(model_fn),
        key=key,
        num_samples=num_samples,
        average=average,
        fixed=fixed,
        num_deployed=num_deployed,
    )


@pytree.register
@dataclasses.dataclass(frozen=True)
class _Transformed:
    """`logits_fn` of transformed examples."""

    logits_fn: Callable
    transform: Callable

    def __call__(self, x: Array, keys: Array) -> Array:
        return self.logits_fn(jax.vmap(self.transform)(x, keys))


@pytree.register
@dataclasses.dataclass(frozen=True)
class _OneByOne:
    """A random model applied to each example with its own key."""

    model_fn: Callable

    def __call__(self, x: Array, keys: Array) -> Array:
        return jax.vmap(lambda image, key: self.model_fn(image[None], key)[0])(x, keys)


def _same_key(key: Array, example: Array) -> Array:
    del example
    return key


def _fold_in_bits(key: Array, example: Array) -> Array:
    """Fold 64 bits of hash of one example's numbers into its key."""
    example = jax.lax.stop_gradient(example).reshape(-1)
    example = jnp.where(example == 0, 0, example)  # -0.0 is 0.0
    width = {1: jnp.uint8, 2: jnp.uint16}.get(example.dtype.itemsize, jnp.uint32)
    bits: Any = jax.lax.bitcast_convert_type(example, width)
    bits = bits.reshape(-1).astype(jnp.uint32)
    place = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    # Sums of integers modulo 2^32 do not depend on the order of the reduction.
    for salt in (0x243F6A88, 0x85A308D3):  # digits of pi: two independent hashes
        mixed = _mix(_mix(bits ^ jnp.uint32(salt)) + place)
        key = jax.random.fold_in(key, jnp.sum(mixed, dtype=jnp.uint32))
    return key


def _mix(bits: Array) -> Array:
    """Apply the finaliser of MurmurHash3 (Appleby 2011): every bit reaches every bit."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
