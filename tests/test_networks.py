"""Architectures have the names and shapes of the field's checkpoints; the fast forms of a network agree with it."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ddviz import inference
from ddviz.inference import compile_forward, default_dtype
from ddviz.networks import ARCHITECTURES, MEAN_STD, CifarResNet, FromProbabilities, Normalize

pytestmark = pytest.mark.usefixtures("one_thread")

CIFAR10 = MEAN_STD["cifar10"]
IMAGE = {"digits_cnn": (1, 8, 8)}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]


def scrambled(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random weights and BatchNorm statistics far from their initial 0 and 1."""
    noise = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spread = 1 / math.sqrt(module.weight[0].numel())
            module.weight.data = torch.randn(module.weight.shape, generator=noise) * spread
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=noise) * (high - low) + low)
    return network.eval()


def pixels(count: int = 3, shape: tuple[int, ...] = (3, 32, 32)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def basic_resnet(widths: tuple[int, ...], blocks: int, stem: int, first_norm: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ResNet of basic blocks with projection shortcuts, written down from its definition."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        vectors = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        return {**vectors, f"{name}.num_batches_tracked": ()}

    inputs = widths[0]
    shapes = {"conv1.weight": (inputs, 3, stem, stem)} | (norm("bn1", inputs) if first_norm else {})
    for stage, width in enumerate(widths, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, inputs, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
            shapes |= norm(f"{name}.bn1", width) | norm(f"{name}.bn2", width)
            if inputs != width:
                shapes |= {f"{name}.downsample.0.weight": (width, inputs, 1, 1)} | norm(f"{name}.downsample.1", width)
            inputs = width
    return shapes | {"fc.weight": (10, inputs), "fc.bias": (10,)}


@pytest.mark.parametrize(
    ("arch", "expected", "count"),
    [
        ("cifar_resnet20", basic_resnet((16, 32, 64), 3, 3, True), 272_474),
        ("cifar_resnet110", basic_resnet((16, 32, 64), 18, 3, True), 1_730_714),
        ("cifar_resnet18", basic_resnet((64, 128, 256, 512), 2, 3, True), 11_173_962),
        ("ddrs_resnet18", basic_resnet((64, 128, 256, 512), 2, 7, False), 11_181_514),
    ],
)
def test_names_shapes_and_counts_are_those_of_the_field(arch, expected, count):
    network = ARCHITECTURES[arch]()
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected
    learned = [shape for key, shape in expected.items() if not key.endswith(("running_mean", "running_var", "tracked"))]
    assert sum(p.numel() for p in network.parameters()) == sum(math.prod(shape) for shape in learned) == count


@pytest.mark.parametrize("arch", ["digits_cnn", "cifar_resnet20", "ddrs_resnet18"])
def test_any_number_of_classes(arch):
    with torch.no_grad():
        assert ARCHITECTURES[arch](num_classes=7).eval()(pixels(2, IMAGE.get(arch, (3, 32, 32)))).shape == (2, 7)


@pytest.mark.parametrize("depth", [18, 21, 0])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=rf"6n\+2 .*got {depth}"):
        CifarResNet(depth)


def test_normalize_is_the_channelwise_formula_and_leaves_no_trace_in_the_state_dict():
    x, network = pixels(), Normalize(*CIFAR10)
    by_hand = torch.stack([(x[:, c] - CIFAR10[0][c]) / CIFAR10[1][c] for c in range(3)], 1)
    torch.testing.assert_close(network(x), by_hand)
    plain = CifarResNet(20)
    assert not network.state_dict()
    assert list(nn.Sequential(network, plain).state_dict()) == [f"1.{key}" for key in plain.state_dict()]
    assert network.to(torch.float64).mean.dtype == torch.float64  # the constants move with the network all the same


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_from_probabilities_gives_logits_whose_softmax_is_the_network(scale):
    logits = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    logits[1].weight.data *= scale
    network = nn.Sequential(logits, nn.Softmax(1))
    x = pixels(20, (1, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(FromProbabilities(network)(x).softmax(1), network(x))


def test_from_probabilities_stays_finite_where_a_probability_is_0():
    certain = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.Softmax(1))
    certain[1].weight.data = torch.tensor([[1e4] * 4, [-1e4] * 4])
    with torch.no_grad():
        out = FromProbabilities(certain)(torch.ones(1, 1, 2, 2))
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out.softmax(1), torch.tensor([[1.0, 0.0]]))


class Branching(nn.Module):
    """Cannot be traced: what it does depends on the pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu() if x.mean() > 0 else self.conv(-x)
        return self.fc(y.mean((2, 3)))


class ReadsInputTwice(nn.Module):
    """The first convolution is not alone in reading the input, so no scale may move into it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + x.mean((1, 2, 3)).unsqueeze(1)


def _head(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))


FOLDABLE = {
    "cifar_resnet20": lambda: CifarResNet(20),
    "ddrs_resnet18": ARCHITECTURES["ddrs_resnet18"],
    "conv with bias": lambda: _head(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU()),
    "reflecting conv": lambda: _head(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.Tanh()),
    "grouped conv": lambda: _head(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU()),
    "norm first": lambda: _head(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
    "no conv": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)),
    "reads its input twice": ReadsInputTwice,
}


@pytest.mark.parametrize("normalized", [True, False], ids=["normalized", "plain"])
@pytest.mark.parametrize("make", FOLDABLE.values(), ids=FOLDABLE.keys())
def test_folding_is_exact(make, normalized):
    x, inner = pixels(), make().eval()
    with torch.no_grad():
        inner(x[:1])  # lazy layers take their shape
        network = nn.Sequential(Normalize(*CIFAR10), scrambled(inner)).eval() if normalized else scrambled(inner)
        expected = network(x)
        shift, rest = inference._folded(network)
        assert error(rest(x - shift), expected) < 1e-4
        assert torch.equal(network(x), expected)  # the folding worked on a copy
        if normalized:
            torch.testing.assert_close(shift.flatten(), torch.tensor(CIFAR10[0]))


def test_folding_leaves_no_batchnorm_behind():
    _, rest = inference._folded(nn.Sequential(Normalize(*CIFAR10), scrambled(CifarResNet(20))).eval())
    assert not [module for module in rest.modules() if isinstance(module, nn.BatchNorm2d | Normalize)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", ["digits_cnn", "cifar_resnet20", "cifar_resnet18"])
def test_bfloat16_agrees_with_float32_by_a_fast_form(arch, device, monkeypatch):
    def too_slow(*_):
        raise AssertionError("fell back to autocast")

    monkeypatch.setattr(inference, "_autocast", too_slow)
    x = pixels(3, IMAGE.get(arch, (3, 32, 32)))
    network = scrambled(ARCHITECTURES[arch]())
    if len(x[0]) == 3:
        network = nn.Sequential(Normalize(*CIFAR10), network).eval()
    with torch.no_grad():
        expected = network(x)
        for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float32, 1e-2 if device == "cuda" else 1e-5)):
            forward = compile_forward(network, x[0].to(device), dtype)
            for count in (3, 1):
                got = forward(x[:count].to(device))
                assert got.dtype == torch.float32 and got.device.type == device
                assert error(got.cpu(), expected[:count]) <= tolerance


def test_a_network_that_cannot_be_traced_runs_under_autocast(monkeypatch):
    taken = []
    plain = inference._autocast
    monkeypatch.setattr(inference, "_autocast", lambda *args: taken.append(args) or plain(*args))
    network, x = scrambled(Branching()), pixels()
    with torch.no_grad():
        for images in (x, -x):
            with pytest.warns(UserWarning, match=r"under autocast, slower .*TraceError: symbolically traced"):
                got = compile_forward(network, x[0], torch.bfloat16)(images)
            assert got.dtype == torch.float32
            assert 0 < error(got, network(images)) < 0.03  # not 0: it did run in bfloat16
    assert len(taken) == 2


@pytest.mark.parametrize("factor", [0.0, 0.8, float("nan")])
def test_a_fast_form_that_disagrees_is_not_used(factor, monkeypatch):
    network, x = scrambled(CifarResNet(20)), pixels()
    for name in ("_blocked", "channels_last"):
        monkeypatch.setattr(inference, name, lambda shift, rest, dtype: lambda x: network(x) * factor)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="the logits of its fast form are off by"):
            forward = compile_forward(network, x[0], torch.bfloat16)
        assert error(forward(x), network(x)) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_is_copied_not_changed(dtype):
    inner = CifarResNet(20)
    network = nn.Sequential(Normalize(*CIFAR10), scrambled(inner)).train()
    inner.bn1.eval()
    inner.fc.weight.requires_grad_(False)

    def condition():
        modes = [module.training for module in network.modules()]
        return modes, [p.requires_grad for p in network.parameters()], copy.deepcopy(network.state_dict())

    before, x = condition(), pixels()
    forward = compile_forward(network, x[0], dtype)
    with torch.no_grad():
        first = forward(x)
        after = condition()
        assert before[:2] == after[:2]
        assert all(torch.equal(value, after[2][key]) for key, value in before[2].items())
        assert error(first, network.eval()(x)) < 0.03  # the copy was in eval mode though the network was not
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(forward(x), first)


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_the_default_precision_is_what_the_processor_computes_in(supported, expected, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert default_dtype(torch.device("cpu")) == expected
