# %% [markdown]
# # 5. Projected gradient ascent
#
# After this notebook you will be able to
#
# - run PGD, read its update, and watch its path on the surface of the loss;
# - project onto $\ell_\infty$, $\ell_2$ and $\ell_1$ balls cut by the bounds of the data;
# - choose step size, number of steps and restarts, and tell when an attack has not converged.
#
# **Where the formulas come from.** PGD, its random start and its restarts: Madry et al. 2018,
# [arXiv:1706.06083](https://arxiv.org/abs/1706.06083), sections 2.1 and 5. Momentum: Dong et al. 2018,
# [arXiv:1710.06081](https://arxiv.org/abs/1710.06081), eq. (6). Steps for $\ell_1$: Croce & Hein 2021,
# [arXiv:2103.01208](https://arxiv.org/abs/2103.01208). This is row 15 of the lecture.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxrobust as jr

DATASET = "digits"  # or "mnist", which needs the prepared data of tensorflow-datasets
NUM_EPOCHS = {"digits": 30, "mnist": 3}[DATASET]

jr.plotting.use_style()
data = jr.data.load(DATASET).subset(None, 360)
x, y = jnp.asarray(data.images(data.x_test)), jnp.asarray(data.y_test)

result = jr.training.fit(
    jr.models.create("mlp", input_shape=data.input_shape, num_classes=10),
    jr.training.standard(),
    optax.adam(1e-3),
    data.x_train,
    data.y_train,
    num_epochs=NUM_EPOCHS,
    batch_size=50,
    key=jax.random.key(0),
    scale=data.scale,
    progress=False,
)
logits_fn = jr.models.logits_fn(result.last)
print(f"test accuracy {100 * float((logits_fn(x).argmax(-1) == y).mean()):.1f}%")

# %% [markdown]
# ## The update
#
# FGSM takes one step to the edge of the ball. PGD takes many small ones, from a random start,
# and after each returns to the ball by projection:
#
# $$x^0 = x + \mathrm{Unif}([-\epsilon, \epsilon]^d), \qquad
#   x^{t+1} = \Pi_{x + \Delta}\!\left(x^t + \alpha\, \mathrm{sign}(\nabla_x \ell(f(x^t), y))\right).$$
#
# The library's loop, `threat.project(x_adv + threat.steepest(grad, ...), x)`, is this formula
# for every norm: `steepest` is the step of length $\alpha$ that gains most to first order,
# `project` the nearest point that is allowed.

# %%
EPS = 0.15
threat = jr.Linf(EPS)
key = jax.random.key(1)


@jax.jit
def by_hand(x, y, keys):
    x_adv = threat.sample(keys, x)
    for _ in range(10):
        grad = jax.grad(lambda v: jr.losses.cross_entropy(logits_fn(v), y).sum())(x_adv)
        x_adv = threat.project(x_adv + threat.steepest(grad, x_adv, 0.03), x)
    return x_adv


attack = jr.PGD(num_steps=10, step_size=0.03, keep_best=False)
keys = jax.random.split(key, len(x))
x_adv = attack(logits_fn, x, y, threat=threat, key=keys)
same = (jnp.abs(x_adv - by_hand(x, y, keys)) < 1e-5).mean()
print(f"{100 * float(same):.2f}% of the pixels agree")

# %% [markdown]
# ## The path
#
# One image, five starts, five paths. The plane goes through $x$ and the ends of two of them, the best
# and the worst. The star is $x$, the dashed line the ball, the black line where the
# prediction changes. What leaves the plane is not seen, so that random starts look nearer
# than they are. Two random directions, on the right, show almost nothing of this: in so many
# dimensions a random direction is nearly at right angles to every path.

# %%
is_correct = np.asarray(logits_fn(x).argmax(-1) == y)
i = int(np.flatnonzero(is_correct)[2])
free = jr.Linf(EPS, bounds=None)
copies, labels = jnp.repeat(x[i : i + 1], 5, axis=0), jnp.repeat(y[i : i + 1], 5)
attack = jr.PGD(num_steps=10, step_size=0.04)
path = jr.plotting.iterates(attack, logits_fn, copies, labels, threat=free, key=key)
final = jr.losses.cross_entropy(logits_fn(path[-1]), labels)
shown = int(final.argmax()), int(final.argmin())
to_the_ends = tuple((path[-1, k] - x[i]) / EPS for k in shown)
at_random = tuple(jax.random.rademacher(jax.random.key(5), (2, *x[i].shape), x.dtype))

fig, axes = plt.subplots(1, 2, figsize=(10.5, 4))
for ax, plane in zip(axes, (to_the_ends, at_random), strict=True):
    jr.plotting.loss_surface(
        logits_fn,
        x[i],
        y[i],
        plane,
        radius=0.2,
        threat=free,
        paths={f"to {final[k]:.1f} nats": path[:, k] for k in shown},
        ax=ax,
    )
axes[0].set_title("the plane of two ends")
_ = axes[1].set_title("two random directions")

# %%
losses_on_path = jax.vmap(lambda v: jr.losses.cross_entropy(logits_fn(v), labels))(path)
fig, ax = plt.subplots(figsize=(4.8, 3.2))
ax.plot(losses_on_path, ".-", color=jr.plotting.COLORS["blue"], linewidth=1, alpha=0.8)
ax.set_xlabel("step $t$")
ax.set_ylabel("loss (nats)")
ax.set_title("five starts of one image")
print(
    f"at the end {losses_on_path[-1].min():.2f} to {losses_on_path[-1].max():.2f} nats"
)

# %% [markdown]
# Every end is a local maximum, and a lower bound of the global one; different starts may end at
# different ones, so the best counts. Madry et al. found in their figures 1 and 2 that on their networks the
# values are concentrated. Where they are not, restarts pay.
#
# ## The projection
#
# In two dimensions the sets can be drawn. The ball around $x$ is cut by the box $[0, 1]^2$;
# grey lines lead from points outside to their nearest point inside. The projections are
# Euclidean for every ball, and exact: clipping *after* scaling would give a feasible point, but
# for $\ell_2$ and $\ell_1$ not the nearest.

# %%
centre = jnp.array([[0.75, 0.6]])
outside = jax.random.uniform(jax.random.key(4), (14, 2), minval=-0.1, maxval=1.45)
balls = {
    r"$\ell_\infty$": jr.Linf(0.35),
    r"$\ell_2$": jr.L2(0.45),
    r"$\ell_1$": jr.L1(0.55),
}
fig, axes = plt.subplots(1, 3, figsize=(10, 3.5), sharey=True)
for ax, (name, ball) in zip(axes, balls.items(), strict=True):
    centres = jnp.broadcast_to(centre, outside.shape)
    inside = ball.project(outside, centres)
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-0.1, 1.5, 201)] * 2), -1).reshape(
        -1, 2
    )
    around = jnp.broadcast_to(centre, grid.shape)
    allowed = (ball.distance(grid, around) <= ball.eps) & (
        (grid >= 0) & (grid <= 1)
    ).all(-1)
    ax.contourf(
        *[np.linspace(-0.1, 1.5, 201)] * 2,
        allowed.reshape(201, 201),
        [0.5, 1.5],
        colors=[jr.plotting.COLORS["sky"]],
        alpha=0.35,
    )
    for p, q in zip(outside, inside, strict=True):
        ax.plot(*np.stack([p, q]).T, color="0.6", linewidth=1)
    ax.plot(*outside.T, "o", color=jr.plotting.COLORS["vermillion"], markersize=4)
    ax.plot(*inside.T, "o", color=jr.plotting.COLORS["blue"], markersize=4)
    ax.plot(*centre[0], "k*", markersize=10)
    ax.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], "k:", linewidth=1)
    ax.set_aspect("equal")
    ax.set_title(name)
    ax.set_xlabel("pixel 1")
_ = axes[0].set_ylabel("pixel 2")

# %% [markdown]
# ## Step size and number of steps
#
# Too small a step does not arrive. A large one may jump from corner to corner of the ball; on this
# network it does no harm, as the sign of the gradient hardly changes there. The table of both,
# with the accuracy that remains. `rel_step_size` is in units of $\epsilon$; its default,
# $2.5 / T$, lets a path cross the ball from any start. The step size is a traced number:
# each row compiles once.

# %%
num_steps = (1, 3, 10, 30)
step_sizes = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 2.0])
table = np.zeros((len(num_steps), len(step_sizes)))
milder = jr.Linf(0.1)
for r, steps in enumerate(num_steps):
    for c, size in enumerate(step_sizes):
        attack = jr.PGD(num_steps=steps, rel_step_size=size, keep_best=False)
        adv = attack(logits_fn, x, y, threat=milder, key=key)
        table[r, c] = 100 * float((logits_fn(adv).argmax(-1) == y).mean())

fig, ax = plt.subplots(figsize=(5.6, 3))
image = ax.imshow(table, cmap="cividis", aspect="auto")
for (r, c), value in np.ndenumerate(table):
    color = "black" if value > table.mean() else "white"
    ax.text(c, r, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
ax.set_xticks(range(len(step_sizes)), step_sizes)
ax.set_yticks(range(len(num_steps)), num_steps)
ax.set_xlabel(r"step size $\alpha / \epsilon$")
ax.set_ylabel("steps $T$")
ax.spines[:].set_visible(False)
_ = fig.colorbar(image, label="accuracy (%)")

# %% [markdown]
# Lower is better for the attack. With many steps a wide range of step sizes serves;
# with few, the path must be long enough, about $T \alpha \ge 2 \epsilon$.
#
# ## Restarts
#
# Each restart can only help: an example counts as broken when any of them breaks it. The gain
# shrinks from restart to restart, and if it does not, the attack has not converged.

# %%
pgd = jr.PGD(num_steps=10)
stands = np.ones(len(y), bool)
remaining = []
for r in range(10):
    adv = pgd(logits_fn, x, y, threat=milder, key=jax.random.fold_in(key, r))
    stands &= np.asarray(logits_fn(adv).argmax(-1) == y) & is_correct
    remaining.append(100 * stands.mean())
print("robust accuracy after 1 ... 10 restarts (%):", *(f"{v:.1f}" for v in remaining))

restarts = jr.evaluate(
    logits_fn, x, y, attack=jr.Restarts(pgd, 10), threat=milder, key=key
)
print(
    f"jr.Restarts(PGD, 10): {100 * restarts.robust_accuracy:.1f}%, "
    f"{restarts.cost['gradients']:,} gradients"
)

# %% [markdown]
# ## Three norms
#
# The same attack under $\ell_\infty$, $\ell_2$ and $\ell_1$. The radii are not comparable across norms; the
# pictures are. $\ell_\infty$ changes everything a little, $\ell_1$ a few pixels a lot. (Without
# `stop_early=False`, `jr.evaluate` would leave each image as soon as it is broken.)

# %%
shown = np.flatnonzero(is_correct)[:4]
fig, axes = plt.subplots(3, 12, figsize=(11.5, 3.4))
for k, (name, ball) in enumerate(
    {"linf": jr.Linf(0.15), "l2": jr.L2(1.0), "l1": jr.L1(5.0)}.items()
):
    report = jr.evaluate(
        logits_fn,
        x,
        y,
        attack=jr.PGD(num_steps=40),
        threat=ball,
        key=key,
        stop_early=False,
    )
    changed = np.abs(report.x_adv - x) > 0.01
    print(
        f"{name:<5} eps {ball.eps:<5} robust accuracy {100 * report.robust_accuracy:5.1f}%, "
        f"{changed.mean() * x[0].size:5.1f} pixels changed by more than 0.01"
    )
    jr.plotting.gallery(report, x, index=shown, axes=axes[:, 4 * k : 4 * k + 4])
for ax in axes[:, 4::4].ravel():
    ax.set_ylabel("")
for ax, name in zip(axes[0, ::4], balls, strict=True):
    ax.text(-0.35, 1.35, name, transform=ax.transAxes, fontsize=13)

# %% [markdown]
# ## Which optimiser ascends best?
#
# The attack is an optimisation like any other, and any optax transformation can be its rule.
# Here the steepest step of constant and of decaying size, momentum, Adam and plain
# gradient ascent are given 20 steps each; `iterates` shows how the mean loss grows.

# %%
decay = optax.schedules.cosine_decay_schedule(1.0, 20)
rules = {
    "sign, constant step": jr.PGD(num_steps=20, rel_step_size=0.25, keep_best=False),
    "sign, twice the step": jr.PGD(num_steps=20, rel_step_size=0.5, keep_best=False),
    "sign, cosine decay": jr.PGD(
        num_steps=20, rel_step_size=0.5, step_schedule=decay, keep_best=False
    ),
    "sign, momentum 0.75": jr.PGD(
        num_steps=20, rel_step_size=0.25, momentum=0.75, keep_best=False
    ),
    "Adam, 0.03": jr.PGD(num_steps=20, optimizer=optax.adam(0.03), keep_best=False),
    "plain gradient, 0.1": jr.PGD(
        num_steps=20, optimizer=optax.sgd(0.1), keep_best=False
    ),
}
fig, ax = plt.subplots(figsize=(6, 3.6))
styles = ("-", (0, (1, 2)), "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
for (name, attack), style in zip(rules.items(), styles, strict=True):
    path = jr.plotting.iterates(attack, logits_fn, x, y, threat=milder, key=key)
    values = [float(jr.losses.cross_entropy(logits_fn(v), y).mean()) for v in path]
    accuracy = 100 * float((logits_fn(path[-1]).argmax(-1) == y).mean())
    ax.plot(values, linestyle=style, label=name)
    print(f"{name:<22} final loss {values[-1]:.3f}, accuracy {accuracy:.1f}%")
ax.set_xticks(range(0, 21, 5))
ax.set_xlabel("step")
ax.set_ylabel("mean loss (nats)")
_ = ax.legend()

# %% [markdown]
# All rules whose steps have a fixed length end close together; the decaying one
# is fast because its first steps are twice as long, as is the constant one of that length. The plain gradient is slow where the model is sure of itself: there the loss is flat and its gradient
# tiny, and only the sign (or Adam's normalisation) keeps the step long. That is why the steepest
# step in the ball's own norm, and not the gradient, is the default.
#
# ## What it costs
#
# $T$ steps cost $T$ gradients for each example, restarts multiply it.

# %%
for attack in (jr.FGSM(), jr.PGD(num_steps=40), jr.Restarts(jr.PGD(num_steps=40), 10)):
    print(f"{attack!r}: {attack.total_cost()}")

# %% [markdown]
# ## Exercises
#
# 1. **The best iterate.** `keep_best=True` (the default) returns the best point of the path
#    instead of the last. When must it matter most? Compare both at `rel_step_size=2.0`.
# 2. **Another loss.** Cross-entropy saturates on a confident model. Scale the logits by
#    1000 (`lambda x: 1000 * logits_fn(x)`) and attack with `cross_entropy`, `margin` and
#    `dlr`. Which of them notice?
# 3. **The random start.** Attack with `random_start=False` and compare. Then make a model whose
#    gradient is zero at every test image, but not near it, and compare again.
#
# <details><summary>Solutions</summary>
#
# 1. Where the path does not settle. Not here: the last column of the table is the lowest, as the
#    signs of the gradient agree from step to step. On a model with a bent surface, such as the
#    FGSM-trained one of notebook 6, the last iterate can be worse than an earlier one. The best
#    one costs a forward pass more.
# 2. The predictions are the same, so the true robust accuracy is too. In float32 the softmax of
#    such logits is exactly one-hot, the gradient of the cross-entropy exactly 0, and PGD stays
#    where it started. The margin scales with the logits, of which the sign takes no notice; DLR is
#    invariant to the scale by construction.
# 3. On an ordinary network the start matters little. A model such as
#    `q + jnp.sign(x - q) * jax.nn.relu(jnp.abs(x - q) - 0.002)` with `q = jnp.round(16 * x) / 16`
#    before the network is flat around the grey levels of digits: without a random start the attack
#    sees a gradient of 0 and does not move; with one, most pixels have a gradient again, until
#    they land on a flat piece: the wider those are, the less PGD finds.
#
# </details>
