# %% [markdown]
# # 1. Optimisation
#
# After this notebook you will be able to
#
# - run gradient descent, SGD, momentum and Adam with optax, and read their paths;
# - choose a step size, recognise one that is too large, and compare measured with proven rates;
# - say at which stationary points gradient descent stops, and which of them it leaves.
#
# Everything later is built from this: an attack is an ascent with a projection, training is a descent.
#
# **Where the formulas come from.** Rates of gradient descent: Beck & Teboulle 2009,
# [doi:10.1137/080716542](https://doi.org/10.1137/080716542), theorem 3.1 with $g = 0$ (convex); Karimi, Nutini & Schmidt 2016,
# [arXiv:1608.04636](https://arxiv.org/abs/1608.04636), theorem 1 (strongly convex); Nesterov 2018, *Lectures on Convex
# Optimization*, section 1.2.3 (norm of the gradient). Stochastic gradients: Robbins & Monro 1951. Momentum: Polyak 1964. Adagrad: Duchi
# et al. 2011. RMSProp: Tieleman & Hinton 2012. Adam: Kingma & Ba 2015,
# [arXiv:1412.6980](https://arxiv.org/abs/1412.6980), algorithm 1. That gradient descent from a random
# start avoids strict saddles: Lee et al. 2016, [arXiv:1602.04915](https://arxiv.org/abs/1602.04915). These are
# rows 3 to 7 of the lecture.
#
# **New to JAX?** The README says in six lines what is different from NumPy.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxrobust as jr

DATASET = "digits"  # or "mnist", which needs the prepared data of tensorflow-datasets
jr.plotting.use_style()


def descend(function, start, optimizer, num_steps):
    """Return the iterates [num_steps + 1, ...] of an optax optimiser."""
    start = jnp.asarray(start, jnp.float32)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(function)(w), state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    # A compiled loop; what `step` returns second is stacked.
    _, path = jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)
    return jnp.concatenate([start[None], path])


# %% [markdown]
# ## Gradient descent and its step size
#
# $$w^{t+1} = w^t - \eta \nabla F(w^t).$$
#
# The first-order Taylor argument, $F(w - \eta \nabla F) \approx F(w) - \eta \|\nabla F\|^2$, promises descent
# for small $\eta$ only. How small, the curvature decides: on a quadratic whose largest
# curvature is $L$, each step multiplies the error in that direction by $1 - \eta L$. Up to $1/L$ it
# shrinks, between $1/L$ and $2/L$ it changes sign at every step and shrinks, beyond
# $2/L$ it grows.

# %%
L, MU = 10.0, 1.0


def bowl(w):
    return 0.5 * (MU * w[0] ** 2 + L * w[1] ** 2)


limits = ((-2.2, 2.2), (-1.2, 1.2))
fig, axes = plt.subplots(1, 4, figsize=(13, 2.8), sharey=True)
print("eta * L    F after 30 steps")
for ax, scale in zip(axes, (0.2, 1.0, 1.9, 2.05), strict=True):
    path = descend(bowl, [-2.0, 0.6], optax.sgd(scale / L), 30)
    jr.plotting.contour(bowl, {"path": path}, limits=limits, ax=ax)
    ax.get_legend().remove()
    ax.set_title(rf"$\eta = {scale} / L$")
    print(f"{scale:<11}{bowl(path[-1]):.2e}")
for ax in axes[1:]:
    ax.set_ylabel("")

# %% [markdown]
# Sweeping $\eta$ finely shows the edge at $2 / L$ as a cliff:

# %%
scales = np.linspace(0.02, 2.2, 60)
final = [
    float(bowl(descend(bowl, [-2.0, 0.6], optax.sgd(s / L), 50)[-1])) for s in scales
]
fig, ax = plt.subplots(figsize=(5, 3.2))
ax.semilogy(scales, np.maximum(final, 1e-12), ".-")
ax.axhline(float(bowl(jnp.array([-2.0, 0.6]))), color="0.6", linestyle=":")
ax.text(0.05, 8, "start", color="0.4")
ax.axvline(2, color="0.4", linestyle="--")
ax.text(2.03, 1e-7, "2", color="0.4")
ax.set_xlabel(r"step size $\eta L$")
_ = ax.set_ylabel("$F$ after 50 steps")

# %% [markdown]
# ## How fast: theory and measurement
#
# With $\eta = 1/L$, for a function whose gradient is $L$-Lipschitz, one can prove
#
# | $F$ | after $t$ steps |
# |---|---|
# | convex | $F(w^t) - F^\star \le \dfrac{L \|w^0 - w^\star\|^2}{2 t}$ |
# | $\mu$-strongly convex | $F(w^t) - F^\star \le \left(1 - \dfrac{\mu}{L}\right)^t (F(w^0) - F^\star)$ |
# | any, bounded below | $\min_{s < t} \|\nabla F(w^s)\|^2 \le \dfrac{2 L (F(w^0) - F^\star)}{t}$ |
#
# We measure all three. The convex function is Nesterov's chain, made to be hard for every
# gradient method; the non-convex one is $\sum_i w_i^2 / (1 + w_i^2)$, whose curvature is at most 2.

# %%
DIM = 200


def chain(w):  # L = 4 for this tridiagonal matrix, F* = -(1 - 1 / (d + 1)) / 2
    return 0.5 * (w[0] ** 2 + jnp.sum((w[1:] - w[:-1]) ** 2) + w[-1] ** 2) - w[0]


def ridge(w):
    return chain(w) + 0.05 * jnp.sum(w**2)


def valley(w):
    return jnp.sum(w**2 / (1 + w**2))


matrix = np.array(jax.hessian(chain)(jnp.zeros(DIM)), float)
unit = np.eye(DIM)[0]
w_star = {"convex": np.linalg.solve(matrix, unit)}
w_star["strongly convex"] = np.linalg.solve(matrix + 0.1 * np.eye(DIM), unit)
f_star = {name: -0.5 * w[0] for name, w in w_star.items()}  # -1/2 b^T A^-1 b
t = np.arange(1, 1001)

fig, axes = plt.subplots(1, 3, figsize=(12, 3.3))
for ax, (name, function, smooth, mu) in zip(
    axes,
    (("convex", chain, 4.0, 0.0), ("strongly convex", ridge, 4.1, 0.1)),
    strict=False,
):
    path = descend(function, np.zeros(DIM), optax.sgd(1 / smooth), 1000)
    gap = np.asarray(jax.vmap(function)(path), float) - f_star[name]
    bound = (
        smooth * np.sum(w_star[name] ** 2) / (2 * t)
        if mu == 0
        else ((1 - mu / smooth) ** t * gap[0])
    )
    plot = ax.loglog if mu == 0 else ax.semilogy
    plot(t, gap[1:], label="measured")
    plot(t, bound, "--", label="bound")
    ax.set_title(name)
    ax.set_ylabel("$F(w^t) - F^*$")
    # float32 resolves differences of about 1e-7 of F
    print(f"{name}: bound holds at every step: {bool((gap[1:] <= bound + 1e-6).all())}")
    if mu == 0:
        slope = np.log10(gap[1000] / gap[100])
        print(f"    slope from t = 100 to 1000: {slope:.2f}, of the bound: -1")
    else:
        ax.set_ylim(bottom=2e-7)

start = jax.random.normal(jax.random.key(0), (DIM,)) * 2
path = descend(valley, start, optax.sgd(0.5), 1000)
square = np.asarray(jax.vmap(lambda w: jnp.sum(jax.grad(valley)(w) ** 2))(path))
best = np.minimum.accumulate(square)[:-1]
bound = 2 * 2.0 * float(valley(start)) / t
axes[2].loglog(t, best, label="measured")
axes[2].loglog(t, bound, "--", label="bound")
axes[2].set_ylim(bottom=1e-9)
axes[2].set_title("non-convex")
axes[2].set_ylabel(r"smallest $\|\nabla F\|^2$ so far")
print(f"non-convex: bound holds at every step: {bool((best <= bound).all())}")
for ax in axes:
    ax.set_xlabel("step $t$")
    ax.legend()

# %% [markdown]
# The bounds are kept, and they are bounds: a particular function may well be easier. On the
# chain the slope is about $-1/2$ as long as $t \ll d^2$, flatter than that of the bound: the
# measured line starts far below, and the two may come closer only later.
#
# ## Where gradient descent stops
#
# For a non-convex function one can only promise a small gradient. What is a point with
# $\nabla F = 0$? For $f(w) = w^3 + w^2 - 5 w$ it is $w = 1$, a local minimum, or $w = -5/3$, a maximum;
# and $f$ has no global minimum at all.


# %%
def cubic(w):
    return w**3 + w**2 - 5 * w


grid = np.linspace(-3.4, 2.6, 300)
fig, ax = plt.subplots(figsize=(5.4, 3.4))
ax.plot(grid, cubic(grid), color="0.5")
for start, color in ((2.3, "blue"), (-1.6, "green"), (-1.75, "vermillion")):
    path = np.asarray(descend(cubic, start, optax.sgd(0.04), 25), float)
    path = path[
        np.maximum.accumulate(np.abs(path)) < 10
    ]  # a diverging one leaves the picture
    ax.plot(
        path,
        cubic(path),
        ".-",
        color=jr.plotting.COLORS[color],
        linewidth=1,
        label=f"from {start}",
    )
    print(f"from {start:5}: {path[-1]:.3g} after {len(path) - 1} steps")
ax.set_xlim(-3.4, 2.6)
ax.set_ylim(-14, 14)
ax.set_xlabel("$w$")
ax.set_ylabel("$f(w)$")
_ = ax.legend()

# %% [markdown]
# Two starts on either side of $-5/3$ end worlds apart: one at the local minimum, one on
# its way to $-\infty$.
#
# **Two saddles.** At the origin, both $w_1^2 - w_2^2$ and $w_1^2 + w_2^3$ have gradient zero and are not minima.
# From the first, gradient descent is driven away by the factor $1 + 2 \eta$ at every step, unless it starts exactly on the line
# $w_2 = 0$, which a random start does with probability 0. The noise of SGD leads off the line, too.
# The second is bad: every start with $w_2 \ge 0$ is drawn to the origin, if $\eta$ is small
# ($w_2 \le 1 / (3 \eta)$, otherwise the step jumps across), though only as slowly as $1 / t$: the
# Hessian there has no negative eigenvalue, so that the saddle is not strict.


# %%
def good_saddle(w):
    return w[0] ** 2 - w[1] ** 2


def bad_saddle(w):
    return w[0] ** 2 + w[1] ** 3


fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
starts = {
    good_saddle: {
        "on the line": [-0.9, 0.0],
        "beside it": [0.9, 1e-3],
        "random": [0.6, -0.1],
        "on the line, noisy": [-0.9, 0.0],
    },
    bad_saddle: {
        "above, right": [0.9, 0.8],
        "above, left": [-0.8, 0.5],
        "below": [0.5, -0.15],
    },
}
# As SGD's, the gradient is right on average only: it is off by 0.01 (variance 1e-4).
noise = optax.add_noise(1e-4, 0.0, jax.random.key(7))
for ax, (function, points) in zip(axes, starts.items(), strict=True):
    paths = {}
    for name, start in points.items():
        rule = optax.sgd(0.05)
        rule = optax.chain(noise, rule) if "noisy" in name else rule
        paths[name] = path = descend(function, start, rule, 60)
        end = ", ".join(f"{v:.3g}" for v in path[-1])
        print(f"{function.__name__:<12} {name:<18} ends at ({end})")
    jr.plotting.contour(function, paths, ax=ax)
axes[1].legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
axes[0].set_title("good saddle $w_1^2 - w_2^2$")
axes[1].set_title("bad saddle $w_1^2 + w_2^3$")

key = jax.random.key(1)
for function in (good_saddle, bad_saddle):
    points = jax.random.uniform(key, (1000, 2), minval=-1, maxval=1)
    ends = jax.vmap(lambda w, f=function: descend(f, w, optax.sgd(0.05), 300)[-1])(
        points
    )
    stuck = jnp.linalg.norm(ends, axis=1) < 0.1
    print(
        f"{function.__name__}: {100 * float(stuck.mean()):.1f}% of random starts are stuck"
    )

# %% [markdown]
# Noise helps at the bad saddle too: a single step to the other side, $w_2 < 0$, and descent takes
# over. In general, though, to tell a minimum from a saddle at a given stationary point is
# NP-hard (Murty & Kabadi 1987).

# %% [markdown]
# ## SGD against gradient descent, at equal cost
#
# For an average $F(w) = \frac1n \sum_i \ell_i(w)$, the gradient on a random batch is an unbiased estimate
# of $\nabla F$. It is noisy and cheap: one full gradient pays for $n / B$ batches. We train a linear
# classifier by both, and count gradients of single examples.

# %%
data = jr.data.load(DATASET).subset(1400, 360)
x = jnp.asarray(data.images(data.x_train)).reshape(1400, -1)
labels = jnp.asarray(data.y_train)


def risk(w, rows):
    logits = x[rows] @ w[:-1] + w[-1]
    return jr.losses.cross_entropy(logits, labels[rows]).mean()


def train(batch_size, rate, num_epochs=20, key=key):
    """Return the full risk after every epoch; `rate` is a function of the passes made."""
    num_steps = len(x) // batch_size

    def step(w, batch):
        rows, passes = batch
        return w - rate(passes) * jax.grad(risk)(w, rows), None

    @jax.jit
    def epoch(w, inputs):
        key, passes = inputs
        order = jax.random.permutation(key, len(x)).reshape(num_steps, batch_size)
        passes = passes + jnp.arange(num_steps) / num_steps
        w = jax.lax.scan(step, w, (order, passes))[0]
        return w, risk(w, jnp.arange(len(x)))

    w = jnp.zeros((x.shape[1] + 1, 10))
    inputs = jax.random.split(key, num_epochs), jnp.arange(num_epochs)
    return np.asarray(jax.lax.scan(epoch, w, inputs)[1])


fig, ax = plt.subplots(figsize=(5.4, 3.5))
constant = optax.schedules.constant_schedule
decaying = optax.schedules.cosine_decay_schedule(2.0, 20)
runs = (
    (1400, constant(0.5), "-", "gradient descent, $B = n = 1400$"),
    (100, constant(0.5), "--", "SGD, $B = 100$"),
    (10, constant(0.5), "-.", "SGD, $B = 10$"),
    (10, constant(2.0), ":", r"SGD, $B = 10$, $\eta$ four times as large"),
    (10, decaying, (0, (5, 1, 1, 1)), r"SGD, $B = 10$, $\eta$ decayed from there to 0"),
)
for batch_size, rate, style, label in runs:
    values = train(batch_size, rate)
    ax.semilogy(np.arange(1, 21), values, linestyle=style, label=label)
    print(
        f"B = {batch_size:4d}, eta = {rate(0):.1f} to {rate(20):.1f}: "
        f"risk {values[-1]:.3f} after 20 epochs"
    )
ax.set_ylim(bottom=0.002)
ax.set_xticks(range(0, 21, 5))
ax.set_xlabel("gradients of single examples, in passes over the data")
ax.set_ylabel("empirical risk (nats)")
_ = ax.legend(loc="lower left")

# %% [markdown]
# For the price of one step of gradient descent, SGD with batches of 10 takes 140. Four times the
# step is faster, and it jumps: with a constant step the noise sets a floor, higher for a larger step,
# to which the small one has not come down within 20 passes. So begin large and end small: a schedule.
#
# ## Momentum
#
# $$v \leftarrow \alpha v + \nabla F(w), \qquad w \leftarrow w - \eta v.$$
#
# In a long valley the gradient points across. Momentum averages that out and adds up what
# points along: it is a heavy ball that rolls, overshoots, and swings back with damped
# oscillations. On a quadratic it is stable up to $\eta < 2 (1 + \alpha) / L$: larger steps become usable.


# %%
def show(step_size, momentum, ax=None):
    path = descend(bowl, [-2.0, 0.6], optax.sgd(step_size, momentum=momentum), 40)
    ax = jr.plotting.contour(bowl, {"path": path}, limits=limits, ax=ax)
    ax.get_legend().remove()
    ax.set_title(
        rf"$\eta = {step_size:.2f}$, $\alpha = {momentum:.1f}$, $F$ = {bowl(path[-1]):.1e}"
    )
    return ax


fig, axes = plt.subplots(3, 3, figsize=(11.5, 6.6), sharex=True, sharey=True)
for row, momentum in zip(axes, (0.0, 0.5, 0.9), strict=True):
    for ax, step_size in zip(row, (0.02, 0.1, 0.25), strict=True):
        show(step_size, momentum, ax)
        ax.label_outer()

# %% [markdown]
# At $\eta = 0.25 = 2.5 / L$ plain gradient descent diverges and momentum converges. More is not
# always better: at $\eta = 0.1$ the heaviest ball swings for so long that it ends worse off than
# without momentum. In a running Jupyter, the next cell has sliders; on a web page the picture
# above must do.

# %%
try:
    import ipywidgets
except ImportError:
    print("pip install ipywidgets for the sliders")
else:
    ipywidgets.interact(
        lambda step_size, momentum: show(step_size, momentum) and None,
        step_size=ipywidgets.FloatSlider(value=0.1, min=0.01, max=0.4, step=0.01),
        momentum=ipywidgets.FloatSlider(value=0.5, min=0.0, max=0.95, step=0.05),
    )

# %% [markdown]
# ## Schedules and adaptive methods
#
# Adagrad, RMSProp and Adam scale each coordinate by the size of its past gradients, as if they
# straightened the valley. All are optax transformations, and so are schedules of the step size.
# One picture, on Rosenbrock's banana $(1 - w_1)^2 + 20 (w_2 - w_1^2)^2$; the minimum is at $(1, 1)$.


# %%
def banana(w):
    return (1 - w[0]) ** 2 + 20 * (w[1] - w[0] ** 2) ** 2


NUM_STEPS = 300
optimizers = {
    "gradient descent": optax.sgd(0.004),
    "momentum 0.9": optax.sgd(0.004, momentum=0.9),
    "Adagrad": optax.adagrad(0.5),
    "RMSProp": optax.rmsprop(0.03),
    "RMSProp, cosine decay": optax.rmsprop(
        optax.schedules.cosine_decay_schedule(0.03, NUM_STEPS)
    ),
    "Adam": optax.adam(0.1),
}
paths = {n: descend(banana, [-1.2, 1.0], o, NUM_STEPS) for n, o in optimizers.items()}

fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(1, 1.1))
jr.plotting.contour(
    banana,
    {n: p[::3] for n, p in paths.items()},
    limits=((-1.6, 1.4), (-0.5, 1.9)),
    levels=[0.1, 0.5, 2, 5, 15, 40, 90],
    ax=axes[0],
)
axes[0].get_legend().remove()
axes[0].plot(1, 1, "k*", markersize=11)
styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))
for (name, path), style in zip(paths.items(), styles, strict=True):
    values = np.maximum(np.asarray(jax.vmap(banana)(path)), 1e-7)
    axes[1].semilogy(values, linestyle=style, label=name)
    print(f"{name:<22} F = {values[-1]:.1e} after {NUM_STEPS} steps")
axes[1].set_xlabel("step")
axes[1].set_ylabel("$F$")
axes[1].set_ylim(1e-7, 1e2)
_ = axes[1].legend(loc="lower left", ncols=2)

# %% [markdown]
# No method wins everywhere: these step sizes were set by hand for this function, as they must
# be for any other. RMSProp with a constant step keeps jumping at the scale of its step;
# decayed to zero, it settles.
#
# ## Exercises
#
# 1. **Ascent.** An attack maximises. Which sign changes in `descend`? What does gradient ascent do at
#    $w_1^2 - w_2^2$?
# 2. **Projection.** Add a projection onto $\|w\|_\infty \le 0.5$ after each step on `bowl` shifted to have its
#    minimum at $(2, 1)$. Where does it end, and is the gradient zero there?
# 3. **The sign.** Replace $\nabla F$ by $\mathrm{sign}(\nabla F)$ (`optax.sign_sgd(0.07)`). Does it converge?
#
# <details><summary>Solutions</summary>
#
# 1. Update with $+\eta \nabla F$, or minimise $-F$. At the saddle the two axes change roles.
# 2. At the corner $(0.5, 0.5)$. The gradient is not zero; the step against it points out of the
#    box, and the projection undoes it. This is the picture of a finished PGD attack: notebook 5.
# 3. No: every step has the same length, and near the minimum it jumps to and fro at that
#    scale. With a decaying step size it does. PGD on $\ell_\infty$ is this method; there the
#    maximum usually lies in a corner of the ball, where the projection stops the jumping.
#
# </details>
