"""What a command can be asked for: the fields of its configuration, with their types, limits, defaults and help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from curvature.cli.combinations import combined
from curvature.cli.fields import (
    COMPUTE,
    DATA,
    MACHINE,
    MATRICES,
    MODEL,
    PANELS,
    Argument,
    Backend,
    Charts,
    Count,
    Derivatives,
    Gauges,
    Grid,
    Matrices,
    Nearest,
    Numbers,
    SavedEigenvectors,
    Scheduler,
    Seed,
    Shown,
    Threads,
    Workers,
    option_name,
)

__all__ = [
    "DATA",
    "KINDS",
    "MATRICES",
    "MODEL",
    "PANELS",
    "RENAMED",
    "AnalyzeConfiguration",
    "CompareConfiguration",
    "Configuration",
    "Shown",
    "SpectrumConfiguration",
    "TrackConfiguration",
    "option_name",
]

# Fields under the names they had up to version 0.1. Their meaning is unchanged.
RENAMED = {"damping": "relative_damping", "dampings": "relative_dampings", "seeds": "num_seeds"}


def _default_num_seeds(values: Mapping[str, Any]) -> int:
    """Paired seeds: three show what to expect, ten can decide about training."""
    return 10 if values.get("full") else 3


class Configuration(BaseModel):
    """Everything that determines the numbers: equal configurations give equal numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    refused: ClassVar[Mapping[str, str]] = {}  # fields that the command cannot use, each with the reason

    model: Annotated[
        str | None,
        Shown(
            MODEL,
            "NAME",
            "builtin:digits-mlp, builtin:digits-cnn, builtin:mlp (with --arg inputs=N --arg outputs=C), "
            "package.module:factory, path/file.py:factory (executes the file), hf:FOLDER (config.json and weights, as "
            "save_pretrained of transformers writes them), or model.pt2 from torch.export.",
        ),
    ] = "builtin:digits-mlp"
    function: Annotated[
        str | None,
        Shown(
            MODEL,
            "NAME",
            "A function of named tensors in place of model, loss and data: package.module:function or "
            "path/file.py:function. With --parameters, the function that is measured. Without, a factory that returns "
            "a cv.Problem, (function, parameters) or (function, parameters, data).",
        ),
    ] = None
    parameters: Annotated[
        str | None,
        Shown(
            MODEL,
            "FILE",
            "Where --function is measured: .npz, .safetensors or .pt (the function gets a dictionary of tensors by "
            "name), or .npy (it gets one tensor). With --data it is called as function(parameters, x, y), or with "
            "arrays of other names by name; with --loss it returns the outputs that the loss compares with the "
            "targets.",
        ),
    ] = None
    weights: Annotated[
        str | None,
        Shown(
            MODEL,
            "FILE",
            "state_dict to load: .safetensors, .pt or .ckpt (only tensors are read), the .index.json of weights in "
            "several files, or their folder.",
        ),
    ] = None
    key: Annotated[
        str | None, Shown(MODEL, "NAME", "Key of the state_dict in a .pt checkpoint, e.g. model or ema/model.")
    ] = None
    strip_prefix: Annotated[
        str | None,
        Shown(
            MODEL,
            "PREFIX",
            "Use the weights whose names begin with PREFIX, and remove it from them, e.g. model. of a Lightning "
            "checkpoint. A prefix that fits the model is found without this option.",
        ),
    ] = None
    adapter: Annotated[
        str | None,
        Shown(
            MODEL,
            "FOLDER",
            "peft adapter of the model, such as LoRA or DoRA: adapter_config.json and its weights. The parameters of "
            "the adapter are trainable, all others frozen.",
        ),
    ] = None
    freeze: Annotated[
        str | None,
        Shown(
            MODEL,
            "PATTERN",
            "Freeze parameters: the name of a layer or of a parameter, or a regular expression searched in the names.",
        ),
    ] = None
    train_only: Annotated[
        str | None, Shown(MODEL, "PATTERN", "Freeze all other parameters; PATTERN as for --freeze.")
    ] = None
    arg: Annotated[
        dict[str, Argument | list[Argument]],
        Shown(
            MODEL,
            "NAME=VALUE",
            "Argument for the function that builds the model, e.g. widths=32,16 or activation=relu. Repeatable.",
        ),
    ] = {}
    output: Annotated[
        str | None,
        Shown(
            MODEL,
            "NAME",
            "Entry or position of the outputs in what the model returns, e.g. logits or 0, if it returns several.",
        ),
    ] = None
    data: Annotated[
        str | None,
        Shown(
            DATA,
            "NAME",
            "builtin:digits, builtin:breast-cancer, builtin:wine, builtin:diabetes, builtin:characters or "
            "builtin:housing; a .npz or .pt "
            "file with x and y; a folder with x.npy and y.npy; a .csv file with --target; mnist:FOLDER or "
            "cifar10:FOLDER with downloaded files; or package.module:loader.",
        ),
    ] = "builtin:digits"
    stream: Annotated[
        bool,
        Shown(
            DATA,
            "",
            "Read the data in parts, again for every product, for data larger than memory: a loader that returns a "
            "DataLoader or an IterableDataset, a .npz file that is not compressed, or a folder of .npy files.",
        ),
    ] = False
    target: Annotated[
        str | None,
        Shown(
            DATA,
            "NAME",
            "Column of the .csv file to predict, or entry of the .npz or .pt file or the folder; the others are inputs "
            "by name.",
        ),
    ] = None
    loss: Annotated[
        str | None,
        Shown(
            DATA,
            "NAME",
            "cross-entropy, bce, mse, half-squared-error, huber, smooth-l1, l1, nll, kl-div, bce-of-probabilities, "
            "poisson-nll or gaussian-nll, with -sum at the end for the sum instead of the mean (mse-sum); "
            "package.module:function, a function of the output and the target of one example; or model, the loss that "
            "the model returns.",
        ),
    ] = "cross-entropy"
    weight_decay: Annotated[
        NonNegativeFloat,
        Shown(
            DATA,
            "X",
            "Add (X / 2) times the sum of squared weights to the loss, as torch.optim.SGD does: to its value, its "
            "gradient and its Hessian, and to the training of compare. The other matrices are about the data alone.",
        ),
    ] = 0.0
    num_examples: Annotated[Count | None, Shown(DATA, "N", "Use only the first N examples.")] = None
    matrix: Matrices
    dtype: Annotated[Literal["float64", "float32"], Shown(MACHINE, "NAME", "float64 or float32.")] = "float64"
    device: Annotated[str, Shown(MACHINE, "NAME", "cpu, cuda, cuda:1, ...")] = "cpu"
    threads: Threads = None

    @model_validator(mode="before")
    @classmethod
    def _fit_together(cls, values: Any) -> Any:
        return combined(values, cls.refused) if isinstance(values, Mapping) else values


class SpectrumConfiguration(Configuration):
    """Configuration of ``curvature spectrum``."""

    matrix: Matrices = ("hessian", "ggn")
    chart: Charts = ()
    gauge: Gauges = ()
    nearest: Nearest = False
    block: Annotated[
        str,
        Shown(
            COMPUTE,
            "WHICH",
            "all: the whole matrix. layer or neuron: the block of each layer or of each neuron. Otherwise a regular "
            "expression for the names of parameters, which form one block.",
        ),
    ] = "all"
    method: Annotated[
        Literal["auto", "exact", "dense", "factor", "gram", "lanczos", "slq"],
        Shown(
            COMPUTE,
            "NAME",
            "auto: every eigenvalue if it fits in memory, otherwise extremal eigenvalues and the density. exact: every "
            "eigenvalue, or an error. dense: LAPACK on the matrix. factor: singular values of B, where A = B B^T. "
            "gram: LAPACK on B^T B (fast, fewer digits). lanczos: extremal eigenvalues with error bounds. slq: the "
            "density.",
        ),
    ] = "auto"
    num_eigenvalues: Annotated[
        Count,
        Shown(
            COMPUTE,
            "N",
            "For lanczos: number of eigenvalues at each end of the spectrum; only the largest ones if the matrix is "
            "positive semidefinite.",
        ),
    ] = 10
    num_probes: Annotated[
        Count, Shown(COMPUTE, "N", "For slq: number of random probes. More probes reduce the standard error.")
    ] = 10
    num_matvecs: Annotated[
        Count, Shown(COMPUTE, "N", "For slq: Lanczos steps per probe. More steps resolve the density better.")
    ] = 60
    num_samples: Annotated[Count, Shown(COMPUTE, "N", "For mc-fisher: labels drawn per example.")] = 1
    derivatives: Derivatives = "autograd"
    save_eigenvectors: SavedEigenvectors = None
    gradient: bool = True
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_eigenvectors(self) -> Self:
        if self.save_eigenvectors is not None and self.method in ("gram", "slq"):
            raise ValueError(
                f"save_eigenvectors does not go with method {self.method}, which computes no eigenvectors of the "
                "matrix: use method auto, dense, factor or lanczos"
            )
        return self


class CompareConfiguration(Configuration):
    """Configuration of ``curvature compare``; the defaults are those of ``curvature.studies.quick_settings``."""

    refused = {
        "stream": "compare trains on the examples in random order, so they must fit into memory. Use fewer with "
        "--num-examples, or measure the trained weights with curvature spectrum --stream",
        "function": "compare trains networks with and without weight normalization, and a function has no layers. Use "
        "curvature spectrum",
        "parameters": "compare trains networks, and takes no function. Use curvature spectrum",
    }

    matrix: Matrices = ("hessian", "ggn", "gradient-covariance")
    full: Annotated[
        bool,
        Shown(
            COMPUTE,
            "",
            "Run the whole study: every arm and control at its own learning rate, a verdict on every claim, and the "
            "whitening league: which method is closest to the natural gradient.",
        ),
    ] = False
    grid: Grid = None
    num_seeds: Annotated[
        int,
        Field(gt=0, le=10_000, default_factory=_default_num_seeds),
        Shown(COMPUTE, "N", "Number of paired seeds; the arms share each seed. Default: 3, with --full 10."),
    ]
    jobs: Annotated[Workers, Shown(COMPUTE, "N", "Number of seeds measured in parallel, with one thread each.")] = 1
    backend: Backend = None
    scheduler: Scheduler = None
    tuning_epochs: Count = 10
    epochs: Annotated[int, Field(ge=2, le=2**31 - 1), Shown(COMPUTE, "N", "Epochs of SGD in each arm.")] = 30
    batch_size: Annotated[Count, Shown(COMPUTE, "N", "Examples per step.")] = 64
    learning_rate: Annotated[
        PositiveFloat, Shown(COMPUTE, "X", "Learning rate of both arms; --full tunes one for each arm.")
    ] = 0.2
    momentum: Annotated[NonNegativeFloat, Field(lt=1)] = 0.0
    stretches: Numbers = (0.125, 0.5, 2.0, 8.0)
    relative_dampings: Numbers = (1e-5, 1e-3, 1e-1)
    relative_damping: Annotated[
        PositiveFloat,
        Shown(COMPUTE, "X", "Damping of the natural gradient, as a multiple of the mean eigenvalue of the Fisher."),
    ] = 1e-3
    threshold: PositiveFloat = math.log(1.1)


class AnalyzeConfiguration(Configuration):
    """Configuration of ``curvature analyze``."""

    matrix: Matrices = ("ggn",)
    chart: Charts = ()
    gauge: Gauges = ()
    nearest: Nearest = False
    seed: Seed = 0


class TrackConfiguration(Configuration):
    """Configuration of ``curvature track``."""

    refused = {
        "weights": "track reads the weights from the checkpoints in FOLDER; leave out --weights",
        "function": "track follows a model over its checkpoints. Measure a function at each point with curvature "
        "spectrum --function NAME --parameters FILE",
        "parameters": "track reads the weights from the checkpoints in FOLDER",
    }

    folder: Annotated[str | None, Shown(MODEL, "FOLDER", "Folder with checkpoints.", argument=True)] = None
    pattern: Annotated[
        str,
        Shown(
            MODEL,
            "GLOB",
            "Files in the folder that are checkpoints, e.g. 'epoch=*.ckpt'. By default every .pt, .pth, .ckpt, .bin "
            "and .safetensors file, also in subfolders, except optimizer states. Weights in several files are one "
            "checkpoint, by their .index.json.",
        ),
    ] = "**/*"
    skip_broken: Annotated[
        bool,
        Shown(
            MODEL,
            "",
            "Leave out checkpoints that cannot be read, do not fit the model, or are not finite. They are named, and "
            "tried again by --resume.",
        ),
    ] = False
    matrix: Matrices = ("hessian", "ggn")
    chart: Charts = ()
    gauge: Gauges = ()
    top: Annotated[Count, Shown(COMPUTE, "K", "Number of largest eigenvalues to follow.")] = 5
    method: Annotated[
        Literal["auto", "exact", "lanczos"],
        Shown(
            COMPUTE,
            "NAME",
            "exact: every eigenvalue. lanczos: the largest ones with error bounds, and an estimate of the trace. auto: "
            "exact up to 2000 coordinates.",
        ),
    ] = "auto"
    seed: Seed = 0

    @model_validator(mode="after")
    def _names_a_folder(self) -> Self:
        if self.folder is None:
            raise ValueError("name the folder with the checkpoints: curvature track FOLDER")
        return self


KINDS: dict[str, type[Configuration]] = {
    "spectrum": SpectrumConfiguration,
    "compare": CompareConfiguration,
    "analyze": AnalyzeConfiguration,
    "track": TrackConfiguration,
}
