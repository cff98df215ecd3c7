"""The record of the condition numbers of one spectrum."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from curvature.errors import ConfigurationError
from curvature.records.notebook import html_rows
from curvature.records.quantity import Quantity
from curvature.records.storage import to_plain
from curvature.records.validation import require_rank
from curvature.records.where import Located, Where

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ConditionNumbers"]


class _Quantities(dict[str, Quantity]):
    """The field ``values``, which can be called too: ``numbers.values()``, as pandas does with every mapping."""

    def __call__(self) -> ValuesView[Quantity]:
        return self.values()


@dataclass(frozen=True)
class ConditionNumbers(Located):
    """Condition numbers and other summaries of one spectrum, by name: ``numbers["kappa_80"]``.

    It is also a mapping: ``dict(numbers)``, ``numbers.items()``, ``"kappa_80" in numbers`` and
    ``pandas.Series(numbers)`` work. :meth:`to_dataframe` has status and interval too.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _Quantities(self.values))

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

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def keys(self) -> KeysView[str]:
        """Return the names of the quantities.

        Returns
        -------
        KeysView
            In the order of the record.
        """
        return self.values.keys()

    def items(self) -> ItemsView[str, Quantity]:
        """Return the quantities with their names.

        Returns
        -------
        ItemsView
            In the order of the record.
        """
        return self.values.items()

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

    def to_dataframe(self) -> pd.DataFrame:
        """Convert to a table.

        Returns
        -------
        pandas.DataFrame
            One row per quantity, by name: value, status, interval, note, and the header. The value is what was
            computed, also where it is not resolved: filter by ``status``.
        """
        import pandas as pd

        columns = ["value", "status", "low", "high", "note"]
        rows = [[getattr(quantity, column) for column in columns] for quantity in self.values.values()]
        table = pd.DataFrame(rows, columns=columns, index=pd.Index(self.values, name="quantity"))
        table = table.astype({"value": float, "low": float, "high": float})
        return table.assign(matrix=self.matrix, chart=self.chart, gauge=self.gauge, block=self.block)


Mapping.register(ConditionNumbers)  # not a base: its method ``values`` would be the default of the field
