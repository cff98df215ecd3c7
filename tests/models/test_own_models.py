"""Small models of the kinds that users bring, with several inputs or outputs: the Hessian of a plain double loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvature as cv
from oracles import distance, drawn, rows_of, weighted

IDS, NEXT = torch.tensor([[0, 3, 1, 6], [5, 2, 2, 4]]), torch.tensor([[3, 1, 6, 2], [2, 2, 4, 0]])
MASK, LABELS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([0, 1])
IMAGES, TABLE, NUMBERS = drawn(5, 1, 3, 3), drawn(5, 3, seed=2), drawn(5, 1, seed=3)


class Transformer(nn.Module):
    """As nanoGPT: returns logits, tied to the embedding, and a loss that is None without targets."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(4, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids, targets=None):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]).to(self.words.weight)
        states = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        logits = self.head(self.block(states, src_mask=mask))
        loss = None if targets is None else functional.cross_entropy(logits.reshape(-1, 7), targets.reshape(-1))
        return logits, loss


class Classifier(nn.Module):
    """As a sequence classifier of transformers: keywords, an attention mask, a dictionary."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)
        self.block = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True)

    def forward(self, input_ids, attention_mask=None, labels=None, **_options):
        states = self.block(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        logits = self.head(states[:, 0])
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits, "hidden_states": (states,)}


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.table, self.head = nn.Conv2d(1, 2, 2), nn.Linear(3, 2), nn.Linear(10, 1)

    def forward(self, image, table):
        parts = [torch.tanh(self.image(image)).flatten(1), torch.tanh(self.table(table))]
        return self.head(torch.cat(parts, dim=1))


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))

    def forward(self, first, second):
        return (self.branch(first) - self.branch(second)).square().sum(1, keepdim=True)


class Force(nn.Module):
    """Differentiates in ``forward``, with a second input that is only a condition."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, positions, condition):
        positions = positions.requires_grad_()
        energy = self.energy(torch.cat([positions, condition], dim=1)).sum()
        return torch.autograd.grad(energy, positions, create_graph=True)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.states, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 4)

    def forward(self, sequence, start):
        return self.head(self.states(sequence, start[None])[0])


class Autoencoder(nn.Module):
    """Needs no target, and adds a penalty to its loss."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x):
        rebuilt = self.up(torch.tanh(self.down(x)))
        return {"loss": functional.mse_loss(rebuilt, x) + 0.1 * self.down.weight.square().sum(), "rebuilt": rebuilt}


BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
SEQUENCE, START, WORDS = drawn(3, 5, 2), drawn(3, 3, seed=2), torch.arange(15).reshape(3, 5) % 4
CLOSE = (NUMBERS > 0).double()
CASES = {
    "nanoGPT, logits": (Transformer, {"loss": "cross-entropy", "data": (IDS, NEXT)}, lambda m: m(IDS, NEXT)[1]),
    "nanoGPT, loss": (Transformer, {"loss": "model", "data": (IDS, NEXT)}, lambda m: m(IDS, NEXT)[1]),
    "classifier, logits": (Classifier, {"loss": "cross-entropy", "data": BATCH}, lambda m: m(**BATCH)["loss"]),
    "classifier, loss": (Classifier, {"output": "loss", "data": BATCH}, lambda m: m(**BATCH)["loss"]),
    "image and table": (
        Fusion,
        {"loss": "mse", "data": {"image": IMAGES, "table": TABLE, "y": NUMBERS}},
        lambda m: functional.mse_loss(m(IMAGES, TABLE), NUMBERS),
    ),
    "twins": (
        Twins,
        {"loss": "bce", "data": ((TABLE, IMAGES[:, 0, 0]), CLOSE)},
        lambda m: functional.binary_cross_entropy_with_logits(m(TABLE, IMAGES[:, 0, 0]), CLOSE),
    ),
    "force field": (
        Force,
        {"loss": "mse", "data": ((TABLE, NUMBERS), IMAGES[:, 0, 0])},
        lambda m: functional.mse_loss(m(TABLE.clone(), NUMBERS), IMAGES[:, 0, 0]),
    ),
    "recurrent": (
        Recurrent,
        {"loss": "cross-entropy", "data": ((SEQUENCE, START), WORDS)},
        lambda m: functional.cross_entropy(m(SEQUENCE, START).reshape(-1, 4), WORDS.reshape(-1)),
    ),
    "autoencoder": (Autoencoder, {"output": "loss", "data": TABLE}, lambda m: m(TABLE)["loss"]),
}


@pytest.mark.parametrize("kind", CASES)
def test_models_that_users_bring_have_the_hessian_of_a_plain_double_loop(kind):
    build, options, loss = CASES[kind]
    module = weighted(build().double().eval(), scale=0.7)
    parameters = list(module.parameters())
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        expected = rows_of(rows_of(loss(module)[None], parameters)[0], parameters).detach()
    problem = cv.Problem.from_module(module, **options)
    assert distance(cv.hessian(problem).dense(), expected) < 1e-12
