"""Back ends: what runs the prepared network. Noise is formed in float32 outside of all of them.

torch runs any network. The others are asked for by name and refuse what they cannot run, so that records are true.
"""

import importlib
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddviz import inference
from ddviz.errors import InputError
from ddviz.inference import DTYPES, Forward, Maker, NoFastForm


@dataclass(frozen=True)
class Backend:
    """A way to run networks. packages: what it is made of.

    prepare: makes a network ready for images like an example (C, H, W), on its device, in a precision.
    """

    prepare: Callable[[nn.Module, Tensor, str], Forward]
    packages: tuple[str, ...] = ("torch",)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of its packages."""
        return {package: str(importlib.import_module(package).__version__) for package in self.packages}


def _torch(network: nn.Module, example: Tensor, dtype: str) -> Forward:
    return inference.compile_forward(network, example, DTYPES[dtype])


def _compile(network: nn.Module, example: Tensor, dtype: str) -> Forward:
    """torch.compile of the folded network in channels-last: what lies between convolutions becomes one kernel."""

    def make(shift: Tensor, rest: nn.Module, low: torch.dtype) -> Forward:
        # No CUDA graphs: they belong to one thread, and at a GPU's batch a kernel should take longer than its launch.
        # dynamic: counts end in batches of any size, and each would be compiled anew until torch silently gives up.
        return torch.compile(inference.channels_last(shift, rest, low), dynamic=True)

    return _asked_for("compile", make, network, example, dtype)


def _openvino(network: nn.Module, example: Tensor, dtype: str) -> Forward:
    """OpenVINO's CPU plugin, fed by torch's threads: one stream a thread."""
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        raise InputError(
            "expected the package openvino for backend=openvino, found none: pip install 'ddviz[openvino]', or set "
            "backend=torch."
        ) from None
    if example.device.type != "cpu":
        raise InputError(f"expected device=cpu for backend=openvino, got {example.device.type}: set backend=torch.")
    hints = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16, "float16": openvino.Type.f16}
    threads = max(1, torch.get_num_threads())

    def make(shift: Tensor, rest: nn.Module, low: torch.dtype) -> Forward:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its converter uses parts of torch that torch calls deprecated
            graph = openvino.convert_model(
                rest, example_input=example[None], input=[([-1, *example.shape], openvino.Type.f32)]
            )
        settings = {
            "INFERENCE_PRECISION_HINT": hints[dtype],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "ENABLE_CPU_PINNING": False,  # the cores are shared with whatever else runs
        }
        compiled = openvino.Core().compile_model(graph, "CPU", settings)
        if compiled.get_property("INFERENCE_PRECISION_HINT") != hints[dtype]:
            raise ValueError(f"this processor does not compute in {dtype}")
        own = threading.local()  # an inference request serves one thread at a time

        def forward(x: Tensor) -> Tensor:
            if not hasattr(own, "request"):
                own.request = compiled.create_infer_request()
            return torch.from_numpy(own.request.infer([(x - shift).numpy()], share_inputs=True)[0])

        return forward

    return _asked_for("openvino", make, network, example, dtype)


def _asked_for(name: str, make: Maker, network: nn.Module, example: Tensor, dtype: str) -> Forward:
    try:
        return inference.fast_form(make, inference.eval_copy(network, example.device), example, DTYPES[dtype])
    except NoFastForm as problem:
        raise InputError(
            f"backend={name} cannot run this network in {dtype}: {problem}. Set backend=torch, which runs any, or "
            "dtype=float32."
        ) from problem


BACKENDS = {
    "torch": Backend(_torch),
    "compile": Backend(_compile),
    "openvino": Backend(_openvino, ("torch", "openvino")),
}
"""Back ends by name."""
