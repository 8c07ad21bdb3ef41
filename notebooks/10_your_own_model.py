# %% [markdown]
# # 10. Your own model
#
# After this notebook you will be able to
#
# - attack, evaluate and adversarially train a model of Flax NNX, Flax Linen, Equinox or Haiku, or a
#   bare function;
# - state what the adversary may do to data that are not images in $[0, 1]$;
# - spread an evaluation over several devices.
#
# **Where the formulas come from.** Nothing new: the min-max problem of Madry et al. 2018,
# [arXiv:1706.06083](https://arxiv.org/abs/1706.06083), eq. (2.1), and the advice on evaluations of Carlini et al.
# 2019, [arXiv:1902.06705](https://arxiv.org/abs/1902.06705). It is rows 9 and 12 of the lecture for your own
# function.

# %%
import warnings

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from jax.tree_util import Partial

import jaxrobust as jr

DATASET = "digits"  # or "mnist", which needs the prepared data of tensorflow-datasets
# Four virtual devices on one CPU, to try what several accelerators would do. It has to be said
# before JAX is used for the first time.
jax.config.update("jax_num_cpu_devices", 4)

jr.plotting.use_style()
data = jr.data.load(DATASET).subset(1437, 360)
x, y = jnp.asarray(data.images(data.x_train)), jnp.asarray(data.y_train)
x_test, y_test = jnp.asarray(data.images(data.x_test)), jnp.asarray(data.y_test)
threat = jr.Linf(0.1)
print(f"{jax.device_count()} devices")

# %% [markdown]
# ## What a model has to be
#
# **A pure function from inputs `[B, ...]` to logits `[B, C]`.** That is all.
#
# - *Logits*, not probabilities: a softmax flattens the loss, and with it the gradient.
# - *Pure*: the parameters go in with `jax.tree_util.Partial(apply, params)`. Such a function is
#   a pytree, so that new parameters of the same shapes compile nothing.
# - *In evaluation mode*: no dropout, running statistics in BatchNorm.
# - *With its preprocessing inside*: then $\epsilon$ is in the units of your data.
#
# One small network in five ways:


# %%
def nnx_model(seed):
    """Flax NNX: an adapter splits it into structure and arrays."""
    model = nnx.Sequential(
        nnx.Linear(x[0].size, 64, rngs=nnx.Rngs(seed)),
        nnx.relu,
        nnx.Linear(64, 10, rngs=nnx.Rngs(seed + 1)),
    )
    graph, params = nnx.split(model)
    return params, lambda params, x: nnx.merge(graph, params)(x.reshape(len(x), -1))


def linen_model(seed):
    """Flax Linen: apply takes the variables."""
    model = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(10)])
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    params = model.init(jax.random.key(seed), flat(x[:1]))
    return params, lambda params, x: model.apply(params, flat(x))


def equinox_model(seed):
    """Equinox: written for one example, so vmap; split into arrays and the rest."""
    model = eqx.nn.MLP(x[0].size, 10, 64, depth=1, key=jax.random.key(seed))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x.reshape(len(x), -1))

    return params, apply


def haiku_model(seed):
    """Haiku: transform, without the random key that this network does not need."""
    net = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([64, 10])(x.reshape(len(x), -1)))
    )
    return net.init(jax.random.key(seed), x[:1]), net.apply


def bare_model(seed):
    """No framework at all."""
    keys = jax.random.split(jax.random.key(seed))
    shapes = (x[0].size, 64), (64, 10)
    params = [
        jax.random.normal(k, s) * (2 / s[0]) ** 0.5
        for k, s in zip(keys, shapes, strict=True)
    ]

    def apply(params, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ params[0]) @ params[1]

    return params, apply


MODELS = {
    "Flax NNX": nnx_model,
    "Flax Linen": linen_model,
    "Equinox": equinox_model,
    "Haiku": haiku_model,
    "bare JAX": bare_model,
}

# %% [markdown]
# ## Train, attack, evaluate
#
# The same three lines serve them all. `objective` is a scalar function for `jax.grad` or `jax.value_and_grad`;
# `trained_fn` carries the gradient, `attacked_fn` is what the adversary sees.


# %%
def train(apply, params, objective, num_epochs=30, batch_size=50):
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(carry, batch):
        params, state = carry
        rows, key = batch

        def loss(params):
            attacked_fn = Partial(apply, jax.lax.stop_gradient(params))
            return objective(
                Partial(apply, params), attacked_fn, x[rows], y[rows], key=key
            )

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), metrics

    num_steps = num_epochs * (len(x) // batch_size)
    rows = jax.random.randint(jax.random.key(0), (num_steps, batch_size), 0, len(x))
    keys = jax.random.split(jax.random.key(1), num_steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), (rows, keys))
    return params


attack = jr.PGD(num_steps=20)
found = {}
for name, make in MODELS.items():
    params, apply = make(seed=0)
    params = train(apply, params, jr.training.standard())
    report = jr.evaluate(
        Partial(apply, params),
        x_test,
        y_test,
        attack=attack,
        threat=threat,
        key=jax.random.key(2),
    )
    found[name] = report
    print(
        f"{name:<11} clean {100 * report.clean_accuracy:5.1f}%, "
        f"under PGD {100 * report.robust_accuracy:5.1f}%"
    )

# %% [markdown]
# The frameworks start from different random weights, by different rules, hence the small differences; given equal
# weights, the library's tests find equal attacks. Now adversarial training of one of them: only the
# objective changes.

# %%
params, apply = equinox_model(seed=0)
objective = jr.training.adversarial(
    jr.PGD(num_steps=5, rel_step_size=0.4, keep_best=False), threat
)
robust = Partial(apply, train(apply, params, objective))
report = jr.evaluate(
    robust, x_test, y_test, attack=attack, threat=threat, key=jax.random.key(2)
)
print(report)

# %%
cells = {}
for name, r in (
    ("standard training", found["Equinox"]),
    ("adversarial training", report),
):
    cells[name] = {
        kind: (float(hits.mean()), *jr.evaluation.wilson(int(hits.sum()), len(hits)))
        for kind, hits in (("clean", r.is_correct), ("under PGD", r.is_robust))
    }
colors = {
    "clean": jr.plotting.COLORS["blue"],
    "under PGD": jr.plotting.COLORS["vermillion"],
}
ax = jr.plotting.accuracy_bars(cells, colors=colors)
_ = ax.set_title(rf"Equinox MLP, {DATASET}, $\epsilon$ = 0.1")

# %% [markdown]
# ## Data that are not images
#
# The adversary's limits belong to the data. Bounds can be one number for each feature,
# `None`, or half open; the mask says which features the adversary can change at all.
#
# Take a table of measurements with different units. Equal $\epsilon$ in every column would be
# meaningless; in standard deviations it has a meaning. So let the model take standardised
# features, and forbid the adversary to touch the first one, which it cannot change.

# %%
from sklearn.datasets import load_wine

table = load_wine()
order = jax.random.permutation(jax.random.key(0), len(table.target))
measured, labels = table.data[order], jnp.asarray(table.target)[order]
mean, std = measured[:120].mean(0), measured[:120].std(0)  # of the training rows
features = jnp.asarray((measured - mean) / std, jnp.float32)

weights = jnp.zeros((features.shape[1] + 1, 3))


def wine_logits(weights, x):
    return x @ weights[:-1] + weights[-1]


def wine_risk(weights):
    logits = wine_logits(weights, features[:120])
    return jr.losses.cross_entropy(logits, labels[:120]).mean() + 1e-3 * jnp.sum(
        weights**2
    )


for _ in range(300):
    weights = weights - 0.5 * jax.grad(wine_risk)(weights)

mask = np.ones(features.shape[1])
mask[0] = 0
wine_threat = jr.Linf(0.3, bounds=(features.min(0), features.max(0)), mask=mask)
wine = jr.evaluate(
    Partial(wine_logits, weights),
    features[120:],
    labels[120:],
    attack=attack,
    threat=wine_threat,
    key=jax.random.key(0),
)
print(
    f"{len(wine.y)} wines: clean {100 * wine.clean_accuracy:.1f}%, "
    f"under PGD {100 * wine.robust_accuracy:.1f}%"
)
print(
    f"changes of {table.feature_names[0]!r}: "
    f"{np.abs(wine.x_adv - np.asarray(features[120:]))[:, 0].max():.1g}"
)

# %% [markdown]
# ## Mistakes are caught
#
# The messages are meant to be read. Three usual mistakes:


# %%
def complain(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # to be printed here like an error
        try:
            call()
        except (ValueError, TypeError, UserWarning) as error:
            print(f"{type(error).__name__}: {error}\n")


options = dict(threat=threat, key=jax.random.key(0))
complain(lambda: attack(robust, 255 * x_test, y_test, **options))
complain(lambda: attack(lambda x: jax.nn.softmax(robust(x)), x_test, y_test, **options))
complain(lambda: attack(robust, x_test, y_test, threat=threat))

# %% [markdown]
# ## Several devices
#
# Examples are independent and each has its own key, so that a batch may be spread over any
# number of devices without changing a result. A `mesh` does it for `evaluate`; for a bare attack,
# shard the batch and JAX does the rest.

# %%
mesh = jax.make_mesh((jax.device_count(),), ("batch",))
spread = jr.evaluate(
    robust,
    x_test,
    y_test,
    attack=attack,
    threat=threat,
    key=jax.random.key(2),
    mesh=mesh,
)
agree = (spread.is_robust == report.is_robust).mean()
print(
    f"on {spread.settings['num_devices']} devices: robust accuracy "
    f"{100 * spread.robust_accuracy:.1f}%; {100 * agree:.1f}% of the examples agree with one device"
)

sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
x_adv = attack(
    robust,
    jax.device_put(x_test, sharding),
    jax.device_put(y_test, sharding),
    **options,
)
print("x_adv lies on", len(x_adv.sharding.device_set), "devices")

# %% [markdown]
# ## Before you report a figure
#
# - Attack with more than one attack and loss: `jr.autoattack()`. Do more steps or restarts lower the
#   figure? Then it had not converged.
# - Is the accuracy zero for a ball as large as the data? If it is not, something hides the gradient.
# - Was the model chosen on examples other than those of the report?
# - Give $\epsilon$, norm, bounds, attack and its settings, the number of examples and the
#   interval. `print(report)` shows them (of attack and threat, what differs from the defaults), `report.save(directory)` keeps
#   them.
#
# And show the curve over $\epsilon$. What breaks at one radius counts as broken at every larger one, and its random
# starts are others, so that its figure at 0.1 may differ from the report's by a point or two.

# %%
eps_values = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
ax = None
for name, logits_fn, marker in (
    (
        "standard training",
        Partial(apply, train(apply, params, jr.training.standard())),
        "o",
    ),
    ("adversarial training", robust, "s"),
):
    curve = jr.evaluation.robustness_curve(
        logits_fn,
        x_test,
        y_test,
        attack=attack,
        threat=threat,
        eps=eps_values,
        key=jax.random.key(3),
    )
    ax = jr.plotting.robustness_curve(
        curve.eps, curve.is_robust, label=name, marker=marker, ax=ax
    )
    print(name, [f"{100 * v:.1f}" for v in curve.robust_accuracy])

# %% [markdown]
# ## Exercises
#
# 1. **Yours.** Write a network of your own in your framework, and make the table of this notebook for it.
# 2. **Normalisation.** Put `(x - mean) / std` in front of the model. Why is it wrong to normalise the data first
#    and to keep `Linf(8 / 255)`? What would `eps` have to be?
# 3. **Dropout.** Leave dropout on in the model you attack. What does the library say, and why
#    does it matter?
#
# <details><summary>Solutions</summary>
#
# 1. If the model is not a pure function yet, look at the frameworks above; if an error message does not
#    say what to do, that is a bug of the library: please report it.
# 2. The ball would be in units of standard deviations and the bounds `(0, 1)` wrong. One would need
#    `eps / std` and `bounds=((0 - mean) / std, (1 - mean) / std)`, for each channel; putting the
#    normalisation into the function is simpler and cannot go wrong.
# 3. Equal inputs then give different outputs in one batch, which `jr.evaluate` notices and refuses. A
#    random model has to be attacked in expectation: `jr.randomized` and notebook 9.
#
# </details>
