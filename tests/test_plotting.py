"""The pictures show the data: asserted on what was drawn, not on pixels."""

import itertools

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxrobust as jr

W = jax.random.normal(jax.random.key(0), (16, 3))
X = jax.random.uniform(jax.random.key(1), (6, 4, 4, 1))


def logits_fn(x):
    return x.reshape(len(x), -1) @ W


Y = jnp.array([0, 1, 2, 0, 1, 2])
THREAT = jr.Linf(0.2)


@pytest.fixture(scope="module")
def report():
    return jr.evaluate(logits_fn, X, Y, attack=jr.FGSM(), threat=THREAT)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_gallery_shows_the_images_of_the_report(report):
    """Each column holds clean, perturbation over its largest change, adversarial."""
    axes = jr.plotting.gallery(report, X, index=[3, 5], class_names=("a", "b", "c"))
    assert axes.shape == (3, 2)
    for column, i in zip(axes.T, (3, 5), strict=True):
        clean, delta, adversarial = (ax.images[0].get_array() for ax in column)
        np.testing.assert_array_equal(clean, X[i, ..., 0])
        np.testing.assert_array_equal(adversarial, report.x_adv[i, ..., 0])
        moved = np.asarray(report.x_adv[i] - X[i])[..., 0]
        np.testing.assert_allclose(delta, moved / np.abs(moved).max(), rtol=1e-6)
        name = "abc"[report.predicted_adv[i]]
        text = f"{name}, {100 * report.confidence_adv[i]:.0f}%"
        assert column[2].get_title() == text
        assert column[1].get_title() == f"max {np.abs(moved).max():.2g}"


def test_gallery_marks_wrong_predictions(report):
    """A title is vermillion exactly where the prediction is wrong."""
    axes = jr.plotting.gallery(report, X, index=range(6))
    wrong = jr.plotting.COLORS["vermillion"]
    for row, predicted in ((0, report.predicted), (2, report.predicted_adv)):
        colors = [ax.title.get_color() for ax in axes[row]]
        assert [c == wrong for c in colors] == list(predicted != report.y)
    assert (report.predicted_adv != report.y).any()


def test_gallery_takes_the_first_of_each_class_by_default(report):
    """Labels 0, 1, 2 occur first at 0, 1, 2."""
    axes = jr.plotting.gallery(report, X)
    shown = [ax.images[0].get_array() for ax in axes[0]]
    np.testing.assert_array_equal(shown, X[:3, ..., 0])


def test_gallery_of_colours_and_of_no_perturbation():
    """Three channels are drawn around grey; a perturbation of zero is grey, not NaN."""
    x = jnp.broadcast_to(X[:2], (2, 4, 4, 3))
    nothing = jr.Linf(0.0)
    report = jr.evaluate(
        lambda x: x.mean((1, 2)), x, Y[:2], attack=jr.FGSM(), threat=nothing
    )
    axes = jr.plotting.gallery(report, x)
    np.testing.assert_array_equal(axes[1, 0].images[0].get_array(), 0.5)


def test_gallery_wraps_its_rows(report):
    """More than eight examples go below each other; the axes stay `[3, N]`."""
    index = [0, 1, 2, 3, 4, 5] * 2
    axes = jr.plotting.gallery(report, X, index=index)
    assert axes.shape == (3, 12)
    places = [ax.get_subplotspec() for ax in axes[0]]
    assert {(p.rowspan.start, p.colspan.start) for p in places} == {
        (3 * (i // 6), i % 6) for i in range(12)
    }
    for i, ax in zip(index, axes[0], strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), X[i, ..., 0])
    assert [i for i, ax in enumerate(axes[0]) if ax.get_ylabel()] == [0, 6]


@pytest.mark.parametrize("shape", [(16,), (8, 2)])
def test_gallery_of_signals_draws_lines(report, shape):
    """A line for each channel: clean, perturbation, and both."""
    x = X.reshape(6, *shape)
    report = jr.evaluate(logits_fn, x, Y, attack=jr.FGSM(), threat=THREAT)
    axes = jr.plotting.gallery(report, x, index=[1])
    clean, delta, both = (
        np.stack([line.get_ydata() for line in ax.lines], axis=-1) for ax in axes[:, 0]
    )
    before, after = (np.asarray(a[1]).reshape(shape[0], -1) for a in (x, report.x_adv))
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(delta, after - before)
    np.testing.assert_array_equal(both, np.concatenate([before, after], axis=-1))
    assert axes[0, 0].get_ylim() == axes[2, 0].get_ylim()


def test_gallery_of_images_without_channels(report):
    """`x[..., None]` shows as images what the model takes as `[N, H, W]`."""
    x = X[..., 0]
    report = jr.evaluate(logits_fn, x, Y, attack=jr.FGSM(), threat=THREAT)
    axes = jr.plotting.gallery(report, x[..., None], index=[2])
    np.testing.assert_array_equal(axes[2, 0].images[0].get_array(), report.x_adv[2])


def test_gallery_refuses_channels_first():
    """[N, C, H, W] would be drawn as garbage or end in Matplotlib's own error."""
    x = jnp.full((2, 3, 8, 8), 0.5)
    model = lambda x: x.mean((2, 3))  # noqa: E731
    report = jr.evaluate(model, x, Y[:2], attack=jr.FGSM(), threat=THREAT)
    with pytest.raises(ValueError, match=r"\[N, H, W, C\].*channels last"):
        jr.plotting.gallery(report, x)


def test_gallery_says_what_does_not_fit(report):
    """Other images than those of the report, or too few axes."""
    with pytest.raises(ValueError, match=r"that were evaluated"):
        jr.plotting.gallery(report, X[:3])
    with pytest.raises(ValueError, match="no example to draw"):
        jr.plotting.gallery(report, X, index=[])
    _, axes = plt.subplots(3, 2)
    with pytest.raises(ValueError, match=r"\(3, 3\) are needed"):
        jr.plotting.gallery(report, X, axes=axes)


def test_iterates_are_those_of_the_attack():
    """Start and end are the attack's own, and each step is one steepest step."""
    attack = jr.PGD(num_steps=4, step_size=0.1, keep_best=False)
    key = jax.random.key(2)
    path = jr.plotting.iterates(attack, logits_fn, X, Y, threat=THREAT, key=key)
    assert path.shape == (5, *X.shape)
    end = attack(logits_fn, X, Y, threat=THREAT, key=key)
    np.testing.assert_array_equal(path[-1], end)
    assert (path[0] != X).any()  # a random start
    # A step of length 0.1, then a projection: no coordinate moves further. One ulp of 1.
    assert np.abs(np.diff(path, axis=0)).max() <= 0.1 + 1.2e-7


def test_iterates_need_an_attack_with_steps():
    """A wrapper has no single path."""
    wrapped = jr.Restarts(jr.PGD(num_steps=2), 2)
    with pytest.raises(TypeError, match="does not show its steps"):
        jr.plotting.iterates(wrapped, logits_fn, X, Y, threat=THREAT)


def test_loss_surface_draws_loss_ball_and_path():
    """The coordinates of a path are those that the directions were combined with."""
    d1 = jnp.zeros((4, 4, 1)).at[0, 0].set(1.0)
    d2 = jnp.zeros((4, 4, 1)).at[1, 2].set(2.0)
    path = jnp.stack([X[0], X[0] + 0.1 * d1, X[0] + 0.1 * d1 - 0.05 * d2])
    ax = jr.plotting.loss_surface(
        logits_fn,
        X[0],
        Y[0],
        (d1, d2),
        radius=0.3,
        paths={"steps": path},
        threat=jr.Linf(0.2, bounds=None),
        num=31,
    )
    drawn = next(line for line in ax.lines if line.get_label() == "steps")
    expected = [[0, 0], [0.1, 0], [0.1, -0.05]]
    np.testing.assert_allclose(drawn.get_xydata(), expected, atol=1e-6)  # float32
    # The ball in this plane is |a| <= 0.2, |2 b| <= 0.2; the grid is 0.02 apart.
    ball = np.concatenate(ax.collections[-1].get_paths()[0].to_polygons())
    np.testing.assert_allclose(np.abs(ball).max(0), [0.2, 0.1], atol=1e-6)
    assert ax.figure.axes[1].get_ylabel() == "loss (nats)"


def test_loss_surface_checks_the_directions():
    """A direction of another shape is named."""
    with pytest.raises(ValueError, match="the shape of x"):
        jr.plotting.loss_surface(
            logits_fn, X[0], Y[0], (jnp.ones(16), jnp.ones(16)), radius=1.0
        )


def test_robustness_curve_has_intervals():
    """The line is the mean of the rows, the band Wilson's interval."""
    is_robust = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    ax = jr.plotting.robustness_curve([0, 0.1, 0.2], is_robust, label="model")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [100, 50, 0])
    band = ax.collections[0].get_paths()[0].vertices
    low, high = jr.evaluation.wilson(2, 4)
    middle = band[band[:, 0] == 0.1][:, 1]
    np.testing.assert_allclose(sorted(set(middle)), [100 * low, 100 * high])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["model"]


def test_robustness_curves_share_axes():
    """A second call adds a line to the given axes and returns them."""
    _, ax = plt.subplots()
    for label in ("one", "two"):
        drawn = jr.plotting.robustness_curve([0.1], np.ones((1, 3)), label=label, ax=ax)
        assert drawn is ax
    assert len(ax.lines) == 2
    assert ax.lines[0].get_color() != ax.lines[1].get_color()


def test_robustness_curve_wants_one_row_for_each_eps():
    """A transposed table is caught."""
    with pytest.raises(ValueError, match=r"\[2, N\] is needed"):
        jr.plotting.robustness_curve([0.1, 0.2], np.ones((3, 2)))


def test_accuracy_bars():
    """Bars in percent with their errors, and ticks of the reference."""
    cells = {
        "a": {"clean": (0.9, 0.8, 0.95), "PGD": (0.5, 0.4, 0.6)},
        "b": {"clean": (0.8, 0.7, 0.9), "PGD": (0.6, 0.5, 0.7)},
    }
    reference = {name: {"clean": 0.95, "PGD": 0.1} for name in cells}
    colors = {"clean": "blue", "PGD": "red"}
    ax = jr.plotting.accuracy_bars(cells, colors=colors, reference=reference)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, [90, 80, 50, 60])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    ticks = [line for line in ax.lines if line.get_marker() == "_"]
    np.testing.assert_allclose(
        [line.get_ydata() for line in ticks if len(line.get_xdata()) == 2][-1], 10
    )
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert set(labels) == {"clean", "PGD", "reference"}


@pytest.mark.parametrize("under_attack", [True, False])
def test_confusion_is_that_of_the_report(report, under_attack):
    """Entry (i, j) is the share of class i in row i of `report.confusion`."""
    ax = jr.plotting.confusion(report, under_attack=under_attack)
    counts = report.confusion(under_attack=under_attack)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    # Of this report some are wrong on the clean input: the two definitions differ there.
    assert not report.is_correct.all()
    accuracy = report.robust_accuracy if under_attack else report.clean_accuracy
    assert counts.trace() / len(report.y) == pytest.approx(accuracy)


def test_confusion_numbers_can_be_read(report):
    """The contrast of black or white on every colour of the map is that of WCAG AA."""
    from jaxrobust.plotting.style import luminance, readable_on

    for color in plt.get_cmap("cividis")(np.linspace(0, 1, 101)):
        bright = luminance(matplotlib.colors.to_rgb(readable_on(color)))
        high, low = sorted((bright, luminance(color)), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4.5


@pytest.mark.parametrize(("num", "num_texts"), [(10, 20), (20, 40), (200, 0)])
def test_texts_of_many_bars_do_not_overlap(num, num_texts):
    """Numbers and names of the classes: wider, upright, fewer or none."""
    cells = {str(i): {n: (0.5, 0.4, 0.6) for n in ("a", "b")} for i in range(num)}
    ax = jr.plotting.accuracy_bars(cells)
    ax.figure.draw_without_rendering()
    for texts in ([t for t in ax.texts if t.get_text()], ax.get_xticklabels()):
        boxes = sorted((t.get_window_extent() for t in texts), key=lambda box: box.x0)
        assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
        assert boxes or texts is not ax.get_xticklabels()
    assert len(ax.texts) == num_texts


def test_training_curves():
    """Loss and accuracies by epoch, in percent; what is not recorded is not drawn."""
    history = [
        {"epoch": e, "train_loss": 1 / e, "train_accuracy": 0.5, "val_clean": 0.1 * e}
        for e in (1, 2, 3)
    ]
    loss, accuracy = jr.plotting.training_curves(history, label="run")
    np.testing.assert_allclose(
        loss.lines[0].get_xydata(), [[1, 1], [2, 0.5], [3, 1 / 3]]
    )
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [10, 20, 30])
    assert len(accuracy.lines) == 2
    assert accuracy.lines[1].get_label() == "run: validation, clean"
    with pytest.raises(ValueError, match="no epochs"):
        jr.plotting.training_curves([])


@pytest.mark.slow
def test_training_curves_fit_the_history_of_fit():
    """The names that `fit` records are those that are drawn."""
    import optax

    result = jr.training.fit(
        jr.models.create("linear", input_shape=(4, 4, 1), num_classes=3),
        jr.training.standard(),
        optax.sgd(0.1),
        X,
        Y,
        num_epochs=2,
        batch_size=3,
        key=jax.random.key(0),
        validation=(X, Y),
        validation_attack=jr.FGSM(),
        threat=THREAT,
        progress=False,
    )
    loss, accuracy = jr.plotting.training_curves(result.history)
    assert (len(loss.lines), len(accuracy.lines)) == (1, 3)


def test_contour_draws_values_and_paths():
    """The levels are those of the function; the path keeps its points, cut by limits."""
    path = np.array([[1.0, 1.0], [0.0, 0.5], [9.0, 0.0]])
    ax = jr.plotting.contour(
        lambda w: w[0] ** 2 - w[1] ** 2,
        {"gradient descent": path},
        limits=((-2, 2), (-1, 1)),
        levels=[-1, 0, 1],
    )
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), path)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))
    vertices = ax.collections[1].get_paths()[1].vertices  # level 0: |w_1| = |w_2|
    assert len(vertices)
    # Linear interpolation on a grid 1/30 apart.
    np.testing.assert_allclose(*np.abs(vertices.T), atol=1 / 30)


def test_style_can_be_left_again():
    """`use_style` sets Matplotlib's defaults; the figures of the package do not."""
    with plt.rc_context():
        plt.rcParams["axes.spines.top"] = True
        assert not jr.plotting.contour(lambda w: w.sum()).spines["top"].get_visible()
        assert plt.rcParams["axes.spines.top"]
        jr.plotting.use_style()
        assert not plt.rcParams["axes.spines.top"]
