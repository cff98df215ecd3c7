"""Figures of training, and of the gradient noise neuron by neuron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from curvature.records import Alignment, Measured, Study, TrainingCurve, Whitening
from curvature.report import figures
from curvature.report.drawings.layout import Drawing, finished, numbers_table, panels
from curvature.report.spread import grouped, quartiles
from curvature.report.table import Entry, Table
from curvature.report.words import point_words
from curvature.studies.evidence import last_checkpoint

__all__ = ["draw_alignment", "draw_training", "draw_whitening"]

_POINTS = 15  # of each curve in the numbers of the figure


def draw_alignment(study: Study) -> Drawing | None:
    """Draw where the weights of each neuron lie in its gradient noise.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without alignments.
    """
    items = study.of(Alignment, checkpoint=last_checkpoint(study))
    caption = (
        "One dot per neuron and seed, a bar at the median: how close each direction is to the top eigenvector of the "
        "neuron's gradient covariance. The dotted lines are the mean for a random direction in as many dimensions. If "
        "w were the dominant direction of the gradient noise, its dots would lie near 1 and above the mean input."
    )
    title = "Where the weights lie in the gradient noise"
    return _neurons(items, figures.plot_alignment, title, caption, ("alignment", "direction", "cosine"))


def draw_whitening(study: Study) -> Drawing | None:
    """Draw how white the gradient noise of each neuron is without one direction.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without whitenings.
    """
    items = study.of(Whitening, checkpoint=last_checkpoint(study))
    caption = (
        "One dot per neuron and seed, a bar at the median: distance of the neuron's gradient covariance from a "
        "multiple of the identity, before and after one direction is projected out; lower is whiter. Projecting out "
        "any direction helps a little, so w has to be compared with a random direction (dotted), not with nothing."
    )
    title = "Whiteness of the gradient noise"
    return _neurons(items, figures.plot_whitening, title, caption, ("whitening", "projection", "bures"))


def _neurons(
    items: Sequence[Measured[Any]], draw: Callable[..., Axes], title: str, caption: str, fields: tuple[str, str, str]
) -> Drawing | None:
    """One panel per arm; the fields name the file, the columns of the figure and the quantity that is drawn."""
    name, columns, quantity = fields
    if not items:
        return None

    def plot(ax: Axes, arm: str, members: Sequence[Measured[Any]]) -> None:
        draw(members, ax, legend=False, title=point_words(arm, members[0].checkpoint))

    def numbers(members: Sequence[Measured[Any]]) -> dict[str, Entry]:
        values = quartiles([getattr(m.record, quantity) for m in members])
        return {"neurons": len(members)} | {key.replace("_", " "): value for key, value in values.items()}

    figure, _ = panels(grouped(items, lambda m: m.arm), plot, height=3.2)
    return Drawing(name, caption, finished(figure), numbers_table(title, items, ("weights", "layer", columns), numbers))


def draw_training(study: Study) -> Drawing | None:
    """Draw the loss and the accuracy of every training run.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None where nothing was trained.
    """
    curves = [curve for curve in study.curves if len(curve.steps)]
    if not curves:
        return None
    quantities = {"losses": curves}
    if all(np.isfinite(curve.accuracies).all() for curve in curves):
        quantities["accuracies"] = curves
    titles = {"losses": "Mean loss over all data", "accuracies": "Accuracy over all data"}

    def plot(ax: Axes, quantity: str, members: Sequence[TrainingCurve]) -> None:
        figures.plot_training(members, ax, quantity=quantity, legend=False, title=titles[quantity])

    figure, _ = panels(quantities, plot, width=4.4, height=3.0)
    caption = "Thin lines are seeds, thick ones their medians. " + (
        "Arms share data and order, and arms of one start the function there. Each trains at its own learning rate, "
        "the best of its grid at a short budget by the mean loss of the last three epochs."
        if study.sweeps
        else "Arms share initial weights, data and order, and the learning rate: the rate was not tuned for either, so "
        "this figure does not say which arm trains faster."
    )
    rows = [
        (curve.arm, curve.seed, curve.steps[index], curve.losses[index], curve.accuracies[index])
        for curve in curves
        for index in np.unique(np.linspace(0, len(curve.steps) - 1, _POINTS).astype(int))
    ]
    table = Table("Training", ("arm", "seed", "step", "loss", "accuracy"), tuple(rows))
    return Drawing("training", caption, finished(figure, outer_labels=False), table)
