# %% [markdown]
# # 3. Why linear models break
#
# After this notebook you will be able to
#
# - write down the worst perturbation of a linear classifier, and prove that nothing beats it;
# - say why many changes, each too small to see, add up: the square root of the dimension;
# - train a linear classifier against its exact adversary, with the inner maximum in closed
#   form.
#
# **Where the formulas come from.** The perturbation $-\epsilon\,\mathrm{sign}(w)$ and its effect
# $\epsilon \|w\|_1$: Goodfellow, Shlens & Szegedy 2015,
# [arXiv:1412.6572](https://arxiv.org/abs/1412.6572), section 3; the robust training loss:
# section 5. The experiment, 0 against 1: Kolter & Madry,
# [adversarial-ml-tutorial.org](https://adversarial-ml-tutorial.org), chapter 2. This is row
# 10 of the lecture.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxrobust as jr
from experiments import linear_mnist

DATASET = "digits"  # or "mnist", which needs the prepared data of tensorflow-datasets
EPS = {"digits": 0.3, "mnist": 0.2}[DATASET]

jr.plotting.use_style()
data = jr.data.load(DATASET)


def zeros_and_ones(x, y):
    return jnp.asarray(data.images(x[y < 2])), jnp.asarray(y[y < 2])


x, y = zeros_and_ones(data.x_train, data.y_train)
x_test, y_test = zeros_and_ones(data.x_test, data.y_test)
dim = x[0].size
print(f"{len(x)} training and {len(x_test)} test images of {dim} pixels in [0, 1]")

# %% [markdown]
# ## A linear classifier
#
# The model is $z = w^\top x + b$, and says 1 where $z > 0$. Written as logits
# $[0, z]$ it is a classifier like any other. We train it by SGD on the cross-entropy;
# `train` is the loop of the experiment `python -m experiments.linear_mnist`, from which
# the README's table comes too.

# %%
schedule = {
    "digits": dict(num_epochs=200, batch_size=50, learning_rate=0.3),
    "mnist": {},
}
config = linear_mnist.Config(dataset=DATASET, eps=EPS, **schedule[DATASET])
standard = linear_mnist.train(x, y, jr.training.standard(), config, seed=0)
logits_fn = jax.tree_util.Partial(linear_mnist.logits_fn, standard)

w = standard["w"].reshape(data.input_shape)[..., 0]
error = 100 * float((logits_fn(x_test).argmax(-1) != y_test).mean())
print(f"test error {error:.1f}%")
print(f"||w||_1 = {jnp.abs(w).sum():.1f}   ||w||_2 = {jnp.linalg.norm(w):.1f}")

# %% [markdown]
# ## The exact adversary
#
# The adversary may change every pixel by at most $\epsilon$. For an image of a 1 it wants
# $w^\top (x + \delta)$ small:
#
# $$\min_{\|\delta\|_\infty \le \epsilon} w^\top \delta
#   = -\epsilon \sum_i |w_i| = -\epsilon \|w\|_1,
#   \qquad \delta^\star = -\epsilon\,\mathrm{sign}(w).$$
#
# *Proof.* The sum is smallest where each term is, and $w_i \delta_i \ge -\epsilon |w_i|$ with
# equality at $\delta_i = -\epsilon\,\mathrm{sign}(w_i)$. $\square$ No search is needed and no better
# attack exists. `jr.certify.linear_worst_case` computes this maximiser for any norm,
# bounds and number of classes. As in the tutorial, the pixels may leave $[0, 1]$.

# %%
threat = jr.Linf(EPS, bounds=None)
weights = jnp.stack([jnp.zeros(dim), standard["w"]], axis=1)
bias = jnp.stack([jnp.zeros(()), standard["b"]])
x_adv, margin = jr.certify.linear_worst_case(
    weights, bias, x_test, y_test, threat=threat
)

clean_margin = jr.losses.margin(logits_fn(x_test), y_test)
gain = margin - clean_margin
print(f"clean error          {100 * float((clean_margin >= 0).mean()):5.1f}%")
print(f"error, exact attack  {100 * float((margin >= 0).mean()):5.1f}%")
print(f"gain of the attack   {gain.min():.3f} to {gain.max():.3f} in logit units")
print(f"eps ||w||_1          {EPS * jnp.abs(w).sum():.3f}")

# %% [markdown]
# Every image loses the same amount, $\epsilon \|w\|_1$: the attack does not look at the image at
# all, only at the weights and the label. FGSM and PGD, which know nothing of linearity,
# find the same point, and so they must: the gradient of the loss with respect to $x$ is a
# multiple of $w$ everywhere.

# %%
for name, attack in (("PGD", jr.PGD(num_steps=20)), ("FGSM", jr.FGSM())):
    report = jr.evaluate(
        logits_fn,
        x_test,
        y_test,
        attack=attack,
        threat=threat,
        key=jax.random.key(0),
        stop_early=False,
    )
    print(
        f"{name:<5} error {100 * (1 - report.adversarial_accuracy):.1f}%, "
        f"largest distance from x*: {np.abs(report.x_adv - x_adv).max():.2g}"
    )

fig, axes = plt.subplots(1, 2, figsize=(8, 3))
limit = float(jnp.abs(w).max())
image = axes[0].imshow(w, cmap="RdBu_r", vmin=-limit, vmax=limit)
fig.colorbar(image, ax=axes[0], label="logit units per unit of brightness")
axes[0].set_title("the weights $w$")
image = axes[1].imshow(-EPS * jnp.sign(w), cmap="RdBu_r", vmin=-0.4, vmax=0.4)
fig.colorbar(image, ax=axes[1], label="change of brightness")
axes[1].set_title(r"the attack on a 1, $-\epsilon\,\mathrm{sign}(w)$")
for ax in axes:
    ax.set_xticks([])
    ax.set_yticks([])

# %% [markdown]
# Below, what FGSM has made of six of them. (Pixels outside $[0, 1]$ are drawn as black or white.)

# %%
axes = jr.plotting.gallery(report, x_test, index=[0, 1, 2, 3, 4, 5])

# %% [markdown]
# ## Why small changes add up
#
# Suppose noise of the same size came at random instead: $\delta_i = \pm \epsilon$, with fair coins.
# Then $w^\top \delta$ has mean 0 and root mean square $\epsilon \|w\|_2$. The adversary gets $\epsilon \|w\|_1$.
# Cauchy and Schwarz bound the ratio,
#
# $$1 \le \frac{\|w\|_1}{\|w\|_2} \le \sqrt{d},$$
#
# and it is $\sqrt d$ when all weights are equally large. In high dimension, then, a classifier can
# shrug off noise and yet fall to a perturbation of the same size, pixel by pixel. We measure both
# on growing images: the same pictures, averaged down to fewer pixels, and a model for each.

# %%
growth = linear_mnist.measure_growth(config, (x, y), (x_test, y_test), threat)
axes = linear_mnist.draw_growth(growth)

for row in growth:
    ratio = row["shift"] / row["random_shift"]
    print(
        f"{row['dimension']:4d} pixels: worst case / random = {ratio:5.2f}, "
        f"sqrt(d) = {row['dimension'] ** 0.5:5.2f}, exact error {row['exact']:5.1f}%"
    )

# %% [markdown]
# Each size has a network of its own, so that $\|w\|_1$ need not rise from one to the next; what
# rises is its lead over the random change, by a factor that follows $\sqrt d$ from below (real
# weights are not all equally large).
#
# The effect does not need training or digits. Take random Gaussian weights and let only the
# dimension speak:

# %%
dims = 2 ** np.arange(2, 15)
key = jax.random.key(0)
ratios = []
for n in dims:
    v = jax.random.normal(jax.random.fold_in(key, int(n)), (int(n),))
    ratios.append(float(jnp.abs(v).sum() / jnp.linalg.norm(v)))

fig, ax = plt.subplots(figsize=(4.8, 3.2))
ax.loglog(dims, np.sqrt(dims), "--", color="0.5", label=r"$\sqrt{d}$, the upper bound")
ax.loglog(dims, ratios, "o", label="Gaussian weights")
ax.loglog(dims, np.sqrt(2 * dims / np.pi), label=r"$\sqrt{2 d / \pi}$, their limit")
ax.set_xlabel("dimension $d$")
ax.set_ylabel(r"$\|w\|_1 / \|w\|_2$")
_ = ax.legend()

# %% [markdown]
# ## Robust training in closed form
#
# Because the inner maximum is known, the min-max problem becomes a plain minimisation. With
# $s = \pm 1$ for the two classes,
#
# $$\min_{w, b} \sum_i \max_{\|\delta\|_\infty \le \epsilon}
#   \log\!\left(1 + e^{-s_i (w^\top (x_i + \delta) + b)}\right)
#   = \min_{w, b} \sum_i \log\!\left(1 + e^{-s_i (w^\top x_i + b) + \epsilon \|w\|_1}\right).$$
#
# The penalty $\epsilon \|w\|_1$ stands *inside* the logarithm: unlike in the lasso, it fades for
# an example whose margin is large enough, and presses where it matters. Below, the loss in closed
# form and the objective `adversarial(FGSM())` are the same number, and so are their gradients.


# %%
def closed_form(params):
    sign = 2.0 * y - 1
    z = sign * (x.reshape(len(x), -1) @ params["w"] + params["b"])
    return jnp.mean(jax.nn.softplus(-(z - EPS * jnp.abs(params["w"]).sum())))


objective = jr.training.adversarial(jr.FGSM(), threat=threat)


def by_attack(params):
    trained_fn = jax.tree_util.Partial(linear_mnist.logits_fn, params)
    attacked_fn = jax.tree_util.Partial(
        linear_mnist.logits_fn, jax.lax.stop_gradient(params)
    )
    return objective(trained_fn, attacked_fn, x, y)[0]


(a, grad_a), (b, grad_b) = (
    jax.value_and_grad(f)(standard) for f in (closed_form, by_attack)
)
print(f"closed form {a:.5f}, by attack {b:.5f}")
print(
    f"largest difference of the gradients {jnp.abs(grad_a['w'] - grad_b['w']).max():.2g}"
)

# %%
robust = linear_mnist.train(x, y, objective, config, seed=0)
print("training      clean error   exact attack   ||w||_1   ||w||_2")
for name, params in (("standard", standard), ("robust", robust)):
    figures = linear_mnist.errors(params, x_test, y_test, threat)
    l1, l2 = (float(jnp.linalg.norm(params["w"], order)) for order in (1, 2))
    print(
        f"{name:<14}{figures['clean']:9.1f}%{figures['exact']:14.1f}%{l1:11.1f}{l2:10.1f}"
    )

# %%
eps_values = np.linspace(0, 0.6, 13)
fig, axes = plt.subplots(1, 3, figsize=(10, 3), width_ratios=(1, 1, 1.5))
for ax, params, name in zip(
    axes, (standard, robust), ("standard", "robust"), strict=False
):
    image = np.asarray(params["w"]).reshape(data.input_shape)[..., 0]
    limit = np.abs(image).max()
    ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_title(f"$w$, {name} training")
    ax.set_xticks([])
    ax.set_yticks([])
    weights = jnp.stack([jnp.zeros(dim), params["w"]], axis=1)
    bias = jnp.stack([jnp.zeros(()), params["b"]])
    margins = [
        jr.certify.linear_worst_case(
            weights, bias, x_test, y_test, threat=jr.Linf(e, bounds=None)
        )[1]
        for e in eps_values
    ]
    jr.plotting.robustness_curve(
        eps_values,
        np.stack(margins) < 0,
        label=f"{name} training",
        ax=axes[2],
        marker="o" if name == "standard" else "s",
    )
axes[2].axvline(EPS, color="0.6", linestyle=":", linewidth=1)
_ = axes[2].set_title("under the exact attack")

# %% [markdown]
# The curves are exact, not estimates by an attack: no adversary in the ball does better.
#
# What has the robust model learned? A pixel whose mean differs by less than $2 \epsilon$ between zeros
# and ones is worthless against this adversary, who moves both classes by $\epsilon$ towards each
# other, past the meeting point. The robust model puts more of its weight on the pixels beyond:

# %%
difference = jnp.abs(x[y == 1].mean(0) - x[y == 0].mean(0)).reshape(-1)
is_useful = difference > 2 * EPS
print(
    f"{int(is_useful.sum())} of {dim} pixels differ by more than 2 eps = {2 * EPS:.1f}"
)
for name, params in (("standard", standard), ("robust", robust)):
    size = jnp.abs(params["w"])
    print(
        f"{name:<9}has {100 * float(size[is_useful].sum() / size.sum()):.0f}% of ||w||_1 there"
    )

# %% [markdown]
# ## Exercises
#
# 1. **Another norm.** What is the worst perturbation with $\|\delta\|_2 \le \epsilon$, and what does it
#    gain? Why is there no $\sqrt d$ now? Check with `jr.L2(EPS, bounds=None)`.
# 2. **Bounds.** Let pixels stay in $[0, 1]$ (`bounds=(0.0, 1.0)`). Is the attack still exact? Does it
#    still gain the same on every image?
# 3. **Sparsity.** An adversary with $\|\delta\|_1 \le \epsilon$ may spend everything on one pixel. Which
#    norm of $w$ does it gain, and which one should robust training penalise?
#
# <details><summary>Solutions</summary>
#
# 1. By Cauchy-Schwarz $\delta^\star = -\epsilon\, w / \|w\|_2$, which gains $\epsilon \|w\|_2$: the dual norm
#    of $\ell_2$ is $\ell_2$. The dimension hides in $\epsilon$ instead: an $\ell_\infty$ ball of radius
#    $\epsilon$ contains points of $\ell_2$ norm $\epsilon \sqrt d$.
# 2. Yes: the problem still splits into one for each pixel, and the best choice is to move
#    as far as $\epsilon$ and the bounds allow. The gain is now
#    $\sum_i |w_i| \min(\epsilon, \text{room}_i(x))$, which depends on the image: a white pixel
#    cannot become whiter.
# 3. It gains $\epsilon \|w\|_\infty$, by changing the pixel of the largest weight. Robust training
#    penalises the largest weight, and so spreads the evidence over many pixels, the opposite
#    of what the $\ell_\infty$ adversary asks for.
#
# </details>
