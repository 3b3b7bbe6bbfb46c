"""The pictures of a run and of a comparison, each from plain data to one PNG file.

All are made for print and for colour-blind readers: where colours differ, markers or line styles
differ too, and matrices carry their numbers. Nothing here touches matplotlib's global state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from mtmm_training.pictures.style import COLOURS, DPI, GREY, LINES, _figure, _style, save
from mtmm_training.scoring.metrics import (
    ABSENT_EMOTION,
    calibration_bins,
    concordance_correlation,
    expected_calibration_error,
    selection_score,
)


def plot_confusion(
    confusion: ArrayLike, emotions: Sequence[str], path: str | Path, title: str
) -> None:
    """Draws the confusion matrix: colour and percent by row (recall), counts beneath.

    Args:
        confusion: (emotions, emotions) counts; rows are labels, columns predictions.
        emotions: names in the order of rows and columns.
        path: the PNG file to write.
        title: printed above, such as the protocol and the split.

    Raises:
        ValueError: if the matrix is not square over `emotions` or counts no utterance.
    """
    n = len(emotions)
    counts = np.asarray(confusion)
    if counts.shape != (n, n):
        raise ValueError(f"`confusion` has shape {counts.shape}; {n} emotions need ({n}, {n}).")
    if not counts.sum():
        raise ValueError("`confusion` counts no utterance; the split has no emotion labels.")
    labelled = counts.sum(axis=1, keepdims=True)
    share = np.where(labelled > 0, counts / np.maximum(labelled, 1), np.nan)

    side = max(4.2, 0.85 * n + 1.6)  # inches
    figure, axes = _figure(side + 0.9, side)
    colours = matplotlib.colormaps["cividis"].with_extremes(bad="0.9")  # rows without labels
    image = axes.imshow(share, cmap=colours, vmin=0, vmax=1)
    for row, column in np.ndindex(n, n):
        value = share[row, column]
        text = "–" if np.isnan(value) else f"{value:.0%}\n({counts[row, column]})"
        dark = value < 0.5
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    turned: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if n > 4 else {}
    )
    axes.set_xticks(range(n), emotions, **turned)
    axes.set_yticks(
        range(n), [f"{name}\n(n = {k})" for name, k in zip(emotions, labelled[:, 0], strict=True)]
    )
    axes.set(xlabel="predicted emotion", ylabel="labelled emotion", title=title)
    figure.colorbar(image, ax=axes, label="share of the labelled emotion", shrink=0.8)
    save(figure, path)


def plot_dimensions(
    labels: ArrayLike,
    predictions: ArrayLike,
    path: str | Path,
    dimension_range: Sequence[float],
    emotions: Sequence[str | None] | None = None,
) -> None:
    """Draws labels and predictions side by side in the valence–arousal plane.

    A small mark is one utterance, a large one the mean of an emotion's utterances. Utterances that
    lack either label are left out. Labels are jittered by 2 % of the range, as the title says.

    Args:
        labels: (utterances, 2) valence and arousal, NaN = absent.
        predictions: (utterances, 2) valence and arousal on the labels' scale.
        path: the PNG file to write.
        dimension_range: lowest and highest value of the scale.
        emotions: (utterances,) names that choose colour and marker; None = no emotion label.

    Raises:
        ValueError: if shapes disagree or no utterance has both labels.
    """
    labelled = np.asarray(labels, dtype=np.float64)
    predicted = np.asarray(predictions, dtype=np.float64)
    if labelled.shape != predicted.shape or labelled.shape[1:] != (2,):
        raise ValueError(
            f"`labels` has shape {labelled.shape} and `predictions` {predicted.shape}; "
            "both need (utterances, 2), valence and arousal."
        )
    present = ~np.isnan(labelled).any(axis=1)
    if not present.any():
        raise ValueError("`labels` has no utterance with both a valence and an arousal label.")
    given = [None] * len(labelled) if emotions is None else emotions
    names = np.array([name or "" for name in given])  # "" = no emotion label
    if len(names) != len(labelled):
        raise ValueError(f"`emotions` has {len(names)} names for {len(labelled)} utterances.")
    labelled, predicted, names = labelled[present], predicted[present], names[present]

    ccc = [concordance_correlation(x, y) for x, y in zip(predicted.T, labelled.T, strict=True)]
    valence, arousal = ("undefined" if np.isnan(value) else f"{value:.2f}" for value in ccc)
    # Labels lie on a grid of a few values, where they would hide each other.
    jitter = 0.02 * (dimension_range[1] - dimension_range[0])
    spread = np.random.default_rng(0).uniform(-jitter, jitter, labelled.shape)

    figure = Figure(figsize=(9.6, 5.8), dpi=DPI, layout="compressed")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _draw_plane(left, labelled + spread, names, dimension_range)
    _draw_plane(right, predicted, names, dimension_range)
    # Both panels show the whole scale, and more only where a prediction leaves it.
    drawn = np.concatenate([labelled, predicted, [[bound] * 2 for bound in dimension_range]])
    margin = 0.04 * np.ptp(drawn)
    limits = drawn.min() - margin, drawn.max() + margin
    left.set(xlim=limits, ylim=limits)
    left.set_title(f"labels (n = {len(labelled)}; jittered by ±{jitter:.2g})")
    right.set_title(f"predictions (CCC valence {valence}, arousal {arousal})")
    right.set_ylabel("")
    if names.any():
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False,
            markerscale=0.75, handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip
    save(figure, path)


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
        ValueError: if there are no epochs, no losses, or no metric to select by.
    """
    if not epochs:
        raise ValueError("`epochs` is empty; learning curves need at least one epoch.")
    scores = [selection_score(epoch["validation"], select_by) for epoch in epochs]
    numbers = [epoch["epoch"] for epoch in epochs]
    last = select_by == "last"
    # As the training loop keeps it: of equals the first.
    kept = len(scores) - 1 if last else int(np.argmax(_series(scores)))
    losses = {
        split: _series([epoch[split].get("loss") for epoch in epochs])
        for split in ("train", "validation")
    }
    if np.isnan([*losses.values()]).all():
        raise ValueError("`epochs` has no loss, neither for train nor for validation.")
    metrics = {
        name: _series([epoch["validation"].get(name) for epoch in epochs])
        for name in ("UAR", "WAR")
    } | {
        f"CCC {name}": _series([epoch["validation"]["CCC"].get(name) for epoch in epochs])
        for name in epochs[0]["validation"]["CCC"]
    }

    figure = Figure(figsize=(9.6, 4.2), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_lines(left, numbers, losses, numbers[kept])
    _draw_lines(right, numbers, metrics, numbers[kept])
    left.set(xlabel="epoch", ylabel="loss", title="loss")
    right.set(xlabel="epoch", ylabel="validation metric")
    which, by = ("last", "mean") if last else ("best", select_by)
    score = scores[kept]
    shown = "" if score is None else f": {by} {score:.3f}"
    right.set_title(f"validation; {which} epoch {numbers[kept]}{shown}")
    save(figure, path)


def plot_fold_spread(values: Mapping[str, Sequence[float]], path: str | Path, metric: str) -> None:
    """Draws one column per variant: a dot per fold, the mean and ± one standard deviation.

    Args:
        values: the metric in each fold, by variant; the sd is the sample's (n − 1).
        path: the PNG file to write.
        metric: the metric's name, for the axis.

    Raises:
        ValueError: if there are no variants, or a variant lacks folds or values.
    """
    if not values:
        raise ValueError("`values` is empty; give at least one variant with its folds.")
    folds = {name: _series(list(column)) for name, column in values.items()}
    for name, column in folds.items():
        if not column.size or np.isnan(column).any():
            raise ValueError(
                f"variant {name!r} has {np.isnan(column).sum()} folds without {metric} among "
                f"{column.size}; the spread needs a value in every fold and at least one fold."
            )

    figure, axes = _figure(max(4.5, 1.5 * len(folds) + 1.2), 4.6)
    captions = []
    for x, (name, column) in enumerate(folds.items()):
        deviation = column.std(ddof=1) if column.size > 1 else 0.0
        offsets = np.linspace(-0.22, 0.06, column.size) if column.size > 1 else [-0.08]
        axes.plot(x + np.array(offsets), column, linestyle="", alpha=0.7, **_style(x))
        axes.errorbar(
            x + 0.25, column.mean(), deviation, fmt="_", markersize=16, color="black",
            capsize=5, markeredgewidth=2,
        )  # fmt: skip
        spread = f" ± {deviation:.3f}" if column.size > 1 else ""
        captions.append(f"{name}\n{column.mean():.3f}{spread}\nfolds: {column.size}")
    axes.set_xticks(range(len(folds)), captions)
    axes.set_xlim(-0.5, len(folds) - 0.5)
    axes.set_ylabel(metric)
    axes.set_title("a mark per fold; bar: mean ± sd", fontsize="medium")
    axes.grid(axis="y", alpha=0.3)
    save(figure, path)


def plot_reliability(
    probabilities: Mapping[str, ArrayLike], labels: ArrayLike, path: str | Path, bins: int = 15
) -> None:
    """Draws accuracy against confidence, and beneath how many utterances each bin holds.

    Args:
        probabilities: (utterances, emotions) by name, such as "before" and "after" temperature
            scaling.
        labels: (utterances,) emotion indices, -100 = absent.
        path: the PNG file to write.
        bins: number of equal-width bins of the highest probability.

    Raises:
        ValueError: if there are no probabilities or no labels, or as `calibration_bins`.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, figure 4.
    """
    if not probabilities:
        raise ValueError("`probabilities` is empty; give at least one named set of them.")
    if not (np.asarray(labels) != ABSENT_EMOTION).any():
        raise ValueError("`labels` holds no emotion label; a reliability diagram needs some.")

    figure = Figure(figsize=(5.4, 6.4), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    edges = np.linspace(0, 1, bins + 1)
    for i, (name, table) in enumerate(probabilities.items()):
        grouped = calibration_bins(table, labels, bins)
        style = _style(i)
        filled = grouped.counts > 0
        label = f"{name} (ECE {expected_calibration_error(table, labels, bins):.3f})"
        points = grouped.confidence[filled], grouped.accuracy[filled]
        upper.plot(*points, linestyle=LINES[i % len(LINES)], label=label, **style)
        lower.stairs(
            grouped.counts, edges, color=style["color"], linestyle=LINES[i % len(LINES)],
            linewidth=1.8,
        )  # fmt: skip
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.legend(loc="upper left")
    upper.grid(alpha=0.3)
    lower.set(xlabel="confidence (probability of the predicted emotion)", ylabel="utterances")
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    save(figure, path)


def plot_ablation(
    rows: Sequence[tuple[str, float, float, float]], path: str | Path, metric: str
) -> None:
    """Draws each variant's value with its interval; a line marks the first row, the reference.

    Args:
        rows: name, value, low and high of the interval; drawn from top to bottom.
        path: the PNG file to write.
        metric: the metric's name, for the axis.

    Raises:
        ValueError: if there are no rows or a row lacks a number.
    """
    if not rows:
        raise ValueError("`rows` is empty; give at least the reference variant.")
    for name, *numbers in rows:
        if np.isnan(_series(numbers)).any():
            raise ValueError(f"row {name!r} lacks a number: mean, low, high are {numbers}.")

    figure, axes = _figure(8.0, 0.42 * len(rows) + 1.3)
    axes.axvline(rows[0][1], color=GREY, linestyle="--", linewidth=1)
    for y, (_, mean, low, high) in enumerate(rows):
        colour, marker = (COLOURS[0], "o") if y else (COLOURS[1], "D")
        axes.plot([low, high], [y, y], color=colour, linewidth=2, marker="|", markersize=9)
        axes.plot(mean, y, color=colour, marker=marker, markersize=7)
        axes.text(
            1.02, y, f"{mean:.3f} [{low:.3f}, {high:.3f}]",
            transform=axes.get_yaxis_transform(), va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # first row on top
    axes.set_xlabel(f"{metric}, with interval; dashed: the first row")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def _draw_plane(
    axes: Axes, points: np.ndarray, names: np.ndarray, dimension_range: Sequence[float]
) -> None:
    low, high = dimension_range
    for middle in (axes.axhline, axes.axvline):
        middle((low + high) / 2, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.plot(
        *points[names == ""].T, linestyle="", marker=".", color=GREY, alpha=0.6,
        label="no emotion label" if (names == "").any() else None,
    )  # fmt: skip
    for i, name in enumerate(np.unique(names[names != ""])):
        chosen = points[names == name]
        axes.plot(*chosen.T, linestyle="", alpha=0.5, markeredgewidth=0, **_style(i))
        axes.plot(
            *chosen.mean(axis=0), linestyle="", markersize=13, markeredgecolor="black",
            markeredgewidth=1.5, zorder=3, label=name, **_style(i),
        )  # fmt: skip
    scale = f"{low:g}–{high:g}"
    axes.set_xlabel(f"valence ({scale}, pleasant →)")
    axes.set_ylabel(f"arousal ({scale}, excited →)")
    axes.set_box_aspect(1)


def _draw_lines(axes: Axes, epochs: list[int], lines: Mapping[str, np.ndarray], kept: int) -> None:
    axes.axvline(kept, color=GREY, linestyle=":", linewidth=1.5, label=f"epoch kept ({kept})")
    for i, (name, values) in enumerate(lines.items()):
        if not np.isnan(values).all():
            axes.plot(
                epochs, values, label=name, linestyle=LINES[i % len(LINES)], markersize=5,
                markevery=max(1, len(epochs) // 12), **_style(i),
            )  # fmt: skip
    margin = 0.5 + 0.02 * len(epochs)
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()


def _series(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, dtype=np.float64)  # None becomes NaN
