# %% [markdown]
# # 2. Supervised learning
#
# After this notebook you will be able to
#
# - train linear models, MLPs and ConvNets by empirical risk minimisation;
# - tell underfitting from overfitting by the generalisation gap;
# - measure the same gap for the robust error, and see that adversarial training makes it large.
#
# **Where the formulas come from.** Empirical risk minimisation: Vapnik 1991, "Principles of Risk
# Minimization for Learning Theory", NeurIPS. The robust generalisation gap: Schmidt et al. 2018,
# [arXiv:1804.11285](https://arxiv.org/abs/1804.11285); robust overfitting: Rice, Wong & Kolter 2020,
# [arXiv:2002.11569](https://arxiv.org/abs/2002.11569), figure 1. These are rows 1 and 2 of the lecture.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import jaxrobust as jr

DATASET = "digits"  # or "mnist", which needs the prepared data of tensorflow-datasets
jr.plotting.use_style()
data = jr.data.load(DATASET).subset(1437, 360)
print(data)

# %% [markdown]
# ## The problem
#
# A predictor $f$ from a class $\mathcal F$, a loss $\ell(f(x), y)$, and a sample $S$ of $n$ examples.
# We want a small risk $R(f) = \mathbb{E}\, \ell(f(x), y)$ and can only compute the empirical one,
#
# $$R_S(f) = \frac1n \sum_{i=1}^n \ell(f(x_i), y_i), \qquad
#   R(f) = R_S(f) + \underbrace{(R(f) - R_S(f))}_{\text{generalisation gap}}.$$
#
# The first term is what training makes small. The second one is estimated on examples that
# training has not seen: *test* examples for the final figure, *validation* examples
# for every choice on the way, so that the test set stays unseen.

# %%
kept, held_out = data.split(237, seed=0)
parts = {
    "training": (data.x_train[kept], data.y_train[kept]),
    "validation": (data.x_train[held_out], data.y_train[held_out]),
    "test": (data.x_test, data.y_test),
}
for name, (x, _) in parts.items():
    print(f"{name:<11}{len(x):5d} examples")

# %% [markdown]
# ## Three classes of functions
#
# Linear, multi-layer perceptron, convolutional network; one loop for all of them,
# `jr.training.fit`, minimising `jr.training.standard()`, the empirical risk of the cross-entropy.


# %%
def fit(model, objective, num_train=None, num_epochs=40, rate=3e-3, **options):
    x, y = parts["training"]
    return jr.training.fit(
        model,
        objective,
        optax.adam(rate),
        x[:num_train],
        y[:num_train],
        num_epochs=num_epochs,
        batch_size=50,
        key=jax.random.key(0),
        scale=data.scale,
        validation=parts["validation"],
        progress=False,
        **options,
    )


def errors(model, attack=None, threat=None, num_train=None):
    """Return the error in percent on training and test examples, and the gap."""
    logits_fn = jr.models.logits_fn(model)
    found = {}
    for name, num in (("training", num_train), ("test", None)):
        x, y = (part[:num] for part in parts[name])
        x = jnp.asarray(data.images(x))
        if attack is not None:
            x = attack(
                logits_fn, x, jnp.asarray(y), threat=threat, key=jax.random.key(1)
            )
        found[name] = 100 * float((logits_fn(x).argmax(-1) != y).mean())
    return found | {"gap": found["test"] - found["training"]}


def create(name, **options):
    return jr.models.create(
        name, input_shape=data.input_shape, num_classes=data.num_classes, **options
    )


print("model           parameters   training error   test error    gap")
results = {}
for name in ("linear", "mlp", "small_convnet"):
    results[name] = fit(create(name), jr.training.standard())
    e = errors(results[name].last)
    size = sum(
        leaf.size for leaf in jax.tree.leaves(jr.models.logits_fn(results[name].last))
    )
    print(
        f"{name:<16}{size:10,d}{e['training']:16.1f}%{e['test']:12.1f}%{e['gap']:+7.1f}"
    )

# %%
loss, accuracy = jr.plotting.training_curves(results["small_convnet"].history)
_ = accuracy.set_ylim(50, 101)

# %% [markdown]
# ## Too small, too large, too little data
#
# Underfitting: the class is too small, and the training error itself stays large. Overfitting: the
# training error vanishes and the test error does not. We vary the width of a network
# with one hidden layer, on 100 examples only, to make both visible.

# %%
widths = (1, 4, 16, 128)
few = 100
found = []
for width in widths:
    result = fit(
        create("mlp", hidden_sizes=(width,)),
        jr.training.standard(),
        num_train=few,
        num_epochs=150,
        rate=1e-2,
    )
    found.append(errors(result.last, num_train=few))

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.3))
for name, color, style in (("training", "black", "o-"), ("test", "blue", "s-")):
    axes[0].plot(
        widths,
        [e[name] for e in found],
        style,
        color=jr.plotting.COLORS[color],
        label=f"{name} error",
    )
axes[0].set_xscale("log", base=2)
axes[0].set_xticks(widths, widths)
axes[0].set_xlabel("hidden units")
axes[0].set_ylabel("error (%)")
axes[0].set_title(f"{few} training examples")
axes[0].legend()
for width, e in zip(widths, found, strict=True):
    print(f"{width:4d} units: training {e['training']:5.1f}%, gap {e['gap']:+5.1f}")

sizes = (50, 200, 600, 1200)
by_size = [
    errors(
        fit(
            create("mlp", hidden_sizes=(32,)),
            jr.training.standard(),
            num_train=n,
            num_epochs=6000 // n + 20,
            rate=1e-2,
        ).last,
        num_train=n,
    )
    for n in sizes
]
for name, color, style in (("training", "black", "o-"), ("test", "blue", "s-")):
    axes[1].plot(
        sizes,
        [e[name] for e in by_size],
        style,
        color=jr.plotting.COLORS[color],
        label=f"{name} error",
    )
axes[1].set_xscale("log")
axes[1].set_xticks(sizes, sizes)
axes[1].minorticks_off()
axes[1].set_xlabel("training examples")
axes[1].set_ylabel("error (%)")
axes[1].set_title("32 hidden units")
_ = axes[1].legend()

# %% [markdown]
# The wide networks fit every training example and still do best on the test set: more
# parameters than examples need not harm. More data shrinks the gap.
#
# ## The robust gap
#
# Replace $\ell$ by the adversarial loss $\max_{\delta \in \Delta} \ell(f(x + \delta), y)$, and both terms by their
# robust versions. The adversary of notebook 5 attacks training and test examples alike. We compare
# standard and adversarial training (notebook 6) of the same network.

# %%
threat = jr.Linf(0.15)
attack = jr.PGD(num_steps=10)
train_attack = jr.PGD(num_steps=5, rel_step_size=0.4, keep_best=False)
options = dict(validation_attack=attack, threat=threat, num_epochs=40)
runs = {
    "standard": fit(create("mlp"), jr.training.standard(), **options),
    "adversarial": fit(
        create("mlp"), jr.training.adversarial(train_attack, threat), **options
    ),
}
print("training       clean: training + gap     under PGD: training + gap")
for name, result in runs.items():
    clean, robust = errors(result.last), errors(result.last, attack, threat)
    print(
        f"{name:<15}{clean['training']:8.1f}% {clean['gap']:+6.1f}"
        f"{robust['training']:18.1f}% {robust['gap']:+6.1f}"
    )

# %% [markdown]
# The standard network has no robust gap to speak of, since nearly all of its *training* examples
# fall too: there is nothing to generalise. After adversarial training there is, and what is learnt
# under attack carries over to the test examples far less than what is learnt on clean inputs:
# robust generalisation needs more data (Schmidt et al.). Now the same training on few examples, and
# for long:

# %%
num_few = 300
longer = fit(
    create("mlp"),
    jr.training.adversarial(train_attack, threat),
    num_train=num_few,
    **options | {"num_epochs": 150},
)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4))
jr.plotting.training_curves(longer.history, axes=axes)
axes[1].set_ylim(0, 101)
peak = max(longer.history, key=lambda row: row["val_robust"])
print(
    f"robust validation accuracy: best {100 * peak['val_robust']:.1f}% in epoch {peak['epoch']}, "
    f"at the end {100 * longer.history[-1]['val_robust']:.1f}%"
)
for kind in ("best", "last"):
    e = errors(getattr(longer, kind), attack, threat, num_train=num_few)
    print(
        f"{kind}: robust training error {e['training']:.1f}%, test {e['test']:.1f}%, "
        f"gap {e['gap']:+.1f}"
    )

# %% [markdown]
# The training objective goes on down, and the robust validation accuracy no longer goes up: what the
# network still learns, it learns by heart. Rice et al. saw on CIFAR-10 that it even falls, and by much;
# then the model overfits *robustly*. Here it falls by little. In either case the last epoch need not be the
# one to keep, and so `fit` keeps that with the best robust validation accuracy as `result.best`, beside
# `result.last`.

# %% [markdown]
# ## Exercises
#
# 1. **Peeking.** Train ten networks that differ by the seed only (`create("mlp", seed=s)`) and report
#    the best *test* accuracy. Why is that figure no estimate of the risk? What is?
# 2. **Labels at random.** Shuffle the training labels and train the MLP for 300 epochs. Which
#    training and test errors do you get, and what does it say about the class of functions?
# 3. **A larger ball.** How does the robust gap depend on $\epsilon$? Try 0.05, 0.15 and 0.3.
#
# <details><summary>Solutions</summary>
#
# 1. The maximum of ten noisy estimates is biased upwards. Choose the seed on the validation
#    examples and report the test accuracy of that one network, once.
# 2. The training error goes to 0 and the test error to about 90%, that of guessing (Zhang et al. 2017,
#    [arXiv:1611.03530](https://arxiv.org/abs/1611.03530)). The class can fit anything, so its size alone cannot explain why
#    it generalises on the true labels.
# 3. It grows with $\epsilon$ first. For a very large ball even the training examples cannot be
#    defended, and the gap shrinks again because there is nothing to generalise.
#
# </details>
