"""A model with a loss on fixed data, at a point, in its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from curvature.errors import ConfigurationError, InputError, NonFiniteError, SelfCheckError
from curvature.layout import Entry, Layout
from curvature.losses import Loss, resolve_loss
from curvature.parameterization import Parameterization, Standard, WeightNorm

__all__ = ["Problem"]

_NORMALIZABLE = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_CHUNK_BYTES = 256 * 2**20  # of per-example factor columns held at once


@dataclass(frozen=True, eq=False)
class Problem:
    r"""The mean loss $L(w) = \frac1D \sum_n \ell_n(f(x_n; w))$ of a network on fixed data, at weights $w$.

    Build one with :meth:`from_module`. It is frozen and owns copies: the user's module, data, modes, hooks
    and gradients are never touched.

    Attributes
    ----------
    loss
        The loss, with its denominators.
    inputs, targets
        The data in fixed order, ``(N, ...)``.
    layout
        Names and places of the weights: the only conversion between named tensors and flat vectors.
    weights
        The point ``(P,)``: what the model multiplies with, after any weight normalization is applied.
    chart
        The parameterization the module came in: ``Standard()``, or ``WeightNorm`` at its own ``(g, v)``.
    denominator
        $D$: number of examples, or the sum of class weights, or the number of output elements.
    frozen, unused
        Names of parameters left out (``requires_grad=False``), and of those the loss does not depend on.
    chunk_size
        Examples evaluated at once; results do not depend on it beyond rounding.
    """

    model: nn.Module = field(repr=False)
    loss: Loss
    inputs: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    layout: Layout = field(repr=False)
    weights: Tensor = field(repr=False)
    chart: Parameterization
    denominator: float
    aliases: Mapping[str, str] = field(repr=False)
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    num_outputs: int
    chunk_size: int

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        loss: str | Loss | nn.Module | Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor] | Dataset | DataLoader,
        dtype: torch.dtype | None = torch.float64,
        chunk_size: int | None = None,
    ) -> Problem:
        """Take a module as users have it.

        Parameters
        ----------
        module
            Any ``nn.Module`` mapping ``(N, ...)`` inputs to ``(N, ...)`` outputs, in eval mode where the mode
            matters (dropout, batch norm). Layers under ``nn.utils.parametrizations.weight_norm`` or the legacy
            ``nn.utils.weight_norm`` are unwrapped into their effective weights; ``problem.chart`` is then
            ``WeightNorm`` at their ``(g, v)``. Tied parameters count once, frozen ones not at all.
        loss
            ``"cross-entropy"``, ``"binary-cross-entropy"``, ``"mse"`` (PyTorch's convention), ``"half-squared-error"``,
            a ``torch.nn`` loss module, a :class:`~curvature.losses.Loss`, or a callable
            ``loss(output, target) -> scalar`` for one example.
        data
            ``(inputs, targets)``, a ``Dataset`` or a ``DataLoader`` of such pairs; read once, in order. A loader that
            shuffles or drops examples is refused.
        dtype
            Precision of a *copy* of the model and data; float64, since small eigenvalues need it. None keeps
            the module's own.
        chunk_size
            Examples evaluated at once; None chooses.

        Raises
        ------
        InputError
            For anything about the model, the data or the loss that would make the matrices meaningless.
        SelfCheckError
            If the model is not a fixed function of one example (random, or coupled through the batch).
        """
        loss = resolve_loss(loss)
        _refuse_modules(module)
        if chunk_size is not None and chunk_size < 1:
            raise ConfigurationError(f"chunk_size must be at least 1, got {chunk_size}.")
        dtype, device = _common_type(module, dtype)
        inputs, targets = _materialize(data)
        inputs, targets = _as_type(inputs, dtype, device), targets.to(device)
        _refuse_non_finite(inputs, targets)

        model, entries, values, aliases, frozen, chart = _unwrap(module, dtype)
        layout = Layout(tuple(entries))
        if not layout.dim:
            raise InputError("the module has no parameter with requires_grad=True: there is nothing to differentiate.")
        weights = torch.cat([values[entry.name].reshape(-1) for entry in entries])

        problem = cls(
            model, loss, inputs, targets, layout, weights, chart, 1.0, aliases, tuple(frozen), (), 1, len(inputs)
        )
        outputs = problem._outputs_checked()
        targets = loss.prepare(outputs, targets)
        num_outputs = outputs[0].numel()
        if chunk_size is None:
            columns = max(1, num_outputs) * layout.dim * weights.element_size()
            chunk_size = max(1, min(len(inputs), _CHUNK_BYTES // columns))
        denominator = float(loss.denominators(outputs, targets).sum())
        if not denominator > 0:
            raise InputError("the denominator of the mean loss is zero: every target has weight zero or is ignored.")
        problem = replace(
            problem, targets=targets, denominator=denominator, num_outputs=num_outputs, chunk_size=chunk_size
        )
        return replace(problem, unused=problem._find_unused())

    @property
    def dim(self) -> int:
        """Number of weights ``P``."""
        return self.layout.dim

    @property
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

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join named tensors (names as in ``layout``) into a ``(P,)`` vector."""
        return self.layout.flatten(tensors)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Split a ``(P,)`` vector into named tensors."""
        return self.layout.unflatten(vector)

    def at(self, weights: Tensor) -> Problem:
        """Move to other weights ``(P,)``: same model, loss and data; the chart becomes ``Standard()``."""
        if weights.shape != self.weights.shape:
            raise ConfigurationError(f"weights must have shape ({self.dim},), got {tuple(weights.shape)}.")
        if not torch.isfinite(weights).all():
            raise NonFiniteError("the weights contain NaN or infinity.")
        return replace(self, weights=weights.detach().clone().to(self.weights), chart=Standard())

    def predict(self, weights: Tensor | Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs at other weights, flat or by name; differentiable in them."""
        named = self.unflatten(weights) if isinstance(weights, Tensor) else dict(weights)
        named |= {alias: named[original] for alias, original in self.aliases.items()}
        # A module may write into its input in place; the data stay as they are.
        return torch.func.functional_call(self.model, named, (inputs.clone(),))

    def chunks(self) -> Iterator[slice]:
        """Slices of the examples, at most ``chunk_size`` each."""
        for start in range(0, self.num_examples, self.chunk_size):
            yield slice(start, min(start + self.chunk_size, self.num_examples))

    def outputs(self, weights: Tensor | None = None) -> Tensor:
        """Outputs for all examples, ``(N, ...)``, without a graph."""
        point = self.weights if weights is None else weights
        with torch.no_grad():
            return torch.cat([self.predict(point, self.inputs[where]) for where in self.chunks()])

    def value(self, weights: Tensor | None = None) -> float:
        """The mean loss."""
        outputs = self.outputs(weights)
        return float(self.loss.terms(outputs, self.targets).sum()) / self.denominator

    def gradient(self, weights: Tensor | None = None) -> Tensor:
        """Gradient of the mean loss in the weights, ``(P,)``."""
        total = torch.zeros_like(self.weights)
        for where in self.chunks():
            _, leaves, loss = self._chunk_loss(where, weights)
            parts = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            total += torch.cat([part.reshape(-1) for part in parts])
        if not torch.isfinite(total).all():
            raise NonFiniteError(
                "the gradient is NaN or infinite in "
                + ", ".join(n for n, part in self.unflatten(total).items() if not torch.isfinite(part).all())
                + "; look at the weights and the loss at this point."
            )
        return total

    def leaves(self, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Fresh named tensors at the point that require gradients."""
        point = self.weights if weights is None else weights
        return {name: part.detach().clone().requires_grad_() for name, part in self.unflatten(point).items()}

    def _chunk_loss(self, where: slice, weights: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        named = self.leaves(weights)
        with torch.enable_grad():
            outputs = self.predict(named, self.inputs[where])
            loss = self.loss.terms(outputs, self.targets[where]).sum() / self.denominator
        if not loss.requires_grad:
            raise InputError("the loss does not depend on any trainable parameter of the module.")
        return outputs, list(named.values()), loss

    def _find_unused(self) -> tuple[str, ...]:
        _, leaves, loss = self._chunk_loss(slice(0, 1))
        parts = torch.autograd.grad(loss, leaves, allow_unused=True)
        return tuple(entry.name for entry, part in zip(self.layout.entries, parts, strict=True) if part is None)

    def _outputs_checked(self) -> Tensor:
        """Outputs of the whole data; check that the model is a fixed function of one example."""
        try:
            with torch.no_grad():
                first = self.predict(self.weights, self.inputs)
                second = self.predict(self.weights, self.inputs)
                half = self.predict(self.weights, self.inputs[: max(1, self.num_examples // 2)])
        except Exception as error:  # anything may come out of a user's module
            raise InputError(
                f"the model failed on inputs of shape {tuple(self.inputs.shape)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(first, Tensor):
            raise InputError(f"the model must return one tensor, it returns {type(first).__name__}.")
        if first.ndim < 1 or len(first) != self.num_examples:
            raise InputError(
                f"the model must return one output per example ({self.num_examples} examples), got shape "
                f"{tuple(first.shape)}."
            )
        if not torch.isfinite(first).all():
            example = int((~torch.isfinite(first.flatten(1) if first.ndim > 1 else first[:, None])).any(1).nonzero()[0])
            raise NonFiniteError(f"the model's output is NaN or infinite, first for example {example}.")
        scale = first.abs().max()
        tolerance = 1e3 * torch.finfo(first.dtype).eps * scale
        if (difference := (first - second).abs().max()) > tolerance:
            raise SelfCheckError(
                f"the model is not deterministic: two passes over the same data differ by {difference / scale:.1e} "
                "(relative). Something in it is random; call model.eval() or remove the noise."
            )
        if (difference := (first[: len(half)] - half).abs().max()) > tolerance:
            raise SelfCheckError(
                "the output for an example depends on the other examples in its batch: half the data alone differs by "
                f"{difference / scale:.1e} (relative). A mean over examples needs a model that treats them one by one."
            )
        return first


def _refuse_modules(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(module).__name__}.")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("TorchScript modules cannot be differentiated twice here; pass the original nn.Module.")
    for name, layer in module.named_modules():
        where = f"layer {name!r} ({type(layer).__name__})" if name else f"the module ({type(layer).__name__})"
        if any(nn.parameter.is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
            raise InputError(f"{where} is not initialized yet: run the model once on an input.")
        if not layer.training:
            continue
        dropping = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        dropping |= isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0
        if dropping or isinstance(layer, nn.RReLU):
            raise InputError(f"{where} is random in training mode: call model.eval() first.")
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"{where} is in training mode, where the loss is not a mean over examples: call model.eval() first "
                "(curvature at the running statistics)."
            )
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            raise InputError(f"{where} would update its running statistics: call model.eval() first.")


def _common_type(module: nn.Module, dtype: torch.dtype | None) -> tuple[torch.dtype, torch.device]:
    tensors = dict(module.named_parameters())
    if not tensors:
        raise InputError("the module has no parameters: there is nothing to differentiate.")
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise InputError(f"parameter {name!r} is complex; only real parameters are supported.")
        if not torch.isfinite(tensor).all():
            raise InputError(f"parameter {name!r} contains NaN or infinity.")
    devices = {tensor.device for tensor in [*tensors.values(), *module.buffers()]}
    if len(devices) > 1:
        raise InputError(f"the module lies on several devices ({', '.join(map(str, devices))}): move it to one.")
    kinds = {tensor.dtype for tensor in tensors.values()}
    if dtype is None and len(kinds) > 1:
        raise InputError(
            f"the parameters have several dtypes ({', '.join(map(str, kinds))}): pass dtype=torch.float64."
        )
    chosen = dtype or kinds.pop()
    if chosen not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"dtype must be torch.float64 or torch.float32, got {chosen}: curvature needs the digits."
        )
    return chosen, devices.pop()


def _as_type(inputs: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return inputs.to(device, dtype) if inputs.is_floating_point() else inputs.to(device)


def _refuse_non_finite(inputs: Tensor, targets: Tensor) -> None:
    for what, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
            raise InputError(
                f"the {what} contain NaN or infinity in {int(bad.sum())} of {len(bad)} examples, first in example "
                f"{int(bad.nonzero()[0])}."
            )


def _materialize(data: tuple[Tensor, Tensor] | Dataset | DataLoader) -> tuple[Tensor, Tensor]:
    """Read the data once, in order, into two tensors of our own."""
    if isinstance(data, DataLoader):
        inputs, targets = _from_loader(data)
    elif isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = (part.detach().clone() for part in data)
    elif isinstance(data, Dataset):
        if not hasattr(data, "__len__"):
            raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
        if len(data) == 0:
            raise InputError("the data are empty.")
        pairs = [_pair(data[index], f"item {index} of the dataset") for index in range(len(data))]
        inputs = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])
        targets = torch.stack([torch.as_tensor(pair[1]) for pair in pairs])
    else:
        raise InputError(
            f"data must be a pair of tensors (inputs, targets), a Dataset or a DataLoader, got {type(data).__name__}."
        )
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) == 0 or len(targets) == 0:
        raise InputError("the data are empty.")
    if len(inputs) != len(targets):
        raise InputError(f"there are {len(inputs)} inputs but {len(targets)} targets.")
    return inputs, targets


def _pair(item: object, what: str) -> tuple[Tensor, Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{what} must be a pair (input, target), got {type(item).__name__}.")
    return item[0], item[1]


def _from_loader(loader: DataLoader) -> tuple[Tensor, Tensor]:
    sampler = loader.sampler
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not torch.utils.data.BatchSampler:
        raise InputError(
            f"the data loader uses {type(loader.batch_sampler).__name__}, whose order and coverage are unknown. "
            "Pass the dataset itself."
        )
    if isinstance(loader.dataset, torch.utils.data.IterableDataset):
        raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
    if not isinstance(sampler, SequentialSampler):
        raise InputError(
            f"the data loader shuffles or selects ({type(sampler).__name__}): the matrix would depend on the draw. "
            "Pass shuffle=False."
        )
    if loader.drop_last and loader.batch_size and len(loader.dataset) % loader.batch_size:
        dropped = len(loader.dataset) % loader.batch_size
        raise InputError(f"the data loader drops {dropped} of {len(loader.dataset)} examples: pass drop_last=False.")
    batches = [_pair(batch, "a batch of the data loader") for batch in loader]
    if not batches:
        raise InputError("the data are empty.")
    if not all(isinstance(part, Tensor) for batch in batches for part in batch):
        raise InputError("each batch of the data loader must be two tensors (inputs, targets).")
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


@dataclass(frozen=True)
class _Normalized:
    """A weight-normalized parameter of the user's module, in either of PyTorch's forms."""

    layer: str
    name: str
    g: Tensor
    v: Tensor
    axis: int | None
    legacy: bool


def _find_weight_norm(module: nn.Module) -> list[_Normalized]:
    found = []
    for path, layer in module.named_modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, LegacyWeightNorm):
                g, v = getattr(layer, f"{hook.name}_g"), getattr(layer, f"{hook.name}_v")
                found.append(_Normalized(path, hook.name, g, v, _norm_axis(hook.dim, v), legacy=True))
        if not parametrize.is_parametrized(layer):
            continue
        for name, chain in layer.parametrizations.items():
            kinds = [isinstance(step, _WeightNorm) for step in chain]
            if not any(kinds):
                continue
            if len(kinds) > 1:
                raise InputError(
                    f"layer {path!r}: weight_norm is stacked with another parametrization of {name!r}; only weight_norm "
                    "alone can be unwrapped."
                )
            others = set(layer.parametrizations) - {
                n for n, c in layer.parametrizations.items() if isinstance(c[0], _WeightNorm)
            }
            if others:
                raise InputError(
                    f"layer {path!r}: weight_norm beside another parametrization (of {', '.join(sorted(others))}) cannot be "
                    "unwrapped; remove one of them."
                )
            g, v = chain.original0, chain.original1
            found.append(_Normalized(path, name, g, v, _norm_axis(chain[0].dim, v), legacy=False))
    return found


def _norm_axis(dim: int | None, v: Tensor) -> int | None:
    # In PyTorch dim=None and dim=-1 both mean one norm for the whole tensor.
    return None if dim is None or dim == -1 else dim % v.ndim


def _unwrap(
    module: nn.Module, dtype: torch.dtype
) -> tuple[nn.Module, list[Entry], dict[str, Tensor], dict[str, str], list[str], Parameterization]:
    """Copy the module, replace weight-normalized parameters by effective weights, list what is trainable."""
    normalized = _find_weight_norm(module)
    model = _private_copy(module).to(dtype)
    owners: dict[int, _Normalized] = {}
    aliases: dict[str, str] = {}
    for found in normalized:
        layer = model.get_submodule(found.layer)
        if found.legacy:
            torch.nn.utils.remove_weight_norm(layer, found.name)
        elif hasattr(layer, "parametrizations"):
            _strip_parametrizations(layer)
        setattr(layer, found.name, nn.Parameter(_effective_weight(found, dtype)[0]))
        first = owners.setdefault(id(found.g), found)
        if first is not found:
            if first.v is not found.v or first.axis != found.axis:
                raise InputError(f"layers {first.layer!r} and {found.layer!r} share g but not v: tie both or neither.")
            aliases[_join(found.layer, found.name)] = _join(first.layer, first.name)
    directions = {id(found.v): found for found in owners.values()}
    if len(directions) < len(owners):
        raise InputError("two weight-normalized layers share v but not g: tie both or neither.")

    entries: list[Entry] = []
    values: dict[str, Tensor] = {}
    frozen: list[str] = []
    explicit_g, explicit_v = {}, {}
    for name, parameter in module.named_parameters():
        if id(parameter) in directions:
            continue
        layer_path, _, leaf = name.rpartition(".")
        if id(parameter) in owners:
            found = owners[id(parameter)]
            name, layer_path = _join(found.layer, found.name), found.layer
            value, trainable = _effective_weight(found, dtype)
            axis, normalizes = found.axis, True
            if trainable:
                explicit_g[name], explicit_v[name] = found.g.detach().to(dtype), found.v.detach().to(dtype)
        else:
            value, trainable = parameter.detach().to(dtype, copy=True), parameter.requires_grad
            layer = module.get_submodule(layer_path)
            axis = 0
            normalizes = not normalized and leaf == "weight" and isinstance(layer, _NORMALIZABLE) and value.ndim > 1
        if not trainable:
            frozen.append(name)
            continue
        neuron_axis = 0 if value.ndim else None
        entries.append(Entry(name, tuple(value.shape), layer_path, neuron_axis, normalizes, axis))
        values[name] = value
    model.requires_grad_(False)
    chart = WeightNorm(v=explicit_v, g=explicit_g) if explicit_v else Standard()
    return model, entries, values, aliases, frozen, chart


def _strip_parametrizations(layer: nn.Module) -> None:
    """Turn a copied layer, all of whose parametrizations are weight norm, back into its plain class.

    ``parametrize.remove_parametrizations`` deletes the property from the layer's class, which a deep copy
    shares with the user's own layer; here only the instance changes.
    """
    names = list(layer.parametrizations)
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name in names:
        layer.register_parameter(name, None)


def _effective_weight(found: _Normalized, dtype: torch.dtype) -> tuple[Tensor, bool]:
    if found.g.requires_grad != found.v.requires_grad:
        raise InputError(f"layer {found.layer!r}: one of g and v is frozen, the other is not; freeze both or neither.")
    v, g = found.v.detach().to(dtype), found.g.detach().to(dtype)
    entry = Entry(found.name, tuple(v.shape), found.layer, norm_axis=found.axis)
    rows = entry.rows(v.reshape(-1))
    lengths = torch.linalg.vector_norm(rows, dim=1)
    zero = (lengths == 0).nonzero().flatten().tolist()
    if zero:
        raise InputError(
            f"layer {found.layer!r}: row {zero[0]} of v ({found.name}) is zero, so weight normalization is undefined "
            "there. Give it any non-zero value."
        )
    effective = entry.from_rows((g.reshape(-1) / lengths)[:, None] * rows)
    return effective.view(v.shape), found.g.requires_grad


def _private_copy(module: nn.Module) -> nn.Module:
    """Deep copy, including modules that hold computed tensors, which PyTorch refuses to copy.

    The legacy weight norm leaves such a tensor behind in every layer it was run on.
    """
    memo: dict[int, Tensor] = {}
    for layer in module.modules():
        for value in vars(layer).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        model = copy.deepcopy(module, memo)
    except Exception as error:  # anything may come out of a user's module
        raise InputError(
            f"the module cannot be copied ({type(error).__name__}: {error}), and it is not used in place."
        ) from error
    for parameter in model.parameters():
        parameter.grad = None
    return model


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
