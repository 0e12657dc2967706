"""Back ends: the same predictions by another way, named in the records, refused where they cannot be had."""

import importlib
import json

import pytest
import torch
from torch import Tensor, nn

import ddviz
from ddviz import backends
from ddviz.backends import BACKENDS
from ddviz.bench import prepare
from ddviz.errors import InputError
from ddviz.inference import default_dtype
from ddviz.noise import NoiseKey, Stage
from ddviz.sampling import Sampler
from ddviz.smoothing import SMOOTHINGS

KEY = NoiseKey(0, 11, Stage.ESTIMATE)
CPU_BF16 = default_dtype(torch.device("cpu")) == "bfloat16"


@pytest.fixture(params=[pytest.param("compile", marks=pytest.mark.slow), "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    for package in BACKENDS[request.param].packages:
        pytest.importorskip(package)
    return request.param


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor]:
    return ddviz.models.load("digits", sigma=0.25).network, ddviz.datasets.load("digits").image(11)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counts_are_those_of_torch(digits, backend, dtype):
    if dtype == "bfloat16" and not CPU_BF16:
        pytest.skip("the processor does not compute in bfloat16")
    network, pixels = digits
    samplers = [Sampler.prepare(network, pixels, backend=name, dtype=dtype) for name in ("torch", backend)]
    counts = [sampler.count(pixels, 0.6, 2_000, smoothing=SMOOTHINGS["l2"], key=KEY) for sampler in samplers]
    assert (counts[0] - counts[1]).abs().sum() <= (40 if dtype == "bfloat16" else 4)  # of 2000, each flip counted twice


def test_threads_and_batches_of_all_sizes_do_not_disturb_each_other(digits, backend):
    network, pixels = digits
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        sampler = Sampler.prepare(network, pixels, backend=backend, batch=40)
    finally:
        torch.set_num_threads(threads)
    assert sampler.workers == 3
    counts = [sampler.count(pixels, 0.6, 1_011, smoothing=SMOOTHINGS["l2"], key=KEY) for _ in range(3)]
    assert torch.equal(counts[0], counts[1]) and torch.equal(counts[0], counts[2]) and counts[0].sum() == 1_011


class Branching(nn.Module):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1)[:, :10]
        return y if y.sum() > 0 else -y


def test_a_network_that_cannot_be_prepared_is_refused_with_what_to_do(backend):
    with pytest.raises(InputError, match=rf"backend={backend} cannot run .*TraceError.* Set backend=torch"):
        Sampler.prepare(Branching(), torch.rand(1, 8, 8), backend=backend)


def test_openvino_is_for_cpus():
    pytest.importorskip("openvino")
    with pytest.raises(InputError, match=r"expected device=cpu for backend=openvino, got meta: set backend=torch"):
        BACKENDS["openvino"].prepare(Branching(), torch.rand(1, 8, 8, device="meta"), "float32")


def test_a_back_end_that_is_not_installed_is_named_with_the_command(monkeypatch):
    real = importlib.import_module

    def missing(name: str):
        if name == "openvino":
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(backends.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install 'ddviz\[openvino\]'"):
        Sampler.prepare(Branching(), torch.rand(1, 8, 8), backend="openvino")


def config(tmp_path, **changes) -> ddviz.RunConfig:
    settings = {"max_images": 3, "n": 200, "n0": 20, "method": "fixed", "run_root": str(tmp_path), **changes}
    return ddviz.RunConfig(**settings)


def test_the_record_names_back_end_precision_versions_and_agreement(tmp_path, backend):
    run = ddviz.run(config(tmp_path, backend=backend, dtype="float32")).runs["fixed"]
    stored = json.loads((run.folder / "config.json").read_text())
    assert stored["backend"] == backend and stored["dtype"] == "float32"
    told = stored["made with"]
    assert told["backend"] == backend and told["torch"] == torch.__version__
    assert told["agreement"] == f"float32 {backend}: 100.0 % of 512 noisy predictions agree with float32"
    for package in BACKENDS[backend].packages:
        assert told[package] == importlib.import_module(package).__version__
    with pytest.raises(InputError, match=f"^backend was '{backend}' when .* and is its default now"):
        ddviz.run(config(tmp_path, dtype="float32"))


def test_runs_of_before_there_were_back_ends_resume(tmp_path):
    """Their config.json does not know the word."""
    bench = prepare(config(tmp_path, dtype="float32"))
    assert "backend" not in bench.identity("fixed") and "agreement" not in bench.made_with


@pytest.mark.parametrize("wrong", [0.1, 0.5])
def test_a_prepared_network_that_predicts_otherwise_is_refused(tmp_path, monkeypatch, wrong):
    """As if rounding had changed this share of predictions."""

    def prepare_wrongly(network: nn.Module, example: Tensor, dtype: str):
        def forward(x: Tensor) -> Tensor:
            logits, changed = network(x), x.flatten(1).double().sum(1) * 1e4 % 1 < wrong
            return torch.where(changed[:, None], logits.roll(1, 1), logits)

        return forward

    monkeypatch.setitem(BACKENDS, "wrong", backends.Backend(prepare_wrongly))
    with pytest.raises(InputError, match=r"in bfloat16 by wrong .*got [5-9]\d\.\d % of 512 .*Set dtype=float32"):
        prepare(config(tmp_path, dtype="bfloat16", backend="wrong"))


def test_the_notes_of_the_network_tell_the_agreement_once(tmp_path):
    bench = prepare(config(tmp_path, dtype="bfloat16"))
    assert [note for note in bench.base.notes if "noisy predictions agree" in note] == [f"{bench.agreement}."]
    assert bench.agreement.startswith("bfloat16 torch: ")
