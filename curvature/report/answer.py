"""The answer of a study: its question, one sentence in factors, where the difference comes from, what it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from curvature.report.table import Row
from curvature.report.words import capital, factor_words, matrix_name, quantity_symbol

__all__ = ["SOURCES", "answer_of", "question_of", "trust_lines", "why_lines"]

_SAME_WEIGHTS, _OWN_TRAINING = "same weights", "own training"
SOURCES = {  # sources of a difference between two arms
    "initialization": "the initial weights",
    "trajectory": "the weights that training reached (trajectory)",
    "gauge": "the length of v at these weights (gauge)",
    "second-order term": "the curvature of the chart (second-order term)",
    "noise": "minibatch noise",
}


def question_of(verdicts: Sequence[Row], model: str) -> str:
    """The question that a study answers.

    Parameters
    ----------
    verdicts
        Its verdicts, as rows of the summary; empty where no claim was tested.
    model
        Its name.

    Returns
    -------
    str
        The title of its report.
    """
    if any(row["claim"] == "C1" for row in verdicts):
        return f"Does weight norm improve the conditioning of {model}?"
    return f"What does weight norm change in {model}?" if verdicts else f"How well conditioned is {model}?"


def answer_of(verdicts: Sequence[Row]) -> dict[str, str]:
    """The answer to the question of a study, in factors.

    Parameters
    ----------
    verdicts
        Its verdicts, as rows of the summary.

    Returns
    -------
    dict
        ``outcome`` and ``icon`` of the main claim, ``text``: one sentence, and ``plain``: both as one line; empty
        without the main claim.
    """
    rows = {row["case"]: row for row in verdicts if row["claim"] == "C1"}
    main = rows.get(_OWN_TRAINING) or next(iter(rows.values()), None)
    if main is None:
        return {}
    subject = main["label"].partition(",")[0]
    subject = subject[:1].lower() + subject[1:]
    how = main["label"].partition(", ")[2].replace("each after", "after")
    number = main["number"]
    if main["factor"] is not None and math.isfinite(main["factor"]):
        text = f"{how}, weight norm multiplies the {subject} by {number}, where below 1 is better"
    else:
        text = f"{how}, for the {subject} {number}"
    same = rows.get(_SAME_WEIGHTS)
    if same is not None and same is not main and same["outcome"] in _SAME:
        text += "; " + _SAME[same["outcome"]].format(size=same["smallest_effect"], number=same["number"])
    text += "."
    return {
        "outcome": main["outcome"],
        "icon": main["icon"],
        "text": capital(text),
        "plain": f"{capital(main['outcome'])}: {text}",
    }


_SAME = {
    "supported": "at the same weights an improvement of more than {size} is shown ({number})",
    "too small": "at the same weights an improvement of more than {size} is excluded ({number})",
    "opposite": "at the same weights a deterioration of more than {size} is shown ({number})",
    "undecided": "at the same weights it is undecided too ({number})",
}


def trust_lines(document: Row) -> list[str]:
    """What the claims of a study rest on, in a sentence each.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    list of str
        Controls, then how far the verdicts reach; empty where no claim was tested.
    """
    controlled = [row for row in document["verdicts"] if row["control_passed"] is not None]
    failed = [row for row in controlled if not row["control_passed"]]
    if not document["verdicts"]:
        return []
    lines = []
    if controlled:
        lines.append(
            f"{len(controlled) - len(failed)} of {len(controlled)} controls of the claims came out as they must."
        )
    lines += [f"{row['label']}: {row['control_words']}" for row in failed]
    seeds = len(document["seeds"])
    lines.append(
        f"The verdicts hold for this network, these data and this training, over {seeds} paired "
        f"{'seed' if seeds == 1 else 'seeds'}; a second network may decide otherwise."
    )
    return lines


def why_lines(document: Row) -> list[str]:
    """Where the difference of each condition number comes from: the whole factor as a product.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    list of str
        One sentence for each matrix; empty without a decomposition.
    """
    rows = [row for row in document["decompositions"] if "kappa" in row["quantity"]]
    lines = []
    for row in rows:
        means = {source: part["mean"] for source, part in row["means"].items() if part["mean"] is not None}
        if "whole" not in means or row["arms"] != rows[0]["arms"]:
            continue
        factors = [
            f"{factor_words(math.exp(means[source]))} from {SOURCES.get(source, source)}"
            for source in row["sources"]
            if source in means
        ]
        name = f"{capital(matrix_name(row['matrix']))}, {quantity_symbol(row['quantity'])}"
        lines.append(f"{name}: {factor_words(math.exp(means['whole']))} is {' times '.join(factors)}.")
    return lines
