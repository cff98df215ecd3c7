"""Optimizers on a flat vector of coordinates: a rule is a frozen setting; ``begin`` returns an update with state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import ConfigurationError

__all__ = ["SGD", "Adam", "Optimizer", "SecondMoment", "Update"]

Update = Callable[[Tensor, Tensor], None]
"""``update(coordinates, gradient)`` moves the coordinates in place."""


@dataclass(frozen=True)
class Optimizer:
    r"""What all rules share: a learning rate $\eta$ and decoupled weight decay $\lambda$ *on the coordinates*.

    With decay every step begins with $\theta \leftarrow (1 - \eta\lambda)\theta$ (Loshchilov & Hutter 2019,
    arXiv:1711.05101). What decays depends on the chart: in weight normalization $g$ and $v$, of which only $g$ moves
    the function.
    """

    learning_rate: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ConfigurationError(f"learning_rate must be positive and finite, got {self.learning_rate}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigurationError(f"weight_decay must be >= 0 and finite, got {self.weight_decay}.")

    def at_rate(self, learning_rate: float) -> Self:
        """The same rule at another learning rate."""
        return replace(self, learning_rate=learning_rate)

    def begin(self, coordinates: Float[Tensor, "coordinates"]) -> Update:
        """An update without memory, for coordinates of this shape, dtype and device."""
        raise NotImplementedError

    @property
    def edge(self) -> float:
        r"""Edge of stability: the largest eigenvalue of a quadratic at which this rule does not diverge.

        Without decay it is $2/\eta$ for gradient descent, $(2 + 2\mu)/\eta$ with heavy-ball momentum, and
        $(2 + 2\beta_1) / ((1 - \beta_1)\eta)$ for Adam, there of the Hessian that Adam's divisors precondition
        (Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484). Decay $\lambda$ shrinks the
        coordinates by $1 - \eta\lambda$ in every step, and puts $2 - \eta\lambda$ in the place of 2.
        """
        raise NotImplementedError

    @property
    def _plain_edge(self) -> float:
        """Edge without momentum."""
        return 2 / self.learning_rate - self.weight_decay

    def _decay(self, coordinates: Tensor) -> None:
        if self.weight_decay:
            coordinates.mul_(1 - self.learning_rate * self.weight_decay)


@dataclass(frozen=True)
class SGD(Optimizer):
    r"""Gradient descent, with heavy-ball momentum: $m \leftarrow \mu m + g$, $\theta \leftarrow \theta - \eta m$.

    >>> SGD(0.1, momentum=0.9)
    SGD(learning_rate=0.1, weight_decay=0.0, momentum=0.9)
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ConfigurationError(f"momentum must be in [0, 1), got {self.momentum}.")

    @property
    def edge(self) -> float:
        return (1 + self.momentum) * self._plain_edge

    def begin(self, coordinates: Float[Tensor, "coordinates"]) -> Update:
        velocity = torch.zeros_like(coordinates)

        def update(coordinates: Tensor, gradient: Tensor) -> None:
            self._decay(coordinates)
            if self.momentum:
                gradient = velocity.mul_(self.momentum).add_(gradient)
            coordinates.sub_(gradient, alpha=self.learning_rate)

        return update


@dataclass(frozen=True)
class Adam(Optimizer):
    r"""Adam (Kingma & Ba 2015, arXiv:1412.6980); with decay, AdamW.

    $m \leftarrow \beta_1 m + (1 - \beta_1) g$, $s \leftarrow \beta_2 s + (1 - \beta_2) g^2$, and
    $\theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat s} + \epsilon)$ with $\hat m = m / (1 - \beta_1^t)$ and
    $\hat s = s / (1 - \beta_2^t)$.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas) or not self.epsilon > 0:
            raise ConfigurationError(
                f"Adam needs betas in [0, 1) and epsilon > 0, got {self.betas} and {self.epsilon}."
            )

    @property
    def edge(self) -> float:
        first = self.betas[0]
        return (1 + first) / (1 - first) * self._plain_edge

    def begin(self, coordinates: Float[Tensor, "coordinates"]) -> Update:
        mean, moment = torch.zeros_like(coordinates), SecondMoment(self, coordinates)
        first = self.betas[0]

        def update(coordinates: Tensor, gradient: Tensor) -> None:
            self._decay(coordinates)
            mean.lerp_(gradient, 1 - first)
            moment.add(gradient)
            coordinates.addcdiv_(mean, moment.divisors(), value=-self.learning_rate / (1 - first**moment.step))

        return update


class SecondMoment:
    """Adam's running mean of squared gradients, and the divisors that follow from it.

    Parameters
    ----------
    rule
        With its second beta and epsilon.
    like
        A vector of the shape, precision and device of the gradients.
    """

    def __init__(self, rule: Adam, like: Float[Tensor, "coordinates"]):
        self.rule, self.square, self.step = rule, torch.zeros_like(like), 0

    def add(self, gradient: Float[Tensor, "coordinates"]) -> None:
        """Take in the gradient of one more step."""
        self.step += 1
        second = self.rule.betas[1]
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)

    def divisors(self) -> Float[Tensor, "coordinates"]:
        r"""$\sqrt{s / (1 - \beta_2^t)} + \epsilon$ after $t$ steps, ``(Q,)``."""
        unbiased = (1 - self.rule.betas[1] ** self.step) ** 0.5
        return self.square.sqrt().div_(unbiased).add_(self.rule.epsilon)
