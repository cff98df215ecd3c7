"""Data in the forms in which users have them: NumPy arrays, lists of batches, loaders that shuffle."""

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

import curvature as cv

SEED = torch.Generator().manual_seed(0)
INPUTS = torch.randn(7, 3, generator=SEED, dtype=torch.float64)
LABELS = torch.randint(2, (7,), generator=SEED)
REALS = torch.randn(7, 2, generator=SEED, dtype=torch.float64)


class Pairs(Dataset):
    """Items as many datasets give them: an array and a Python number."""

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return INPUTS[index].numpy(), int(LABELS[index])


def first_number(rows):
    """A collate function that keeps one column."""
    return torch.stack([row[0][:1] for row in rows]), torch.stack([row[1] for row in rows])


def problem(data, loss="cross-entropy", inputs=3):
    return cv.Problem.from_module(torch.nn.Linear(inputs, 2).double(), loss=loss, data=data)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3, shuffle=True),
        DataLoader(Pairs(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1)),
        DataLoader(Pairs(), batch_sampler=BatchSampler(RandomSampler(Pairs()), 4, drop_last=False)),
        DataLoader(TensorDataset(INPUTS, LABELS), batch_size=7, shuffle=True, drop_last=True),
    ],
)
def test_a_loader_that_shuffles_is_read_once_in_the_order_of_its_dataset(loader):
    found = problem(loader)
    assert torch.equal(found.inputs, INPUTS)
    assert torch.equal(found.targets, LABELS)
    (note,) = found.notes
    assert note.startswith("the data loader shuffles (RandomSampler): its 7 examples were read once")
    assert "drop_last" not in note


def test_a_loader_that_shuffles_and_drops_is_read_whole_and_its_note_says_so():
    found = problem(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=2, shuffle=True, drop_last=True))
    assert torch.equal(found.inputs, INPUTS)
    assert "drop_last=True leaves out 1 of them" in found.notes[0]


def test_a_loader_that_shuffles_keeps_its_collate_function():
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=2, shuffle=True, collate_fn=first_number)
    assert torch.equal(problem(loader, inputs=1).inputs, INPUTS[:, :1])


def test_a_loader_in_order_has_no_note():
    assert problem(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=2)).notes == ()


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_generator_of_a_loader_is_not_advanced(shuffle):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    problem(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=2, shuffle=shuffle, generator=generator))
    assert torch.equal(generator.get_state(), before)


def test_a_shuffling_loader_has_the_hessian_of_its_dataset_by_double_backward():
    module = torch.nn.Linear(3, 2).double()
    loader = DataLoader(TensorDataset(INPUTS, REALS), batch_size=3, shuffle=True)
    found = cv.hessian(cv.Problem.from_module(module, loss="mse", data=loader)).dense()
    # The mean squared error of a linear map: 2 / 14 sum_n a a^T for each output, a = (x, 1); weights, then biases.
    gram = torch.einsum("ni,nj->ij", *[torch.cat([INPUTS, torch.ones(7, 1, dtype=torch.float64)], 1)] * 2) / 7
    order = [0, 1, 2, 6], [3, 4, 5, 7]
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for rows in order:
        expected[torch.tensor(rows)[:, None], torch.tensor(rows)] = gram
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-15)


class Mine(DataLoader):
    pass


class Torn(Pairs):
    """A dataset whose files end before its length does."""

    def __getitem__(self, index):
        if index >= 5:
            raise OSError("no such file")
        return super().__getitem__(index)


class Endless(Dataset):
    """A dataset without a length."""

    def __getitem__(self, index):
        return INPUTS[0], LABELS[0]


def neighbours(rows):
    """A collate function that mixes each example with the next one, as mixup does."""
    inputs, labels = (torch.stack([torch.as_tensor(row[part]) for row in rows]) for part in (0, 1))
    return (inputs + inputs.roll(1, 0)) / 2, labels


def centred(rows):
    """A collate function that subtracts the mean of the batch."""
    inputs, labels = (torch.stack([torch.as_tensor(row[part]) for row in rows]) for part in (0, 1))
    return inputs - inputs.mean(0), labels


@pytest.mark.parametrize("collate", [neighbours, centred])
def test_a_loader_that_shuffles_what_it_mixes_within_batches_is_refused(collate):
    with pytest.raises(cv.InputError, match="its collate_fn mixes the examples of a batch"):
        problem(DataLoader(Pairs(), batch_size=3, shuffle=True, collate_fn=collate))
    in_order = problem(DataLoader(Pairs(), batch_size=3, collate_fn=collate))
    assert torch.equal(in_order.inputs[:3], collate([Pairs()[index] for index in range(3)])[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 7, 7)), r"selects \(WeightedRandomSampler\)"),
        (Mine(TensorDataset(INPUTS, LABELS), batch_size=2, shuffle=True), r"subclass of DataLoader \(Mine\)"),
        (DataLoader(Pairs(), sampler=RandomSampler(INPUTS[:5])), r"selects \(RandomSampler, 5 draws from 7"),
        ([(INPUTS, LABELS), (INPUTS[:, :2], LABELS)], r"inputs has shape \(7, 2\) in item 1, but \(7, 3\) in item 0"),
        ([(INPUTS, LABELS), (INPUTS, LABELS[:2])], "batch 1 of the list: there are 7 inputs but 2 targets"),
        ([(INPUTS[0], 1), (INPUTS[1], 0)], "batch 0 of the list has one number as its targets, so it is not a batch"),
        ([], "got list of length 0"),
        (iter([(INPUTS, LABELS)]), "got list_iterator"),
        ({"x": INPUTS}.items(), "got dict_items"),
        ((np.array(["a"] * 7), LABELS.numpy()), "inputs is a NumPy array of <U1, not of numbers"),
        ((np.array([None] * 7), LABELS.numpy()), "inputs is a NumPy array of object, not of numbers"),
        ((INPUTS.to_sparse(), LABELS), r"inputs is a sparse tensor, .* Pass inputs.to_dense\(\)"),
        (Torn(), "item 5 of the dataset cannot be read"),
        (DataLoader(Torn(), batch_size=2), "batch 2 of the data loader cannot be read"),
        (DataLoader(Endless(), batch_size=2), "no fixed length"),
    ],
)
def test_a_refusal_of_data_names_what_was_given(data, message):
    with pytest.raises(cv.InputError, match=message):
        problem(data)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse_csr, lambda rows: torch.nested.nested_tensor(list(rows))])
def test_tensors_without_rows_are_refused_with_the_call_that_makes_some(convert):
    with pytest.raises(cv.InputError, match=r"inputs\['x'\] is a (sparse|nested) tensor, .* Pass inputs\['x'\].to_"):
        problem({"x": convert(INPUTS), "y": LABELS})


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "inputs",
    [
        INPUTS.numpy(),
        INPUTS.numpy().astype(">f8"),
        np.asfortranarray(INPUTS.numpy()),
        INPUTS.flip(1).numpy()[:, ::-1],
        INPUTS.numpy().astype(np.longdouble),
        read_only(INPUTS.numpy().copy()),
        INPUTS,
    ],
)
def test_numpy_arrays_are_copied_with_their_values(inputs):
    found = problem((inputs, LABELS.numpy().astype(np.int32)))
    assert torch.equal(found.inputs, INPUTS)
    assert torch.equal(found.targets, LABELS)
    found.inputs.zero_()
    assert np.array_equal(np.asarray(inputs, dtype=float), INPUTS)


@pytest.mark.parametrize(
    "batches",
    [
        [(INPUTS[:4], LABELS[:4]), (INPUTS[4:], LABELS[4:])],
        [[INPUTS[:2], LABELS[:2]], [INPUTS[2:], LABELS[2:]]],
        [(INPUTS[:6].numpy(), LABELS[:6].numpy()), (INPUTS[6:].numpy(), LABELS[6:].numpy())],
        [(INPUTS, LABELS)],
        list(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3)),
    ],
)
def test_a_list_of_batches_is_joined_in_its_order(batches):
    found = problem(batches)
    assert torch.equal(found.inputs, INPUTS)
    assert torch.equal(found.targets, LABELS)
