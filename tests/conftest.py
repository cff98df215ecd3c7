"""Settings of every test, and fixtures that build networks and data in float64; none of them touches global seeds."""

import itertools
import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

import typed

typed.install()

# Lightning and transformers import torchvision where it is installed. Next to a CPU build of torch, its wheel lacks
# these operators, and the import fails.
_operators = torch.library.Library("torchvision", "FRAGMENT")  # as long as the library lives
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# Derandomized: a test that passes here passes everywhere. No deadline: machines differ.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes():
    """Give each worker one thread for its BLAS and for torch, as there is one worker for each core."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _global_seed_does_not_leak():
    """Start every test from one state of the global generator, and give back the state it found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder, without the options of the surrounding environment."""
    for name in [name for name in os.environ if name.startswith("CURVATURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20160225)


def seeded(build, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double()


@pytest.fixture(scope="session")
def mlp():
    """``mlp(3, 4, 2)``: two linear layers with tanh between."""

    def build(*widths, activation=nn.Tanh, bias=True, seed=0):
        def layers():
            pairs = list(itertools.pairwise(widths))
            for number, (fan_in, fan_out) in enumerate(pairs):
                yield nn.Linear(fan_in, fan_out, bias=bias)
                if number + 1 < len(pairs):
                    yield activation()

        return seeded(lambda: nn.Sequential(*layers()), seed)

    return build


@pytest.fixture(scope="session")
def cnn():
    """Two convolutions and a linear layer on ``(N, 1, 4, 4)`` images, three outputs."""

    def build(activation=nn.Tanh, seed=0):
        return seeded(
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 2),
                activation(),
                nn.Conv2d(2, 2, 2, stride=2, padding=1),
                activation(),
                nn.Flatten(),
                nn.Linear(8, 3),
            ),
            seed,
        )

    return build


@pytest.fixture(scope="session")
def regression_data():
    """``regression_data(8, 3, 2)``: Gaussian inputs ``(8, 3)`` and targets ``(8, 2)``."""

    def draw(num_examples, fan_in, num_outputs, seed=1):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(num_examples, fan_in, generator=generator, dtype=torch.float64)
        return inputs, torch.randn(num_examples, num_outputs, generator=generator, dtype=torch.float64)

    return draw


@pytest.fixture(scope="session")
def classification_data():
    """``classification_data(8, 3, 2)``: Gaussian inputs ``(8, 3)`` and integer labels below 2."""

    def draw(num_examples, fan_in, num_classes, seed=1):
        generator = torch.Generator().manual_seed(seed)
        shape = fan_in if isinstance(fan_in, tuple) else (fan_in,)
        inputs = torch.randn(num_examples, *shape, generator=generator, dtype=torch.float64)
        return inputs, torch.randint(num_classes, (num_examples,), generator=generator)

    return draw
