"""The pictures of a run and of a comparison, each from plain data to one PNG file and one PDF."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from mtmm_training.pictures import style
from mtmm_training.pictures.palette import COLOURS, GREY
from mtmm_training.scoring import metrics

# Names of what references are drawn from, in a curve; the others are emotions.
CURVES = {"random": "at random", "mixed": "each emotion", "told": "each emotion, and told"}


def plot_confusion(
    confusion: ArrayLike, emotions: Sequence[str], path: str | Path, title: str
) -> None:
    """Draws the confusion matrix: colour and percent by row (recall), counts beneath.

    Args:
        confusion: (emotions, emotions) counts; rows are labels, columns predictions.
        emotions: names in the order of rows and columns.
        path: the PNG file to write.
        title: printed above, such as the protocol and the split.
    """
    n = len(emotions)
    counts = np.asarray(confusion)
    labelled = counts.sum(axis=1, keepdims=True)
    share = np.where(labelled > 0, counts / np.maximum(labelled, 1), np.nan)

    side = max(4.2, 0.85 * n + 1.6)  # inches
    figure, axes = style.new_figure(side + 0.9, side)
    texts = [
        [f"{value:.0%}\n({count})" for value, count in zip(*row, strict=True)]
        for row in zip(share, counts, strict=True)
    ]
    rows = [f"{name}\n(n = {k})" for name, k in zip(emotions, labelled[:, 0], strict=True)]
    image = _heatmap(axes, share, texts, (0, 1), rows, emotions)
    axes.set(xlabel="predicted emotion", ylabel="labelled emotion")
    figure.suptitle(title)
    figure.colorbar(image, ax=axes, label="share of the labelled emotion", shrink=0.8)
    style.save(figure, path)


def plot_dimensions(
    labels: ArrayLike,
    predictions: ArrayLike,
    path: str | Path,
    dimension_range: Sequence[float],
    emotions: Sequence[str | None] | None = None,
) -> None:
    """Draws labels and predictions side by side in the valence–arousal plane.

    A small mark is one utterance, a large one the mean of an emotion's utterances. Utterances that
    lack either label are left out, and nothing is drawn where all do. Labels are jittered by 2 % of
    the range, as the title says.

    Args:
        labels: (utterances, 2) valence and arousal, NaN = absent.
        predictions: (utterances, 2) valence and arousal on the labels' scale.
        path: the PNG file to write.
        dimension_range: lowest and highest value of the scale.
        emotions: (utterances,) names that choose colour and marker; None = no emotion label.

    Raises:
        ValueError: a prediction is not finite, or shapes disagree.
    """
    columns = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    present = ~np.isnan(columns[0]).any(axis=1)
    if not present.any():
        return
    labelled, predicted = (column[present] for column in columns)
    given = [None] * len(columns[0]) if emotions is None else emotions
    names = np.array([name or "" for name in given])[present]  # "" = no emotion label
    ccc = map(metrics.concordance_correlation, predicted.T, labelled.T)
    valence, arousal = ("undefined" if np.isnan(value) else f"{value:.2f}" for value in ccc)
    # Labels lie on a grid of a few values, where they would hide each other.
    jitter = 0.02 * (dimension_range[1] - dimension_range[0])
    spread = np.random.default_rng(0).uniform(-jitter, jitter, labelled.shape)

    figure, (left, right) = style.new_figure(9.6, 6.2, ncols=2, sharex=True, sharey=True)
    figure.set_layout_engine("compressed")  # or the panels, which are square, lie far apart
    _draw_plane(left, labelled + spread, names, dimension_range)
    _draw_plane(right, predicted, names, dimension_range)
    # Both panels show the whole scale, and more only where a prediction leaves it.
    limits = style.scale_limits([labelled, predicted], dimension_range)
    left.set(xlim=limits, ylim=limits)
    left.set_title(f"labels (n = {len(labelled)}; jittered by ±{jitter:.2g})")
    right.set_title(f"predictions (CCC valence {valence}, arousal {arousal})")
    right.set_ylabel("")
    if names.any():
        style.below(figure, left, columns=8)
    style.save(figure, path)


def plot_curves(
    epochs: Sequence[Mapping[str, Any]], path: str | Path, select_by: str = "mean"
) -> None:
    """Draws losses and validation metrics over epochs and marks the one that was kept.

    Args:
        epochs: as in results.json: {"epoch", "train": {"loss"}, "validation": {"loss", "UAR",
            "WAR", "CCC": {dimension: value}}}; None = no value in that epoch.
        path: the PNG file to write.
        select_by: what that epoch was chosen by, as in `selection_score`.

    Raises:
        ValueError: there is no metric to select by.
    """
    scores = [metrics.selection_score(epoch["validation"], select_by) for epoch in epochs]
    numbers = [epoch["epoch"] for epoch in epochs]
    last = select_by == "last"
    # As the training loop keeps it: of equals the first.
    kept = len(scores) - 1 if last else int(np.argmax(_series(scores)))
    validation = [epoch["validation"] for epoch in epochs]
    curves = {
        name: ([split.get(name) for split in validation], style.series_style(i))
        for i, name in enumerate(("UAR", "WAR"))
    }
    for name in validation[0]["CCC"]:
        look = style.dimension_style(name) | {"marker": "."}
        curves[f"CCC {name}"] = [split["CCC"].get(name) for split in validation], look
    losses = {
        split: ([epoch[split].get("loss") for epoch in epochs], style.series_style(i))
        for i, split in enumerate(("train", "validation"))
    }

    figure, (left, right) = style.new_figure(9.6, 4.4, ncols=2)
    _draw_lines(left, numbers, losses, numbers[kept])
    _draw_lines(right, numbers, curves, numbers[kept])
    left.set(xlabel="epoch", ylabel="loss", title="loss")
    right.set(xlabel="epoch", ylabel="validation metric")
    which, by = ("last", "mean") if last else ("best", select_by)
    score = scores[kept]
    shown = "" if score is None else f": {by} {score:.3f}"
    right.set_title(f"validation; {which} epoch {numbers[kept]}{shown}")
    style.save(figure, path)


def plot_reference_curve(table: pd.DataFrame, path: str | Path, title: str) -> None:
    """Draws UAR over the size of speakers' references, one line for each kind, with intervals.

    Args:
        table: "kind", "size" (NA = all), "UAR", "UAR_low", "UAR_high"; the line of size 0 is drawn as
            what is reached without a reference.
        path: the PNG file to write.
        title: printed above.
    """
    none = table[table["size"] == 0].iloc[0]
    sizes = [size for size in table["size"].dropna().unique() if size > 0]
    places = {size: place for place, size in enumerate([*sizes, None])}
    kinds = table["kind"].unique()
    figure, axes = style.new_figure(7.2, 4.6)
    axes.axhline(none["UAR"], color=GREY, linestyle="--", linewidth=1, label="no reference")
    for number, kind in enumerate(kinds):
        rows = table[(table["kind"] == kind) & (table["size"] != 0).fillna(True)]
        x = [places[None if pd.isna(size) else size] + 0.07 * (number - len(kinds) / 2)
             for size in rows["size"]]  # fmt: skip
        errors = rows["UAR"] - rows["UAR_low"], rows["UAR_high"] - rows["UAR"]
        label = CURVES.get(kind, f"{kind} only")
        axes.errorbar(x, rows["UAR"], errors, label=label, capsize=2, **style.series_style(number))
    axes.set_xticks(range(len(places)), [*map(str, sizes), "all"])
    axes.set(xlabel="recordings of the speaker in the reference", ylabel="UAR, 95 % interval")
    axes.set_title(title)
    style.below(figure, axes, columns=3)
    style.save(figure, path)


def plot_fold_spread(values: Mapping[str, Sequence[float]], path: str | Path, metric: str) -> None:
    """Draws one column per variant: a mark per fold, the mean and ± one standard deviation.

    Args:
        values: the metric in each fold, by variant; the sd is the sample's (n − 1).
        path: the PNG file to write.
        metric: the metric's name, for the axis.
    """
    figure, axes = style.new_figure(max(4.5, 1.5 * len(values) + 1.2), 4.6)
    captions = []
    for x, (name, folds) in enumerate(values.items()):
        column = _series(folds)
        deviation = column.std(ddof=1) if column.size > 1 else 0.0
        offsets = np.linspace(-0.22, 0.06, column.size) if column.size > 1 else np.array([-0.08])
        axes.plot(x + offsets, column, alpha=0.7, **style.series_style(x) | {"linestyle": ""})
        axes.errorbar(
            x + 0.25, column.mean(), deviation, fmt="_", markersize=16, color="black",
            capsize=5, markeredgewidth=2,
        )  # fmt: skip
        spread = f" ± {deviation:.3f}" if column.size > 1 else ""
        captions.append(f"{name}\n{column.mean():.3f}{spread}\nfolds: {column.size}")
    axes.set_xticks(range(len(captions)), captions)
    axes.set_xlim(-0.5, len(captions) - 0.5)
    axes.set_ylabel(metric)
    axes.set_title("a mark per fold; bar: mean ± sd", fontsize="medium")
    axes.grid(axis="y", alpha=0.3)
    style.save(figure, path)


def plot_reliability(
    probabilities: Mapping[str, ArrayLike],
    labels: ArrayLike,
    path: str | Path,
    accuracy: str = "accuracy",
) -> None:
    """Draws accuracy against confidence, and beneath how many utterances each bin holds.

    A bar is the 95 % interval of a bin's accuracy (Wilson's, which takes utterances as independent).

    Args:
        probabilities: (utterances, emotions) by name, such as "before" and "after" temperature
            scaling.
        labels: as of `calibration_bins`.
        path: the PNG file to write.
        accuracy: what the accuracy is; with votes the share of listeners.

    Raises:
        ValueError: as `calibration_bins`.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, figure 4.
    """
    figure, (upper, lower) = style.new_figure(5.4, 6.8, nrows=2, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    for i, (name, table) in enumerate(probabilities.items()):
        grouped = metrics.calibration_bins(table, labels)
        look = style.series_style(i)
        filled = grouped.counts > 0
        upper.errorbar(
            grouped.confidence[filled], grouped.accuracy[filled], _interval(grouped)[:, filled],
            label=f"{name} (ECE {metrics.expected_calibration_error(table, labels):.3f})",
            elinewidth=1, capsize=2, **look,
        )  # fmt: skip
        line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.8}
        lower.stairs(grouped.counts, np.linspace(0, 1, len(grouped.counts) + 1), **line)
    upper.set(ylabel=f"{accuracy}, with 95 % interval", xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.grid(alpha=0.3)
    lower.set(xlabel="confidence (probability of the predicted emotion)", ylabel="utterances")
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    style.below(figure, upper, columns=1)
    style.save(figure, path)


def plot_risk(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    marks: Mapping[str, tuple[float, float]],
    path: str | Path,
    error: float,
) -> None:
    """Draws the share of wrong answers over the share of utterances that are answered.

    Args:
        curves: coverage and risk, (points,) each, by name.
        marks: of some curves, coverage and risk at the least confidence that was chosen.
        path: the PNG file to write.
        error: the risk that was wanted, drawn as a line.
    """
    figure, axes = style.new_figure(6.4, 4.8)
    axes.axhline(error, color=GREY, linestyle=":", label=f"wanted: {error:g}")
    highest = error
    for number, (name, (coverage, risk)) in enumerate(curves.items()):
        look = style.series_style(number) | {"marker": ""}
        axes.step(coverage, risk, where="post", label=name, **look)
        if name in marks:
            axes.plot(*marks[name], marker="D", markersize=8, color=look["color"])
        settled = np.asarray(coverage) >= 0.1  # of a few answers one mistake is a high share
        highest = max(highest, np.asarray(risk)[settled].max(initial=0.0))
    axes.set(xlim=(0, 1.01), ylim=(0, 1.15 * highest))
    axes.set(xlabel="coverage: share of utterances answered", ylabel="risk: share of answers wrong")
    axes.set_title("diamond: the least confidence chosen on validation", fontsize="medium")
    axes.grid(alpha=0.3)
    style.below(figure, axes, columns=2)
    style.save(figure, path)


def plot_forest(
    rows: Sequence[tuple[str, float, float, float]], path: str | Path, title: str, zero_label: str
) -> None:
    """Draws each row's difference with its interval, beside a line at zero.

    A filled mark is a difference whose interval does not hold zero.

    Args:
        rows: name, difference, low and high of its interval; drawn from top to bottom.
        path: the PNG file to write.
        title: what differs, such as "UAR, 95 % interval".
        zero_label: what zero stands for, such as the name of the reference.
    """
    figure, axes = style.new_figure(8.0, 0.42 * len(rows) + 1.6)
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    for y, (_, point, low, high) in enumerate(rows):
        apart = low > 0 or high < 0
        axes.plot([low, high], [y, y], color=COLOURS[0], linewidth=2, marker="|", markersize=9)
        axes.plot(
            point, y, color=COLOURS[0], marker="D", markersize=7, markeredgewidth=1.5,
            markerfacecolor=COLOURS[0] if apart else "white",
        )  # fmt: skip
        numbers = f"{point:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
        axes.text(1.02, y, numbers, transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # first row on top
    axes.set_xlabel(f"difference; dashed: {zero_label}")
    axes.set_title(title, fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", alpha=0.3)
    style.save(figure, path)


def plot_matrices(panels: Mapping[str, pd.DataFrame], path: str | Path, score: str) -> None:
    """Draws scores of models (rows) on corpora (columns), a panel for each kind of answers.

    Args:
        panels: by title; what was trained on (rows) and tested on (columns), NaN = no score.
        path: the PNG file to write.
        score: the score's name.
    """
    first = next(iter(panels.values()))
    width, height = max(2.6, 1.0 * len(first.columns) + 1.0), max(2.4, 0.75 * len(first) + 1.4)
    figure, grid = style.new_figure(
        width * len(panels) + 1.4, height, ncols=len(panels), squeeze=False, sharey=True
    )
    values = np.stack([panel.to_numpy() for panel in panels.values()])
    limits = np.nanmin(values), np.nanmax(values)
    for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
        texts = panel.map("{:.3f}".format).to_numpy()
        image = _heatmap(axes, panel.to_numpy(), texts, limits, panel.index, panel.columns)
        axes.set(xlabel="tested on", title=title)
    grid[0, 0].set_ylabel("trained on")
    figure.colorbar(image, ax=grid[0], label=score, shrink=0.8)
    style.save(figure, path)


def _heatmap(
    axes: Axes, values: np.ndarray, texts: Any, limits: tuple[float, float], rows: Any, columns: Any
) -> Any:
    """Colours with a text in each cell, a dash where there is no value; what a colour bar takes."""
    colours = matplotlib.colormaps["cividis"].with_extremes(bad="0.9")  # of what has no value
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = "–" if np.isnan(value) else texts[row][column].replace("-", "−")
        shade = "white" if value < sum(limits) / 2 else "black"
        # On the diagonal of what was trained and tested on.
        weight = "bold" if rows[row] == columns[column] else "normal"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontweight=weight)
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), columns, **turned if len(columns) > 4 else {})
    axes.set_yticks(range(len(rows)), rows)
    return image


def _interval(grouped: metrics.CalibrationBins) -> np.ndarray:
    """(2, bins): how far each accuracy's 95 % interval reaches down and up; 0 in an empty bin."""
    reach = np.zeros((2, len(grouped.counts)))
    for i in np.flatnonzero(grouped.counts):
        count, accuracy = int(grouped.counts[i]), grouped.accuracy[i]
        interval = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
        reach[:, i] = max(0.0, accuracy - interval.low), max(0.0, interval.high - accuracy)
    return reach


def _draw_plane(
    axes: Axes, points: np.ndarray, names: np.ndarray, dimension_range: Sequence[float]
) -> None:
    style.prepare_plane(axes, dimension_range)
    axes.plot(
        *points[names == ""].T, linestyle="", marker=".", color=GREY, alpha=0.6,
        label="no emotion label" if (names == "").any() else None,
    )  # fmt: skip
    for name, look in style.emotion_styles(names[names != ""].tolist()).items():
        chosen = points[names == name]
        axes.plot(*chosen.T, alpha=0.5, markeredgewidth=0, **look)
        axes.plot(
            *chosen.mean(axis=0), markersize=13, markeredgecolor="black", markeredgewidth=1.5,
            zorder=3, label=name, **look,
        )  # fmt: skip


def _draw_lines(
    axes: Axes, epochs: list[int], lines: Mapping[str, tuple[list[Any], dict[str, Any]]], kept: int
) -> None:
    axes.axvline(kept, color=GREY, linestyle=":", linewidth=1.5, label=f"epoch kept ({kept})")
    for name, (values, look) in lines.items():
        if not np.isnan(_series(values)).all():
            often = max(1, len(epochs) // 12)
            axes.plot(epochs, _series(values), label=name, markersize=5, markevery=often, **look)
    margin = 0.5 + 0.02 * len(epochs)
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _series(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, dtype=np.float64)  # None becomes NaN
