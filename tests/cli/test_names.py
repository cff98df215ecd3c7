"""Names of weights in checkpoints: prefixes of wrappers and of larger modules, and objects beside the weights."""

import argparse
import collections
import dataclasses
import itertools
import pathlib

import pytest
import torch
from torch import nn

from curvature.cli import loading
from curvature.errors import ConfigurationError, InputError
from oracles import Bomb, legacy_weight_norm


def plain(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()


def state(prefix="", seed=1):
    return {prefix + name: value for name, value in plain(seed).state_dict().items()}


def loaded(tensors, model=None, **options):
    """The model with these weights, and what was said."""
    said = []
    return loading.apply_weights(model or plain(), tensors, said.append, **options), said


WRAPPERS = ("module.", "_orig_mod.", "model.")
PREFIXES = [
    *("".join(parts) for count in (1, 2, 3) for parts in itertools.permutations(WRAPPERS, count)),
    "module.module.",
    "model._orig_mod.model.",
    "net.",
    "a.b.c.",
    "0.1.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_common_to_all_names_is_removed_with_a_note(prefix):
    model, said = loaded(state(prefix))
    assert all(torch.equal(value, state()[name]) for name, value in model.state_dict().items())
    assert said == [f"note: removed the prefix {prefix!r} from the names of the weights."]


def test_names_that_fit_keep_their_prefixes():
    model = nn.ModuleDict({"module": plain(), "model": nn.Linear(2, 2)})
    tensors = {name: value + 1 for name, value in model.state_dict().items()}
    assert loaded(tensors, model)[1] == []


def test_wrappers_inside_a_name_are_removed():
    tensors = {name.replace("0.", "0._orig_mod.module.", 1): value for name, value in state().items()}
    model, said = loaded(tensors)
    assert torch.equal(model[0].weight, state()["0.weight"])
    assert said == ["note: removed _orig_mod. and module. from the names of the weights."]


@pytest.mark.parametrize("form", [nn.utils.parametrizations.weight_norm, legacy_weight_norm])
def test_prefixes_of_weight_normalized_weights_are_removed(form):
    source = nn.Sequential(form(nn.Linear(4, 3)), nn.Linear(3, 2))
    tensors = {f"module.model.{name}": value for name, value in source.state_dict().items()}
    model, said = loaded(tensors, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    batch = torch.randn(5, 4)
    torch.testing.assert_close(model(batch), source(batch))
    assert "removed the prefix 'module.model.'" in said[0]


def test_states_of_metrics_outside_the_prefix_are_named_and_not_used():
    tensors = state("model.") | {"criterion.weight": torch.ones(2), "accuracy.tp": torch.tensor(7)}
    model, said = loaded(tensors)
    assert torch.equal(model[2].bias, state()["2.bias"])
    assert said == [
        "note: removed the prefix 'model.' from the names of the weights. Not used, because their names do not have "
        "it: criterion.weight, accuracy.tp."
    ]


def test_several_copies_of_the_model_are_refused_until_one_is_named():
    tensors = state("model.", seed=1) | state("ema.", seed=2)
    with pytest.raises(InputError, match=r"several prefixes: 'ema\.', 'model\.'\. Choose .* --strip-prefix"):
        loaded(tensors)
    for prefix in ("ema.", "ema"):
        model, said = loaded(tensors, strip_prefix=prefix)
        assert torch.equal(model[0].weight, state(seed=2)["0.weight"])
        assert said[0].startswith("note: removed the prefix 'ema.'")
        assert "model.0.weight" in said[0]


def test_a_prefix_that_no_name_has_is_refused_with_the_names():
    with pytest.raises(ConfigurationError, match=r"--strip-prefix 'net\.': no weight .* 0\.weight"):
        loaded(state(), strip_prefix="net")


@pytest.mark.parametrize(
    ("tensors", "options", "words"),
    [
        (
            state("module.") | {"_orig_mod.0.weight": torch.ones(3, 4)},
            {},
            "module.0.weight and _orig_mod.0.weight",
        ),
        (state("model.") | {"0.weight": torch.ones(3, 4)}, {"strip_prefix": "model"}, "would both be 0.weight"),
        (
            {k: v for k, v in state("module.").items() if "2" not in k} | {"_orig_mod.0.weight": torch.ones(3, 4)},
            {},
            "would both be 0.weight",
        ),
    ],
)
def test_names_that_become_one_are_refused(tensors, options, words):
    with pytest.raises(InputError, match=words):
        loaded(tensors, **options)


def test_a_model_inside_a_larger_file_is_used_only_where_the_prefix_is_named():
    tensors = state("head.") | {"body.weight": torch.ones(100, 100)}
    with pytest.raises(InputError, match=r"most of its tensors are outside .* add --strip-prefix head\."):
        loaded(tensors)
    assert torch.equal(loaded(tensors, strip_prefix="head.")[0][0].bias, state()["0.bias"])


def test_a_layer_of_the_file_that_the_model_lacks_is_still_refused():
    tensors = state("module.") | {"module.4.weight": torch.ones(2, 2)}
    with pytest.raises(InputError, match=r"not in the model: 4\.weight"):
        loaded(tensors)


def test_what_is_missing_is_listed_without_the_prefix():
    tensors = state("module._orig_mod.")
    del tensors["module._orig_mod.2.bias"]
    with pytest.raises(InputError, match=r"missing in the file: 2\.bias"):
        loaded(tensors)


def test_a_wrapped_model_gets_the_weights_of_the_module_inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.DataParallel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))\n"
    )
    said = []
    model = loading.load_model("net.py:make", say=said.append)(0)
    assert isinstance(model, nn.Sequential)
    assert any("is wrapped in DataParallel" in text for text in said)
    assert torch.equal(loaded(state("module."), model)[0][0].weight, state()["0.weight"])


# --- objects beside the weights


@dataclasses.dataclass
class Settings:
    rate: float
    layers: list


class Attributes(dict):
    """A dictionary with attributes, as several libraries keep their settings in."""


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, deep=argparse.Namespace(x=[1])),
    "dataclass": Settings(0.1, [1, 2]),
    "subclass of dict": Attributes(lr=0.1),
    "path": pathlib.PurePosixPath("a/b"),
    "default": collections.defaultdict(list, a=[1]),
    "class": Settings,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_weights_are_left_out_with_a_note(tmp_path, name):
    said = []
    torch.save({"state_dict": state(), "hyper_parameters": OBJECTS[name], "epoch": 3}, tmp_path / "w.ckpt")
    tensors = loading.load_weights(tmp_path / "w.ckpt", "state_dict", said.append)
    assert all(torch.equal(tensors[key], value) for key, value in state().items())
    assert "also contains pickled objects" in said[0]
    assert "no code of them was run" in said[0]
    assert loading.load_weights(tmp_path / "w.ckpt").keys() == tensors.keys()
    torch.save({"state_dict": state(), "ema": state(), "hyper_parameters": OBJECTS[name]}, tmp_path / "two.ckpt")
    with pytest.raises(InputError, match="Add --key state_dict"):
        loading.load_weights(tmp_path / "two.ckpt")


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_file_that_would_run_code_is_refused_as_a_whole(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": state() | ({"x": Bomb()} if place == "inside" else {}), "other": Bomb()}
    torch.save(content, "w.ckpt")
    with pytest.raises(InputError, match=r"pickled Python objects \(exec\)"):
        loading.load_weights("w.ckpt", "state_dict")
    assert not pathlib.Path("exploded").exists()


def test_objects_among_the_weights_are_refused(tmp_path):
    torch.save({"state_dict": state() | {"x": Settings(1.0, [])}}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"pickled Python objects \(test_names\.Settings\)"):
        loading.load_weights(tmp_path / "w.ckpt", "state_dict")


def test_a_class_is_neither_imported_nor_created(tmp_path, monkeypatch):
    created = []
    monkeypatch.setattr(Settings, "__setstate__", lambda _, state: created.append(state), raising=False)
    torch.save({"state_dict": state(), "settings": Settings(1.0, [])}, tmp_path / "w.ckpt")
    loading.load_weights(tmp_path / "w.ckpt", "state_dict")
    assert created == []
    torch.load(tmp_path / "w.ckpt", weights_only=False)  # the control: it would have been
    assert len(created) == 1
