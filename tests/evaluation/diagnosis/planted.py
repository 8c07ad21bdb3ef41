"""Defences that are broken on purpose, and sound models, on scikit-learn's digits.

Most defences stand in front of or behind the same undefended network, so that "broken"
means: about as weak as the network itself.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrobust as jr
from jaxrobust.evaluation.diagnosis import _strength

KEY = jax.random.key(0)
THREAT = jr.Linf(0.15)
NUM_TEST = 120
PGD = jr.PGD(num_steps=20)


class Data(NamedTuple):
    x_train: jax.Array  # [N, 8, 8, 1], in [0, 1]
    y_train: jax.Array
    x: jax.Array
    y: jax.Array


@functools.cache
def data() -> Data:
    digits = jr.data.load("digits").subset(num_test=NUM_TEST)
    x_train, x = (
        jnp.asarray(digits.images(v)) for v in (digits.x_train, digits.x_test)
    )
    return Data(x_train, jnp.asarray(digits.y_train), x, jnp.asarray(digits.y_test))


def mlp(params: Any, x: jax.Array, activation: Callable = jax.nn.relu) -> jax.Array:
    hidden = activation(x.reshape(len(x), -1) @ params[0] + params[1][None])
    return hidden @ params[2] + params[3][None]


def linear(params: Any, x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1) @ params[2] + params[3][None]


def conv_net(params: Any, x: jax.Array) -> jax.Array:
    maps = jax.lax.conv_general_dilated(
        x, params[4], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return mlp(params, jax.nn.relu(maps))


def k_winners(hidden: jax.Array) -> jax.Array:
    """Xiao et al. 2020, arXiv:1905.10510: all but the largest tenth are set to 0."""
    top = jax.lax.top_k(hidden, hidden.shape[-1] // 10)[0]
    return jnp.where(hidden >= top[..., -1:], hidden, 0)


@functools.cache
def train(
    apply: Callable = mlp,
    *,
    num_inputs: int = 64,
    num_classes: int = 10,
    adversarial: bool = False,
    transform: Callable | None = None,
) -> jax.tree_util.Partial:
    """Train on all training images at once with Adam: seconds."""
    keys = jax.random.split(jax.random.key(1), 4)
    width = 64 if apply is linear else 128
    params = [
        jax.random.normal(keys[0], (num_inputs, width)) / num_inputs**0.5,
        jnp.zeros(width),
        jax.random.normal(keys[1], (width, num_classes)) / width**0.5,
        jnp.zeros(num_classes),
        jax.random.normal(keys[2], (3, 3, 1, 8)) / 3,
    ]
    if apply is winners:
        params[4] = jax.random.normal(keys[2], (width, width)) / width**0.5
    optimizer = optax.adam(5e-3)
    used = data().y_train < num_classes
    x, y = data().x_train[used], data().y_train[used]

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jr.losses.cross_entropy(apply(params, x), y).mean()

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        x_now = x
        if transform is not None:
            x_now = jax.vmap(transform)(x, jax.random.split(key, len(x)))
        if adversarial:
            model = jax.tree_util.Partial(apply, params)
            attack = jr.FGSM(random_start=True)
            x_now = attack(model, x, y, threat=THREAT, key=key)
        grads = jax.grad(loss)(params, x_now)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params: Any) -> Any:
        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, jax.random.split(keys[3], 150))[0][0]

    return jax.tree_util.Partial(apply, run(params))


class Planted(NamedTuple):
    """A broken defence, what it fools, and what breaks it."""

    model: Callable  # what `diagnose` sees
    surrogate: Callable  # what the right attack differentiates
    attack: Any = PGD
    judge: Callable | None = None  # what counts in the end; None: the model


def in_front(defence: Callable, backward: Callable = lambda x: x) -> Planted:
    """A preprocessing before the undefended network; BPDA breaks it."""
    base = train()
    behind = jr.bpda(defence, backward=backward)
    return Planted(lambda x: base(defence(x)), lambda x: base(behind(x)))


LEVELS = jnp.linspace(1 / 16, 15 / 16, 8)


def thermometer(x: jax.Array) -> jax.Array:
    """Buckman et al. 2018 (ICLR): which levels are exceeded, averaged by the next layer."""
    return (x > LEVELS.reshape(1, 1, 1, -1)).astype(x.dtype).mean(-1, keepdims=True)


def soft_thermometer(x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(20 * (x - LEVELS.reshape(1, 1, 1, -1))).mean(
        -1, keepdims=True
    )


def cosine_matrix() -> np.ndarray:
    k, n = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    matrix = np.cos(np.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] /= 2**0.5
    return matrix.astype(np.float32)  # orthonormal DCT-II


def jpeg(x: jax.Array) -> jax.Array:
    """The 8 x 8 block of a JPEG: cosine transform, rounding, and back."""
    matrix, step = jnp.asarray(cosine_matrix()), 0.3
    spectrum = jnp.einsum("ki,lj,bijc->bklc", matrix, matrix, x)
    spectrum = step * jnp.round(spectrum / step)
    return jnp.einsum("ki,lj,bklc->bijc", matrix, matrix, spectrum)


def shattered(x: jax.Array) -> jax.Array:
    return x + 0.02 * jnp.sin(500 * x)  # a derivative between -9 and 11


def root(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x**2)  # 0 / 0 in the gradient where a pixel is black


def behind(change: Callable, loss: Any = None, undo: Callable | None = None) -> Planted:
    """A change of the logits of the undefended network; a loss or BPDA breaks it."""
    base, undo = train(), undo or change
    attack = PGD if loss is None else jr.PGD(num_steps=20, loss=loss)
    return Planted(lambda x: change(base(x)), lambda x: undo(base(x)), attack)


def stop_gradient() -> Planted:
    """The way through the network is cut; a second way leads elsewhere."""
    base, other = train(), train(linear)

    def model(x: jax.Array) -> jax.Array:
        return base(jax.lax.stop_gradient(x)) - 1e-3 * other(x)

    return Planted(model, base)


def random_model(model_fn: Callable, num_samples: int = 16) -> Planted:
    """A random defence: seen with one draw, broken through its expectation."""
    return Planted(
        jr.randomized(model_fn, key=jax.random.key(1), num_samples=1),
        jr.randomized(model_fn, key=jax.random.key(2), num_samples=num_samples),
        jr.PGD(num_steps=20, keep_best=False),  # the best would be the luckiest draw
        jr.randomized(model_fn, key=jax.random.key(3), num_samples=1),
    )


SHRINK = jax.tree_util.Partial(jr.transforms.resize_and_pad, low=0.75)


def random_resize() -> Planted:
    base = train(transform=SHRINK)
    return random_model(lambda x, key: base(SHRINK(x[0], key)[None]))


def dropout(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    def drop(hidden: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(key, 0.4, hidden.shape)
        return jnp.where(kept, jax.nn.relu(hidden) / 0.4, 0)

    return mlp(params, x, drop)


def dropout_at_test_time() -> Planted:
    return random_model(functools.partial(dropout, train().args[0]))


def winners(params: Any, x: jax.Array) -> jax.Array:
    """Two layers of winners: the pattern of the first changes with every step."""
    return mlp(params, x, lambda hidden: k_winners(k_winners(hidden) @ params[4]))


def random_search(logits_fn, x, y, *, threat, key):
    """Find adversarial examples without gradients, by 1,000 queries each."""
    keys = jax.random.split(key, len(x))
    return _strength._search(logits_fn, x, y, threat, keys, 1000)


def k_winners_take_all() -> Planted:
    model = train(winners)
    return Planted(model, model, random_search)


def host_noise() -> Planted:
    """Draws on the host at every call: compiled once, it looks deterministic."""
    base, generator = train(), np.random.default_rng(0)

    def model(x: jax.Array) -> jax.Array:
        return base(x + jnp.asarray(generator.normal(0, 0.2, x.shape), x.dtype))

    return Planted(model, base)


PLANTED: dict[str, Callable[[], Planted]] = {
    "quantised": lambda: in_front(lambda x: jnp.round(4 * x) / 4),
    "thermometer": lambda: in_front(thermometer, soft_thermometer),
    "jpeg": lambda: in_front(jpeg),
    "shattered": lambda: in_front(shattered),
    "nan_gradient": lambda: in_front(root),
    "saturated": lambda: behind(lambda z: 1e4 * z, jr.losses.dlr),
    "temperature": lambda: behind(lambda z: z / 0.01, jr.losses.margin),
    "softmax": lambda: behind(lambda z: jax.nn.softmax(9 * z), undo=lambda z: z),
    "rounded_logits": lambda: behind(jnp.round, undo=jr.bpda(jnp.round)),
    "stop_gradient": stop_gradient,
    "random_resize": random_resize,
    "dropout": dropout_at_test_time,
    "k_winners": k_winners_take_all,
    "host_noise": host_noise,
}


def tanh_net(params: Any, x: jax.Array) -> jax.Array:
    return mlp(params, x, jnp.tanh)


# Each with the number of classes.
SOUND: dict[str, tuple[Callable[[], Callable], int]] = {
    "linear": (lambda: train(linear), 10),
    "mlp": (train, 10),
    "adversarial": (lambda: train(adversarial=True), 10),
    "tanh": (lambda: train(tanh_net), 10),
    "conv": (lambda: train(conv_net, num_inputs=128), 10),
    "two_classes": (lambda: train(num_classes=2), 2),
}
