"""Null directions of normalization and attention: counts on paper, each against the dense matrix."""

import pytest
import torch
from torch import nn

import curvature as cv
from curvature.matrices.nullspace import known_null_space
from curvature.matrices.symmetries import symmetries
from oracles import normal

TOKENS, WIDTH, HEADS = 5, 4, 2
SIZE = WIDTH // HEADS


class Attention(nn.Module):
    """Causal attention with separate matrices, as in many language models."""

    def __init__(self, bias, sharpen=False):
        super().__init__()
        self.num_heads, self.sharpen = HEADS, sharpen
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(4))

    def forward(self, stream):
        size, length, _ = stream.shape
        q, k, v = (
            part(stream).view(size, length, HEADS, SIZE).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ (torch.tanh(k) if self.sharpen else k).mT
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(size, length, WIDTH))


class Model(nn.Module):
    """Embedding, normalization, attention and a head."""

    def __init__(self, attention, *, norm=None, residual_of_norm=False):
        super().__init__()
        self.embed, self.attention, self.head = nn.Embedding(TOKENS, WIDTH), attention, nn.Linear(WIDTH, TOKENS)
        self.norm = nn.LayerNorm(WIDTH) if norm is None else norm
        self.residual_of_norm = residual_of_norm

    def forward(self, tokens):
        stream = self.embed(tokens)
        normed = self.norm(stream)
        mixed = self.attention(normed)
        return self.head(torch.tanh((normed if self.residual_of_norm else stream) + mixed))


class Torch(nn.Module):
    """PyTorch's own attention."""

    def __init__(self, *, by_keyword=False):
        super().__init__()
        self.inner, self.by_keyword = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), by_keyword

    def forward(self, stream):
        if self.by_keyword:
            return self.inner(need_weights=False, query=stream, key=stream, value=stream)[0]
        return self.inner(stream, stream, stream, need_weights=False)[0]


def problem_of(module, generator):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * normal(generator, *parameter.shape))
    tokens = torch.randint(0, TOKENS, (20, 6), generator=generator)
    return cv.Problem.from_module(module, loss="cross-entropy", data=(tokens, tokens.roll(-1, 1)))


def reasons_of(problem, *, second_order=False):
    """Reasons with their counts, after each direction was multiplied by the dense matrix."""
    space = known_null_space(problem, second_order=second_order)
    matrix = (cv.hessian if second_order else cv.ggn)(problem).dense()
    lengths = torch.linalg.vector_norm(matrix @ space.basis, dim=0)
    assert float(lengths.max()) < 1e-13 * float(torch.linalg.matrix_norm(matrix, 2))
    return dict(space.reasons)


GAUGES = {
    "of the query-key gauge": HEADS * SIZE**2,
    "of the value-output gauge": HEADS * SIZE**2,
    "of scales and shifts of normalization": WIDTH,
}


def test_attention_without_biases_has_a_general_linear_gauge_for_each_head(generator):
    reasons = reasons_of(problem_of(Model(Attention(bias=False)), generator))
    assert GAUGES.items() <= reasons.items()
    assert "of biases of keys" not in reasons


@pytest.mark.parametrize(
    "build",
    [lambda: Attention(bias=True), Torch, lambda: Torch(by_keyword=True)],
    ids=["separate", "torch", "called by keyword"],
)
def test_biases_add_their_shifts(generator, build):
    reasons = reasons_of(problem_of(Model(build()), generator))
    assert reasons["of the query-key gauge"] == GAUGES["of the query-key gauge"]
    assert reasons["of the value-output gauge"] == GAUGES["of the value-output gauge"] + WIDTH
    assert reasons["of biases of keys"] == WIDTH
    assert reasons["of scales and shifts of normalization"] == 2 * WIDTH


def test_the_norm_without_a_mean_has_scales_too(generator):
    reasons = reasons_of(problem_of(Model(Attention(bias=False), norm=nn.RMSNorm(WIDTH)), generator))
    assert reasons["of scales and shifts of normalization"] == WIDTH


def test_the_hessian_is_null_along_the_biases_of_keys_alone(generator):
    reasons = reasons_of(problem_of(Model(Attention(bias=True)), generator), second_order=True)
    assert reasons["of biases of keys"] == WIDTH
    assert not reasons.keys() & GAUGES.keys()


def test_what_only_looks_like_attention_or_a_normalization_gives_no_directions(generator):
    """Keys behind an activation have no gauge; a norm that something else reads has no free scale."""
    reasons = reasons_of(problem_of(Model(Attention(bias=True, sharpen=True)), generator))
    assert "of the query-key gauge" not in reasons
    assert "of biases of keys" not in reasons
    assert reasons["of the value-output gauge"] == GAUGES["of the value-output gauge"] + WIDTH
    reasons = reasons_of(problem_of(Model(Attention(bias=True), residual_of_norm=True), generator))
    assert "of scales and shifts of normalization" not in reasons


def test_sets_of_directions_that_are_too_large_are_not_built(generator, monkeypatch):
    problem = problem_of(Model(Attention(bias=True)), generator)
    monkeypatch.setattr("curvature.matrices.symmetries.MAX_ENTRIES", (WIDTH - 1) * problem.dim)
    assert not list(symmetries(problem, second_order=False))
    monkeypatch.setattr("curvature.matrices.symmetries.MAX_ENTRIES", WIDTH * problem.dim)
    assert {vectors.shape[1] for _, vectors in symmetries(problem, second_order=False)} == {WIDTH}


def test_the_rank_of_a_transformer_is_bounded_by_its_symmetries(generator):
    problem = problem_of(Model(Attention(bias=True)), generator)
    space = known_null_space(problem, second_order=False)
    spectrum = cv.spectrum(cv.ggn(problem))
    assert spectrum.possible_ranks[1] <= problem.dim - space.dim
    assert "query-key gauge" in spectrum.rank_rule
