# %% [markdown]
# # 7. Obfuscated gradients: a cautionary tale
#
# After this notebook you will be able to
#
# - build three defences that FGSM and PGD believe, and say why each is broken;
# - find out with `jr.diagnose` that a figure is not to be believed, and why;
# - choose the attack that breaks it: BPDA, expectation over the randomness, another loss, or queries alone.
#
# **Where the formulas come from.** The three kinds of obfuscated gradients, BPDA and attacks in expectation:
# Athalye, Carlini & Wagner 2018, [arXiv:1802.00420](https://arxiv.org/abs/1802.00420), sections 3 and 4. What an
# evaluation has to check: Carlini et al. 2019, [arXiv:1902.06705](https://arxiv.org/abs/1902.06705). The DLR
# loss: Croce & Hein 2020, [arXiv:2003.01690](https://arxiv.org/abs/2003.01690), eq. (6). Square: Andriushchenko et al. 2020,
# [arXiv:1912.00049](https://arxiv.org/abs/1912.00049). This is row 14 of the lecture.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxrobust as jr

DATASET = "digits"  # or "mnist", which needs the prepared data of tensorflow-datasets
NUM_EPOCHS = {"digits": 30, "mnist": 3}[DATASET]
EPS = 0.15

jr.plotting.use_style()
data = jr.data.load(DATASET).subset(None, 200)
x, y = jnp.asarray(data.images(data.x_test)), jnp.asarray(data.y_test)
threat = jr.Linf(EPS)
key = jax.random.key(1)

result = jr.training.fit(
    jr.models.create("mlp", input_shape=data.input_shape, num_classes=10),
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
undefended = jr.models.logits_fn(result.last)


def correct(model, x_adv):
    return np.asarray(model(x_adv).argmax(-1) == y)


def attacked(attack, model, judge=None):
    """Which images `judge` still gets right, if `attack` differentiates `model`."""
    x_adv = attack(model, x, y, threat=threat, key=key)
    return correct(judge or model, x_adv)


def percent(hits):
    return f"{100 * hits.mean():.1f}%"


fgsm, pgd = jr.FGSM(), jr.PGD(num_steps=20)
print(f"undefended: clean {percent(correct(undefended, x))}")
print(f"            FGSM  {percent(attacked(fgsm, undefended))}")
print(f"            PGD   {percent(attacked(pgd, undefended))}")

# %% [markdown]
# ## The tale
#
# Standard training only, so nothing about this network is robust. Below we put three "defences" around it,
# and *train nothing more*. Each changes how the gradient looks and not much of what the network knows. Of nine
# defences accepted at ICLR 2018, Athalye et al. found seven to rely on obfuscated gradients; they broke
# six of these completely and one in part. They name three kinds:
#
# | kind | here | the gradient is |
# |---|---|---|
# | shattered | inputs rounded to five levels | zero almost everywhere |
# | stochastic | every pixel hidden with probability 1/2 | that of one draw |
# | vanishing | logits times 1000 | zero in float32, where the prediction is right |
#
# ## What is believed
#
# A hurried evaluation: clean accuracy, FGSM, PGD with 20 steps, both on the cross-entropy. The random model votes
# over 16 draws; the hurried adversary fixes one draw "for reproducibility". Believed is the lower of the two figures.


# %%
def rounded(x):
    return jnp.round(4 * x) / 4


def hide_pixels(image, key):
    """Set each pixel of one image to zero with probability 1/2, else double it."""
    return 2 * image * jax.random.bernoulli(key, 0.5, image.shape)


def quantised(x):
    return undefended(rounded(x))


def saturated(x):
    return 1000 * undefended(x)


def voting(seed):
    return jr.eot(
        undefended,
        hide_pixels,
        key=jax.random.key(seed),
        num_samples=16,
        average="probs",
    )


one_draw = jr.eot(
    undefended, hide_pixels, key=jax.random.key(5), num_samples=1, fixed=True
)
# What the adversary differentiates, and what counts in the end.
defences = {
    "quantised": (quantised, quantised),
    "random": (one_draw, voting(seed=6)),
    "saturated": (saturated, saturated),
}
clean, believed = {}, {}
print("defence     clean    FGSM     PGD")
for name, (seen, judge) in defences.items():
    clean[name] = correct(judge, x)
    by_fgsm, by_pgd = attacked(fgsm, seen, judge), attacked(pgd, seen, judge)
    believed[name] = min(by_fgsm, by_pgd, key=np.mean)
    print(f"{name:<10}", *(f"{percent(h):>7}" for h in (clean[name], by_fgsm, by_pgd)))

# %% [markdown]
# From a few per cent to more than half of the test images, for a line of code each. That should make you suspicious.
#
# ## Diagnosis
#
# `jr.diagnose` looks for what must not be: gradients of zero or NaN, saturated outputs, random outputs, attacks with
# more steps or a larger ball that do no better, queries that beat gradients. First the control: the undefended
# network is weak, and nothing hides it.

# %%
few = 60  # images; the diagnosis runs about ten attacks


def diagnose(model):
    return jr.diagnose(
        model,
        x[:few],
        y[:few],
        threat=threat,
        key=key,
        num_steps=10,
        num_queries=100,
    )


diagnoses = {"undefended": diagnose(undefended)}
print(diagnoses["undefended"])

# %%
for name, (_, judge) in defences.items():
    diagnoses[name] = diagnose(judge)
    print(f"{name}:")
    for check in diagnoses[name]:
        if check.verdict == "fail":
            print(f"  {check.name:<18} {check.finding}")

# %% [markdown]
# The whole diagnosis also has the limits and, below, what to do about each check that fails:

# %%
print(diagnoses["quantised"])

# %% [markdown]
# ## Shattered gradients: the staircase
#
# Rounding is flat between its jumps. From a random start, along the direction that FGSM would take on the undefended
# network, the loss of the quantised one is a staircase: it climbs, and its derivative is zero.

# %%
i = int(np.flatnonzero(correct(undefended, x) & ~attacked(fgsm, undefended))[0])


def loss_of(model):
    return lambda v: jr.losses.cross_entropy(model(v[None]), y[i][None])[0]


start = threat.sample(jax.random.split(key, 1), x[i : i + 1])[0]
t = jnp.linspace(0, EPS, 301)
direction = jnp.sign(jax.grad(loss_of(undefended))(start))
line = jnp.clip(start + t[:, None, None, None] * direction, 0, 1)
fig, ax = plt.subplots(figsize=(5.4, 3.2))
for name, model, style in (
    ("undefended", undefended, "--"),
    ("quantised", quantised, "-"),
):
    values = jax.vmap(loss_of(model))(line)
    slope = jnp.abs(jax.vmap(jax.grad(loss_of(model)))(line)).max()
    ax.plot(t, values, style, label=name)
    print(
        f"{name:<10} loss {values[0]:.3f} to {values[-1]:.3f} nats, "
        f"largest derivative on the line {slope:.3g}"
    )
ax.set_xlabel("distance along the direction of FGSM (units of the data)")
ax.set_ylabel("loss (nats)")
_ = ax.legend()

# %% [markdown]
# **Backward pass differentiable approximation.** Compute the rounding forward, and differentiate something
# smooth in its place,
#
# $$g(x) \text{ forward}, \qquad \nabla_x g(x) \approx \nabla_x h(x) \text{ backward}, \qquad h(x) \approx g(x).$$
#
# For rounding $h(x) = x$ will do, the default of `jr.bpda`.


# %%
def through_rounding(x):
    return undefended(jr.bpda(rounded)(x))


broken = {"quantised": attacked(pgd, through_rounding, judge=quantised)}
print(f"PGD             {percent(attacked(pgd, quantised))}")
print(f"PGD with BPDA   {percent(broken['quantised'])}")

# %% [markdown]
# ## Stochastic gradients: the expectation
#
# The gradient of one draw sees only the pixels of that draw. The one to follow is that of the expected
# loss, $\nabla_x \mathbb{E}_t[\ell(f(t(x)), y)] = \mathbb{E}_t[\nabla_x \ell(f(t(x)), y)]$, estimated with $n$ draws. How well do the estimates
# point, compared with 256 other draws?


# %%
def draws(num_samples, key):
    return jr.eot(undefended, hide_pixels, key=key, num_samples=num_samples)


def gradient(key):
    """Differentiate the cross-entropy of one draw, for 50 images."""
    model, loss = draws(1, key), jr.losses.negative_log_prob
    return jax.grad(lambda v: loss(model(v), y[:50]).sum())(x[:50]).reshape(50, -1)


singles = jax.lax.map(gradient, jax.random.split(jax.random.key(8), 64 + 256))
many = singles[64:].mean(0)
num_samples = (1, 4, 16, 64)
cosines = []
for n in num_samples:
    estimate = singles[:n].mean(0)
    size = jnp.linalg.norm(estimate, axis=1) * jnp.linalg.norm(many, axis=1)
    cosines.append((estimate * many).sum(1) / jnp.maximum(size, 1e-30))

fig, ax = plt.subplots(figsize=(5.4, 3.2))
low, middle, high = np.percentile(np.array(cosines), (25, 50, 75), axis=1)
ax.plot(num_samples, middle, "o-", label="median of 50 images")
ax.fill_between(num_samples, low, high, alpha=0.2, linewidth=0, label="middle half")
ax.set_xscale("log")
ax.set_xticks(num_samples, num_samples)
ax.minorticks_off()
ax.set_ylim(0, 1)
ax.set_xlabel("draws $n$")
ax.set_ylabel("cosine with 256 draws")
_ = ax.legend(loc="lower right")
for n, value in zip(num_samples, middle, strict=True):
    print(f"{n:3d} draws: median cosine {value:.2f}")

# %%
# The last iterate: the best one would be the one with the luckiest draws.
last = jr.PGD(num_steps=20, keep_best=False)
judge = defences["random"][1]
print(f"PGD, one draw fixed           {percent(attacked(last, one_draw, judge))}")
for n in (1, 16):
    broken["random"] = attacked(last, draws(n, jax.random.key(7)), judge)
    print(f"PGD, {n:2d} fresh draws a step   {percent(broken['random'])}")

# %% [markdown]
# Fresh draws at every step already average along the path. The judge draws with a key of its own: the
# attack has never seen its masks.
#
# ## Vanishing gradients: the loss
#
# Multiplying the logits by 1000 changes no prediction, so it cannot change the true robust accuracy. But the softmax
# becomes one-hot, and in float32 the derivative of the cross-entropy by the logits, $p_i - [i = y]$, exactly zero
# where the prediction is right. (In the first table FGSM did better than PGD on this defence, which no honest
# gradient allows. What it followed is rounding: in the compiled attack some derivatives are tiny instead of zero, and
# the sign makes them as large as any.)

# %%
scales = (1, 3, 10, 30, 100, 1000)
print("factor        ", *(f"{scale:7d}" for scale in scales))
fig, ax = plt.subplots(figsize=(5.4, 3.2))
for name, loss, style in (
    ("cross-entropy", jr.losses.cross_entropy, "o-"),
    ("DLR", jr.losses.dlr, "s--"),
):
    shares = []
    for scale in scales:
        grads = jax.grad(lambda v, c=scale, f=loss: f(c * undefended(v), y).sum())(x)
        shares.append(100 * float((grads == 0).all((1, 2, 3)).mean()))
    ax.plot(scales, shares, style, label=name)
    print(f"{name:<14}", *(f"{share:6.1f}%" for share in shares))
ax.set_xscale("log")
ax.set_xlabel("factor on the logits")
ax.set_ylabel("images without gradient (%)")
_ = ax.legend()

# %% [markdown]
# The difference of logits ratio does not depend on the scale:
#
# $$\mathrm{DLR}(z, y) = -\frac{z_y - \max_{i \ne y} z_i}{z_{(1)} - z_{(3)}}.$$

# %%
by_dlr = jr.PGD(num_steps=20, loss=jr.losses.dlr)
by_margin = jr.PGD(num_steps=20, loss=jr.losses.margin)
left_by = {
    "cross-entropy": attacked(pgd, saturated),
    "margin": attacked(by_margin, saturated),
    "DLR": attacked(by_dlr, saturated),
}
broken["saturated"] = left_by["margin"] & left_by["DLR"]
for name, left in left_by.items():
    print(f"PGD, {name:<14}{percent(left)}")
print(f"margin and DLR     {percent(broken['saturated'])}")
print(f"undefended, DLR    {percent(attacked(by_dlr, undefended))}")

# %% [markdown]
# ## Without knowing the cause
#
# Where you cannot tell what hides the gradient, do without it. Square asks for outputs only. It keeps the point that
# looked best, which on a random model would be the one with the luckiest draw, so that one is left out.

# %%
square = jr.Square(num_queries=500)
by_queries = {
    name: percent(attacked(square, defences[name][0]))
    for name in ("quantised", "saturated")
}
for name, left in by_queries.items():
    print(f"{name:<10} Square, {square.num_queries} queries: {left}")

# %% [markdown]
# Far below what was believed, if not as low as the right attack.
#
# ## The table

# %%
print(
    f"{'defence':<11}{'clean':>7}{'believed':>10}{'broken':>8}{'Square':>8}  diagnosed"
)
for name in defences:
    row = [percent(hits[name]) for hits in (clean, believed, broken)]
    row.append(by_queries.get(name, "-"))
    figures = "".join(f"{v:>{w}}" for v, w in zip(row, (7, 10, 8, 8), strict=True))
    print(f"{name:<11}{figures}  {', '.join(diagnoses[name].flagged)}")

# %%
cells = {
    name: {
        kind: (float(hits.mean()), *jr.evaluation.wilson(int(hits.sum()), len(hits)))
        for kind, hits in (
            ("clean", clean[name]),
            ("believed", believed[name]),
            ("broken", broken[name]),
        )
    }
    for name in defences
}
colors = {
    "clean": jr.plotting.COLORS["blue"],
    "believed": jr.plotting.COLORS["orange"],
    "broken": jr.plotting.COLORS["vermillion"],
}
ax = jr.plotting.accuracy_bars(cells, colors=colors)
_ = ax.set_title(rf"{DATASET}, $\ell_\infty$, $\epsilon$ = {EPS}")

# %% [markdown]
# An attack that fails proves nothing. Before you believe a defence, yours first of all: diagnose it, write the attack
# that *this* defence would have to fear, and report what is left after the strongest of them. The next
# notebook does it for an honest model.
#
# ## Exercises
#
# 1. **Two at once.** Round the input *and* multiply the logits by 1000. Which of the two remedies is enough? What breaks it?
# 2. **Hide it elsewhere.** Replace the model by `lambda x: undefended(jax.lax.stop_gradient(x)) + 1e-3 * x.reshape(len(x), -1)[:, :10]`.
#    It has a gradient, finite and not zero. What does PGD say, which checks fail, and what breaks it?
# 3. **Chance or defence?** Vote over 1 draw instead of 16. What happens to the clean accuracy, and is the model
#    more robust?
#
# <details><summary>Solutions</summary>
#
# 1. Neither alone: behind BPDA the cross-entropy is still saturated, and DLR has no gradient through the rounding.
#    `attacked(by_dlr, lambda v: 1000 * through_rounding(v), judge=lambda v: 1000 * quantised(v))` breaks it.
# 2. PGD follows the second term, which leads nowhere, and believes the model. `diagnose` finds that the gradient does
#    not predict the change of the outputs (`finite_differences`), that a ball as large as the data does not break
#    everything, and that queries and a transfer beat it. The gradient of `undefended` breaks it:
#    `attacked(pgd, undefended, judge=model)`.
# 3. The clean accuracy falls by tens of points, as one draw hides too much; under the attack with fresh draws little
#    is left, too. Chance alone is not a defence.
#
# </details>
