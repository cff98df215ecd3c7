"""Folders of transformers and peft, weights in shards, checkpoints of Lightning, and frozen parameters."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from curvature import cli
from curvature.cli import loading
from curvature.cli.loading import huggingface
from curvature.errors import InputError
from oracles import drawn

LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
NETWORK = """
import torch
from torch import nn
def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
"""


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


@pytest.fixture
def here(empty_folder):
    (empty_folder / "net.py").write_text(NETWORK)
    np.savez("d.npz", x=drawn(6, 4), y=LABELS)
    return empty_folder


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def shards(folder, tensors, *, map_of=None):
    (folder / "shards").mkdir()
    names = list(tensors)
    files = {name: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / "shards" / file)
    index = folder / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": map_of(files) if map_of else files}))
    return index


def test_weights_in_shards_are_those_of_one_file(here):
    tensors = network().state_dict()
    index = shards(here, tensors)
    for path in (index, index.parent):
        assert {name: part.tolist() for name, part in loading.load_weights(path).items()} == {
            name: part.tolist() for name, part in tensors.items()
        }


@pytest.mark.parametrize(
    ("map_of", "message"),
    [
        (lambda files: dict.fromkeys(files, "../secret.safetensors"), "not in its own folder"),
        (lambda files: {**files, "more": files["0.weight"]}, "more missing"),
        (lambda files: dict(list(files.items())[1:]), "0.weight not in the index"),
        (lambda files: [files], "needs a weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(here, map_of, message):
    index = shards(here, network().state_dict(), map_of=map_of)
    with pytest.raises(InputError, match=message):
        loading.load_weights(index)


def test_a_folder_without_weights_says_which_names_are_looked_for(here):
    (here / "empty").mkdir()
    with pytest.raises(InputError, match="no file of weights named"):
        loading.load_weights(here / "empty")
    (here / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="Use --adapter"):
        loading.load_weights(here / "empty")


@pytest.mark.usefixtures("here")
def test_weights_under_state_dict_are_found_as_lightning_saves_them():
    tensors = network().state_dict()
    torch.save({"epoch": 1, "state_dict": tensors, "hyper_parameters": {"widths": 3}}, "lit.ckpt")
    said = []
    assert loading.load_weights("lit.ckpt", say=said.append).keys() == tensors.keys()
    assert "as Lightning saves them" in said[0]


@pytest.mark.usefixtures("here")
def test_frozen_parameters_give_the_block_of_the_others():
    def dims(*options):
        result = run("spectrum", "--model", "net.py:make", "--data", "d.npz", "-m", "hessian", "--json", *options)
        (record,) = json.loads(result.stdout)["spectra"]
        return record["trace"], record["dim"]

    by_train, by_freeze = dims("--train-only", "2"), dims("--freeze", "^0")
    assert by_train == by_freeze
    assert by_train[1] == 12
    whole, first = dims(), dims("--train-only", "0")
    assert whole[0] == pytest.approx(by_train[0] + first[0], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--freeze", "nothing"), "--freeze nothing"),
        (("--freeze", "."), "freezes every parameter"),
        (("--train-only", "("), "--train-only (: "),
        (("--adapter", "missing"), "is not a folder"),
        (("--weights", "missing"), "does not exist"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_wrong_pattern_or_folder_is_named(options, message):
    result = CliRunner().invoke(cli.app, ["spectrum", "--model", "net.py:make", "--data", "d.npz", *options])
    assert result.exit_code in (2, 5)
    assert message in " ".join(result.stderr.split())


class _Loads:
    """Stands in for a class of transformers."""

    report: dict = {}  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, folder, *, local_files_only, trust_remote_code, dtype, output_loading_info):
        assert local_files_only
        assert not trust_remote_code
        assert (dtype, output_loading_info) == ("auto", True)
        model = network()
        model.load_state_dict(loading.load_weights(folder))
        return model, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], **cls.report}


@pytest.fixture
def hub(here, monkeypatch):
    """A folder of a model, and a stand-in for transformers that can read it."""
    folder = here / "hub"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Loads"]}')
    save_file(network().state_dict(), folder / "model.safetensors")
    fake = types.SimpleNamespace(Loads=_Loads)
    monkeypatch.setattr(huggingface, "_imported", lambda _: fake)
    monkeypatch.setattr(_Loads, "report", {})
    return folder


def test_a_folder_is_a_model(hub):
    model = loading.load_model(f"hf:{hub}")(0)
    expected = loading.load_weights(hub / "model.safetensors")
    assert torch.equal(model[0].weight, expected["0.weight"])
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["Other"]}'), "no class 'Other'"),
        (lambda folder: (folder / "config.json").write_text("{}"), "does not name the class"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "must contain an object"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a JSON file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "contains no weights"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "add --adapter"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 100), "cannot be loaded"),
        (lambda _: _Loads.report.update(missing_keys=["head.weight"]), "draw these at random: missing: head.weight"),
        (lambda _: _Loads.report.update(mismatched_keys=[("head", (1,), (2,))]), "of another shape: head"),
    ],
)
def test_a_folder_that_would_give_another_model_is_refused(hub, change, message):
    change(hub)
    with pytest.raises(InputError, match=message):
        loading.load_model(f"hf:{hub}")(0)


def test_the_extra_to_install_is_named(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (here / "config.json").write_text('{"architectures": ["Loads"]}')
    save_file(network().state_dict(), here / "model.safetensors")
    with pytest.raises(InputError, match="curvature-toolkit\\[integrations\\]"):
        loading.load_model(f"hf:{here}")


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_a_real_folder_of_transformers_and_a_real_adapter_are_loaded(here):
    transformers = pytest.importorskip("transformers")
    try:
        peft = pytest.importorskip("peft")
        config = transformers.BertConfig(
            vocab_size=11,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=8,
            num_labels=3,
        )
        bert = transformers.BertForSequenceClassification(config).eval()
    except (ImportError, RuntimeError) as error:  # a torchvision of another build than torch
        pytest.skip(f"transformers cannot be used: {error}")
    bert.save_pretrained(here / "bert")
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    loaded = loading.load_model(f"hf:{here / 'bert'}")(0)
    assert torch.equal(loaded(input_ids=tokens).logits, bert(input_ids=tokens).logits)
    wanted = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    adapted = peft.get_peft_model(bert, wanted).eval()
    adapted.save_pretrained(str(here / "lora"))
    again = loading.load_adapter(loaded, str(here / "lora"), lambda _: None)
    assert torch.equal(again(input_ids=tokens).logits, adapted(input_ids=tokens).logits)
    count = [sum(part.numel() for part in model.parameters() if part.requires_grad) for model in (again, adapted)]
    assert count[0] == count[1] > 0
