"""Models, weights, data, losses and charts by name: what comes in, and what each refusal says."""

import gzip
import io
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from curvature import matrices, provenance
from curvature.charts import WeightNorm
from curvature.cli import loading
from curvature.cli.loading import files
from curvature.errors import ConfigurationError, InputError
from curvature.models import Problem, zoo
from curvature.models.losses import CrossEntropy, MeanSquaredError
from oracles import Bomb

NETWORK = """
from torch import nn
def make(width=3, seed=0):
    return nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 2))
def unseeded():
    return nn.Linear(4, 2)
def number():
    return 3
def broken():
    raise RuntimeError("the weights are elsewhere")
constant = 3
"""


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def normalized(form):
    """Return a weight-normalized copy of ``plain()``, away from the canonical gauge, in one of PyTorch's forms."""
    model = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the legacy form is deprecated, and its checkpoints are many
        wrap = nn.utils.weight_norm if form == "legacy" else nn.utils.parametrizations.weight_norm
        for layer in (model[0], model[2]):
            wrap(layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2.0 if name.endswith(("_v", "original1")) else 0.7)
    return model


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


# --- models


def test_builtin_model_is_that_of_the_zoo_at_the_seed():
    built = loading.load_model("builtin:digits-mlp", {"widths": [5, 4], "activation": "relu"})(3)
    expected = zoo.mlp((64, 5, 4, 10), activation="relu", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), expected.parameters(), strict=True))
    assert isinstance(built[1], nn.ReLU)
    assert loading.load_model("builtin:digits-mlp", {"widths": 5})(0)[0].out_features == 5


def test_file_is_executed_with_a_message_of_path_and_hash(here):
    said = []
    model = loading.load_model("net.py:make", {"width": 5}, said.append)(0)
    assert model[0].out_features == 5
    assert f"executing {here / 'net.py'} (SHA-256 {provenance.hash_file('net.py')})" in said
    assert not model.training
    assert any("to eval mode (no dropout, running statistics): 1." in line for line in said)


def test_every_factory_is_seeded_and_leaves_the_global_generator_alone(here):  # noqa: ARG001
    build = loading.load_model("net.py:unseeded")
    before = torch.get_rng_state()
    first, again, other = build(1).weight, build(1).weight, build(2).weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_folder_of_an_executed_file_is_not_searched_for_modules(here):
    (here / "beside.py").write_text("raise SystemExit")
    (here / "imports.py").write_text("import beside")
    with pytest.raises(InputError, match="Modules in the same folder are found only with PYTHONPATH"):
        loading.load_model("imports.py:make")


def test_importable_factory(here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    (here / "a_model_of_mine.py").write_text(NETWORK)
    assert isinstance(loading.load_model("a_model_of_mine:make")(0), nn.Sequential)
    assert loading.load_model("torch.nn:Linear", {"in_features": 3, "out_features": 2})(0).in_features == 3


@pytest.mark.parametrize(
    ("spec", "arguments", "error", "words"),
    [
        ("builtin:digits-mpl", {}, ConfigurationError, "did you mean builtin:digits-mlp"),
        ("builtin:digits-mlp", {"width": 3}, ConfigurationError, "did you mean widths"),
        ("builtin:digits-mlp", {"activation": "rellu"}, ConfigurationError, "must be one of tanh, relu"),
        ("builtin:digits-mlp", {"seed": 3}, ConfigurationError, "Use --seed"),
        ("resnet", {}, ConfigurationError, "package.module:factory"),
        ("net.py", {}, ConfigurationError, "write net.py:FUNCTION"),
        ("nett.py:make", {}, InputError, "Did you mean net.py"),
        ("net.py:mkae", {}, InputError, "did you mean make"),
        ("net.py:constant", {}, InputError, "must be callable"),
        ("net.py:number", {}, InputError, "must return a torch.nn.Module, but it returned int"),
        ("net.py:broken", {}, InputError, r"RuntimeError: the weights are elsewhere \(net.py, line 10\)"),
        ("net.py:make", {"width": "a"}, InputError, "net.py:make failed"),
        ("not_installed.models:make", {}, InputError, "no module 'not_installed'"),
        ("missing.pt2", {}, InputError, "does not exist"),
        ("weights.pt", {}, InputError, "not a model"),
        ("weights.safetensors", {}, InputError, "--weights"),
    ],
)
def test_wrong_model_is_refused_in_words(here, spec, arguments, error, words):  # noqa: ARG001
    with pytest.raises(error, match=words):
        loading.load_model(spec, arguments)(0)


@pytest.mark.parametrize("source", ["def f(:", "import sys; sys.exit(3)", "raise KeyError('x')", "import nothing_such"])
def test_file_that_fails_is_named_with_its_reason(here, source):
    (here / "bad.py").write_text(source)
    with pytest.raises(InputError, match=r"executing .*bad.py failed: (\w*Error|SystemExit)"):
        loading.load_model("bad.py:f")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    batch = torch.randn(5, 4, dtype=torch.float64)
    for name, shapes in (("free", ({0: torch.export.Dim("n")},)), ("fixed", None)):
        program = torch.export.export(plain(), (batch,), dynamic_shapes=shapes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own pytree
            torch.export.save(program, folder / f"{name}.pt2")
    return folder


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # inside torch, when a copy of the program is made
def test_exported_program_has_the_hessian_of_its_module(exported):
    said = []
    data = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    model = loading.load_model(str(exported / "free.pt2"), {}, said.append)(0)
    assert "SHA-256" in said[0]
    ours, expected = (Problem.from_module(m, loss="cross-entropy", data=data) for m in (model, plain()))
    torch.testing.assert_close(matrices.hessian(ours).dense(), matrices.hessian(expected).dense())


def test_program_exported_for_one_batch_size_is_refused_with_the_recipe(exported):
    with pytest.raises(InputError, match=r"batches of exactly 5 examples.*dynamic_shapes"):
        loading.load_model(str(exported / "fixed.pt2"))


@pytest.mark.parametrize("form", ["archive", "before archives", "plain pickle", "pickled object"])
def test_exported_program_with_a_pickle_in_it_is_refused_unread(here, exported, form):
    """torch.export.load falls back from weights_only where that fails."""
    pickled = io.BytesIO()
    if form == "plain pickle":
        pickle.dump(Bomb(), pickled)
    else:
        torch.save((Bomb(),), pickled, _use_new_zipfile_serialization=form == "archive")
    with zipfile.ZipFile(exported / "free.pt2") as old, zipfile.ZipFile("bomb.pt2", "w") as new:
        for member in old.infolist():
            inputs = "sample_inputs" in member.filename
            new.writestr(member.filename, pickled.getvalue() if inputs else old.read(member))
        if form == "pickled object":
            new.writestr("free/data/constants/opaque_obj_0", pickled.getvalue())
    with pytest.raises(InputError, match=r"not an exported program that can be read|opaque_obj_0.* not unpickled"):
        loading.load_model("bomb.pt2")
    assert not (here / "exploded").exists()


def test_torchscript_is_refused_with_the_export_recipe(here):  # noqa: ARG001
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save("script.pt")
    with pytest.raises(InputError, match=r"TorchScript.*torch.export.save"):
        loading.load_model("script.pt")
    with pytest.raises(InputError, match=r"TorchScript.*state_dict"):
        loading.load_weights("script.pt")


# --- weights


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_weights_round_trip(here, suffix):  # noqa: ARG001
    tensors = plain().state_dict()
    (save_file if suffix == "safetensors" else torch.save)(tensors, f"w.{suffix}")
    model = loading.apply_weights(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), loading.load_weights(f"w.{suffix}")
    )
    assert all(torch.equal(model.state_dict()[name], value.float()) for name, value in tensors.items())


@pytest.mark.parametrize("saved", [Bomb(), {"model": Bomb()}])
def test_pickled_objects_are_refused_and_not_executed(here, saved):
    torch.save(saved, "w.pt")
    for load in (loading.load_weights, lambda path: loading.load_data(path, CrossEntropy())):
        with pytest.raises(InputError, match=r"pickled Python objects \(exec\).*Save"):
            load("w.pt")
    assert not (here / "exploded").exists()
    torch.load("w.pt", weights_only=False)  # the control: it would have
    assert (here / "exploded").exists()


def test_pickled_module_is_refused_with_how_to_save_a_state_dict(here):  # noqa: ARG001
    torch.save(plain(), "module.pt")
    with pytest.raises(InputError, match=r"torch.save\(model.state_dict\(\), 'weights.pt'\)"):
        loading.load_weights("module.pt")


def test_nested_state_dict_is_picked_by_key(here):  # noqa: ARG001
    torch.save({"epoch": 3, "ema": {"model": plain().state_dict()}, "model": plain().state_dict()}, "checkpoint.pt")
    for key in ("model", "ema/model"):
        assert loading.load_weights("checkpoint.pt", key).keys() == plain().state_dict().keys()
    with pytest.raises(InputError, match="Add --key model"):
        loading.load_weights("checkpoint.pt")
    with pytest.raises(
        ConfigurationError, match=r"--key 'modle' is not in checkpoint.pt; it contains the keys epoch, ema, model"
    ):
        loading.load_weights("checkpoint.pt", "modle")


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "npz", "pt2"])
def test_damaged_file_is_an_input_error(here, suffix, content):
    path = here / f"damaged.{suffix}"
    path.write_bytes(content)
    load = {"npz": lambda p: loading.load_data(p, CrossEntropy()), "pt2": loading.load_model}.get(
        suffix, loading.load_weights
    )
    with pytest.raises(InputError, match="damaged"):
        load(str(path))


def test_files_are_measured_before_they_are_read(here, monkeypatch):  # noqa: ARG001
    torch.save({"w": torch.zeros(1).expand(1000, 1000)}, "repeated.pt")
    save_file({"w": torch.zeros(1000)}, "w.safetensors")
    np.savez_compressed("x.npz", x=np.zeros((1000, 100)), y=np.zeros(1000, dtype=int))
    monkeypatch.setattr(files, "MAX_BYTES", 3000)
    for load, path in (
        (loading.load_weights, "repeated.pt"),
        (loading.load_weights, "w.safetensors"),
        (lambda path: loading.load_data(path, CrossEntropy()), "x.npz"),
    ):
        with pytest.raises(InputError, match="the limit is"):
            load(path)


def test_weights_that_do_not_fit_are_listed():
    tensors = plain().state_dict()
    tensors["extra.weight"] = torch.zeros(1)
    tensors["0.weight"] = torch.zeros(5, 4)
    del tensors["2.bias"]
    with pytest.raises(InputError) as found:
        loading.apply_weights(plain(), tensors)
    for part in (
        "missing in the file: 2.bias",
        "not in the model: extra.weight",
        "0.weight is (5, 4) in the file and (3, 4)",
    ):
        assert part in str(found.value)


def test_weights_that_are_nan_are_refused_as_such_and_not_as_untied():
    tensors = plain().state_dict() | {"0.bias": torch.full((3,), torch.nan)}
    model = loading.apply_weights(plain(), tensors)
    with pytest.raises(InputError, match=r"parameter '0.bias' contains NaN"):
        Problem.from_module(model, loss="mse", data=(torch.ones(2, 4), torch.ones(2, 2)))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefix_of_a_wrapper_is_dropped_aloud(prefix):
    said = []
    tensors = {prefix + name: value + 1 for name, value in plain().state_dict().items()}
    model = loading.apply_weights(plain(), tensors, said.append)
    assert torch.equal(model[0].bias, tensors[f"{prefix}0.bias"])
    assert prefix in said[0]


@pytest.mark.parametrize("file", ["legacy", "parametrized"])
@pytest.mark.parametrize("model", ["plain", "legacy", "parametrized"])
def test_weight_normalized_weights_keep_function_and_gauge_in_every_form(file, model):
    source, said = normalized(file), []
    target = plain() if model == "plain" else normalized(model)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1.0)  # nothing may survive of what the model came with
    loaded = loading.apply_weights(target, source.state_dict(), said.append)
    batch = torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(loaded(batch), source(batch))
    assert bool(said) == (model == "plain")
    chart = Problem.from_module(loaded, loss="cross-entropy", data=(batch, torch.arange(7) % 2)).chart
    assert isinstance(chart, WeightNorm)
    v = source.state_dict()["0.weight_v" if file == "legacy" else "0.parametrizations.weight.original1"]
    torch.testing.assert_close(chart.v["0.weight"], v)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_axis_of_weight_norm_is_read_off_the_shape_of_g(dim):
    source = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 2), dim=dim)
    loaded = loading.apply_weights(nn.Conv2d(2, 3, 2), source.state_dict())
    batch = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(loaded(batch), source(batch))


def test_weight_normalized_weights_of_another_shape_are_listed():
    source = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with pytest.raises(InputError, match=r"weight is \(3, 4\) in the file and \(2, 4\) in the model"):
        loading.apply_weights(nn.Linear(4, 2), source.state_dict())


def test_plain_weights_for_a_weight_normalized_model_are_refused_with_the_way_out():
    with pytest.raises(InputError, match="Use the plain model"):
        loading.apply_weights(normalized("parametrized"), plain().state_dict())


# --- data


def test_digits_are_flat_or_images():
    model = loading.load_model("builtin:digits-cnn")(0)
    assert loading.takes_images(model)
    inputs, targets = loading.load_data("builtin:digits", CrossEntropy(), num_examples=7, image=True)
    assert model(inputs).shape == (7, 10)
    assert len(targets) == 7
    assert not loading.takes_images(loading.load_model("builtin:digits-mlp")(0))


@pytest.mark.parametrize("name", list(zoo.DATA))
def test_built_in_data_are_those_of_the_zoo(name):
    loaded = loading.load_data(f"builtin:{name}", CrossEntropy(), num_examples=30)
    assert all(torch.equal(found, wanted) for found, wanted in zip(loaded, zoo.DATA[name](30), strict=True))


def test_a_table_fits_the_built_in_network_of_its_size_and_no_network_of_images():
    loss = loading.load_loss("half-squared-error")
    data = loading.load_data("builtin:diabetes", loss, num_examples=30)
    model = loading.load_model("builtin:mlp", {"inputs": 10, "outputs": 1, "widths": 3})(0)
    assert Problem.from_module(model, loss=loss, data=data).dim == 10 * 3 + 3 + 3 + 1
    with pytest.raises(ConfigurationError, match="missing a required argument: 'inputs'"):
        loading.load_model("builtin:mlp")
    with pytest.raises(ConfigurationError, match="table of numbers"):
        loading.load_data("builtin:wine", CrossEntropy(), image=True)


PIXELS = np.arange(5 * 28 * 28).reshape(5, 28, 28) % 256
LABELS = np.array([3, 1, 4, 1, 9])


def idx(array, kind=8):
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def put_mnist(folder, images=PIXELS, labels=LABELS, *, dot="-", end=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in (
        ("train-images", images if isinstance(images, bytes) else idx(images)),
        ("train-labels", labels if isinstance(labels, bytes) else idx(labels)),
    ):
        name = f"{stem}{dot}idx{3 if 'images' in stem else 1}-ubyte{end}"
        (folder / name).write_bytes(gzip.compress(content) if end else content)


@pytest.mark.parametrize(("place", "dot", "end"), [("", "-", ".gz"), ("MNIST/raw", "-", ""), ("raw", ".", ".gz")])
def test_mnist_is_read_from_the_users_folder(here, place, dot, end):
    put_mnist(here / "data.csv" / place, dot=dot, end=end)  # the name of a folder says nothing about its files
    inputs, targets = loading.load_data("mnist:data.csv", CrossEntropy())
    assert np.array_equal(inputs.numpy() * 255, PIXELS.reshape(5, 784))
    assert (inputs.dtype, targets.tolist()) == (torch.float64, LABELS.tolist())
    images, labels = loading.load_data("mnist:data.csv", CrossEntropy(), num_examples=2, image=True)
    assert images.shape == (2, 1, 28, 28)
    assert torch.equal(images.flatten(1), inputs[:2])
    assert labels.tolist() == [3, 1]


def test_cifar_is_read_from_the_binary_version(here):
    records = np.random.default_rng(0).integers(0, 256, (7, 3073)).astype(np.uint8)
    records[:, 0] = [0, 9, 3, 3, 5, 1, 2]
    folder = here / "c" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(records, 5), start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(part.tobytes())
    images, labels = loading.load_data("cifar10:c", CrossEntropy(), image=True)
    assert images.shape == (7, 3, 32, 32)
    assert np.array_equal((images * 255).round().numpy().reshape(7, -1), records[:, 1:])
    assert float(images[1, 2, 4, 5]) * 255 == pytest.approx(records[1, 1 + 2 * 1024 + 4 * 32 + 5])  # blue, row 4
    assert labels.tolist() == records[:, 0].tolist()
    few, _ = loading.load_data("cifar10:c", CrossEntropy(), num_examples=3)
    assert torch.equal(few, images.flatten(1)[:3])
    with pytest.raises(ConfigurationError, match="--num-examples 8: cifar10:c has 7"):
        loading.load_data("cifar10:c", CrossEntropy(), num_examples=8)


BILLION = bytes([0, 0, 8, 3]) + struct.pack(">3I", 10**6, 10**3, 10**3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": idx(PIXELS)[:-1]}, "is damaged: its header says .* another number of bytes"),
        ({"images": idx(PIXELS) + b"x"}, "is damaged: its header says .* another number of bytes"),
        ({"images": idx(PIXELS, kind=13)}, "not an IDX file of unsigned bytes with 3 axes"),
        ({"images": idx(LABELS)}, "not an IDX file"),
        ({"images": b""}, "not an IDX file"),
        ({"labels": LABELS[:3]}, "5 images but 3 labels"),
        ({"images": BILLION}, "the limit is 4 GB"),
    ],
)
def test_damaged_mnist_is_refused_in_words(here, arguments, words):
    put_mnist(here / "m", **arguments)
    with pytest.raises(InputError, match=words):
        loading.load_data("mnist:m", CrossEntropy())


def test_mnist_that_is_no_gzip_file_is_refused_in_words(here):
    put_mnist(here / "m", end="")
    for path in (here / "m").iterdir():
        path.rename(path.with_name(f"{path.name}.gz"))
    with pytest.raises(InputError, match="cannot be read: BadGzipFile"):
        loading.load_data("mnist:m", CrossEntropy())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "contains no CIFAR-10"),
        ({"data_batch_1": b"pickle"}, "pickled and is not read: download the binary version"),
        ({"data_batch_1.bin": b"x" * 3072}, "3072 bytes, which is not a multiple of the 3073"),
        ({"data_batch_1.bin": b""}, "0 bytes"),
        ({"data_batch_1.bin": b"\x0b" * 3073}, "the label 11; CIFAR-10 has 0 to 9"),
        ({"data_batch_1.bin": b"\x01" * 3073}, "contains no CIFAR-10 .* file data_batch_2.bin"),
    ],
)
def test_damaged_or_pickled_cifar_is_refused_in_words(here, files, words):
    (here / "c").mkdir()
    for name, content in files.items():
        (here / "c" / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        loading.load_data("cifar10:c", CrossEntropy())


def test_more_images_than_memory_is_meant_for_are_refused(here, monkeypatch):
    put_mnist(here / "m")
    monkeypatch.setattr(loading.images, "MAX_BYTES", 8 * 784 * 3)
    with pytest.raises(InputError, match="Read fewer examples: --num-examples"):
        loading.load_data("mnist:m", CrossEntropy())
    assert len(loading.load_data("mnist:m", CrossEntropy(), num_examples=3)[0]) == 3


def test_a_missing_folder_is_named():
    with pytest.raises(InputError, match="folder 'nowhere' of the MNIST files does not exist"):
        loading.load_data("mnist:nowhere", CrossEntropy())


X, Y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 2, 2])


@pytest.mark.parametrize("names", [("x", "y"), ("X", "Y"), ("inputs", "targets")])
def test_arrays_and_tensors_round_trip(here, names):  # noqa: ARG001
    np.savez("d.npz", **dict(zip(names, (X, Y), strict=True)))
    torch.save(dict(zip(names, map(torch.from_numpy, (X, Y)), strict=True)), "d.pt")
    torch.save((torch.from_numpy(X), torch.from_numpy(Y)), "pair.pt")
    for path in ("d.npz", "d.pt", "pair.pt"):
        inputs, targets = loading.load_data(path, CrossEntropy(), num_examples=4)
        assert np.array_equal(inputs.numpy(), X[:4])
        assert np.array_equal(targets.numpy(), Y[:4])


def test_big_endian_long_double_and_integral_labels_become_what_torch_has(here):  # noqa: ARG001
    np.savez("d.npz", x=X.astype(np.longdouble), y=Y.astype(">f8"))
    inputs, targets = loading.load_data("d.npz", CrossEntropy())
    assert inputs.dtype == torch.float64
    assert targets.tolist() == Y.tolist()
    assert not targets.is_floating_point()


def test_csv_has_classes_or_numbers_by_the_loss(here):
    (here / "d.csv").write_text("a,label,b\n1,0,2.5\n3,1,-4e1\n")
    inputs, targets = loading.load_data("d.csv", CrossEntropy(), target="label")
    assert inputs.tolist() == [[1.0, 2.5], [3.0, -40.0]]
    assert targets.tolist() == [0, 1]
    assert targets.dtype == torch.int64
    assert loading.load_data("d.csv", MeanSquaredError(), target="b")[1].tolist() == [[2.5], [-40.0]]


def test_loader_of_the_users_own(here):
    (here / "mine.py").write_text(
        "import torch, numpy as np\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "pair = torch.arange(6.).reshape(3, 2), torch.tensor([0, 1, 0])\n"
        "def arrays(): return tuple(part.numpy() for part in pair)\n"
        "def dataset(): return TensorDataset(*pair)\n"
        "def shuffled(): return DataLoader(TensorDataset(*pair), shuffle=True)\n"
    )
    said = []
    for name in ("arrays", "dataset", "shuffled"):
        inputs, targets = loading.load_data(f"mine.py:{name}", CrossEntropy(), say=said.append)
        assert inputs.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert targets.tolist() == [0, 1, 0]
    assert said[-1].startswith("note: the data loader shuffles (RandomSampler)")


def test_integer_inputs_are_said(here):  # noqa: ARG001
    said = []
    np.savez("d.npz", x=X.astype(np.uint8), y=Y)
    assert loading.load_data("d.npz", CrossEntropy(), say=said.append)[0].dtype == torch.uint8
    assert "the inputs are uint8" in said[0]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": X, "b": Y}, "it contains a, b"),
        ({"x": X}, "it contains x"),
        ({"x": X[:0], "y": Y[:0]}, "is empty"),
        ({"x": X, "y": Y[:3]}, "6 inputs but 3 targets"),
        ({"x": X.astype(complex), "y": Y}, "must be real numbers"),
        ({"x": X.astype(str), "y": Y}, "must be real numbers"),
        ({"x": np.array([{}] * 6), "y": Y}, "Python objects, which are not unpickled"),
        ({"x": X, "y": Y + 0.5}, "target of example 0 is 0.5"),
        ({"x": X, "y": np.where(Y == 2, np.nan, Y)}, "NaN or infinity, first in example 4"),
    ],
)
def test_wrong_arrays_are_refused_in_words(here, arrays, words):  # noqa: ARG001
    np.savez("d.npz", **arrays)
    with pytest.raises(InputError, match=words):
        loading.load_data("d.npz", CrossEntropy())


def test_array_that_claims_more_than_it_holds_is_refused_before_it_is_allocated(here):  # noqa: ARG001
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile("d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(InputError, match=r"x\.npy is damaged"):
        loading.load_data("d.npz", CrossEntropy())


@pytest.mark.parametrize(
    ("content", "target", "error", "words"),
    [
        ("a,b\n1,2\n", None, ConfigurationError, "Add --target, one of a, b"),
        ("a,label\n1,2\n", "lable", ConfigurationError, "did you mean label"),
        ("1,2\n3,4\n", "1", InputError, "must begin with a row of"),
        ("a,a\n3,4\n", "a", InputError, "distinct names"),
        ("", "a", InputError, "begins with nothing"),
        ("a,b\n", "b", InputError, "is empty"),
        ("a,b\n1\n", "b", InputError, "line 2 has 1 values"),
        ("a,b\n1,2\n3,\n", "b", InputError, "line 3: '' in column 'b' is not a number"),
        ("a,b\nred,2\n", "b", InputError, "'red' in column 'a' is not a number"),
    ],
)
def test_wrong_csv_is_refused_with_its_line(here, content, target, error, words):
    (here / "d.csv").write_text(content)
    with pytest.raises(error, match=words):
        loading.load_data("d.csv", CrossEntropy(), target=target)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("builtin:digts", {}, "did you mean builtin:digits"),
        ("builtin:digits", {"num_examples": 5000}, "between 1 and 1797"),
        ("builtin:digits", {"target": "a"}, "--target names a column of a .csv"),
        ("data.parquet", {}, "Unrecognised data specification"),
    ],
)
def test_unknown_data_are_refused_in_words(spec, options, words):
    with pytest.raises(ConfigurationError, match=words):
        loading.load_data(spec, CrossEntropy(), **options)


# --- losses and charts


def test_loss_by_name_and_by_function():
    assert loading.load_loss("mse").name == "mean-squared-error"
    assert loading.load_loss("torch.nn.functional:mse_loss").name == "mse_loss"
    with pytest.raises(ConfigurationError, match="did you mean cross-entropy"):
        loading.load_loss("crossentropy")
    with pytest.raises(ConfigurationError, match="is a class"):
        loading.load_loss("torch.nn:MSELoss")


def test_charts_by_name():
    charts = loading.build_charts(["standard", "weight-norm", "placebo", "scaled-standard"], ["paper", "3"])
    assert [(chart.name, chart.gauge) for chart in charts] == [
        ("standard", "-"),
        ("weight-norm", "paper"),
        ("weight-norm", "stretch=3"),
        ("placebo", "paper"),
        ("placebo", "stretch=3"),
        ("scaled-standard", "paper"),
    ]
    own = WeightNorm(v={}, g={})
    assert loading.build_charts(["weight-norm"], ["checkpoint"], own) == [own]


def test_a_rank_is_a_gauge_of_low_rank_adapters_alone():
    charts = loading.build_charts(["weight-norm", "lora", "dora"], ["rank=2", "3", "rank=5"], seed=7)
    assert [(chart.name, chart.gauge) for chart in charts] == [
        ("weight-norm", "stretch=3"),
        ("lora", "rank=2, B = 0"),
        ("lora", "rank=5, B = 0"),
        ("dora", "rank=2, B = 0"),
        ("dora", "rank=5, B = 0"),
    ]
    assert [chart.seed for chart in charts[1:]] == [7] * 4  # of the whole run, so no gauge names it
    assert loading.build_charts(["weight-norm", "lora"], ["rank=2"])[0].gauge == "canonical"
    assert loading.build_charts(["lora", "weight-norm"], ["paper"])[0].gauge == "rank=8, B = 0"


def test_a_rank_above_every_layer_is_refused():
    problem = zoo.digits_problem(20, widths=(3,))
    assert loading.build_charts(["lora"], ["rank=3"], problem.chart, problem.layout)[0].rank == 3
    for names in (["lora"], ["dora"]):
        with pytest.raises(ConfigurationError, match=r"rank 4 exceeds the smaller side of every layer \(3\)"):
            loading.chosen_charts(names, ["rank=4"], problem.chart, problem.layout)


@pytest.mark.parametrize(
    ("names", "gauges", "words"),
    [
        (["weight-nrom"], [], "did you mean weight-norm"),
        (["weight-norm"], ["papre"], "gauge 'papre' is unknown"),
        (["weight-norm"], ["-2"], "positive number"),
        (["weight-norm"], ["nan"], "positive number"),
        (["weight-norm"], ["checkpoint"], "this model is not weight-normalized"),
        (["standard"], ["paper"], "add --chart weight-norm"),
        (["lora"], ["paper"], "--gauge paper applies to weight normalization only: add --chart weight-norm"),
        (["weight-norm"], ["rank=2"], "--gauge rank=2 applies to low-rank adapters only: add --chart lora"),
        (["lora"], ["rank=0"], "gauge 'rank=0': the rank must be a positive whole number, e.g. rank=4"),
        (["dora"], ["rank=2.5"], "gauge 'rank=2.5': the rank must be a positive whole number"),
        (["lora"], ["rank"], "or for lora and dora a rank, e.g. rank=4"),
    ],
)
def test_wrong_charts_are_refused_in_words(names, gauges, words):
    with pytest.raises(ConfigurationError, match=words):
        loading.build_charts(names, gauges)


# --- provenance


def test_hash_depends_on_names_types_shapes_and_values_alone():
    base = torch.arange(6.0).reshape(2, 3)
    same = provenance.hash_tensors({"w": base})
    assert provenance.hash_tensors({"w": base.T.contiguous().T}) == same  # not on the memory layout
    zeros = (torch.zeros(4), torch.zeros(4, dtype=torch.int32))  # the same bytes
    assert provenance.hash_tensors(zeros[:1]) != provenance.hash_tensors(zeros[1:])
    others = [{"v": base}, {"w": base.T}, {"w": base.reshape(-1)}, {"w": base.double()}, {"w": base + 1}, {}]
    assert same not in {provenance.hash_tensors(other) for other in others}
    assert provenance.hash_tensors([torch.tensor(True), torch.zeros(0), torch.zeros(1, dtype=torch.bfloat16)])
