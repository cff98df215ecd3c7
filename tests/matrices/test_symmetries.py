"""Null directions of normalization and attention: counts on paper, each against the dense matrix."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import curvature as cv
from curvature.matrices.nullspace import known_null_space
from curvature.matrices.symmetries import symmetries
from oracles import distance, normal

TOKENS, WIDTH, HEADS = 5, 4, 2
SIZE = WIDTH // HEADS


def attended(q, k, v, num_heads):
    """Causal attention of queries ``(n, t, heads * SIZE)``; fewer heads of keys and values serve several of them."""
    size, length, _ = q.shape
    q, k, v = (part.view(size, length, -1, SIZE).transpose(1, 2) for part in (q, k, v))
    k, v = (part.repeat_interleave(num_heads // part.shape[1], dim=1) for part in (k, v))
    ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = (q @ k.mT).masked_fill(ahead, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(size, length, -1)


def turned(features, neighbours):
    """Rotary embeddings: each head's planes turn by the position, of halves of a head or of neighbours."""
    size, length, _ = features.shape
    heads = features.view(size, length, -1, SIZE)
    order = torch.arange(SIZE).view(-1, 2).T.reshape(-1) if neighbours else torch.arange(SIZE)
    x, y = heads[..., order].chunk(2, dim=-1)
    angles = torch.arange(length)[:, None, None] * (1.0 + torch.arange(SIZE // 2))
    x, y = x * angles.cos() - y * angles.sin(), x * angles.sin() + y * angles.cos()
    back = torch.empty_like(order)
    back[order] = torch.arange(SIZE)
    return torch.cat([x, y], dim=-1)[..., back].reshape(features.shape).to(features)


class Attention(nn.Module):
    """Causal attention with separate matrices, as in many language models."""

    def __init__(self, bias, sharpen=False, num_heads=HEADS, turn=None):
        super().__init__()
        self.sharpen, self.turn = sharpen, turn
        self.config = SimpleNamespace(num_attention_heads=num_heads)  # as the models of transformers have it
        self.q_proj, self.o_proj = nn.Linear(WIDTH, num_heads * SIZE, bias), nn.Linear(num_heads * SIZE, WIDTH, bias)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, HEADS * SIZE, bias) for _ in range(2))

    def forward(self, stream):
        q, k, v = self.q_proj(stream), self.k_proj(stream), self.v_proj(stream)
        if self.turn is not None:
            q, k = turned(q, self.turn), turned(k, self.turn)
        k = torch.tanh(self.sharpen * k) / self.sharpen if self.sharpen else k
        return self.o_proj(attended(q, k, v, self.config.num_attention_heads))


class Conv1D(nn.Module):
    """The layer of GPT-2: linear, with the weight transposed."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(outputs))

    def forward(self, inputs):
        return inputs @ self.weight + self.bias


class Transposed(nn.Module):
    """The attention of GPT-2: queries, keys and values in one transposed matrix."""

    def __init__(self, kind=Conv1D):
        super().__init__()
        self.num_heads = HEADS
        self.c_attn, self.c_proj = kind(3 * WIDTH, WIDTH), kind(WIDTH, WIDTH)

    def forward(self, stream):
        return self.c_proj(attended(*self.c_attn(stream).chunk(3, dim=-1), HEADS))


class Fused(nn.Module):
    """Four heads of queries on two heads of keys and values, in one matrix."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.num_key_value_heads = 2 * HEADS, HEADS
        self.qkv_proj, self.o_proj = nn.Linear(WIDTH, 4 * HEADS * SIZE), nn.Linear(2 * HEADS * SIZE, WIDTH)

    def forward(self, stream):
        q, k, v = self.qkv_proj(stream).split([2 * HEADS * SIZE, HEADS * SIZE, HEADS * SIZE], dim=-1)
        return self.o_proj(attended(q, k, v, 2 * HEADS))


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


def problem_of(module, generator, **options):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * normal(generator, *parameter.shape))
    tokens = torch.randint(0, TOKENS, (20, 6), generator=generator)
    return cv.Problem.from_module(module, loss="cross-entropy", data=(tokens, tokens.roll(-1, 1)), **options)


def reasons_of(problem, *, second_order=False, tolerance=1e-13):
    """Reasons with their counts, after each direction was multiplied by the dense matrix."""
    space = known_null_space(problem, second_order=second_order)
    matrix = (cv.hessian if second_order else cv.ggn)(problem).dense()
    lengths = torch.linalg.vector_norm(matrix @ space.basis, dim=0)
    assert bool((lengths < tolerance * torch.linalg.matrix_norm(matrix, 2)).all())
    torch.testing.assert_close(space.basis.T @ space.basis, torch.eye(space.dim).to(matrix), rtol=0, atol=tolerance)
    return dict(space.reasons)


def all_are_known(problem):
    """Whether the null space of the dense GGN of the attention, in double precision, has no direction more."""
    attention = problem.subset("attention")
    values = torch.linalg.eigvalsh(cv.ggn(attention).dense())
    return int((values < 1e-13 * values[-1]).sum()) == known_null_space(attention, second_order=False).dim


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


@pytest.mark.parametrize("bias", [False, True])
def test_heads_of_queries_that_share_keys_and_values_have_one_gauge_together(generator, bias):
    problem = problem_of(Model(Attention(bias, num_heads=2 * HEADS), norm=nn.RMSNorm(WIDTH)), generator)
    reasons = reasons_of(problem)
    assert reasons["of the query-key gauge"] == HEADS * SIZE**2
    assert reasons["of the value-output gauge"] == HEADS * SIZE**2 + bias * HEADS * SIZE
    assert all_are_known(problem)


def test_one_matrix_of_queries_and_of_fewer_keys_and_values_is_taken_apart(generator):
    problem = problem_of(Model(Fused(), norm=nn.RMSNorm(WIDTH)), generator)
    assert reasons_of(problem)["of the query-key gauge"] == HEADS * SIZE**2
    assert all_are_known(problem)


@pytest.mark.parametrize("neighbours", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("num_heads", [HEADS, 2 * HEADS])
def test_rotary_embeddings_leave_what_commutes_with_their_rotations(generator, num_heads, neighbours):
    problem = problem_of(
        Model(Attention(False, num_heads=num_heads, turn=neighbours), norm=nn.RMSNorm(WIDTH)), generator
    )
    reasons = reasons_of(problem)
    assert reasons["of the query-key gauge"] == HEADS * SIZE
    assert reasons["of the value-output gauge"] == HEADS * SIZE**2
    assert all_are_known(problem)


def test_transposed_weights_have_the_gauges_of_linear_layers(generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", SimpleNamespace(Conv1D=Conv1D))
    problem = problem_of(Model(Transposed(), norm=nn.RMSNorm(WIDTH)), generator)
    shifts = {"of the value-output gauge": GAUGES["of the value-output gauge"] + WIDTH, "of biases of keys": WIDTH}
    assert (GAUGES | shifts).items() <= reasons_of(problem).items()
    assert all_are_known(problem)
    folded = cv.fold_norms(problem)
    assert distance(folded.outputs(), problem.outputs()) < 1e-13


@pytest.mark.parametrize(
    "build",
    [lambda: Attention(bias=True), Torch, lambda: Attention(False, num_heads=4, turn=True), Fused],
    ids=["separate", "torch", "rotary", "fused"],
)
def test_single_precision_finds_the_directions_of_double_precision(generator, build):
    module = Model(build())
    single = problem_of(module, generator, dtype=torch.float32)
    double = cv.Problem.from_module(module, loss="cross-entropy", data=(single.inputs, single.targets))
    assert GAUGES.keys() <= reasons_of(double).keys()
    assert reasons_of(single, tolerance=3e-6) == reasons_of(double)
    rank = known_null_space(single, second_order=False).dim
    assert f"{single.dim} - {rank} verified null directions" in cv.spectrum(cv.ggn(single)).rank_rule


@pytest.mark.parametrize("sharpen", [1e-2, 1e-3])
def test_what_is_nearly_a_gauge_is_none_in_single_precision(generator, sharpen):
    """The keys pass through tanh where it is linear up to 1e-4 or 1e-6, near the rounding of float32."""
    reasons = reasons_of(
        problem_of(Model(Attention(False, sharpen=sharpen)), generator, dtype=torch.float32), tolerance=3e-6
    )
    assert "of the query-key gauge" not in reasons
    assert "of the value-output gauge" in reasons


def hugging_face(name, **options):
    """The body of a model of transformers."""
    transformers = pytest.importorskip("transformers")
    try:
        config = getattr(transformers, f"{name}Config")(
            vocab_size=TOKENS, bos_token_id=0, eos_token_id=0, attn_implementation="eager", use_cache=False, **options
        )
        return getattr(transformers, f"{name}Model")(config).eval()
    except (ImportError, RuntimeError) as error:  # a torchvision of another build than torch
        pytest.skip(f"transformers cannot be used: {error}")


class Logits(nn.Module):
    """The hidden states of a model with a head of its own."""

    def __init__(self, body, width):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, TOKENS)

    def forward(self, tokens):
        return self.head(self.body(tokens).last_hidden_state)


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_attention_of_gpt_2_is_recognized(generator, dtype, tolerance):
    body = hugging_face("GPT2", n_embd=WIDTH, n_layer=1, n_head=HEADS, n_positions=6, n_inner=3)
    reasons = reasons_of(problem_of(Logits(body, WIDTH), generator, dtype=dtype), tolerance=tolerance)
    assert reasons["of the query-key gauge"] == HEADS * SIZE**2
    assert reasons["of the value-output gauge"] == HEADS * SIZE**2 + WIDTH
    assert reasons["of biases of keys"] == WIDTH
    assert reasons["of scales and shifts of normalization"] == 2 * 2 * WIDTH  # the head reads a view of the last norm


@pytest.mark.filterwarnings("ignore")
def test_the_grouped_queries_of_llama_are_recognized(generator):
    body = hugging_face(
        "Llama",
        hidden_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3,
        max_position_embeddings=6,
    )
    reasons = reasons_of(problem_of(Logits(body, 2 * WIDTH), generator, dtype=torch.float32), tolerance=1e-5)
    assert reasons["of the query-key gauge"] == 2 * SIZE  # what commutes with the rotations
    assert reasons["of the value-output gauge"] == 2 * SIZE**2
    assert reasons["of scales and shifts of normalization"] == 3 * 2 * WIDTH
