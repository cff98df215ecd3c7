"""The record of the condition numbers of one spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from curvature.errors import ConfigurationError
from curvature.records.notebook import html_rows
from curvature.records.quantity import Quantity
from curvature.records.storage import to_plain
from curvature.records.validation import require_rank
from curvature.records.where import Located, Where

__all__ = ["ConditionNumbers"]


@dataclass(frozen=True)
class ConditionNumbers(Located):
    """Condition numbers and other summaries of one spectrum, by name: ``numbers["kappa_80"]``.

    Attributes
    ----------
    where
        Header: matrix, chart, gauge, block.
    dim
        Number of eigenvalues.
    rank, rank_rule, rank_bounds
        Rank, where it comes from, and the smallest and largest possible rank; None where these were not determined.
    noise_floor
        Eigenvalues below it in absolute value cannot be told from zero.
    method
        How the eigenvalues were computed.
    values
        Quantity by name; see :func:`curvature.records.conditioning.condition_numbers` for the formulas.
    damped
        By damping ``delta``: the pair ``(kappa_damped, effective_dimension)``.
    """

    where: Where
    dim: int
    rank: int
    rank_rule: str
    noise_floor: float
    method: str
    values: Mapping[str, Quantity]
    damped: Mapping[float, tuple[Quantity, Quantity]]
    rank_bounds: tuple[int, int] | None = None

    def validate(self) -> None:
        """Check that rank, dimension and noise floor fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If they do not.
        """
        require_rank(self.rank, self.rank_bounds, self.dim, self.noise_floor)

    def __getitem__(self, name: str) -> Quantity:
        if name not in self.values:
            raise ConfigurationError(f"{self.matrix} has no quantity {name!r}. It has {', '.join(self.values)}.")
        return self.values[name]

    @property
    def headline(self) -> dict[str, Quantity]:
        """The quantities to quote: ``kappa_50``, ``_80``, ``_95`` and ``gd_time``; ``abs_kappa_...`` if indefinite."""
        wanted = ("kappa_50", "kappa_80", "kappa_95", "gd_time", "abs_kappa_50", "abs_kappa_80", "abs_kappa_95")
        return {name: self.values[name] for name in wanted if name in self.values}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} = {quantity}" for name, quantity in self.headline.items())
        return f"ConditionNumbers({self.label}, rank {self.rank}: {shown})"

    def _repr_html_(self) -> str:
        rows = ((name, str(value), value.interval, value.note) for name, value in self.values.items())
        return html_rows(f"{self.label}, rank {self.rank}", rows)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON and CSV.

        Returns
        -------
        dict
            The fields of the record, its header flattened, and every quantity as a dict; ``damped`` is left out.
        """
        plain = {name: value for name, value in to_plain(self).items() if name not in ("values", "damped")}
        return plain | {name: asdict(quantity) for name, quantity in self.values.items()}
