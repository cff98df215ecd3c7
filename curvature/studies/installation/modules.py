"""Every differentiable module and loss of ``torch.nn``: the cases of the audit of second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils import weight_norm as legacy_weight_norm

from curvature.studies.installation.cases import EXAMPLES, Apply, Case, call

__all__ = ["CASES", "NOT_TRIED"]


def _plain(family: str, shape: tuple[int, ...], *kinds: Any) -> list[Case]:
    """Cases of modules that need no arguments, or of ``(module, *arguments)``."""
    cases = []
    for kind in kinds:
        module, *arguments = kind if isinstance(kind, tuple) else (kind,)
        cases.append(Case(module.__name__, family, partial(module, *arguments), shape))
    return cases


def _first(layer: nn.Module, signal: Tensor) -> Tensor:
    return layer(signal)[0]


def _attention(layer: nn.Module, signal: Tensor) -> Tensor:
    return layer(signal, signal, signal, need_weights=False)[0]


def _attention_weights(layer: nn.Module, signal: Tensor) -> Tensor:
    return layer(signal, signal, signal)[0]


def _twice(layer: nn.Module, signal: Tensor) -> Tensor:
    return layer(signal, signal.flip(1))


def _pooled(layer: nn.Module, signal: Tensor) -> Tensor:
    """Max pooling and its inverse, the layer, at the same indices."""
    rank = signal.ndim - 2
    pool = getattr(F, f"max_pool{rank}d_with_indices")
    values, indices = pool(signal, 2)
    return layer(values, indices)


def _words(layer: nn.Module, signal: Tensor) -> Tensor:
    """Embedding of fixed words, weighted by the signal: ``(n, 3)``."""
    words = torch.tensor([1, 2, 4], device=signal.device)
    return layer(words)[None] * signal[:, :, None]


def _bags(layer: nn.Module, signal: Tensor) -> Tensor:
    return layer(torch.tensor([[1, 2, 4]], device=signal.device)).expand(len(signal), -1) * signal[:, :1]


def _distances(layer: nn.Module, signal: Tensor) -> Tensor:
    return torch.cdist(layer(signal), signal[..., :2])


def _fused_attention(layer: nn.Module, signal: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(layer(signal), signal, signal)


def _grid(layer: nn.Module, signal: Tensor) -> Tensor:
    grid = torch.linspace(-0.7, 0.6, 8, dtype=signal.dtype, device=signal.device).view(1, 2, 2, 2)
    return F.grid_sample(layer(signal), grid + 0.05 * signal.mean((1, 2, 3))[:, None, None, None], align_corners=False)


def _log_probabilities(layer: nn.Module, signal: Tensor) -> Tensor:
    assert isinstance(layer, nn.AdaptiveLogSoftmaxWithLoss)
    return layer.log_prob(signal)


def _labelled(layer: nn.Module, signal: Tensor) -> Tensor:
    """A layer that takes the labels too, with the losses of the examples as outputs."""
    return layer(signal, torch.arange(len(signal), device=signal.device) % 4)[:, None]


def _linear() -> nn.Linear:
    return nn.Linear(3, 2)


def _recurrent(kind: Callable[..., nn.Module], **options: int | bool) -> Callable[[], nn.Module]:
    return partial(kind, 2, 2, batch_first=True, **options)


def _parametrized_recurrent() -> nn.Module:
    return parametrizations.weight_norm(nn.LSTM(2, 2, batch_first=True), "weight_hh_l0")


def _convolution() -> nn.Conv2d:
    return nn.Conv2d(2, 2, 2)


def _normalized(norm: Callable[..., nn.Module], build: Callable[[], nn.Module], dim: int | None) -> nn.Module:
    return norm(build(), dim=dim)


def _orthogonal(name: str) -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map=name, use_trivialization=False)


def _transformer(kind: Callable[..., Any], **options: object) -> Any:
    return kind(2, 1, dim_feedforward=3, dropout=0.0, batch_first=True, **options)


LINE, IMAGE, VOLUME = (2, 4), (2, 4, 4), (1, 4, 4, 4)

LAYERS = [
    *_plain("linear", (3,), nn.Identity, (nn.Linear, 3, 2), nn.Flatten, (nn.Unflatten, 1, (3, 1))),
    Case("Bilinear", "linear", lambda: nn.Bilinear(3, 3, 2), (3,), _twice),
    Case("Embedding", "linear", lambda: nn.Embedding(5, 2), (3,), _words),
    Case("EmbeddingBag", "linear", lambda: nn.EmbeddingBag(5, 2), (3,), _bags),
    Case("EmbeddingBag, max", "linear", lambda: nn.EmbeddingBag(5, 2, mode="max"), (3,), _bags),
    *_plain("convolution", LINE, (nn.Conv1d, 2, 2, 2), (nn.ConvTranspose1d, 2, 2, 2)),
    *_plain("convolution", IMAGE, (nn.Conv2d, 2, 2, 2), (nn.ConvTranspose2d, 2, 1, 2), (nn.Unfold, 2)),
    *_plain("convolution", (4, 4), (nn.Fold, (3, 3), (2, 2))),
    *_plain("convolution", VOLUME, (nn.Conv3d, 1, 2, 2), (nn.ConvTranspose3d, 1, 1, 2)),
    Case("Conv2d, circular", "convolution", lambda: nn.Conv2d(2, 1, 2, padding=1, padding_mode="circular"), IMAGE),
    Case("Conv2d, groups", "convolution", lambda: nn.Conv2d(2, 2, 2, groups=2), IMAGE),
    *_plain("activation", (6,), nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardtanh, nn.Hardswish, nn.LeakyReLU,
            nn.LogSigmoid, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.CELU, nn.GELU, nn.Sigmoid, nn.SiLU,
            nn.Mish, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, (nn.Threshold, 0.1, 0.5),
            nn.GLU, (nn.Softmin, 1), (nn.Softmax, 1), (nn.LogSoftmax, 1)),
    *_plain("activation", (2, 2, 2), nn.Softmax2d),
    Case("GELU, tanh", "activation", lambda: nn.GELU("tanh"), (6,)),
    *_plain("normalization", (4,), (nn.LayerNorm, 4), (nn.RMSNorm, 4), (nn.BatchNorm1d, 4)),
    Case("LayerNorm, no weights", "normalization", lambda: nn.LayerNorm(4, elementwise_affine=False), (4,)),
    *_plain("normalization", LINE, (nn.InstanceNorm1d, 2), (nn.LocalResponseNorm, 2)),
    *_plain("normalization", IMAGE, (nn.BatchNorm2d, 2), (nn.InstanceNorm2d, 2), (nn.GroupNorm, 1, 2),
            (nn.CrossMapLRN2d, 2)),
    *_plain("normalization", VOLUME, (nn.BatchNorm3d, 1), (nn.InstanceNorm3d, 1)),
    Case("InstanceNorm1d, affine", "normalization", lambda: nn.InstanceNorm1d(2, affine=True), LINE),
    Case("InstanceNorm2d, affine", "normalization", lambda: nn.InstanceNorm2d(2, affine=True), IMAGE),
    Case("BatchNorm1d, training", "normalization", lambda: nn.BatchNorm1d(4, track_running_stats=False), (4,),
         training=True),
    Case("BatchNorm2d, training", "normalization", lambda: nn.BatchNorm2d(2, track_running_stats=False), IMAGE,
         training=True),
    *_plain("pooling", LINE, (nn.AvgPool1d, 2), (nn.MaxPool1d, 2), (nn.LPPool1d, 2, 2), (nn.AdaptiveAvgPool1d, 2),
            (nn.AdaptiveMaxPool1d, 2)),
    *_plain("pooling", IMAGE, (nn.AvgPool2d, 2), (nn.MaxPool2d, 2), (nn.LPPool2d, 2, 2), (nn.AdaptiveAvgPool2d, 2),
            (nn.AdaptiveMaxPool2d, 2)),
    *_plain("pooling", VOLUME, (nn.AvgPool3d, 2), (nn.MaxPool3d, 2), (nn.LPPool3d, 2, 2), (nn.AdaptiveAvgPool3d, 2),
            (nn.AdaptiveMaxPool3d, 2)),
    *(Case(f"MaxUnpool{rank}d", "pooling", partial(kind, 2), shape, _pooled)
      for rank, kind, shape in ((1, nn.MaxUnpool1d, LINE), (2, nn.MaxUnpool2d, IMAGE), (3, nn.MaxUnpool3d, VOLUME))),
    Case("FractionalMaxPool2d", "pooling",
         lambda: nn.FractionalMaxPool2d(2, 2, _random_samples=torch.full((EXAMPLES, 2, 2), 0.4, dtype=torch.float64)),
         IMAGE),
    Case("FractionalMaxPool3d", "pooling",
         lambda: nn.FractionalMaxPool3d(2, 2, _random_samples=torch.full((EXAMPLES, 1, 3), 0.4, dtype=torch.float64)),
         VOLUME),
    *_plain("padding", LINE, *((kind, 1) for kind in (nn.CircularPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d,
                                                      nn.ZeroPad1d)), (nn.ConstantPad1d, 1, 0.5)),
    *_plain("padding", IMAGE, *((kind, 1) for kind in (nn.CircularPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
                                                       nn.ZeroPad2d)), (nn.ConstantPad2d, 1, 0.5)),
    *_plain("padding", (1, 2, 2, 2), *((kind, 1) for kind in (nn.CircularPad3d, nn.ReflectionPad3d,
                                                              nn.ReplicationPad3d, nn.ZeroPad3d)),
            (nn.ConstantPad3d, 1, 0.5)),
    *_plain("vision", (4, 2, 2), (nn.PixelShuffle, 2), (nn.ChannelShuffle, 2)),
    *_plain("vision", IMAGE, (nn.PixelUnshuffle, 2)),
    *_plain("vision", (1, 2, 2), (nn.UpsamplingNearest2d, None, 2), (nn.UpsamplingBilinear2d, None, 2)),
    *(Case(f"Upsample, {mode}", "vision", partial(nn.Upsample, scale_factor=2, mode=mode), shape)
      for mode, shape in (("nearest", (1, 3)), ("linear", (1, 3)), ("bilinear", (1, 2, 2)), ("bicubic", (1, 2, 2)),
                          ("trilinear", (1, 2, 2, 2)))),
    Case("grid_sample", "vision", nn.Identity, (1, 4, 4), _grid),
    Case("CosineSimilarity", "distance", nn.CosineSimilarity, LINE, _twice),
    Case("PairwiseDistance", "distance", nn.PairwiseDistance, LINE, _twice),
    Case("cdist", "distance", _linear, (2, 3), _distances),
    *(Case(kind.__name__, "recurrent", _recurrent(kind), (3, 2), _first) for kind in (nn.RNN, nn.LSTM, nn.GRU)),
    Case("LSTM, two layers both ways", "recurrent", _recurrent(nn.LSTM, num_layers=2, bidirectional=True), (2, 2),
         _first),
    Case("RNNCell", "recurrent", lambda: nn.RNNCell(2, 2), (2,)),
    Case("GRUCell", "recurrent", lambda: nn.GRUCell(2, 2), (2,)),
    Case("LSTMCell", "recurrent", lambda: nn.LSTMCell(2, 2), (2,), _first),
    Case("MultiheadAttention", "attention", lambda: nn.MultiheadAttention(2, 1, batch_first=True), (3, 2), _attention),
    Case("MultiheadAttention, weights needed", "attention", lambda: nn.MultiheadAttention(2, 1, batch_first=True),
         (3, 2), _attention_weights),
    Case("scaled_dot_product_attention", "attention", lambda: nn.Linear(2, 2), (3, 2), _fused_attention),
    Case("TransformerEncoderLayer", "attention", lambda: _transformer(nn.TransformerEncoderLayer), (3, 2)),
    Case("TransformerEncoderLayer, norm first", "attention",
         lambda: _transformer(nn.TransformerEncoderLayer, norm_first=True, activation="gelu"), (3, 2)),
    Case("TransformerEncoder", "attention",
         lambda: nn.TransformerEncoder(_transformer(nn.TransformerEncoderLayer), 1, enable_nested_tensor=False),
         (3, 2)),
    Case("TransformerDecoderLayer", "attention", lambda: _transformer(nn.TransformerDecoderLayer), (3, 2), _twice),
    Case("TransformerDecoder", "attention",
         lambda: nn.TransformerDecoder(_transformer(nn.TransformerDecoderLayer), 1), (3, 2), _twice),
    Case("Transformer", "attention",
         lambda: _transformer(nn.Transformer, num_encoder_layers=1, num_decoder_layers=1), (2, 2), _twice),
    *(Case(f"weight_norm of {layer}, dim={dim}", "parametrization",
           partial(_normalized, parametrizations.weight_norm, kind, dim), shape)
      for layer, kind, shape in (("Linear", _linear, (3,)), ("Conv2d", _convolution, (2, 3, 3)))
      for dim in (0, 1, None)),
    *(Case(f"legacy weight_norm of {layer}, dim={dim}", "parametrization",
           partial(_normalized, legacy_weight_norm, kind, dim), shape)
      for layer, kind, shape in (("Linear", _linear, (3,)), ("Conv2d", _convolution, (2, 3, 3)))
      for dim in (0, 1, None)),
    Case("weight_norm of LSTM", "parametrization", _parametrized_recurrent, (2, 2), _first),
    Case("spectral_norm", "parametrization", lambda: parametrizations.spectral_norm(_linear()), (3,)),
    Case("legacy spectral_norm", "parametrization", lambda: legacy_spectral_norm(_linear()), (3,)),
    *(Case(f"orthogonal, {name}", "parametrization", partial(_orthogonal, name), (3,))
      for name in ("matrix_exp", "cayley", "householder")),
]  # fmt: skip


def _classes(count: int) -> Tensor:
    return torch.arange(count) % 4


def _signs(count: int) -> Tensor:
    return (torch.arange(count) % 2 * 2.0 - 1)[:, None].expand(-1, 4)


def _probabilities(count: int) -> Tensor:
    return torch.softmax(torch.randn(count, 4), 1)


def _values(count: int) -> Tensor:
    return 2 * torch.randn(count, 4)


def _counts(count: int) -> Tensor:
    return torch.arange(4.0 * count).view(count, 4) % 3


def _zeros(count: int) -> Tensor:
    return torch.zeros(count, 4)


def _sigmoid(layer: nn.Module, signal: Tensor) -> Tensor:
    return torch.sigmoid(layer(signal))


def _log_softmax(layer: nn.Module, signal: Tensor) -> Tensor:
    return torch.log_softmax(layer(signal), 1)


class _OfOne(nn.Module):
    """A loss of several inputs as a loss of one output: all of them are taken from it."""

    def __init__(self, loss: nn.Module, split: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss, self.split = loss, split

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Value of the loss."""
        return self.split(self.loss, output, target)


def _joined(
    loss: Callable[[], nn.Module], split: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> Callable[[], nn.Module]:
    return lambda: _OfOne(loss(), split)


def _pair(loss: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    return loss(output[:, :2], output[:, 2:], target[:, 0])


def _triplet(loss: nn.Module, output: Tensor, _: Tensor) -> Tensor:
    return loss(output[:, :2], output[:, 1:3], output[:, 2:])


def _ctc(loss: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """Connectionist temporal classification of 4 steps and 3 symbols against 2 labels."""
    lengths = torch.full((len(output),), 4), torch.full((len(output),), 2)
    return loss(output.movedim(1, 0).log_softmax(2), target, *lengths)


def _loss(name: str, build: Callable[[], nn.Module], targets: Callable[[int], Tensor], apply: Apply = call,
          shape: tuple[int, ...] = (4,)) -> Case:  # fmt: skip
    return Case(name, "loss", build, shape, apply, targets)


LOSSES = [
    _loss("MSELoss", nn.MSELoss, _values),
    _loss("L1Loss", nn.L1Loss, _values),
    _loss("SmoothL1Loss", nn.SmoothL1Loss, _values),
    _loss("HuberLoss", nn.HuberLoss, _values),
    _loss("CrossEntropyLoss", nn.CrossEntropyLoss, _classes),
    _loss("CrossEntropyLoss, smoothed", lambda: nn.CrossEntropyLoss(label_smoothing=0.1), _classes),
    _loss("CrossEntropyLoss, probabilities", nn.CrossEntropyLoss, _probabilities),
    _loss("NLLLoss", nn.NLLLoss, _classes, _log_softmax),
    _loss("KLDivLoss", lambda: nn.KLDivLoss(reduction="batchmean"), _probabilities, _log_softmax),
    _loss("BCELoss", nn.BCELoss, _probabilities, _sigmoid),
    _loss("BCEWithLogitsLoss", nn.BCEWithLogitsLoss, _probabilities),
    _loss("GaussianNLLLoss", _joined(nn.GaussianNLLLoss, lambda loss, output, target: loss(
        output[:, :2], target[:, :2], output[:, 2:].exp())), _values),
    _loss("PoissonNLLLoss", nn.PoissonNLLLoss, _counts),
    _loss("PoissonNLLLoss, full", lambda: nn.PoissonNLLLoss(full=True), _counts),
    _loss("SoftMarginLoss", nn.SoftMarginLoss, _signs),
    _loss("MultiMarginLoss", nn.MultiMarginLoss, _classes),
    _loss("MultiMarginLoss, p=2", lambda: nn.MultiMarginLoss(p=2), _classes),
    _loss("MultiLabelMarginLoss", nn.MultiLabelMarginLoss, lambda n: torch.tensor([[0, 2, -1, 0]]).expand(n, -1)),
    _loss("MultiLabelSoftMarginLoss", nn.MultiLabelSoftMarginLoss, lambda n: (_signs(n) + 1) / 2),
    _loss("HingeEmbeddingLoss", nn.HingeEmbeddingLoss, _signs),
    _loss("MarginRankingLoss", _joined(nn.MarginRankingLoss, lambda loss, output, target: loss(
        output[:, 0], output[:, 1], target[:, 0])), _signs),
    _loss("CosineEmbeddingLoss", _joined(nn.CosineEmbeddingLoss, _pair), _signs),
    _loss("TripletMarginLoss", _joined(nn.TripletMarginLoss, _triplet), _zeros),
    _loss("TripletMarginWithDistanceLoss", _joined(nn.TripletMarginWithDistanceLoss, _triplet), _zeros),
    _loss("CTCLoss", _joined(nn.CTCLoss, _ctc), lambda n: torch.tensor([[1, 2]]).expand(n, -1), shape=(4, 3)),
    Case("AdaptiveLogSoftmaxWithLoss", "loss", lambda: nn.AdaptiveLogSoftmaxWithLoss(3, 4, [2], div_value=1.0), (3,),
         _log_probabilities),
]  # fmt: skip

if hasattr(nn, "LinearCrossEntropyLoss"):  # new in torch 2.13
    LOSSES.append(Case("LinearCrossEntropyLoss", "loss", lambda: nn.LinearCrossEntropyLoss(3, 4, reduction="none"),
                       (3,), _labelled))  # fmt: skip

CASES = [*LAYERS, *LOSSES]

# Modules of torch.nn without a case, and why.
NOT_TRIED = {
    **dict.fromkeys(("Container", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"),
                    "holds modules or weights and computes nothing"),
    **dict.fromkeys(("AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"),
                    "the identity in evaluation mode, random in training mode"),
    **dict.fromkeys(("RNNBase", "RNNCellBase"), "the base of modules that are tried"),
    "DataParallel": "runs another module",
    "SyncBatchNorm": "needs a process group; without one it is BatchNorm",
    "NLLLoss2d": "an old name of NLLLoss",
}  # fmt: skip
