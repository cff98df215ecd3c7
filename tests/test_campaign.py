"""The test campaign of the design, item by item.

What an item asks for and another file already shows is named there; this file holds the rest: random networks where
the others are fixed, and tolerances as stated. Relative to the Frobenius norm of the expected matrix unless said.

Item -> test (``test_x::name`` is in ``test_x.py`` of its wing; a bare name is in this file).

Exactness

1. ``every_matrix_of_a_random_network_is_that_of_torch_func``; examples one by one in
   ``test_matrices::matrices_equal_loops_over_single_examples``, ``::products_equal_products_with_the_reference``,
   ``::matrices_of_random_networks_equal_the_references``; ``test_convolution``, ``test_structured``
2. ``hessian_of_random_weight_normalized_networks_is_that_of_central_differences``; every form, axis and layer in
   ``test_parameterization::hessian_equals_differences_of_the_first_derivative_of_pytorch``
3. ``pullback_is_the_jacobian_on_both_sides_plus_the_bending_of_the_map``; its power in
   ``test_parameterization::dropping_the_second_order_term_would_be_a_large_error``
4. ``gauge_identities_hold_in_every_form_of_weight_normalization``; other gauges in
   ``test_parameterization::stretching_v_is_a_null_direction_of_semidefinite_matrices``,
   ``::stretching_v_costs_the_hessian_minus_the_gradient``, ``::v_blocks_scale_with_the_inverse_square_of_the_stretch``
5. ``linear_models_have_the_hessian_on_paper``, ``a_quadratic_has_the_spectrum_it_was_given``
6. ``test_spectrum::linear_models_have_equal_hessian_and_ggn``
7. ``test_matrices::fisher_equals_ggn_for_every_named_loss``, ``::monte_carlo_fisher_is_unbiased``
8. ``hessian_is_the_ggn_plus_differences_of_the_residual_term``
9. ``second_moment_and_covariance_are_those_of_the_rows_of_gradients``;
   ``test_matrices::rank_bound_holds_and_is_attained_by_a_wide_network``
10. ``test_problem::matrices_of_unusual_modules_equal_the_references``

Metamorphic

11. ``relabelling_channels_changes_no_eigenvalue``; ``test_spectrum::relabelling_hidden_units_changes_no_eigenvalue``
12. ``order_and_cutting_of_the_data_change_nothing``; ``test_matrices::results_do_not_depend_on_the_chunk_size``
13. ``matrices_add_over_any_split_with_the_weights_of_its_parts``; the covariance in
    ``test_matrices::covariance_adds_within_and_between_parts``
14. ``nothing_but_the_scale_depends_on_the_scale_of_the_loss``; ``test_matrices::matrices_scale_with_the_loss``
15. ``test_parameterization::orthogonal_coordinates_change_no_eigenvalue``, ``::linear_coordinates_are_a_congruence``
16. ``test_spectrum::relabelling_hidden_units_changes_no_eigenvalue`` (``flipped``)
17. ``test_matrices::data_twice_over_change_nothing``
18. ``test_nullspace::rescaling_is_not_null_for_the_hessian_away_from_stationary_points``,
    ``::known_directions_are_all_there_are_on_generic_networks``
19. ``test_nullspace::softmax_shift_is_null_for_the_hessian_too``
20. ``test_spectrum::weight_decay_adds_its_coefficient_to_every_eigenvalue``
21. ``freezing_any_parameters_interlaces_the_eigenvalues``

Solvers

22. ``eigenvalues_and_vectors_are_within_lapacks_own_threshold``;
    ``test_spectrum::dense_eigenvalues_are_within_rounding_of_the_norm``
23. ``no_budget_of_steps_makes_ghosts_of_outliers``, ``bases_stay_orthogonal_to_rounding``;
    ``test_krylov::outliers_have_no_ghosts``
24. ``a_wrong_set_is_never_marked_complete``; ``test_krylov::cluster_of_relative_width_7e_5_is_complete``,
    ``test_estimators::a_double_eigenvalue_at_either_end_is_missed_by_one_vector_and_found_by_two``
25. ``residual_and_kato_temple_intervals_hold_in_eighteen_thousand_cases``;
    ``test_krylov::residuals_contain_an_eigenvalue_in_200_random_cases``
26. ``bounds_from_random_starts_are_violated_no_oftener_than_one_per_cent``
27. ``smallest_eigenvalue_beside_a_known_null_space_is_right_or_a_bound``
28. ``an_unknown_null_space_is_never_resolved_by_a_gap_of_the_entries``
29. ``test_spectrum::factor_route_resolves_a_condition_number_of_1e12``,
    ``::the_gram_route_says_where_it_loses_what_the_factor_resolves``
30. ``single_precision_never_claims_a_condition_number_beyond_its_digits``
31. ``every_method_is_right_on_degenerate_matrices_at_extreme_scales``
32. ``test_checks::each_property_of_a_symmetric_matrix_is_checked``,
    ``::what_is_random_only_under_gradients_is_refused``,
    ``::a_product_that_is_not_finite_names_example_and_parameters``

Statistics

33. ``test_estimators::intervals_of_the_trace_cover_what_they_promise_in_500_runs`` and its kin (marked ``slow``);
    ``test_evidence::students_interval_covers_as_often_as_it_says``
34. ``estimates_are_unbiased_and_a_seed_fixes_every_bit``, ``a_seed_fixes_every_bit_of_ends_and_sums``; over *all* signs
    in ``test_estimators::hutchinson_is_unbiased_over_all_signs`` and its kin
35. ``density_is_as_close_in_wasserstein_as_chen_trogdon_and_ubaru_prove``
36. ``twice_the_probes_halve_the_variance``;
    ``test_estimators::more_probes_and_independent_seeds_shrink_the_error_like_the_square_root``

Operation

41. ``one_thread_repeats_its_bits_and_several_agree_to_rounding``
42. ``nothing_is_kept_alive_by_its_own_derivatives``
49. ``matrices_equal_those_of_curvlinops``
"""

from __future__ import annotations

import gc
import math
import re
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, sem, t
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters

import curvature as cv
from curvature.linalg import eigen, lapack
from curvature.linalg.facts import Facts, NullSpace
from curvature.linalg.intervals import mean_interval
from curvature.linalg.lanczos import lanczos
from curvature.matrices import MATRICES
from curvature.records.bounds import kato_temple, lanczos_slack, spectral_bounds
from oracles import distance, factor_route, factored, legacy_weight_norm, normal, operator_of, seeded, with_spectrum

TEST_FILES = {path.stem: path for path in Path(__file__).parent.rglob("test_*.py")}
EPS = torch.finfo(torch.float64).eps
EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
SEMIDEFINITE = EXACT[1:]


def by_products(operator):
    return operator @ torch.eye(operator.dim, dtype=operator.dtype)


def test_every_test_that_the_table_names_is_there():
    this_file = Path(__file__).stem
    for line in __doc__.split("Exactness")[1].splitlines():
        if re.match(r"\d+\. ", line):
            current = this_file
        for name in re.findall(r"``([\w:]+)``", line):
            file, _, test = name.rpartition("::")
            current = file or (current if name.startswith("::") else this_file)
            if test not in ("test_convolution", "test_structured", "slow", "flipped"):  # whole files, and words
                assert f"def test_{test}(" in TEST_FILES[current].read_text(), name


# ------------------------------------------------------------------------------------------------ random networks

SMOOTH = {"tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus}
KINKED = {"relu": nn.ReLU, "leaky-relu": nn.LeakyReLU}
LOSSES = ("cross-entropy", "class-weights", "ignore", "smoothing", "weights-ignore-smoothing", "bce", "mse", "half")
CLASS_LOSSES = LOSSES[:5]


class Case:
    """A module, the loss as users pass it, PyTorch's mean of it, data, and the weight of each example in that mean."""

    def __init__(self, module, loss, inputs, chunk_size, seed):
        self.module, self.inputs, self.chunk_size, self.name = module, inputs, chunk_size, loss
        generator = seeded(seed)
        for parameter in module.parameters():
            parameter.data.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        with torch.no_grad():
            shape = module(inputs.clone()).shape
        count, classes = shape
        self.classes, shares = classes, torch.ones(count, dtype=torch.float64)
        self.targets = torch.rand(shape, generator=generator, dtype=torch.float64)
        options = {}
        if loss in CLASS_LOSSES:
            self.targets = torch.randint(classes, (count,), generator=generator)
            if "ignore" in loss:
                self.targets[1::3] = -100
                shares = (self.targets >= 0).double()
            if "weights" in loss:
                options["weight"] = 0.3 + torch.rand(classes, generator=generator, dtype=torch.float64)
                shares = shares * options["weight"][self.targets.clamp(min=0)]
            if "smoothing" in loss:
                options["label_smoothing"] = 0.2
            self.loss = nn.CrossEntropyLoss(**options)
            self.mean = self.loss
        else:
            self.loss = {"bce": nn.BCEWithLogitsLoss(), "mse": nn.MSELoss(), "half": "half-squared-error"}[loss]
            self.mean = self.loss if loss != "half" else lambda f, y: 0.5 * ((f - y) ** 2).sum() / len(f)
        self.options, self.shares = options, shares

    def problem(self, where=slice(None), **options):
        options = {"chunk_size": self.chunk_size} | options
        return cv.Problem.from_module(
            self.module, loss=self.loss, data=(self.inputs[where], self.targets[where]), **options
        )

    def point(self):
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters() if p.requires_grad])

    def outputs(self, vector, inputs=None):
        named, start = {}, 0
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                named[name] = vector[start : start + parameter.numel()].view(parameter.shape)
                start += parameter.numel()
        inputs = self.inputs if inputs is None else inputs
        return torch.func.functional_call(self.module, named, (inputs,))


@st.composite
def networks(draw, activations=tuple(SMOOTH | KINKED), losses=LOSSES, kinds=("mlp", "conv1d", "conv2d"), least=1):
    """Networks of random kind, depth, widths, activation, loss, number of examples and chunk size; P at most 300."""
    kind, activation = draw(st.sampled_from(kinds)), (SMOOTH | KINKED)[draw(st.sampled_from(activations))]
    loss, classes = draw(st.sampled_from(losses)), draw(st.integers(2, 3))
    count, seed = draw(st.integers(least, 7)), draw(st.integers(0, 2**20))
    layers = []
    if kind == "mlp":
        widths = [*draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)), classes]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=draw(st.booleans())), activation()]
        module, shape = nn.Sequential(*layers[:-1]), (widths[0],)
    else:
        convolution = nn.Conv1d if kind == "conv1d" else nn.Conv2d
        channels = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
        shape = (channels[0], 5) if kind == "conv1d" else (channels[0], 4, 4)
        for fan_in, fan_out in pairwise(channels):
            settings_ = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1))}
            layers += [convolution(fan_in, fan_out, 2, **settings_), activation()]
        front = nn.Sequential(*layers, nn.Flatten()).double()
        try:
            size = front(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
        except RuntimeError:  # the image has become smaller than the kernel
            size = 0
        assume(0 < size <= 40)
        module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, classes))
    inputs = normal(seed, count, *shape)
    case = Case(module.double(), loss, inputs, draw(st.integers(1, 8)), seed + 1)
    assume(len(case.point()) <= 300 and float(case.shares.sum()) > 0)
    return case


# --------------------------------------------------------------------------------------------------------- exactness


def references(case):
    """Every matrix by ``torch.func`` on the whole data at once: no chunks, no loop, no code of the package."""
    point, count = case.point(), len(case.inputs)
    outputs = case.outputs(point)
    jacobian = torch.func.jacrev(case.outputs)(point)  # (N, C, P)

    def mean_loss(vector):
        return case.mean(case.outputs(vector), case.targets)

    flat = jacobian.reshape(-1, len(point))
    middle = torch.func.hessian(lambda f: case.mean(f, case.targets))(outputs).reshape(len(flat), len(flat))
    found = {"hessian": torch.func.hessian(mean_loss)(point), "ggn": flat.T @ middle @ flat}
    slope = torch.func.grad(mean_loss)(point)
    shares = case.shares / case.shares.sum()
    by_output = torch.func.grad(lambda f: case.mean(f, case.targets))(outputs)
    rows = torch.einsum("nc, ncp -> np", by_output, jacobian)  # alpha_n g_n
    alphas = torch.where(shares > 0, shares, 1.0)[:, None]
    centred = rows / alphas - slope
    found["gradient"] = slope
    found["empirical_fisher"] = rows.T @ (rows / alphas)
    found["gradient_covariance"] = centred.T @ (shares[:, None] * centred)
    found["fisher"] = sum(
        jacobian[n].T @ score_moment(case, outputs[n], case.targets[n], count) @ jacobian[n] for n in range(count)
    )
    return found


def score_moment(case, output, target, count):
    """Sum over all labels of probability times squared score, over the denominator of the mean."""
    classes = len(output)
    if case.name == "mse":
        return 2 * torch.eye(classes, dtype=torch.float64) / (count * classes)
    if case.name == "half":
        return torch.eye(classes, dtype=torch.float64) / count
    if case.name == "bce":
        chance = output.sigmoid()
        return torch.diag(chance * (1 - chance) ** 2 + (1 - chance) * chance**2) / (count * classes)
    if target < 0:
        return torch.zeros(classes, classes, dtype=torch.float64)
    weights = case.options.get("weight", torch.ones(classes, dtype=torch.float64))
    smoothing = case.options.get("label_smoothing", 0.0)
    mass = (1 - smoothing) * weights[target] + smoothing * weights.mean()
    chance = output.softmax(0)
    scores = chance[:, None] - torch.eye(classes, dtype=torch.float64)
    return mass * (scores * chance) @ scores.T / case.shares.sum()


@given(case=networks(), method=st.sampled_from(["auto", "generic"]))
@settings(max_examples=12)
def test_every_matrix_of_a_random_network_is_that_of_torch_func(case, method):
    expected = references(case)
    problem = case.problem()
    assert distance(problem.gradient(), expected["gradient"]) < 1e-12
    for name in EXACT:
        # A covariance of few examples may vanish: what rounds is of the size of the second moment.
        scale = expected["empirical_fisher"] if name == "gradient_covariance" else None
        scale = expected["ggn"] + expected["hessian"].abs() if name == "hessian" else scale
        operator = MATRICES[name](problem, method=method)
        assert distance(operator.dense(), expected[name], scale) < 1e-12, name
        assert distance(by_products(operator), expected[name], scale) < 1e-12, name


@given(case=networks(activations=tuple(SMOOTH)))
@settings(max_examples=6)
def test_hessian_is_the_ggn_plus_differences_of_the_residual_term(case):
    """What the GGN leaves out is ``sum_n r_n . d2 f_n``, ``r`` fixed: differences of sixth order of its gradient."""
    point, problem = case.point(), case.problem()
    residual = torch.func.grad(lambda f: case.mean(f, case.targets))(case.outputs(point)).detach()
    slope = torch.func.grad(lambda vector: (case.outputs(vector) * residual).sum())
    columns, h = [], 5e-3
    for step in h * torch.eye(len(point), dtype=torch.float64):
        weighed = [(45, 1), (-9, 2), (1, 3)]
        columns.append(sum(c * (slope(point + k * step) - slope(point - k * step)) for c, k in weighed) / (60 * h))
    expected = torch.stack(columns, dim=1)
    hessian, ggn = cv.hessian(problem).dense(), cv.ggn(problem).dense()
    assert torch.linalg.norm(hessian - ggn - expected) < 1e-10 * (torch.linalg.norm(hessian) + torch.linalg.norm(ggn))


@given(case=networks(losses=("cross-entropy", "mse", "half", "bce"), least=2))
@settings(max_examples=8)
def test_second_moment_and_covariance_are_those_of_the_rows_of_gradients(case):
    """``E = G^T G / N`` with one gradient per example, ``C = E - g g^T``, ranks at most ``N`` and ``N - 1``."""
    problem, count = case.problem(), len(case.inputs)

    def own(vector, example, target):
        return case.mean(case.outputs(vector, example[None]), target[None])

    rows = torch.stack(
        [torch.func.grad(own)(case.point(), *pair) for pair in zip(case.inputs, case.targets, strict=True)]
    )
    moment, mean = rows.T @ rows / count, rows.mean(dim=0)
    found, centred = cv.empirical_fisher(problem).dense(), cv.gradient_covariance(problem).dense()
    assert distance(found, moment) < 1e-13
    assert distance(centred, moment - torch.outer(mean, mean), moment) < 1e-13
    for matrix, most in ((found, count), (centred, count - 1)):
        values = torch.linalg.eigvalsh(matrix)
        assert int((values > 1e-13 * torch.linalg.norm(moment)).sum()) <= most


# ----------------------------------------------------------------------------------------------------- closed forms


def linear_problem(inputs, weights, bias, loss, targets):
    layer = nn.Linear(inputs.shape[1], len(weights)).double()
    layer.weight.data.copy_(weights)
    layer.bias.data.copy_(bias)
    return cv.Problem.from_module(layer, loss=loss, data=(inputs, targets))


@given(
    count=st.integers(1, 12),
    fan_in=st.integers(1, 5),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**20),
    loss=st.sampled_from(["half", "mse", "bce", "cross-entropy"]),
)
def test_linear_models_have_the_hessian_on_paper(count, fan_in, classes, seed, loss):
    """``sum_n M_n (x) x_n x_n^T / N`` with ``M`` the identity, ``2/C``, ``s(1 - s)/C`` or ``diag(p) - p p^T``."""
    inputs, weights, bias = normal(seed, count, fan_in), normal(seed + 1, classes, fan_in), normal(seed + 2, classes)
    logits = inputs @ weights.T + bias
    identity, chance = torch.eye(classes, dtype=torch.float64), logits.softmax(dim=1)
    middles = {
        "half": identity.expand(count, -1, -1),
        "mse": 2 / classes * identity.expand(count, -1, -1),
        "bce": torch.diag_embed(logits.sigmoid() * (1 - logits.sigmoid())) / classes,
        "cross-entropy": torch.diag_embed(chance) - chance[:, :, None] * chance[:, None],
    }[loss]
    rows = torch.cat([inputs, torch.ones(count, 1, dtype=torch.float64)], dim=1)
    expected = torch.einsum("nab, ni, nj -> aibj", middles, rows, rows) / count
    order = torch.arange(classes * (fan_in + 1)).view(classes, fan_in + 1)
    order = torch.cat([order[:, :-1].reshape(-1), order[:, -1]])
    expected = expected.reshape(len(order), len(order))[order][:, order]
    targets = torch.arange(count) % classes if loss == "cross-entropy" else normal(seed + 3, count, classes).sigmoid()
    name = {"half": "half-squared-error"}.get(loss, loss)
    problem = linear_problem(inputs, weights, bias, name, targets)
    for matrix in (cv.hessian, cv.ggn, cv.fisher):
        assert distance(matrix(problem).dense(), expected) < 1e-13
        assert distance(by_products(matrix(problem)), expected) < 1e-13


@given(values=st.lists(st.floats(-3, 3), min_size=2, max_size=12), seed=st.integers(0, 2**20))
def test_a_quadratic_has_the_spectrum_it_was_given(values, seed):
    """A loss ``w^T A w / 2`` of the weights alone, one example, indefinite."""
    basis = torch.linalg.qr(normal(seed, len(values), len(values))).Q
    matrix = basis @ (torch.tensor(values, dtype=torch.float64)[:, None] * basis.T)

    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(normal(seed + 1, len(values)))

        def forward(self, inputs):
            return self.w.expand(len(inputs), -1)

    data = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    problem = cv.Problem.from_module(Weights(), loss=lambda f, _: 0.5 * f @ matrix @ f, data=data)
    found = cv.spectrum(cv.hessian(problem)).eigenvalues
    assert np.abs(found - np.sort(values)).max() <= 1e-13 * max(np.abs(values).max(), 1e-300) * len(values)


# ------------------------------------------------------------------------------------------------ weight normalization


FORMS = {"parametrization": parametrizations.weight_norm, "legacy": legacy_weight_norm}
KINDS = {
    "linear": (lambda a, b: (nn.Linear(3, a), nn.Linear(a, b)), (3,)),
    "conv1d": (lambda a, b: (nn.Conv1d(2, a, 2), nn.Conv1d(a, b, 2)), (2, 4)),
    "conv2d": (lambda a, b: (nn.Conv2d(1, a, 2), nn.Conv2d(a, b, 2)), (1, 3, 3)),
}


class Normalized:
    """A random two-layer network under PyTorch's weight norm, and its parameters by layer."""

    def __init__(self, kind, form, dim, activation, loss, widths, count, chunk_size, seed):
        build, shape = KINDS[kind]
        self.layers = [FORMS[form](layer, dim=dim) for layer in build(*widths)]
        module = nn.Sequential(self.layers[0], SMOOTH[activation](), self.layers[1], nn.Flatten())
        self.case = Case(module.double(), loss, normal(seed, count, *shape), chunk_size, seed + 1)
        self.dim = dim
        self.entries = self.problem.layout.entries
        for layer in range(2):
            v = self.named(layer)["v"]
            v.data *= (0.5 + normal(seed + 2 + layer, 1).abs()) / self.lengths(v.data).clamp(min=0.05)

    def named(self, layer):
        """The parameters ``g`` and ``v`` of one layer, whatever they are called."""
        leaves = dict(self.layers[layer].named_parameters())
        short = {"original0": "g", "weight_g": "g", "original1": "v", "weight_v": "v"}
        return {short[name.split(".")[-1]]: leaf for name, leaf in leaves.items() if name.split(".")[-1] in short}

    def lengths(self, v):
        axes = [axis for axis in range(v.ndim) if axis != self.dim]
        return (v**2).sum(dim=axes, keepdim=True).sqrt()

    def places(self):
        """Parameter to its slice of the vector of all."""
        found, start = {}, 0
        for parameter in self.case.module.parameters():
            found[parameter] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return found

    def weights(self, vector):
        """Effective weights in the order of the problem's layout, through ``g v / |v|`` written by hand."""
        places, parts = self.places(), []
        for layer in range(2):
            named = self.named(layer)
            g, v = (vector[places[named[leaf]]].view(named[leaf].shape) for leaf in "gv")
            own = {"weight": (g * v / self.lengths(v)).reshape(-1), "bias": vector[places[self.layers[layer].bias]]}
            prefix = "0" if layer == 0 else "2"
            parts += [own[entry.name.split(".")[-1]] for entry in self.entries if entry.layer == prefix]
        return torch.cat(parts)

    @property
    def problem(self):
        return self.case.problem()

    def rows(self):
        """One column ``(v_row, 0)`` for each normalized row, and the same for the gradient in ``v``."""
        total = sum(parameter.numel() for parameter in self.case.module.parameters())
        places, columns = self.places(), []
        for layer in range(2):
            v = self.named(layer)["v"]
            count = 1 if self.dim is None else v.shape[self.dim]
            for row in range(count):
                mask = torch.ones_like(v) if self.dim is None else torch.zeros_like(v)
                if self.dim is not None:
                    mask.select(self.dim, row).fill_(1.0)
                column = torch.zeros(total, dtype=torch.float64)
                column[places[v]] = (mask * v.detach()).reshape(-1)
                columns.append(column)
        return torch.stack(columns, dim=1)


@st.composite
def normalized(draw, losses=LOSSES, least=1):
    return Normalized(
        draw(st.sampled_from(sorted(KINDS))),
        draw(st.sampled_from(sorted(FORMS))),
        draw(st.sampled_from([0, 1, None])),
        draw(st.sampled_from(sorted(SMOOTH))),
        draw(st.sampled_from(losses)),
        (draw(st.integers(1, 3)), draw(st.integers(2, 3))),
        draw(st.integers(least, 6)),
        draw(st.integers(1, 7)),
        draw(st.integers(0, 2**20)),
    )


@given(network=normalized())
@settings(max_examples=20)
def test_hessian_of_random_weight_normalized_networks_is_that_of_central_differences(network):
    """Differences of PyTorch's own gradient, which is right where its double backward is not; and symmetric."""
    case, point = network.case, parameters_to_vector(network.case.module.parameters()).detach()

    def slope(vector):
        vector_to_parameters(vector, case.module.parameters())
        loss = case.mean(case.module(case.inputs), case.targets)
        return parameters_to_vector(torch.autograd.grad(loss, list(case.module.parameters()))).detach()

    problem = network.problem
    h = 1e-4  # fourth order: truncation and rounding are both near 1e-11
    columns = [
        (8 * (slope(point + step) - slope(point - step)) - (slope(point + 2 * step) - slope(point - 2 * step))) / 12 / h
        for step in h * torch.eye(len(point), dtype=torch.float64)
    ]
    operator = cv.pullback(cv.hessian(problem), problem.chart)
    expected = torch.stack(columns, dim=1)
    assert distance(operator.dense(), expected) < 1e-7
    products = by_products(operator)
    assert distance(products, expected) < 1e-7
    assert distance(products, products.T) <= 1e-13


@given(network=normalized())
@settings(max_examples=8)
def test_pullback_is_the_jacobian_on_both_sides_plus_the_bending_of_the_map(network):
    """``J^T H J + sum_k r_k d2 w_k`` with both derivatives of the map by ``torch.func``."""
    point, problem = parameters_to_vector(network.case.module.parameters()).detach(), network.problem
    jacobian = torch.func.jacrev(network.weights)(point)
    slope = problem.gradient()
    bend = torch.func.hessian(lambda vector: network.weights(vector) @ slope)(point)
    for name in EXACT:
        operator = MATRICES[name](problem)
        expected = jacobian.T @ operator.dense() @ jacobian
        scale = torch.linalg.norm(jacobian) ** 2 * torch.linalg.norm(operator.dense()) + torch.linalg.norm(bend)
        if name == "hessian":
            expected = expected + bend
        moved = cv.pullback(operator, problem.chart)
        assert torch.linalg.norm(moved.dense() - expected) <= 1e-13 * scale
        assert torch.linalg.norm(by_products(moved) - expected) <= 1e-13 * scale


@given(network=normalized(least=2), factor=st.floats(0.1, 10.0))
@settings(max_examples=12)
def test_gauge_identities_hold_in_every_form_of_weight_normalization(network, factor):
    """Stretching ``v``: null for all but the Hessian, there minus the gradient; the loss stays, the blocks scale."""
    case, problem = network.case, network.problem
    null = network.rows()
    slope = cv.pullback(cv.hessian(problem), problem.chart).facts.gradient()
    for name in EXACT:
        operator = cv.pullback(MATRICES[name](problem), problem.chart)
        expected = torch.where(null != 0, -slope[:, None], 0.0) if name == "hessian" else torch.zeros_like(null)
        norm = torch.linalg.norm(operator.dense())
        if name == "gradient_covariance":  # of examples that are nearly equal it vanishes
            norm = torch.linalg.norm(cv.pullback(cv.empirical_fisher(problem), problem.chart).dense())
        size = norm * torch.linalg.vector_norm(null, dim=0)
        assert (torch.linalg.vector_norm(operator @ null - expected, dim=0) <= 1e-13 * size).all(), name
    chart = problem.chart.at(problem.layout, problem.weights)
    assert chart.null_dim >= null.shape[1]
    before = cv.pullback(cv.ggn(problem), problem.chart).dense()
    values = torch.linalg.eigvalsh(before)
    assert int((values < 1e-12 * values[-1]).sum()) >= null.shape[1]

    power, places = torch.zeros(len(null), dtype=torch.float64), network.places()
    for layer in range(2):
        v = network.named(layer)["v"]
        v.data *= factor
        power[places[v]] = -1.0
    stretched = network.problem
    assert stretched.value() == pytest.approx(problem.value(), rel=1e-14)
    after = cv.pullback(cv.ggn(stretched), stretched.chart).dense()
    assert distance(after, before * factor ** (power[:, None] + power)) < 1e-12
    record = cv.spectrum(cv.pullback(cv.ggn(stretched), stretched.chart))
    jacobian = torch.func.jacrev(network.weights)(parameters_to_vector(case.module.parameters()).detach())
    moved = torch.linalg.eigvalsh(jacobian.T @ cv.ggn(stretched).dense() @ jacobian).flip(0).numpy()
    assert np.abs(record.eigenvalues[::-1] - moved).max() <= 1e-12 * moved[0]
    middle = -(-record.rank // 2)
    if moved[middle - 1] > 1e-9 * moved[0]:
        kappa = record.condition_numbers()["kappa_50"]
        assert kappa.value == pytest.approx(moved[0] / moved[middle - 1], rel=1e-6)


# ------------------------------------------------------------------------------------------------------ metamorphic


@given(case=networks(least=3), data=st.data())
@settings(max_examples=5)
def test_order_and_cutting_of_the_data_change_nothing(case, data):
    order = torch.tensor(data.draw(st.permutations(range(len(case.inputs)))))
    chunk = data.draw(st.integers(1, 8))
    one, other = case.problem(), case.problem(order, chunk_size=chunk)
    assert other.value() == pytest.approx(one.value(), rel=1e-13)
    moment = cv.empirical_fisher(one).dense() + cv.ggn(one).dense()
    for name in EXACT:
        for method in ("auto", "generic"):
            first, second = (MATRICES[name](problem, method=method) for problem in (one, other))
            assert distance(second.dense(), first.dense(), moment) < 1e-12
            assert distance(by_products(second), first.dense(), moment) < 1e-12


@given(case=networks(least=4), cut=st.integers(1, 6))
@settings(max_examples=12)
def test_matrices_add_over_any_split_with_the_weights_of_its_parts(case, cut):
    """``D A = D_1 A_1 + D_2 A_2``, ``D`` the sum of what the loss divides by: not the numbers of examples."""
    cut = min(cut, len(case.inputs) - 1)
    shares = [case.shares[:cut].sum(), case.shares[cut:].sum()]
    assume(all(share > 0 for share in shares))
    parts = [case.problem(slice(0, cut)), case.problem(slice(cut, None))]
    whole = case.problem()
    for name in EXACT[:4]:
        found = MATRICES[name](whole).dense()
        weighed = [share * MATRICES[name](part).dense() for share, part in zip(shares, parts, strict=True)]
        added, scale = sum(weighed) / sum(shares), sum(map(torch.linalg.norm, weighed))
        assert torch.linalg.norm(added - found) <= 1e-13 * max(scale / sum(shares), torch.linalg.norm(found))


@given(exponent=st.integers(-12, 12), name=st.sampled_from(["hessian", "ggn"]), seed=st.integers(0, 50))
@settings(max_examples=6)
def test_nothing_but_the_scale_depends_on_the_scale_of_the_loss(mlp, exponent, name, seed):
    """Eigenvalues times ``c``, condition numbers, ranks, Krylov methods and steps as before: no absolute threshold."""
    module, inputs, targets = mlp(3, 4, 2, seed=seed), normal(seed, 40, 3), normal(seed + 1, 40, 2)
    scale = 10.0**exponent

    def at(factor):
        problem = cv.Problem.from_module(
            module, loss=lambda f, y: factor * ((1 + (f - y) ** 2).sqrt() - 1).sum(), data=(inputs, targets)
        )
        operator = MATRICES[name](problem)
        record = cv.spectrum(operator, gradient=True)
        ends = cv.extremal_eigenvalues(operator, num_largest=2, num_smallest=1, tolerance=1e-9, seed=seeded(1))
        density = cv.spectral_density(operator, num_matvecs=6, num_probes=2, seed=seeded(2))
        total = cv.trace(operator, method="xtrace", num_products=12, seed=seeded(3))
        return record, ends, density, total, cv.pullback(operator, cv.WeightNorm(stretch=2.0))

    (one, ends, density, total, moved), (other, ends_, density_, total_, moved_) = at(1.0), at(scale)
    largest = np.abs(one.eigenvalues).max()
    assert np.abs(other.eigenvalues / scale - one.eigenvalues).max() < 1e-11 * largest
    assert (other.rank, other.inertia, other.num_resolved) == (one.rank, one.inertia, one.num_resolved)
    assert distance(moved_.dense() / scale, moved.dense()) < 1e-11
    assert ends_.num_products == ends.num_products
    assert np.allclose(ends_.largest / scale, ends.largest, rtol=0, atol=1e-11 * largest)
    assert np.allclose(ends_.smallest / scale, ends.smallest, rtol=0, atol=1e-11 * largest)
    assert np.allclose(density_.nodes / scale, density.nodes, rtol=0, atol=1e-10 * largest)
    assert total_.value / scale == pytest.approx(total.value, rel=1e-9)
    assert (total_.high - total_.low) / scale == pytest.approx(total.high - total.low, rel=1e-6)
    numbers, others = one.condition_numbers(), other.condition_numbers()
    for quantity, found in numbers.values.items():
        assert others[quantity].status == found.status, quantity
    for percent in (50, 80, 95):
        quantity = f"kappa_{percent}" if numbers[f"kappa_{percent}"].status == "resolved" else f"abs_kappa_{percent}"
        kappa = numbers[quantity].value
        if kappa < 1e2:  # rounding of the small eigenvalue is relative to the large one
            assert others[quantity].value == pytest.approx(kappa, rel=1e-11)


@given(
    case=networks(activations=("tanh", "gelu", "relu"), kinds=("conv1d", "conv2d"), least=2), seed=st.integers(0, 999)
)
@settings(max_examples=6)
def test_relabelling_channels_changes_no_eigenvalue(case, seed):
    """Channels of the first convolution permuted, and the inputs of what follows with them."""
    problem = case.problem()
    layers = [layer for layer in case.module if hasattr(layer, "weight")]
    order = torch.randperm(len(layers[0].weight), generator=seeded(seed))
    before = {name: torch.linalg.eigvalsh(MATRICES[name](problem).dense()) for name in EXACT}
    with torch.no_grad():
        for leaf in (layers[0].weight, layers[0].bias):
            leaf.copy_(leaf[order].clone())
        follows = layers[1].weight
        grouped = follows.view(len(follows), len(order), -1)
        follows.copy_(grouped[:, order].reshape(follows.shape))
    assert case.problem().value() == pytest.approx(problem.value(), rel=1e-13)
    for name in EXACT:
        after = torch.linalg.eigvalsh(MATRICES[name](case.problem()).dense())
        assert (after - before[name]).abs().max() <= 1e-12 * before["ggn"][-1].maximum(before[name].abs().max())


@given(case=networks(least=2), data=st.data())
@settings(max_examples=6)
def test_freezing_any_parameters_interlaces_the_eigenvalues(case, data):
    """Cauchy, for the matrices of the frozen problem, for blocks, and with weight norm's coordinates too."""
    parameters = list(case.module.parameters())
    frozen = data.draw(st.lists(st.booleans(), min_size=len(parameters), max_size=len(parameters)))
    assume(0 < sum(frozen) < len(frozen))
    whole = {name: cv.spectrum(MATRICES[name](case.problem())).eigenvalues for name in EXACT}
    neurons = cv.blocks(cv.pullback(cv.hessian(case.problem()), cv.WeightNorm(stretch=2.0)), "layer")
    charted = cv.spectrum(cv.pullback(cv.hessian(case.problem()), cv.WeightNorm(stretch=2.0))).eigenvalues
    pairs = [(charted, cv.spectrum(block).eigenvalues) for block in neurons.values()]
    for parameter, is_frozen in zip(parameters, frozen, strict=True):
        parameter.requires_grad_(not is_frozen)
    pairs += [(whole[name], cv.spectrum(MATRICES[name](case.problem())).eigenvalues) for name in EXACT]
    for outer, inner in pairs:
        missing, slack = len(outer) - len(inner), 1e-12 * np.abs(outer).max()
        assert (outer[: len(inner)] <= inner + slack).all()
        assert (inner <= outer[missing:] + slack).all()


# ------------------------------------------------------------------------------------------------------------ solvers


def diagonal_operator(values):
    values = torch.as_tensor(values, dtype=torch.float64)
    return cv.SymmetricOperator(
        where=cv.Where("diagonal"),
        dim=len(values),
        matmat=lambda block: values[:, None] * block,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


# LAPACK's generators of test matrices (xLATMS, modes 1 to 5).
FAMILIES = {
    "one large": lambda dim, kappa: np.array([1.0, *[1 / kappa] * (dim - 1)]),
    "one small": lambda dim, kappa: np.array([*[1.0] * (dim - 1), 1 / kappa]),
    "geometric": lambda dim, kappa: kappa ** -np.linspace(0, 1, dim),
    "arithmetic": lambda dim, kappa: np.linspace(1, 1 / kappa, dim),
    "log-uniform": lambda dim, kappa: kappa ** -np.random.default_rng(dim).uniform(size=dim),
}


@pytest.mark.parametrize("dim", [50, 130, 400])
@pytest.mark.parametrize("family", FAMILIES)
def test_eigenvalues_and_vectors_are_within_lapacks_own_threshold(family, dim):
    """30 n u of the norm for values, by both drivers, and for the orthogonality of the vectors behind the weights."""
    for kappa in (1e0, 1e6, 1e14) if dim < 400 else (1e12,):
        expected = np.sort(FAMILIES[family](dim, kappa))
        matrix, slope = with_spectrum(expected, dim), normal(1, dim)
        operator = cv.SymmetricOperator.from_dense(matrix, facts=Facts(gradient=lambda slope=slope: slope))
        limit = 30 * dim * EPS
        found = cv.spectrum(operator, gradient=True, checks=False)
        assert np.abs(found.eigenvalues - expected).max() < limit
        assert np.abs(lapack.eigenvalues(matrix.numpy(), two_stage_from=1) - expected).max() < limit
        # Weights are (V^T g)^2: they add up to |g|^2 and to g^T A g as far as V is orthogonal and A V = V L.
        square = float(slope @ slope)
        assert abs(found.gradient_weights.sum() - square) < limit * square
        assert abs((found.eigenvalues * found.gradient_weights).sum() - float(slope @ matrix @ slope)) < limit * square
        vectors = eigen._eigenpairs(matrix)[1]
        assert np.linalg.norm(vectors.T @ vectors - np.eye(dim), 2) < limit


@pytest.mark.parametrize("block_size", [1, 3])
@pytest.mark.parametrize("budget", [50, 100, 200, 400])
def test_no_budget_of_steps_makes_ghosts_of_outliers(budget, block_size):
    matrix = with_spectrum([100.0, 50.0, 20.0, *np.linspace(0, 1, 417) ** 2], 3)
    exact = torch.linalg.eigvalsh(matrix).flip(0).numpy()
    found = cv.extremal_eigenvalues(
        operator_of(matrix),
        num_largest=8,
        tolerance=1e-12,
        space=cv.KrylovSpace(block_size=block_size, max_products=budget),
        checks=False,
        seed=seeded(1),
    )
    assert np.abs(found.largest[:3] - exact[:3]).max() < 1e-10
    assert (found.largest[3:] < 1 + 1e-10).all()  # no second copy of any outlier
    if found.converged:
        assert np.abs(found.largest - exact[:8]).max() < 1e-10
    else:
        assert budget <= 200
    diagonal, off_diagonal = lanczos(operator_of(matrix), normal(budget, 420, 1), budget)
    ritz = torch.linalg.eigvalsh(
        torch.diag(diagonal[0]) + torch.diag(off_diagonal[0], 1) + torch.diag(off_diagonal[0], -1)
    )
    assert [int(((ritz - outlier).abs() < 1e-6).sum()) for outlier in (100.0, 50.0, 20.0)] == [1, 1, 1]
    assert float((ritz.flip(0)[:3] - torch.tensor(exact[:3].copy())).abs().max()) < 1e-10


@given(
    copies=st.integers(1, 3),
    width=st.sampled_from([0.0, 7e-5, 1e-3]),
    members=st.integers(1, 4),
    wanted=st.integers(1, 6),
    block_size=st.integers(1, 3),
    dense=st.booleans(),
    sign=st.sampled_from([1, -1]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=40)
def test_a_wrong_set_is_never_marked_complete(copies, width, members, wanted, block_size, dense, sign, seed):
    """Multiple and clustered ends: with verification the set is right, or it says ``incomplete``."""
    top = [1 - width * k * (k + 1) / 2 for k in range(members)]
    values = sign * np.array([value for value in top for _ in range(copies)] + list(np.linspace(-0.3, 0.9, 60)))
    matrix = with_spectrum(values, seed)
    ends = {"num_largest": wanted} if sign > 0 else {"num_largest": 0, "num_smallest": wanted}
    found = cv.extremal_eigenvalues(
        cv.SymmetricOperator.from_dense(matrix) if dense else operator_of(matrix),
        **ends,
        tolerance=1e-10,
        space=cv.KrylovSpace(block_size=block_size),
        verify=True,
        checks=False,
        seed=seeded(seed + 1),
    )
    got = sign * (found.largest if sign > 0 else found.smallest)
    right = bool(np.abs(got - np.sort(sign * values)[::-1][:wanted]).max() < 1e-8)
    assert right or found.complete == "incomplete"
    assert right or not found.converged
    if block_size >= (copies if width else copies * members):  # then nothing hides a copy
        assert right
        assert found.complete != "incomplete"


def test_residual_and_kato_temple_intervals_hold_in_eighteen_thousand_cases():
    """Ritz values of 6 to 25 steps from 2000 random starts on three spectra, neighbours as they are."""
    violations, narrower = 0, []
    spectra = (np.sort(normal(0, 40).numpy()), np.logspace(-6, 0, 40), np.repeat([-2.0, -1.0, 0.5, 3.0], 10))
    for values in spectra:
        distinct = np.unique(values)
        starts = normal(5, 40, 2000)
        for steps in (6, 12, 25):
            steps = min(steps, len(distinct) - 1)
            diagonal, off_diagonal = lanczos(diagonal_operator(values), starts, steps + 1)
            small = torch.diag_embed(diagonal[:, :-1]) + torch.diag_embed(off_diagonal[:, :-1], 1)
            ritz, vectors = torch.linalg.eigh(small + torch.diag_embed(off_diagonal[:, :-1], -1))
            theta, residual = ritz[:, -1].numpy(), (off_diagonal[:, -1] * vectors[:, -1, -1].abs()).numpy()
            nearest = np.abs(theta[:, None] - distinct).argmin(axis=1)
            padded = np.concatenate([[-np.inf], distinct, [np.inf]])
            floor = 20 * EPS * np.abs(values).max()
            violations += int((np.abs(theta - distinct[nearest]) > residual + floor).sum())
            low, high = kato_temple(theta, residual, padded[nearest], padded[nearest + 2])
            violations += int(((distinct[nearest] < low - floor) | (distinct[nearest] > high + floor)).sum())
            narrower += ((high - low) / np.maximum(2 * residual, 1e-300))[residual > 1e-7].tolist()
    assert violations == 0
    assert np.median(narrower) < 0.2


def test_bounds_from_random_starts_are_violated_no_oftener_than_one_per_cent():
    """Kuczynski and Wozniakowski, at one per cent: at most the 99.9 % point of the binomial distribution."""
    runs = 500
    allowed = binom.ppf(0.999, runs, 0.01)
    shapes = {
        "dense at the top": 1 - np.linspace(0, 1, 400) ** 0.5,
        "sparse at the top": np.linspace(0, 1, 400) ** 3,
        "two-sided": np.concatenate([-(np.linspace(0, 1, 200) ** 0.3), np.linspace(0, 1, 200) ** 0.3]),
        "one beyond": np.concatenate([np.linspace(0, 0.97, 399), [1.0]]),
    }
    for name, values in shapes.items():
        spread, used = np.ptp(values), []
        for steps in (4, 8, 16):
            diagonal, off_diagonal = lanczos(diagonal_operator(values), normal(steps, 400, runs), steps)
            small = torch.diag_embed(diagonal) + torch.diag_embed(off_diagonal, 1) + torch.diag_embed(off_diagonal, -1)
            ritz = torch.linalg.eigvalsh(small).numpy()
            slack = lanczos_slack(400, steps, 0.01)
            misses = (values.max() - ritz[:, -1]) / spread
            used.append(np.quantile(misses, 0.99) / slack)
            assert (misses > slack).sum() <= allowed, (name, steps)
            for definite in (False, True) if values.min() >= 0 else (False,):
                outside = 0
                for row in ritz[:100]:
                    low, high = spectral_bounds(
                        row[0], row[-1], 400, steps, positive_semidefinite=definite, failure=0.01
                    )
                    outside += low > values.min() or high < values.max()
                assert outside <= binom.ppf(0.999, 100, 0.01), (name, steps)
        if name == "dense at the top":
            assert max(used) > 0.05  # the bound is not merely long
    # The page's own numbers, from the constant 1.648.
    for steps, slack in ((50, 0.0177), (100, 0.00437), (500, 0.000173)):
        assert lanczos_slack(100_000, steps, 1e-3) == pytest.approx(slack, rel=2e-2)


def dense_with_factor(factor, **facts):
    operator = cv.SymmetricOperator.from_dense(factor @ factor.T, facts=Facts(positive_semidefinite=True, **facts))
    return replace(operator, routes=replace(operator.routes, factor=factor_route(*factor.split(50, dim=1))))


def test_smallest_eigenvalue_beside_a_known_null_space_is_right_or_a_bound():
    """Null dimension 20, condition number 1e12: the dense and the factor route find it, products bound it."""
    dim, null, kappa = 200, 20, 1e12
    left, right = (torch.linalg.qr(normal(seed, dim, dim)).Q for seed in (1, 2))
    values = torch.logspace(-12, 0, dim - null, dtype=torch.float64)
    factor = left[:, null:] * values.sqrt() @ right[:, null:].T
    operator = dense_with_factor(factor, null_space=lambda: NullSpace(left[:, :null], {"known directions": null}))
    for method, relative in (("factor", 1e-6), ("dense", 1e-3)):
        found = cv.spectrum(operator, method=method)
        assert found.rank == dim - null
        number = found.condition_numbers()["kappa_rank"]
        if number.status == "resolved":
            assert number.value == pytest.approx(kappa, rel=relative)
        assert method == "dense" or number.status == "resolved"
        assert number.value <= kappa * (1 + relative)
    exact = np.concatenate([np.zeros(null), values.numpy()])
    for wanted, verify in ((1, False), (1, True), (null + 1, True)):
        ends = cv.extremal_eigenvalues(
            operator, num_largest=1, num_smallest=wanted, verify=verify, seed=seeded(0), checks=False
        )
        assert (ends.smallest >= -ends.noise_floor).all()
        low, high = (side[:wanted] for side in ends.intervals())
        if ends.complete in ("not checked", "incomplete"):  # then of some eigenvalue each
            assert all(((exact >= a) & (exact <= b)).any() for a, b in zip(low, high, strict=True))
        else:
            assert (low <= exact[:wanted]).all()
            assert (exact[:wanted] <= high).all()
        assert cv.damped_condition_number(ends, 0.0).high == math.inf  # products alone see that there is a null space
        damped, truth = cv.damped_condition_number(ends, 1e-12), (1 + 1e-12) / 1e-12
        assert damped.low <= truth * (1 + 1e-3)
        assert damped.high >= truth * (1 - 1e-3)


@pytest.mark.parametrize("gap", [1e5, 30.0, 1.5])
def test_an_unknown_null_space_is_never_resolved_by_a_gap_of_the_entries(gap):
    """Eigenvalues at the level of rounding are there, whatever the gap above them: the factor would show them."""
    noise = EPS * np.linspace(0.1, 3, 10)
    values = np.concatenate([noise, np.geomspace(gap * noise[-1], 1.0, 90)])
    found = cv.spectrum(cv.SymmetricOperator.from_dense(with_spectrum(values, 4))).condition_numbers()["kappa_rank"]
    assert found.status == "lower_bound"
    assert found.value <= 1 / noise[0] <= found.high
    generator = np.random.default_rng(4)
    left, right = (np.linalg.qr(generator.standard_normal((100, 100)))[0] for _ in "lr")
    factor = torch.from_numpy(left * np.sqrt(values) @ right)
    by_factor = cv.spectrum(factored(factor), method="factor").condition_numbers()["kappa_rank"]
    assert by_factor.status == "resolved"
    assert by_factor.low <= 1 / noise[0] <= by_factor.high


def test_single_precision_never_claims_a_condition_number_beyond_its_digits():
    for kappa in (1e7, 1e9):
        matrix = with_spectrum(np.geomspace(1 / kappa, 1, 40), 5).float()
        number = cv.spectrum(cv.SymmetricOperator.from_dense(matrix)).condition_numbers()["kappa_rank"]
        assert number.status == "lower_bound"
        assert number.value < kappa
    matrix = with_spectrum(np.geomspace(1e-3, 1, 40), 5).float()
    number = cv.spectrum(cv.SymmetricOperator.from_dense(matrix)).condition_numbers()["kappa_rank"]
    assert number.status == "resolved"
    assert number.value == pytest.approx(1e3, rel=1e-2)


@pytest.mark.parametrize("block_size", [1, 2])
def test_bases_stay_orthogonal_to_rounding(block_size):
    """What the products are asked with is the basis itself: no vector of it may lean on another.

    The spectrum is graded, so that residuals are short beside their images and one pass of Gram-Schmidt leaves a part
    of them behind.
    """
    values = np.concatenate([10.0 ** -np.arange(12.0), np.geomspace(1e-13, 1e-14, 28)])
    matrix, asked = with_spectrum(values, 11), []

    def matmat(block):
        asked.append(block.clone())
        return matrix @ block

    operator = cv.SymmetricOperator(
        where=cv.Where("matrix"), dim=40, matmat=matmat, dtype=torch.float64, device=torch.device("cpu")
    )
    # Beside an eigenvector the first residual is almost all cancellation.
    top = torch.linalg.eigh(matrix).eigenvectors[:, -1:]
    for start in (normal(1, 40, 1), top + 1e-7 * normal(2, 40, 1)):
        asked.clear()
        lanczos(operator, start, 10)
        kept = torch.cat(asked, dim=1)
        assert float((kept.T @ kept - torch.eye(kept.shape[1], dtype=torch.float64)).abs().max()) < 1e-13
    asked.clear()
    cv.extremal_eigenvalues(
        operator,
        num_largest=4,
        tolerance=1e-15,
        space=cv.KrylovSpace(block_size=block_size),
        checks=False,
        seed=seeded(2),
    )
    kept = torch.cat(asked, dim=1)
    assert kept.shape[1] >= 12
    assert float((kept.T @ kept - torch.eye(kept.shape[1], dtype=torch.float64)).abs().max()) < 1e-13


# -------------------------------------------------------------------------------------------------- degenerate matrices

DEGENERATE = {
    "zero": torch.zeros(30, 30),
    "identity": torch.eye(30),
    "minus identity": -torch.eye(30),
    "rank one": torch.ones(30, 30) / 30,
    "one number": torch.full((1, 1), 3.0),
    "one zero": torch.zeros(1, 1),
    "two by two": torch.tensor([[2.0, 1.0], [1.0, 2.0]]),
    "two equal": 2 * torch.eye(2),
    "both signs": torch.diag(torch.tensor([1.0, -1.0] * 10)),
}


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150, 1e300])
@pytest.mark.parametrize("name", DEGENERATE)
def test_every_method_is_right_on_degenerate_matrices_at_extreme_scales(name, scale):
    unit = DEGENERATE[name].double()
    dim, exact = len(unit), np.linalg.eigvalsh(unit.numpy())
    definite = bool(exact[0] > -1e-9)
    matrix, total, trunk = scale * unit, float(exact.sum()), unit.diagonal().numpy()

    def equal(found, expected):
        assert np.isfinite(found).all()
        assert np.allclose(np.asarray(found) / scale, expected, rtol=1e-9, atol=1e-9)

    for wrap in (cv.SymmetricOperator.from_dense, operator_of):
        operator = wrap(matrix, positive_semidefinite=definite)
        record = cv.spectrum(operator, method="dense")
        equal(record.eigenvalues, exact)
        assert record.rank == int((np.abs(exact) > 1e-12).sum())
        numbers = record.condition_numbers()
        if record.rank and definite:
            assert numbers["kappa_rank"].value == pytest.approx(exact[-1] / exact[exact > 1e-12].min(), rel=1e-9)
        options = {"tolerance": 1e-9, "seed": seeded(0), "checks": False}
        top = cv.extremal_eigenvalues(operator, num_largest=1, **options)
        equal(top.largest, exact[-1:])
        both = cv.extremal_eigenvalues(operator, num_largest=1, num_smallest=min(1, dim - 1), verify=True, **options)
        equal(both.largest, exact[-1:])
        equal(both.smallest, exact[: min(1, dim - 1)])
        assert both.complete != "incomplete" or scale == 1e-300  # where rounding itself has no digits left
        for ends in (top, both):
            if ends.complete != "not checked":
                low, high = ends.intervals()
                assert (low / scale >= exact[0] - 1e-9).all()
                assert ends.complete == "incomplete" or (high / scale <= exact[-1] + 1e-2).all()
        bottom, ceiling = both.spectral_bounds()
        assert bottom <= scale * exact[0] + 1e-9 * scale
        assert ceiling >= scale * exact[-1] - 1e-9 * scale
        density = cv.spectral_density(operator, num_matvecs=min(dim, 4), num_probes=3, seed=seeded(0), checks=False)
        assert np.abs(density.weights.sum(axis=1) - 1).max() < 1e-12
        assert all(np.isfinite(part).all() for part in density.cumulative([0.0, scale]))
        for method in ("exact", "hutchinson", "xtrace", *(["xnystrace"] if definite else [])):
            found = cv.trace(operator, method=method, num_products=26, seed=seeded(1))
            # Of a matrix that is nothing but one direction the interval is long; it must not be empty or infinite.
            assert np.isfinite([found.low, found.high]).all()
            assert abs(found.value / scale - total) <= 2 * (found.high - found.low) / scale + 1e-9
        for method in ("exact", "hutchinson", "xdiag"):
            found = cv.diagonal(operator, method=method, num_products=20, seed=seeded(1))
            assert (np.abs(found.value / scale - trunk) <= 2 * (found.high - found.low) / scale + 1e-9).all()
        counted = cv.inertia(operator, 0.5 * scale)
        assert (counted.below, counted.above) == (int((exact < 0.5).sum()), int((exact > 0.5).sum()))
        if not definite:
            continue
        for method in ("exact", "quadrature"):
            for function, image in (("log", np.log), (0.5, np.sqrt)):
                found = cv.spectral_sum(operator, function, damping=scale, method=method, seed=seeded(2))
                truth = float(image(scale * exact + scale).sum())
                assert abs(found.value - truth) <= 2 * (found.high - found.low) + 1e-9 * abs(truth)
        solved = cv.conjugate_gradients(operator, torch.ones(dim, dtype=torch.float64), damping=scale)
        expected = np.linalg.solve(unit.numpy() + np.eye(dim), np.ones(dim))
        assert np.allclose((scale * solved).numpy(), expected, rtol=1e-8)
        if dim > 1:
            kappa = cv.damped_condition_number(both, scale)
            assert kappa.low * (1 - 1e-9) <= (exact[-1] + 1) / (exact[0] + 1) <= kappa.high * (1 + 1e-9)


# --------------------------------------------------------------------------------------------------------- statistics


def test_interval_of_even_samples_is_students_with_one_degree_of_freedom_less():
    """Symmetric samples have no skewness to correct: Student's interval, lengthened by ``1 + 3 / n``."""
    for count in (8, 12, 30):
        samples = np.linspace(-1, 1, count) + 5
        low, high = mean_interval(samples)
        student = t.interval(0.95, count - 1, loc=5, scale=sem(samples))
        assert np.allclose(np.array([low, high]) - 5, (np.array(student) - 5) * (1 + 3 / count), rtol=1e-9)


SPECTRA = {
    "flat": np.linspace(0.9, 1.1, 100),
    "exponential": 0.9 ** np.arange(100),
    "outliers": np.array([100.0, 50.0, 20.0, *np.linspace(0, 1, 97) ** 3]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_estimates_are_unbiased_and_a_seed_fixes_every_bit(spectrum):
    matrix = with_spectrum(SPECTRA[spectrum], 6)
    operator = operator_of(matrix, positive_semidefinite=True)
    along = normal(7, 100).numpy()
    truths = {"trace": float(matrix.trace()), "diagonal": matrix.diagonal().numpy() @ along}
    truths |= {f"moment {k}": float((SPECTRA[spectrum] ** k).mean()) for k in (1, 2)}

    def run(seed):
        found = {}
        for method in ("hutchinson", "xtrace", "xnystrace"):
            found["trace", method] = cv.trace(operator, method=method, num_products=24, seed=seeded(seed)).value
        for method in ("hutchinson", "xdiag"):
            one = cv.diagonal(operator, method=method, num_products=20, seed=seeded(seed))
            found["diagonal", method] = float(one.value @ along)
        density = cv.spectral_density(operator, num_matvecs=5, num_probes=2, seed=seeded(seed), checks=False)
        return found | {(f"moment {k}", "slq"): density.moment(k)[0] for k in (1, 2)}

    runs = [run(seed) for seed in range(60)]
    assert run(3) == runs[3]
    for key in runs[0]:
        samples = np.array([one[key] for one in runs])
        error = max(samples.std(ddof=1) / len(samples) ** 0.5, 1e-13 * abs(truths[key[0]]))
        assert abs(samples.mean() - truths[key[0]]) < 4 * error, key


def test_a_seed_fixes_every_bit_of_ends_and_sums():
    operator = operator_of(with_spectrum(np.geomspace(1e-3, 1, 200), 8), positive_semidefinite=True)

    def run():
        ends = cv.extremal_eigenvalues(operator, num_largest=3, verify=True, seed=seeded(1))
        total = cv.log_determinant(operator, 0.1, method="quadrature", seed=seeded(2))
        every = cv.diagonal(operator, method="xdiag", num_products=20, seed=seeded(3))
        return ends.largest.tobytes(), ends.residuals.tobytes(), total.low, total.high, every.low.tobytes()

    assert run() == run()


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_density_is_as_close_in_wasserstein_as_chen_trogdon_and_ubaru_prove(share):
    """``t`` of the spread with probability 0.95 at ``k = 12/t + 1/2`` steps and their number of probes."""
    from scipy.stats import wasserstein_distance

    dim, failure, missed = 600, 0.05, 0
    steps = math.ceil(12 / share + 0.5)
    probes = math.ceil(4 / (dim + 2) / share**2 * math.log(2 * dim / failure))
    spectra = [np.linspace(0, 1, dim), np.geomspace(1e-6, 1, dim), np.repeat([0.0, 0.3, 1.0], dim // 3)]
    for number, values in enumerate([*spectra, np.concatenate([[10.0, -3.0], np.linspace(0, 1, dim - 2) ** 2])]):
        for seed in range(3):
            density = cv.spectral_density(
                diagonal_operator(values),
                num_matvecs=min(steps, dim),
                num_probes=probes,
                seed=seeded(100 * number + seed),
                checks=False,
            )
            weights = np.clip(density.weights, 0, None).ravel()
            missed += wasserstein_distance(density.nodes.ravel(), values, u_weights=weights) > share * np.ptp(values)
    assert missed <= binom.ppf(0.999, 12, failure)


def test_twice_the_probes_halve_the_variance():
    matrix = with_spectrum(SPECTRA["outliers"], 9)
    operator = operator_of(matrix)

    def variances(budget):
        diagonals = [
            cv.diagonal(operator, method="hutchinson", num_products=budget, seed=seeded(seed)).value
            for seed in range(150)
        ]
        # One product per probe and step: all probes of all runs at once.
        nodes, weights = [], []
        for seed in range(300):
            one = cv.spectral_density(operator, num_matvecs=3, num_probes=budget, seed=seeded(seed), checks=False)
            nodes.append(one.moment(2)[0])
            weights.append(one.moment(1)[0])
        return np.var(diagonals, axis=0).sum(), np.var(nodes), np.var(weights)

    for few, many in zip(variances(8), variances(16), strict=True):
        assert 1.6 < few / many < 2.5


# ------------------------------------------------------------------------------------- determinism, memory, other tools


@pytest.fixture
def threads():
    """Set the number of threads of torch and of every BLAS; give them back."""
    before = torch.get_num_threads()
    limits = []

    def use(count):
        torch.set_num_threads(count)
        limits.append(threadpool_limits(count))

    yield use
    for limit in reversed(limits):
        limit.restore_original_limits()
    torch.set_num_threads(before)


def test_one_thread_repeats_its_bits_and_several_agree_to_rounding(threads, mlp, classification_data):
    problem = cv.Problem.from_module(mlp(6, 8, 3), loss="cross-entropy", data=classification_data(40, 6, 3))
    large = cv.SymmetricOperator.from_dense(with_spectrum(np.geomspace(1e-8, 1, 300), 2))
    block = normal(1, problem.dim, 2)

    def run(count):
        threads(count)
        found = [cv.spectrum(MATRICES[name](problem), checks=False).eigenvalues for name in EXACT]
        found += [(cv.hessian(problem, method="generic") @ block).numpy()]
        found += [cv.spectrum(large, checks=False).eigenvalues]
        options = {"num_largest": 3, "tolerance": 1e-12, "checks": False, "seed": seeded(1)}
        return [*found, cv.extremal_eigenvalues(large, **options).largest]

    first, again = run(1), run(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for count in (2, 4):
        for one, other in zip(first, run(count), strict=True):
            assert np.abs(other - one).max() <= 1e-13 * np.abs(one).max()


def test_nothing_is_kept_alive_by_its_own_derivatives(mlp, classification_data):
    module, data = mlp(6, 10, 3), classification_data(40, 6, 3)
    alive = []

    def call(number):
        problem = cv.Problem.from_module(module, loss="cross-entropy", data=data)
        name, method = EXACT[number % 5], ("structured", "generic")[number % 2]
        operator = MATRICES[name](problem, method=method)
        operator @ problem.weights
        moved = cv.pullback(operator, cv.WeightNorm())
        moved.dense()
        cv.spectrum(operator)
        alive.extend(map(weakref.ref, (operator, moved, problem, problem.weights, problem.model)))

    for number in range(10):  # caches of torch fill
        call(number)
    gc.collect()
    before = psutil.Process().memory_info().rss
    for number in range(50):
        call(number)
    gc.collect()
    assert not any(reference() is not None for reference in alive)
    assert psutil.Process().memory_info().rss - before < 5 * 2**20  # 1 MB per ten calls


@given(case=networks(losses=("cross-entropy", "mse"), activations=("tanh", "sigmoid")))  # forward mode lacks others
@settings(max_examples=4)
def test_matrices_equal_those_of_curvlinops(case):
    curvlinops = pytest.importorskip("curvlinops")
    problem, parameters = case.problem(), [p for p in case.module.parameters() if p.requires_grad]
    loss = nn.CrossEntropyLoss() if case.name == "cross-entropy" else nn.MSELoss()
    identity = torch.eye(problem.dim, dtype=torch.float64)
    pairs = {"hessian": "Hessian", "ggn": "GGN", "empirical_fisher": "EF"}
    for name, kind in pairs.items():
        if name == "empirical_fisher" and case.name == "mse":
            continue  # another convention: its loss per example is not divided by the outputs
        other = getattr(curvlinops, f"{kind}LinearOperator")(
            case.module, loss, parameters, [(case.inputs, case.targets)], check_deterministic=False
        )
        assert distance(MATRICES[name](problem).dense(), other @ identity, cv.ggn(problem).dense()) < 1e-10, name
