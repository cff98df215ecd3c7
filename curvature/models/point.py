"""The content of a problem: model, loss and data at a point, with their sizes, names and description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from curvature.arrays import Float, Num
from curvature.charts import Parameterization
from curvature.layout import Layout
from curvature.models.derivatives import Derivatives
from curvature.models.function import ModelFunction
from curvature.models.losses import Loss
from curvature.models.module.named import NamedTensors
from curvature.models.penalty import Penalty
from curvature.models.trees import StreamedTensors, Tensors
from curvature.records.notebook import html_table

__all__ = ["Point"]

_KEPT_CHUNKS = 4  # largest number of chunks of examples whose graphs are kept between products


@dataclass(frozen=True, eq=False, repr=False)
class Point:
    """Model, loss and data at a point in the weights.

    The base class of :class:`~curvature.models.Problem`, which documents the fields and evaluates the objective.
    """

    function: ModelFunction
    loss: Loss
    inputs: Tensors
    targets: Tensors
    weights: Float[Tensor, "weights"]
    chart: Parameterization
    denominator: float
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    num_outputs: int
    chunk_size: int
    total: float
    notes: tuple[str, ...] = ()
    derivatives: Derivatives = field(default_factory=Derivatives)
    penalty: Penalty | None = None

    @property
    def model(self) -> nn.Module:
        """The private copy of the module."""
        return self.function.module

    @property
    def model_name(self) -> str:
        """Class of the module, or name of the function of named tensors."""
        return self.model.name if isinstance(self.model, NamedTensors) else type(self.model).__name__

    @property
    def has_examples(self) -> bool:
        """Whether the loss is a mean or a sum over examples; a bare objective is a single number."""
        return not isinstance(self.model, NamedTensors) or self.model.takes_inputs

    @cached_property
    def is_streamed(self) -> bool:
        """Whether the data are read chunk by chunk in every pass, and are not in memory."""
        return isinstance(self.inputs, StreamedTensors)

    @property
    def keeps_graphs(self) -> bool:
        """Whether the graphs of all examples are kept between the products of a matrix: if they are few chunks."""
        return self.num_examples <= _KEPT_CHUNKS * self.chunk_size

    @cached_property
    def layout(self) -> Layout:
        """Names and positions of the weights: the only conversion between named tensors and flat vectors."""
        return self.function.layout

    @property
    def aliases(self) -> Mapping[str, str]:
        """Second names of tied weights, each with the name in :attr:`layout`."""
        return self.function.aliases

    @property
    def written(self) -> tuple[str, ...]:
        """Names of buffers that ``forward`` writes into; every pass starts from the values they came with."""
        return self.function.written

    @cached_property
    def dim(self) -> int:
        """Number of weights ``P``."""
        return self.layout.dim

    @cached_property
    def num_examples(self) -> int:
        """Number of examples ``N``."""
        return len(self.inputs)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, hence of every matrix."""
        return self.weights.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights, hence of every matrix."""
        return self.weights.device

    def __repr__(self) -> str:
        penalty = "" if self.penalty is None else f", {self.penalty.label}"
        examples = f"{self.num_examples} examples, " if self.has_examples else ""
        return (
            f"Problem({self.model_name}, {self.dim} weights, {examples}"
            f"{self.loss.label}{penalty}, "
            f"chart {self.chart!r}, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {
            "model": self.model_name,
            "weights": self.dim,
            "frozen": ", ".join(self.frozen),
            "unused": ", ".join(self.unused),
            "examples": self.num_examples if self.has_examples else "",
            "outputs per example": self.num_outputs,
            "loss": self.loss.label,
            "penalty": "" if self.penalty is None else self.penalty.label,
            "denominator of the mean": f"{self.denominator:g}"
            if self.has_examples and self.loss.reduction != "sum"
            else "",
            "chart": self.chart.label,
            "precision": str(self.dtype).removeprefix("torch."),
            "device": self.device,
            "notes": " ".join(self.notes),
        }
        return html_table("Problem", {name: str(value) for name, value in rows.items() if value != ""})

    def flatten(self, tensors: Mapping[str, Num[Tensor, "..."]]) -> Num[Tensor, "weights"]:
        """Join named tensors (names as in ``layout``) into a ``(P,)`` vector."""
        return self.layout.flatten(tensors)

    def unflatten(self, vector: Num[Tensor, "weights"]) -> dict[str, Num[Tensor, "..."]]:
        """Split a ``(P,)`` vector into named tensors."""
        return self.layout.unflatten(vector)

    def chunks(self) -> Iterator[slice]:
        """Slices of the examples, at most ``chunk_size`` each."""
        for start in range(0, self.num_examples, self.chunk_size):
            yield slice(start, min(start + self.chunk_size, self.num_examples))
