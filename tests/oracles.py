"""What several files of tests share: seeded draws, distances, small operators and networks, matrices by plain autograd.

Nothing here calls the code under test, except to hand it a matrix or a module.
"""

import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import curvature as cv
from curvature.linalg.facts import Facts
from curvature.linalg.routes import FactorRoute, Routes

# ---------------------------------------------------------------------------------------------------------------- draws


def seeded(seed):
    """A generator of torch with this seed; a generator is returned as it is."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    """Standard normal numbers in float64; ``seed`` is an int or a generator."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def drawn(*shape, seed=1):
    """Standard normal numbers of a shape, by default always the same ones."""
    return normal(seed, *shape)


def built(build, seed=0):
    """What ``build()`` returns, in float64, with its weights drawn from this seed of torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double()


def weighted(module, *, scale=1.0, seed=10):
    """The module with normal weights times a scale, parameter ``k`` of them drawn from ``seed + k``."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data = scale * drawn(*parameter.shape, seed=seed + number)
    return module


# ------------------------------------------------------------------------------------------------------------ distances


def distance(actual, expected, scale=None):
    """Norm of the difference relative to the norm of what is expected, or of another; absolute where that is zero."""
    assert actual.shape == expected.shape
    size = torch.linalg.norm(expected if scale is None else scale)
    return float(torch.linalg.norm(actual - expected) / (size if size else 1.0))


# ---------------------------------------------------------------------------------------------- matrices and operators


def with_spectrum(values, seed=0):
    """Symmetric matrix with these eigenvalues and random eigenvectors; ``seed`` is an int or a generator."""
    values = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
    values = values.double()
    basis = torch.linalg.qr(normal(seed, len(values), len(values))).Q
    matrix = basis @ (values[:, None] * basis.T)
    return (matrix + matrix.T) / 2


def operator_of(matrix, *, where="matrix", widths=None, routes=None, layout=None, **facts):
    """Operator that is known by its products, and by ``routes`` if given; ``widths`` collects the columns of each."""

    def matmat(block):
        if widths is not None:
            widths.append(block.shape[1])
        return matrix @ block

    return cv.SymmetricOperator(
        where=cv.Where(where) if isinstance(where, str) else where,
        dim=len(matrix),
        matmat=matmat,
        dtype=matrix.dtype,
        device=matrix.device,
        routes=Routes() if routes is None else routes,
        facts=Facts(**facts),
        layout=layout,
    )


def factor_route(*blocks, **costs):
    """Route by the blocks of a factor."""
    return FactorRoute(lambda: iter(blocks), sum(block.shape[1] for block in blocks), **costs)


def factored(*blocks, **facts):
    """Operator that is known by its products and by its factor, given as blocks of columns."""
    return cv.SymmetricOperator(
        where=cv.Where("factored"),
        dim=len(blocks[0]),
        matmat=lambda block: sum(part @ (part.T @ block) for part in blocks),
        dtype=blocks[0].dtype,
        device=blocks[0].device,
        routes=Routes(factor=factor_route(*blocks)),
        facts=Facts(positive_semidefinite=True, **facts),
    )


def factor_of(operator):
    """The factor of an operator as one matrix, ``(D, r)``."""
    return torch.cat(list(operator.routes.factor.blocks()), dim=1)


def in_chart(operator, chart, *, effective=False):
    """The operator in the coordinates of a chart, or as it is where ``chart`` is None."""
    if chart is None:
        return operator
    return cv.effective(operator, chart) if effective else cv.pullback(operator, chart)


def without_entries(operator):
    """The same operator without the route to its entries."""
    return replace(operator, routes=replace(operator.routes, entries=None))


# --------------------------------------------------------------------------------------------------- modules and losses


def initialized(module, generator):
    """Weights and running statistics from a generator of our own, large enough to leave the linear range."""
    module = module.double().eval()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            values = normal(generator, *tensor.shape)
            tensor.data = values.square() + 0.5 if name.endswith("running_var") else 0.7 * values
    return module


def legacy_weight_norm(layer, *name, **options):
    """``torch.nn.utils.weight_norm`` as hooks, the form before parametrizations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch deprecates this form; users still have it
        return nn.utils.weight_norm(layer, *name, **options)


def welsch(output, target):
    """A loss for one example that is not convex, and no likelihood: it flattens far from the target."""
    return (1 - torch.exp(-((output - target) ** 2))).sum()


def pseudo_huber(output, target):
    """A loss for one example that is convex, and no likelihood."""
    return ((1 + (output - target) ** 2).sqrt() - 1).sum()


# -------------------------------------------------------------------------------------------------------- by autograd


def flat_parameters(module):
    """The trainable parameters of a module as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters() if p.requires_grad])


def outputs_at(module, vector, inputs):
    """Outputs of a module with its trainable parameters replaced by the parts of a vector."""
    named, start = {}, 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            named[name] = vector[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
    return torch.func.functional_call(module, named, (inputs,))


def hessian_and_ggn_of_half_squared_error(module, inputs, targets):
    """Hessian and GGN of the mean half squared error, whose GGN is ``J^T J / N``, by autograd on the user's module."""
    point = flat_parameters(module)

    def mean_loss(vector):
        return 0.5 * ((outputs_at(module, vector, inputs) - targets) ** 2).sum() / len(inputs)

    jacobian = torch.autograd.functional.jacobian(lambda vector: outputs_at(module, vector, inputs), point)
    jacobian = jacobian.reshape(-1, len(point))
    return torch.autograd.functional.hessian(mean_loss, point), jacobian.T @ jacobian / len(inputs)


def rows_of(outputs, parameters):
    """Jacobian of a flat tensor in the parameters, by one backward pass for each entry."""
    rows = []
    for entry in outputs.reshape(-1):
        parts = torch.autograd.grad(
            entry, parameters, retain_graph=True, create_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


# --------------------------------------------------------------------------------------------------------------- files


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return exec, ("open('exploded', 'w').close()",)
