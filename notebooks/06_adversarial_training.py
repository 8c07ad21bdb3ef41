# %% [markdown]
# # 6. Adversarial training
#
# After this notebook you will be able to
#
# - justify the gradient of a min-max problem by Danskin's theorem, and see where it fails;
# - write the training loop in about thirty lines of optax;
# - read the table of standard, FGSM and PGD training, and recognise training that only *looks* robust.
#
# **Where the formulas come from.** The min-max problem: Madry et al. 2018,
# [arXiv:1706.06083](https://arxiv.org/abs/1706.06083), eq. (2.1); the table: their figure 4; Danskin's theorem: their
# appendix A. FGSM training: Goodfellow et al. 2015, [arXiv:1412.6572](https://arxiv.org/abs/1412.6572), section 6.
# Catastrophic overfitting: Wong, Rice & Kolter 2020, [arXiv:2001.03994](https://arxiv.org/abs/2001.03994),
# section 5. Gradients of robust models: Tsipras et al. 2019,
# [arXiv:1805.12152](https://arxiv.org/abs/1805.12152), figures 2 and 3. These are rows 12, 13, 16 and 17 of the lecture.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial

import jaxrobust as jr
from experiments import table

DATASET = "digits"  # or "mnist", which needs the prepared data of tensorflow-datasets
EPS = {"digits": 0.25, "mnist": 0.3}[DATASET]

jr.plotting.use_style()
data = jr.data.load(DATASET).subset(1437, 360)
x, y = jnp.asarray(data.images(data.x_train)), jnp.asarray(data.y_train)
x_test, y_test = jnp.asarray(data.images(data.x_test)), jnp.asarray(data.y_test)
threat = jr.Linf(EPS)

# %% [markdown]
# ## The problem
#
# Minimise over the parameters what the adversary maximises over the inputs:
#
# $$\min_\theta \; \frac1n \sum_i \phi_i(\theta), \qquad
#   \phi_i(\theta) = \max_{\delta \in \Delta} \ell(f_\theta(x_i + \delta), y_i).$$
#
# How does one differentiate a maximum? Danskin: if the maximiser $\delta^\star$ is unique, then
# $\nabla \phi(\theta) = \nabla_\theta\, \ell(f_\theta(x + \delta^\star), y)$ *with $\delta^\star$ held fixed*. The adversary moves with
# $\theta$, but to first order that changes nothing, as at a maximum it has nothing to gain.
#
# ## Danskin's theorem, checked
#
# For a linear classifier of two classes the maximiser is known exactly (notebook 3). We compare the
# derivative of $\phi$ in random directions, by finite differences, with the gradient at the
# maximiser, and, to see what goes wrong elsewhere, at the clean point and at a random point of the
# ball.

# %%
rows = np.flatnonzero(np.asarray(y) < 2)[:100]
x2, y2 = x[rows], y[rows]
free = jr.Linf(EPS, bounds=None)


def linear(params, x):
    return x.reshape(len(x), -1) @ params["w"] + params["b"]


def worst_points(params):
    return jr.certify.linear_worst_case(params["w"], params["b"], x2, y2, threat=free)[
        0
    ]


def risk(params, points):
    return jr.losses.cross_entropy(linear(params, points), y2).mean()


def phi(params):
    return risk(params, worst_points(params))


key = jax.random.key(0)
params = {"w": 0.3 * jax.random.normal(key, (x[0].size, 2)), "b": jnp.zeros(2)}
points = {
    "the maximiser": worst_points(params),
    "a random point": free.sample(jax.random.split(key, len(x2)), x2),
    "the clean point": x2,
}
gradients = {name: jax.grad(risk)(params, point) for name, point in points.items()}

step = 1e-2
finite, predicted = [], {name: [] for name in points}
for k in range(50):
    direction = {
        "w": jax.random.normal(jax.random.key(k), params["w"].shape)
        / params["w"].size ** 0.5,
        "b": jnp.zeros(2),
    }
    ahead, behind = (
        phi(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction))
        for s in (step, -step)
    )
    finite.append(float(ahead - behind) / (2 * step))
    for name, gradient in gradients.items():
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
        predicted[name].append(float(sum(jax.tree.leaves(products))))

limit = 1.1 * max(np.abs(finite).max(), *(np.abs(v).max() for v in predicted.values()))
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True)
for ax, (name, values) in zip(axes, predicted.items(), strict=True):
    ax.plot([-limit, limit], [-limit, limit], color="0.7", linewidth=1)
    ax.plot(finite, values, ".")
    ax.set_title(f"gradient at {name}")
    ax.set_xlabel(r"finite difference of $\phi$ (nats)")
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    error = np.abs(np.array(values) - finite).max()
    print(f"gradient at {name:<15} largest error {error:.4f} nats")
_ = axes[0].set_ylabel("predicted by the gradient (nats)")

# %% [markdown]
# At the maximiser the prediction is exact up to the finite difference; anywhere else it is
# the gradient of another function. So the inner maximisation has to be done well: a weak attack
# in training gives a wrong direction. And the theorem wants *the* maximiser. Where two
# points tie, $\phi$ has a kink, and only directional derivatives exist: the larger of the two.
#
# ## The loop
#
# `jr.training.adversarial(attack, threat)` is the inner maximum as a function to differentiate; it
# stops the gradient at $\delta^\star$. The loop around it is optax's, and here it is, whole:


# %%
def train(
    objective, num_epochs=40, batch_size=50, rate=3e-3, network="mlp", threat=threat
):
    model = jr.models.create(network, input_shape=data.input_shape, num_classes=10)
    graph, params = nnx.split(model)
    apply = lambda params, x: nnx.merge(graph, params)(x)  # noqa: E731
    optimizer = optax.adam(rate)

    def step(carry, batch):
        params, state = carry
        rows, key = batch

        def loss(params):
            attacked_fn = Partial(apply, jax.lax.stop_gradient(params))
            return objective(
                Partial(apply, params), attacked_fn, x[rows], y[rows], key=key
            )[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def epoch(carry, key):
        key_order, key_step, key_test = jax.random.split(key, 3)
        num_steps = len(x) // batch_size
        order = jax.random.permutation(key_order, len(x))[: num_steps * batch_size]
        batches = order.reshape(num_steps, -1), jax.random.split(key_step, num_steps)
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, accuracies(Partial(apply, carry[0]), key_test, threat)

    carry, history = (params, optimizer.init(params)), []
    for key in jax.random.split(jax.random.key(0), num_epochs):
        carry, row = epoch(carry, key)
        history.append({name: float(value) for name, value in row.items()})
    return Partial(apply, carry[0]), history


def accuracies(logits_fn, key, threat):
    """For the curves: accuracy on test images, clean and under two attacks."""
    points = {
        "natural": x_test,
        "FGSM": jr.fgsm(logits_fn, x_test, y_test, threat=threat),
        "PGD": jr.pgd(logits_fn, x_test, y_test, threat=threat, num_steps=10, key=key),
    }
    return {
        name: jnp.mean(logits_fn(p).argmax(-1) == y_test) for name, p in points.items()
    }


pgd = jr.PGD(num_steps=7, rel_step_size=0.35, keep_best=False)
objectives = {
    "standard": jr.training.standard(),
    "FGSM": jr.training.adversarial(jr.FGSM(), threat),
    "PGD": jr.training.adversarial(pgd, threat),
}
trained = {name: train(objective) for name, objective in objectives.items()}
models = {name: logits_fn for name, (logits_fn, _) in trained.items()}

# %% [markdown]
# ## The table
#
# Three trainings under three evaluations, as in figure 4 of Madry et al., and the lecture's four
# statements checked by the code of `python -m experiments.robustness_table`. PGD has 40 steps
# and 5 restarts here: the evaluation is stronger than any attack in training.

# %%
strong = jr.Restarts(jr.PGD(num_steps=40), 5)
columns, reports = {}, {}
for name, logits_fn in models.items():
    options = dict(threat=threat, key=jax.random.key(1), stop_early=False)
    reports[name] = {
        row: jr.evaluate(logits_fn, x_test, y_test, attack=attack, **options)
        for row, attack in (("FGSM", jr.FGSM()), ("PGD", strong))
    }
    columns[name] = table.column(reports[name])
    figures = (
        f"{row} {100 * c['accuracy']:.1f}%" for row, c in columns[name]["cells"].items()
    )
    print(f"{name} training:", ", ".join(figures))

cells = {
    f"{name} training": {
        row: tuple(cell.values()) for row, cell in column["cells"].items()
    }
    for name, column in columns.items()
}
colors = [jr.plotting.COLORS[c] for c in ("blue", "orange", "vermillion")]
ax = jr.plotting.accuracy_bars(cells, colors=dict(zip(table.ROWS, colors, strict=True)))
_ = ax.figure.suptitle(
    rf"{DATASET}, $\ell_\infty$, $\epsilon$ = {EPS}, {len(y_test)} test images"
)

# %%
for statement in table.check_statements(columns):
    print(
        "confirmed:    " if statement["is_confirmed"] else "not confirmed:",
        statement["statement"],
    )
    for part in statement["parts"]:
        a, b = (100 * v for v in part["figures"])
        print(
            f"     {'yes' if part['is_confirmed'] else 'no':<4}{part['claim']} ({a:.1f}, {b:.1f})"
        )

# %% [markdown]
# Small data and a small network do not repeat every line of a table made on CIFAR-10 with a wide
# ResNet; what fails is printed as failing.
#
# ## Training that only looks robust
#
# FGSM training asks for robustness to one step. A network can grant it in the wrong way, by
# bending the loss so that the one step misses, and is then open to PGD. We watch both accuracies
# while it trains.


# %%
def draw_history(history, ax):
    lines = {
        "natural": ("natural images", "-"),
        "FGSM": ("under FGSM", "--"),
        "PGD": ("under PGD, 10 steps", "-."),
    }
    epochs = np.arange(1, len(history) + 1)
    for (row, (label, style)), color in zip(lines.items(), colors, strict=True):
        values = [100 * h[row] for h in history]
        ax.plot(epochs, values, style, color=color, label=label)
    ax.set_xlabel("epoch")


fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for ax, name in zip(axes, ("FGSM", "PGD"), strict=True):
    draw_history(trained[name][1], ax)
    ax.set_title(f"{name} training")
axes[0].set_ylabel("test accuracy (%)")
axes[0].set_ylim(0, 101)
axes[0].legend(loc="center right", bbox_to_anchor=(1.0, 0.78))
for name in ("FGSM", "PGD"):
    first, last = trained[name][1][4], trained[name][1][-1]
    print(
        f"{name} training: FGSM minus PGD accuracy, epoch 5: "
        f"{100 * (first['FGSM'] - first['PGD']):.1f} points, at the end: "
        f"{100 * (last['FGSM'] - last['PGD']):.1f} points"
    )

# %% [markdown]
# Under FGSM training the two accuracies part: what the network learns is to defeat the sign step. Under PGD
# training the curves stay far closer together. A convolutional network, on digits in a larger ball, goes all the way.

# %%
wide = jr.Linf({"digits": 0.4, "mnist": 0.3}[DATASET])
objective = jr.training.adversarial(jr.FGSM(), wide)
options = dict(num_epochs=160, rate=1e-3, network="small_convnet", threat=wide)
_, history = train(objective, **options)

fig, ax = plt.subplots(figsize=(5.5, 3.4))
draw_history(history, ax)
ax.set_title(rf"FGSM training, small ConvNet, $\epsilon$ = {wide.eps}")
ax.set_ylabel("test accuracy (%)")
ax.set_ylim(-2, 101)
ax.legend(loc="center right")
for epoch in (1, 10, 40, 160):
    row = history[epoch - 1]
    figures = (f"{name} {100 * row[name]:.1f}%" for name in table.ROWS)
    print(f"epoch {epoch:>3}:", ", ".join(figures))

# %% [markdown]
# Whoever looks at the FGSM curve alone sees the best network of this notebook: on digits it ends *above* the curve of natural
# images. The network has learnt to read the label off the perturbation, which one step computes from the label (label
# leaking), and under PGD it is worth nothing. On larger problems a network that was robust at first can lose it all
# within an epoch, which Wong et al. named catastrophic overfitting.
#
# One image that the FGSM-trained network defends against FGSM and loses to PGD, on the plane of
# the two perturbations: $d_1$ is the gradient sign, $d_2$ what PGD has found, both divided by
# $\epsilon$. The ball is dashed, the black line the boundary of the true class.

# %%
i = int(
    np.flatnonzero(
        reports["FGSM"]["FGSM"].is_robust & ~reports["FGSM"]["PGD"].is_robust
    )[0]
)
fig, axes = plt.subplots(1, 3, figsize=(14, 3.8))
for ax, (name, logits_fn) in zip(axes, models.items(), strict=True):
    gradient = jax.grad(
        lambda v, f=logits_fn: jr.losses.cross_entropy(f(v[None]), y_test[i][None])[0]
    )
    sign = jnp.sign(gradient(x_test[i]))
    found = (reports[name]["PGD"].x_adv[i] - x_test[i]) / EPS
    jr.plotting.loss_surface(
        logits_fn,
        x_test[i],
        y_test[i],
        (sign, found),
        radius=0.35,
        threat=jr.Linf(EPS, bounds=None),
        ax=ax,
    )
    ax.set_title(f"{name} training")

# %% [markdown]
# ## What a robust network looks at
#
# The gradient of the loss with respect to the input shows which pixels matter. For the
# standard network it is spread over the whole image like noise; for the robust one it is nearly zero
# but for a few pixels, those in which this digit differs from another. (Each picture is scaled to its
# own largest value.)

# %%
shown = [int(np.flatnonzero(np.asarray(y_test) == label)[0]) for label in range(6)]
fig, axes = plt.subplots(4, 6, figsize=(8, 5.6))
for ax, i in zip(axes[0], shown, strict=True):
    ax.imshow(x_test[i, ..., 0], cmap="gray", vmin=0, vmax=1)
axes[0, 0].set_ylabel("image", fontsize=9)
for row, (name, logits_fn) in zip(axes[1:], models.items(), strict=True):

    def total(v, f=logits_fn):
        return jr.losses.cross_entropy(f(v), y_test[jnp.array(shown)]).sum()

    gradients = jax.grad(total)(x_test[jnp.array(shown)])
    for ax, gradient in zip(row, gradients[..., 0], strict=True):
        limit = float(jnp.abs(gradient).max()) + 1e-12
        ax.imshow(gradient, cmap="RdBu_r", vmin=-limit, vmax=limit)
    row[0].set_ylabel(f"{name}\ntraining", fontsize=9)
for ax in axes.ravel():
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)

# %% [markdown]
# And with a large $\epsilon$ a targeted attack on the robust network has to *draw*: it can no longer win by
# noise, and makes an image of the target class. Here every digit shall become a 0 under
# $\|\delta\|_2 \le 3$.

# %%
large = jr.L2(3.0)
loss = jr.losses.targeted(jr.losses.cross_entropy)
draw = jr.PGD(num_steps=60, rel_step_size=0.05, loss=loss, random_start=False)
fig, axes = plt.subplots(3, 6, figsize=(8, 4.3))
chosen = jnp.array(shown)
pictures = {"image": x_test[chosen]}
for name in ("standard", "PGD"):
    target = jnp.zeros(len(shown), jnp.int32)
    pictures[f"{name}\ntraining"] = draw(
        models[name], x_test[chosen], target, threat=large
    )
for row, (name, images) in zip(axes, pictures.items(), strict=True):
    for ax, image in zip(row, images[..., 0], strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_xticks([])
        ax.set_yticks([])
    row[0].set_ylabel(name, fontsize=9)

# %% [markdown]
# ## Exercises
#
# 1. **Fast is better than free.** Train with `jr.FGSM(random_start=True, rel_step_size=1.25)`, the remedy of
#    Wong et al. Does the gap between FGSM and PGD stay closed?
# 2. **Steps in training.** Train with PGD of 1, 2, 3 and 7 steps, `rel_step_size` about `2.5 / num_steps`.
#    How many do you need before more change nothing under the strong evaluation?
# 3. **Through the attack.** Danskin says to hold $\delta^\star$ fixed. For FGSM, what would
#    differentiating through $\epsilon\,\mathrm{sign}(\nabla_x \ell)$ add?
#
# <details><summary>Solutions</summary>
#
# 1. `train(jr.training.adversarial(jr.FGSM(random_start=True, rel_step_size=1.25), threat))`. Compare
#    `history[-1]`; the random start makes the same bent surface harder to exploit, and does not
#    exclude it: for large $\epsilon$ it comes back.
# 2. Use `objectives` as a pattern. Judge by `strong`, never by the attack that was trained on.
# 3. Nothing: the derivative of the sign is zero almost everywhere. With PGD's projections and
#    signs it is the same. Only attacks whose steps are smooth in the gradient ($\ell_2$) would add a term, and
#    at the exact maximiser that term vanishes.
#
# </details>
