# %% [markdown]
# # 8. How to evaluate, and what to claim
#
# After this notebook you will be able to
#
# - evaluate with AutoAttack, and read which of its parts broke what;
# - check that an attack has converged, and that nothing hides the gradient;
# - report a curve, groups and intervals instead of one number.
#
# **Where the formulas come from.** AutoAttack: Croce & Hein 2020,
# [arXiv:2003.01690](https://arxiv.org/abs/2003.01690), section 5; its parts APGD (algorithm 1), FAB
# ([arXiv:1907.02044](https://arxiv.org/abs/1907.02044)) and Square
# ([arXiv:1912.00049](https://arxiv.org/abs/1912.00049)). What a claim needs: Carlini et al. 2019,
# [arXiv:1902.06705](https://arxiv.org/abs/1902.06705). The interval: Wilson 1927. These are rows 8 and 14 of the lecture.

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
key = jax.random.key(0)


def fit(objective):
    model = jr.models.create("mlp", input_shape=data.input_shape, num_classes=10)
    result = jr.training.fit(
        model,
        objective,
        optax.adam(3e-3),
        data.x_train,
        data.y_train,
        num_epochs=NUM_EPOCHS,
        batch_size=50,
        key=key,
        scale=data.scale,
        progress=False,
    )
    return jr.models.logits_fn(result.last)


pgd = jr.PGD(num_steps=5, rel_step_size=0.5, keep_best=False)
models = {
    "standard": fit(jr.training.standard()),
    "robust": fit(jr.training.adversarial(pgd, threat)),
}

# %% [markdown]
# ## What an attack proves
#
# An attack that succeeds proves that an example is *not* robust. An attack that fails proves nothing: there
# may be a better one. So the accuracy under attack is an **upper bound** of the robust accuracy,
#
# $$\text{robust accuracy} \;\le\; \min_{\text{attacks}} \; \text{accuracy under the attack},$$
#
# and counts example by example: what any attack breaks is broken. A set of different attacks without anything to
# tune is AutoAttack: APGD on the cross-entropy, APGD on the targeted DLR loss, FAB, and Square, which sees
# no gradient at all. `jr.evaluate` runs each part on what the earlier ones have left.

# %%
reports = {
    name: jr.evaluate(logits_fn, x, y, attack=jr.autoattack(), threat=threat, key=key)
    for name, logits_fn in models.items()
}
print(reports["robust"])

# %%
for name, report in reports.items():
    print(f"{name} training: clean {100 * report.clean_accuracy:.1f}%")
    for row in report.credit():
        print(
            f"  {row['attack']:<8} broke {row['new_breaks']:3d} more, "
            f"left {100 * row['robust_accuracy_after']:5.1f}%"
        )

# %% [markdown]
# The cheap first attack does nearly all of the work here. The others are there for models on
# which it fails (notebook 7).
#
# ## Has it converged?
#
# More steps and more restarts can only lower the figure. If they still do, you have not reached the
# bottom. The gap to AutoAttack says how much a plain attack misses.

# %%
logits_fn = models["robust"]
num_steps = (1, 2, 5, 10, 20, 50)
found = []
for steps in num_steps:
    attack = jr.PGD(num_steps=steps)
    report = jr.evaluate(logits_fn, x, y, attack=attack, threat=threat, key=key)
    found.append(report.is_robust)
restarted = jr.evaluate(
    logits_fn,
    x,
    y,
    attack=jr.Restarts(jr.PGD(num_steps=50), 10),
    threat=threat,
    key=key,
)

fig, ax = plt.subplots(figsize=(5.4, 3.4))
low, high = (
    np.array([jr.evaluation.wilson(int(f.sum()), len(f)) for f in found]).T * 100
)
ax.plot(num_steps, [100 * f.mean() for f in found], "o-", label="PGD")
ax.fill_between(num_steps, low, high, alpha=0.2, linewidth=0)
# Broad and pale, as the two lines may coincide.
for report, label, color, style, width, alpha in (
    (reports["robust"], "AutoAttack", "vermillion", "-", 5, 0.35),
    (restarted, "PGD, 50 steps, 10 restarts", "black", "--", 1.5, 1),
):
    ax.axhline(
        100 * report.robust_accuracy,
        color=jr.plotting.COLORS[color],
        linestyle=style,
        linewidth=width,
        alpha=alpha,
        label=label,
    )
    print(f"{label:<27} {100 * report.robust_accuracy:.1f}%")
print(
    "PGD:",
    ", ".join(
        f"{n} steps {100 * f.mean():.1f}%"
        for n, f in zip(num_steps, found, strict=True)
    ),
)
ax.set_xscale("log")
ax.set_xticks(num_steps, num_steps)
ax.minorticks_off()
ax.set_xlabel("steps of PGD")
ax.set_ylabel("robust accuracy (%)")
_ = ax.legend()

# %% [markdown]
# ## Checks that cost little
#
# Four of the questions of Carlini et al., as lines that print yes or no:


# %%
def accuracy(attack, ball):
    return jr.evaluate(
        logits_fn, x, y, attack=attack, threat=ball, key=key
    ).robust_accuracy


everything = accuracy(jr.PGD(num_steps=50), jr.Linf(1.0))
one_step, many = accuracy(jr.FGSM(), threat), accuracy(jr.PGD(num_steps=50), threat)
noise = jax.random.uniform(key, (100, *x.shape), minval=-EPS, maxval=EPS)
survives = jax.vmap(lambda n: logits_fn(jnp.clip(x + n, 0, 1)).argmax(-1) == y)(
    noise
).all(0)
random_search = float(survives.mean())
by_square = accuracy(jr.Square(), threat)
checks = {
    f"a ball as large as the data breaks everything ({100 * everything:.1f}% left)": everything
    == 0,
    f"many steps are no worse than one ({100 * many:.1f}%, {100 * one_step:.1f}%)": many
    <= one_step,
    f"gradients are no worse than 100 random points ({100 * many:.1f}%, {100 * random_search:.1f}%)": many
    <= random_search,
    f"gradients are no worse than queries alone ({100 * many:.1f}%, Square {100 * by_square:.1f}%)": many
    <= by_square,
}
for text, holds in checks.items():
    print("yes" if holds else "NO ", text)

# %% [markdown]
# A "NO" would mean that the gradient leads the attack astray, and that the figure says more about
# the attack than about the model.
#
# ## A curve instead of a number
#
# One radius can flatter. `jr.evaluation.robustness_curve` attacks each example until it breaks and
# compiles nothing new for a new radius.

# %%
eps_values = np.linspace(0, 0.4, 9)
ax = None
for (name, logits_fn), marker in zip(models.items(), "os", strict=True):
    curve = jr.evaluation.robustness_curve(
        logits_fn,
        x,
        y,
        attack=jr.PGD(num_steps=20),
        threat=threat,
        eps=eps_values,
        key=key,
    )
    ax = jr.plotting.robustness_curve(
        curve.eps, curve.is_robust, label=f"{name} training", marker=marker, ax=ax
    )
    half = np.interp(-0.5, -curve.robust_accuracy, curve.eps)
    print(f"{name} training: half of the test images are left at eps = {half:.3f}")
ax.axvline(EPS, color="0.6", linestyle=":", linewidth=1)
_ = ax.set_title("PGD, 20 steps; dotted: the training radius")

# %% [markdown]
# ## Classes and groups
#
# An average hides who bears the cost. Groups can be anything known about the examples; here, images
# with little and with much ink.

# %%
ink = np.asarray(x).mean((1, 2, 3))
groups = (ink > np.median(ink)).astype(int)
report = jr.evaluate(
    models["robust"],
    x,
    y,
    attack=jr.PGD(num_steps=20),
    threat=threat,
    key=key,
    groups=groups,
)
for row in report.per_group():
    name = ("little ink", "much ink")[row["group"]]
    print(
        f"{name:<11}{row['count']:4d} images, clean {100 * row['clean_accuracy']:5.1f}%, "
        f"robust {100 * row['robust_accuracy']:5.1f}%"
    )

fig, axes = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(1.1, 1))
rows = report.per_class()
labels = np.array([row["class"] for row in rows])
for offset, kind, color in ((-0.2, "clean", "blue"), (0.2, "robust", "vermillion")):
    axes[0].bar(
        labels + offset,
        [100 * row[f"{kind}_accuracy"] for row in rows],
        0.38,
        color=jr.plotting.COLORS[color],
        label=kind,
    )
axes[0].set_xticks(labels)
axes[0].set_xlabel("class")
axes[0].set_ylabel("accuracy (%)")
axes[0].set_ylim(0, 120)
axes[0].set_yticks(range(0, 101, 20))
axes[0].legend(ncols=2)
_ = jr.plotting.confusion(report, ax=axes[1])

# %% [markdown]
# ## How sure?
#
# Accuracy on $n$ test images is an estimate. The 95% interval of Wilson shrinks like
# $1 / \sqrt n$: to tell two models apart that differ by one point takes ten thousand and more.

# %%
print("    n    interval when half of the examples are robust")
for n in (100, 200, 1000, 10_000):
    low, high = jr.evaluation.wilson(n // 2, n)
    print(
        f"{n:5d}    [{100 * low:.1f}%, {100 * high:.1f}%], {100 * (high - low):.1f} points wide"
    )

# %% [markdown]
# ## The claim
#
# A claim of robustness has all of this, or it cannot be checked: data and number of examples, norm
# and $\epsilon$, bounds, attack and settings, seed, clean accuracy, robust accuracy *as an upper
# bound* with its interval, and the papers of the attacks. The report holds it.

# %%
report = reports["robust"]
low, high = jr.evaluation.wilson(int(report.is_robust.sum()), len(report.y))
print(
    f"On the first {len(report.y)} test images of {DATASET}, under {report.settings['threat']} and "
    f"{report.settings['attack']} (key {report.settings['key']}), the robust accuracy is at most "
    f"{100 * report.robust_accuracy:.1f}% [{100 * low:.1f}, {100 * high:.1f}], "
    f"clean {100 * report.clean_accuracy:.1f}%."
)
print("papers:", ", ".join(report.papers))

# %% [markdown]
# ## Exercises
#
# 1. **Every part by itself.** Pass `individually=True` and print `credit()` again. Which part is the strongest alone?
# 2. **Another norm.** Evaluate the robust model under `jr.L2(1.0)` and `jr.L1(5.0)`. Does robustness to $\ell_\infty$
#    carry over?
# 3. **Spot the flaw.** "Our model keeps 85% accuracy under FGSM at $\epsilon = 8/255$, on 100 test images chosen
#    among those that it classifies correctly." How many flaws do you count?
#
# <details><summary>Solutions</summary>
#
# 1. `jr.evaluate(..., individually=True).credit()` has `robust_accuracy_alone` for each part.
# 2. Partly at best. Compare with the standard model at the same radii; a ball of another norm contains points that
#    training has never seen.
# 3. At least six: one step is not a strong attack; no norm, no bounds and no second attack are named; 100 examples give an
#    interval of about 14 points; choosing correct ones hides the clean accuracy, so that the figure is not the
#    robust accuracy that others report.
#
# </details>
