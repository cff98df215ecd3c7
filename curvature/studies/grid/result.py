"""From the measured units of a grid to a study of every cell, and to verdicts over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from curvature.records import ConditionNumbers, Decomposition, PooledEffect, PooledVerdict, Study
from curvature.studies.compare import combined
from curvature.studies.evidence import log_ratio, pool, pooled_sources, pooled_verdicts
from curvature.studies.evidence.inference import scarcity_of
from curvature.studies.grid.cells import Cell
from curvature.studies.grid.settings import GridSettings, Unit
from curvature.studies.settings import HEADLINE, PUBLISHED
from curvature.studies.training import arm_named

__all__ = ["GridStudy", "grid_study"]

_BASES = (HEADLINE[0], PUBLISHED[2])  # the standard method from either start
_STABLE_RANK = "log(stable rank of the Hessian, standard / weight norm)"  # its rank changes, so no ratio on the rank
_FACTORS = ("optimizer", "architecture", "data", "batch_size")


@dataclass(frozen=True)
class GridStudy:
    """The evidence of a whole grid.

    Attributes
    ----------
    settings
        What was trained and measured.
    cells
        From the name of a cell to its study: all seeds, with verdicts and decompositions of its own.
    verdicts
        On every claim over all cells.
    sources
        Where the difference between the paper's arms comes from, pooled over the cells; of PyTorch's where the paper's
        were not trained. Of the condition number kappa_80 of the GGN.
    hessian_sources
        The same of the stable rank of the Hessian, with the part of the second-order term; empty where the Hessian was
        not measured.
    arms
        For each further arm, its condition number after its own training against that of the standard method from the
        same start, pooled over the cells; positive where it is lower. No test of a claim.
    groups
        By claim, the pooled effect of all cells with one optimizer, one architecture, one data set or one size of
        batches, where the grid has several.
    """

    settings: GridSettings
    cells: Mapping[str, Study] = field(repr=False)
    verdicts: tuple[PooledVerdict, ...]
    sources: tuple[PooledEffect, ...]
    hessian_sources: tuple[PooledEffect, ...]
    arms: tuple[PooledEffect, ...]
    groups: Mapping[str, tuple[PooledEffect, ...]] = field(repr=False)


def grid_study(settings: GridSettings, parts: Mapping[Unit, Study]) -> GridStudy:
    """Join the units of each cell, decide its claims, and pool them over the cells.

    Parameters
    ----------
    settings
        Of the grid.
    parts
        The measurements of every unit.

    Returns
    -------
    GridStudy
        With verdicts, sources and groups.
    """
    studies = {cell.name: _study_of(settings, cell, parts) for cell in settings.cells}
    decided = {name: study.verdicts for name, study in studies.items()}
    verdicts = pooled_verdicts(decided)
    return GridStudy(
        settings,
        studies,
        verdicts,
        pooled_sources(_published(studies, "ggn")),
        pooled_sources(_published(studies, "hessian"), unit=_STABLE_RANK),
        tuple(_arm_effect(arm, studies) for arm in settings.arms if arm not in _BASES),
        _groups(settings, studies),
    )


def _study_of(settings: GridSettings, cell: Cell, parts: Mapping[Unit, Study]) -> Study:
    study = settings.study(cell)
    seeds = [parts[Unit(cell, seed)] for seed in settings.seeds]
    problem = settings.problem(cell, settings.seeds[0])
    model = f"{cell.architecture}, {problem.dim} weights, {cell.optimizer}"
    joined = combined(seeds, study, problem, model=model, data=f"{cell.data}, {problem.num_examples} examples")
    return replace(joined, warnings=tuple(f"{cell.name}: {warning}" for warning in joined.warnings))


def _published(studies: Mapping[str, Study], matrix: str) -> dict[str, Decomposition | None]:
    """By cell, the decomposition between the arms of the paper, or in every cell between PyTorch's.

    None where a cell has too few numbers of it: another comparison does not take its place.
    """
    by_cell = {name: [d for d in study.decompositions if d.matrix == matrix] for name, study in studies.items()}
    compared = {decomposition.arms for decompositions in by_cell.values() for decomposition in decompositions}
    if not compared:
        return {}
    arms = PUBLISHED[:2] if PUBLISHED[:2] in compared else HEADLINE
    return {name: next((d for d in decompositions if d.arms == arms), None) for name, decompositions in by_cell.items()}


def _arm_effect(arm: str, studies: Mapping[str, Study]) -> PooledEffect:
    """Condition number of the GGN at the end of an arm's training, in its own chart, against the standard arm's."""
    base = _BASES[arm_named(arm).start == "paper"]
    numbers, missing = {}, {}
    for cell, study in studies.items():
        num_seeds = len({m.seed for m in study.measurements})
        ours, theirs = _in_own_chart(study, arm), _in_own_chart(study, base)
        pairs = [log_ratio(theirs[seed], ours[seed], "kappa_80") for seed in sorted(ours.keys() & theirs.keys())]
        finite = [value for value, reason in pairs if not reason]
        if scarcity := scarcity_of(len(finite), num_seeds - len(finite)):
            reasons = [reason for _, reason in pairs if reason]
            missing[cell] = next(iter(reasons), scarcity)
        else:
            numbers[cell] = finite
    unit = f"log(kappa_80 {base} / kappa_80 {arm})"
    return pool(numbers, name=f"{arm} against {base}", unit=unit, missing=missing)


def _in_own_chart(study: Study, arm: str) -> dict[int, ConditionNumbers]:
    """By seed, at the last checkpoint: the chart of the arm is the last that is measured there."""
    rows = study.of(ConditionNumbers, arm=arm, checkpoint="late", matrix="ggn", block="all")
    return {m.seed: m.record for m in rows if m.record.chart == "standard" or arm not in _BASES}


def _groups(settings: GridSettings, studies: Mapping[str, Study]) -> dict[str, tuple[PooledEffect, ...]]:
    """Pooled effects of the cells that share one level of a factor."""
    groups: dict[str, list[PooledEffect]] = {}
    for factor in _FACTORS:
        levels = dict.fromkeys(getattr(cell, factor) for cell in settings.cells)
        for level in levels if len(levels) > 1 else ():
            inside = [cell.name for cell in settings.cells if getattr(cell, factor) == level]
            for verdict in pooled_verdicts({name: studies[name].verdicts for name in inside}):
                label = f"{factor.replace('_', ' ')} {level}"
                groups.setdefault(verdict.name, []).append(replace(verdict.effect, name=label))
    return {name: tuple(effects) for name, effects in groups.items() if any(effect.cells for effect in effects)}
