# %% [markdown]
# # 4. The fast gradient sign method
#
# After this notebook you will be able to
#
# - attack a network with one line, and read the formula in it;
# - measure the error against $\epsilon$, and see where the linear picture of the loss holds and where
#   it ends;
# - aim an attack at a chosen class, and confine it to a region (the glasses).
#
# **Where the formulas come from.** FGSM: Goodfellow, Shlens & Szegedy 2015,
# [arXiv:1412.6572](https://arxiv.org/abs/1412.6572), section 4. The adversarial loss
# $\max_{\delta \in \Delta} \ell(f(x + \delta), y)$: Madry et al. 2018,
# [arXiv:1706.06083](https://arxiv.org/abs/1706.06083), eq. (2.1). The logits along the sign of the
# gradient: Goodfellow et al., figure 4. The glasses: Sharif et al. 2016, "Accessorize to a Crime",
# [doi:10.1145/2976749.2978392](https://doi.org/10.1145/2976749.2978392). These are rows 8, 9 and 11
# of the lecture.

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

# %% [markdown]
# ## A network to attack
#
# A small convolutional network, trained as usual. `jr.models.logits_fn` turns it into what
# every attack takes: a pure function from inputs to logits.

# %%
result = jr.training.fit(
    jr.models.create("small_convnet", input_shape=data.input_shape, num_classes=10),
    jr.training.standard(),
    optax.adam(3e-3),
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
# ## One step
#
# The adversary may add any $\delta$ from $\Delta = \{\delta : \|\delta\|_\infty \le \epsilon\}$ and wants the
# loss as large as possible:
#
# $$\ell_{\mathrm{adv}}(f; x, y) = \max_{\delta \in \Delta} \ell(f(x + \delta), y).$$
#
# A network is not linear, but one can pretend: to first order
# $\ell(x + \delta) \approx \ell(x) + \langle \nabla_x \ell, \delta \rangle$, and that is maximised over the ball as
# in notebook 3, by the sign:
#
# $$\delta = \epsilon \, \mathrm{sign}(\nabla_x \ell(f(x), y)).$$
#
# Written out in JAX, and by the library:

# %%
EPS = 0.15
threat = jr.Linf(EPS)  # the ball, cut by the bounds [0, 1] of the data


def total_loss(x):
    return jr.losses.cross_entropy(logits_fn(x), y).sum()


by_hand = jnp.clip(x + EPS * jnp.sign(jax.grad(total_loss)(x)), 0, 1)
x_adv = jr.fgsm(logits_fn, x, y, threat=threat)
print(f"largest difference {jnp.abs(x_adv - by_hand).max():.1g}")

# %% [markdown]
# `jr.evaluate` attacks a whole test set, recomputes the predictions on the points returned
# and audits that each lies in the ball and in the bounds.

# %%
report = jr.evaluate(logits_fn, x, y, attack=jr.FGSM(), threat=threat)
print(report)

# %%
fallen = np.flatnonzero(report.is_correct & ~report.is_robust)
axes = jr.plotting.gallery(report, x, index=fallen[:8])

# %% [markdown]
# Right when clean, and then wrong, often with confidence; vermillion marks the wrong ones. Which
# class becomes which?

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2))
jr.plotting.confusion(report, under_attack=False, ax=axes[0])
_ = jr.plotting.confusion(report, ax=axes[1])

# %% [markdown]
# ## Error against $\epsilon$
#
# A single $\epsilon$ says little. `eps` is an input of the compiled program and not a part of it, so that the
# whole curve compiles once. Random signs of the same size, for comparison, are noise that every pixel feels as much.

# %%
eps_values = np.linspace(0, 0.3, 13)
reports = [
    jr.evaluate(logits_fn, x, y, attack=jr.FGSM(), threat=jr.Linf(eps))
    for eps in eps_values
]
signs = jax.random.rademacher(jax.random.key(1), x.shape, x.dtype)
noisy = [
    logits_fn(jnp.clip(x + eps * signs, 0, 1)).argmax(-1) == y for eps in eps_values
]

ax = jr.plotting.robustness_curve(eps_values, np.stack(noisy), label="random signs")
ax = jr.plotting.robustness_curve(
    eps_values,
    np.stack([r.is_robust for r in reports]),
    label="FGSM",
    marker="s",
    ax=ax,
)
print(
    f"eps = {eps_values[-1]}: random signs {100 * float(noisy[-1].mean()):.1f}%, "
    f"FGSM {100 * reports[-1].robust_accuracy:.1f}%"
)

# %% [markdown]
# ## Along the gradient sign and across it
#
# Why does one step suffice? We walk through one image on the straight line
# $x + a \, \mathrm{sign}(\nabla_x \ell)$, and on a line of random signs, without any clipping.

# %%
i = int(np.flatnonzero(report.is_correct & ~report.is_robust)[0])
sign = jnp.sign(jax.grad(total_loss)(x)[i])
a = jnp.linspace(-0.3, 0.3, 121)


def walk(direction):
    return logits_fn(x[i] + a[:, None, None, None] * direction)


fig, axes = plt.subplots(1, 2, figsize=(9, 3.3), sharey=True)
titles = ("along the gradient sign", "along random signs")
for ax, direction, title in zip(axes, (sign, signs[i]), titles, strict=True):
    for label, logits in enumerate(walk(direction).T):
        is_label = label == int(y[i])
        ax.plot(
            a,
            logits,
            color=jr.plotting.COLORS["blue"] if is_label else "0.7",
            linewidth=2.2 if is_label else 1,
            zorder=3 if is_label else 2,
            label=f"class {label}, the true one" if is_label else None,
        )
    ax.set_title(title)
    ax.set_xlabel("step $a$ (units of the data)")
    ax.axvline(0, color="0.5", linestyle=":", linewidth=1)
axes[0].set_ylabel("logit")
_ = axes[0].legend()

# %% [markdown]
# Along the gradient sign the logits bend, but gently: over steps much larger than $\epsilon$ none turns back
# sharply, and that of the true class falls and falls. Along random signs it hardly moves. That is
# Goodfellow's explanation: not too much non-linearity, but too little. How good is the first-order prediction?

# %%
gradient = jax.grad(total_loss)(x)
print("eps     predicted gain    measured gain of the loss (mean over the images)")
for eps in (0.01, 0.03, 0.1, 0.2):
    free = jr.Linf(eps, bounds=None)
    moved = jr.fgsm(logits_fn, x, y, threat=free)
    gain = (total_loss(moved) - total_loss(x)) / len(x)
    predicted = eps * jnp.abs(gradient).sum() / len(x)
    print(f"{eps:<8}{predicted:10.3f}{gain:18.3f}")

# %% [markdown]
# The loss gains more than predicted. The logits bend gently, but their cross-entropy does not: where the network is sure it is flat, and its gradient underrates the step. The
# sign, which ignores the size, does not mind. Still, the gradient at $x$ is not the gradient on the
# way: several steps, each with its own, come in notebook 5.
#
# The same image on the plane of the two directions: $d_1$ is the gradient sign, $d_2$ the random signs. The
# dashed line is the ball, here a diamond: of two vectors of signs that agree in some pixels and differ
# in others, $\|a d_1 + b d_2\|_\infty = |a| + |b|$.

# %%
path = jnp.stack([x[i], x[i] + EPS * sign])
ax = jr.plotting.loss_surface(
    logits_fn,
    x[i],
    y[i],
    (sign, signs[i]),
    radius=0.25,
    paths={"FGSM": path},
    threat=jr.Linf(EPS, bounds=None),
)

# %% [markdown]
# ## A chosen class
#
# An attack maximises a loss; `jr.losses.targeted(loss)` is the negative of a loss at the target, so
# that maximising it draws the prediction there. The target takes the place of `y`
# (`jr.evaluate` takes it as `target=`). One step reaches it for
# some images, twenty small ones (`jr.PGD`, next notebook) at this radius for more.

# %%
target = jnp.full_like(y, 8)
loss = jr.losses.targeted(jr.losses.cross_entropy)
for attack in (jr.FGSM(loss=loss), jr.PGD(num_steps=20, loss=loss)):
    aimed = jr.evaluate(
        logits_fn,
        x,
        y,
        attack=attack,
        threat=threat,
        target=target,
        among=y != 8,  # an 8 cannot become one
        key=jax.random.key(2),
    )
    others = aimed.y != 8
    reached = 100 * (aimed.predicted_adv[others] == 8).mean()
    print(f"{attack!r}: {reached:.1f}% of the other digits became an 8")

axes = jr.plotting.gallery(aimed, x, index=np.flatnonzero(others)[:8])

# %% [markdown]
# ## Glasses
#
# Sharif et al. fooled face recognition with printed frames of glasses: large changes, but only
# on some pixels. A `mask` says which. Here the adversary owns a band across the image and may
# paint it at will ($\epsilon = 1$).

# %%
height, width, _ = data.input_shape
mask = np.zeros(data.input_shape, np.float32)
mask[height // 4 : height // 2] = 1
glasses = jr.Linf(1.0, mask=mask)
masked = jr.evaluate(
    logits_fn, x, y, attack=jr.PGD(num_steps=40), threat=glasses, key=jax.random.key(3)
)
print(
    f"{int(mask.sum())} of {mask.size} pixels; robust accuracy "
    f"{100 * masked.robust_accuracy:.1f}%; pixels changed outside: "
    f"{masked.audit['outside_mask']}"
)
axes = jr.plotting.gallery(masked, x, index=np.flatnonzero(masked.is_correct)[:8])

# %% [markdown]
# ## Not all classes break alike
#
# A good average hides weak groups. The report has the accuracy of each class.

# %%
mild = jr.evaluate(logits_fn, x, y, attack=jr.FGSM(), threat=jr.Linf(0.08))
rows = mild.per_class()
fig, ax = plt.subplots(figsize=(6, 3))
classes = np.array([row["class"] for row in rows])
for shift, kind, color in ((-0.2, "clean", "blue"), (0.2, "robust", "vermillion")):
    values = [100 * row[f"{kind}_accuracy"] for row in rows]
    ax.bar(classes + shift, values, 0.38, color=jr.plotting.COLORS[color], label=kind)
ax.set_xticks(classes)
ax.set_xlabel("class")
ax.set_ylabel("accuracy (%)")
ax.set_ylim(0, 118)
ax.set_title(r"FGSM, $\epsilon$ = 0.08")
ax.legend(ncols=2, loc="upper right")
weakest = min(rows, key=lambda row: row["robust_accuracy"])
print(
    f"all classes: {100 * mild.clean_accuracy:.1f}% clean, {100 * mild.robust_accuracy:.1f}% "
    f"robust; weakest: class {weakest['class']}, {100 * weakest['robust_accuracy']:.1f}% robust"
)

# %% [markdown]
# ## Exercises
#
# 1. **Without the sign.** Replace $\mathrm{sign}(\nabla \ell)$ by the gradient scaled to
#    $\|\delta\|_2 = \epsilon \sqrt d$ (`jr.L2`). Both perturbations have the same $\ell_2$ length, if nothing
#    is cut off at the bounds. Which one breaks more, and which one should?
# 2. **A cheap defence.** Round the inputs to black and white before the network:
#    `lambda x: logits_fn(jnp.round(x))`. What does FGSM find, and why is that no evidence of robustness?
# 3. **Smallest $\epsilon$.** For each image, find the smallest $\epsilon$ on a grid at which FGSM succeeds,
#    with one `jax.vmap` over `eps`. Is success monotone in $\epsilon$?
#
# <details><summary>Solutions</summary>
#
# 1. `jr.evaluate(logits_fn, x, y, attack=jr.FGSM(), threat=jr.L2(EPS * x[0].size**0.5))`. To first order
#    the $\ell_2$ step gains $\epsilon \sqrt d\, \|\nabla \ell\|_2 \ge \epsilon \|\nabla \ell\|_1$ (Cauchy-Schwarz):
#    at equal length the $\ell_2$ adversary is the stronger, since its ball contains the other.
# 2. The derivative of `round` is 0 almost everywhere: FGSM gets a zero gradient, does
#    not move, and reports the clean accuracy. Attack the network *without* the rounding and feed
#    the result to the one with it; notebook 7 is about such defences.
# 3. `jax.vmap(lambda e: jr.fgsm(logits_fn, x, y, threat=jr.Linf(e)))(eps_values)`. It need not be
#    monotone: one long step can overshoot a region of another class. The true worst case is
#    monotone, since the balls are nested; an attack only bounds it.
#
# </details>
