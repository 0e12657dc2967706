"""A network made fast for inference alone: pixels in float32 go in, logits in float32 come out.

In float32 the network runs as it is. In lower precision it is traced, normalisation and BatchNorm are folded into
the convolutions (in float32), and the result is laid out as the device likes best. A network that cannot be traced, or
whose fast form disagrees with it, runs under autocast instead, and a warning says why.
"""

import copy
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from ddviz.errors import out_of_memory
from ddviz.networks import Normalize

Forward = Callable[[Tensor], Tensor]
"""Maps pixels (B, C, H, W) in float32 to logits (B, classes) in float32."""

Maker = Callable[[Tensor, nn.Module, torch.dtype], Forward]
"""Makes a fast form from (shift, rest), where network(x) = rest(x - shift) in float32."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions by name."""

_TRACING = threading.Lock()  # torch.fx patches nn.Module for the whole process: one at a time, no network beside it
_AGREEMENT = 0.1  # largest difference of logits, relative to their largest, that lower precision may make
_SHOWN = 200  # characters of a foreign message


class NoFastForm(Exception):
    """A network cannot be given a fast form; the text says why."""


class Fitting:
    """A forward that takes batches of any size: in halves, from then on, where the device's memory does not hold one.

    The batch that was asked for stays the run's: what is halved is the same noise through the same network. In lower
    precision another batch size may round otherwise, as it may on another device.
    """

    def __init__(self, forward: Forward):
        self.forward, self.most = forward, 0

    def __call__(self, x: Tensor) -> Tensor:
        version = x._version
        while True:
            size = min(self.most or len(x), len(x))
            try:
                return self.forward(x) if size == len(x) else torch.cat([self.forward(part) for part in x.split(size)])
            except RuntimeError as error:
                touched = x._version != version  # a network may work in place: these are the images no more
                if size <= 1 or touched or not out_of_memory(error):
                    raise
            # Beyond the except clause, whose traceback holds the failed pass and its memory.
            self.most = min(self.most or size, size // 2)  # another thread may have halved it meanwhile
            warnings.warn(
                f"{size} images at once do not fit into the device's memory: going on with {self.most}. Set batch to "
                "that to be spared the attempt.",
                stacklevel=2,
            )


def compile_forward(network: nn.Module, example: Tensor, dtype: torch.dtype) -> Forward:
    """The fastest form of a network for images like `example` (C, H, W), on its device, in `dtype`, by torch alone.

    The network is copied, not changed; the copy is in eval mode. Warns of a network that has no fast form.
    """
    reference = eval_copy(network, example.device)
    if dtype == torch.float32:
        return reference
    why = {}
    for make in (_blocked, channels_last) if example.device.type == "cpu" else (channels_last,):
        try:
            return fast_form(make, reference, example, dtype)
        except NoFastForm as problem:
            why[str(problem)] = None  # each reason once, in order
    warnings.warn(f"this network runs under autocast, slower than others do: {'; '.join(why)}.", stacklevel=2)
    return _autocast(reference, example.device, dtype)


def compile_gradient(network: nn.Module, example: Tensor, dtype: torch.dtype) -> Forward:
    """A form of a network that gradients to its input pass fast; a network that has none is taken as it is."""
    reference = eval_copy(network, example.device)
    try:
        return fast_form(channels_last, reference, example, dtype)
    except NoFastForm as problem:
        warnings.warn(f"gradients pass this network slower than others: {problem}.", stacklevel=2)
        return reference


def eval_copy(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a network on a device, in eval mode and frozen."""
    return copy.deepcopy(network).to(device).eval().requires_grad_(False)


def fast_form(make: Maker, reference: nn.Module, example: Tensor, dtype: torch.dtype) -> Forward:
    """The form that `make` gives a network, if it gives the network's logits.

    Raises: NoFastForm.
    """
    probe = torch.stack([example, example.flip(-1)]).float()
    try:
        with torch.no_grad():
            with _TRACING:
                shift, rest = _folded(reference)
            forward = make(shift, rest, dtype)
            error, largest = _difference(forward, reference, probe)
    except Exception as error:  # tracing runs foreign code, which may raise anything
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        first = (str(error).strip() or "no message").splitlines()[0]
        raise NoFastForm(f"making it fast failed ({type(error).__name__}: {first[:_SHOWN].rstrip('.')})") from error
    if not error <= _AGREEMENT * largest:
        raise NoFastForm(f"the logits of its fast form are off by {error:.3g} where the largest is {largest:.3g}")
    return forward


def default_dtype(device: torch.device) -> str:
    """bfloat16 where the device computes in it natively, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if device.type == "cpu" and fast else "float32"


def _folded(network: nn.Module) -> tuple[Tensor, nn.Module]:
    """(shift, rest) with network(x) = rest(x - shift): normalisation and BatchNorm are inside the convolutions.

    Exact but for rounding: the zero padding of a convolution comes after the normalisation, so dividing by std
    can move into the weights, and subtracting the mean stays outside.
    """
    from torch.fx.experimental.optimization import fuse

    shift = torch.zeros(())
    scale = None
    if isinstance(network, nn.Sequential) and isinstance(first := next(iter(network), None), Normalize):
        shift, scale = first.mean, 1 / first.std
        network = nn.Sequential(*list(network)[1:])
    rest = fuse(network)
    if scale is not None:
        convolution = _first_convolution(rest)
        if convolution is None:
            rest = nn.Sequential(Normalize([0.0] * len(scale), (1 / scale).flatten().tolist()), rest)
        else:
            convolution.weight.data = convolution.weight * scale
    return shift, rest.requires_grad_(False)


def _first_convolution(graph: nn.Module) -> nn.Conv2d | None:
    """The convolution that alone reads the input of a traced network, if there is one."""
    assert isinstance(graph, fx.GraphModule)
    users = list(next(node for node in graph.graph.nodes if node.op == "placeholder").users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module = graph.get_submodule(str(users[0].target))
    if sum(node.target == users[0].target for node in graph.graph.nodes) > 1:
        return None
    return module if isinstance(module, nn.Conv2d) and module.groups == 1 else None


def _blocked(shift: Tensor, rest: nn.Module, dtype: torch.dtype) -> Forward:
    """oneDNN's blocked layout, which suits layers of few channels on CPUs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's converter is made of deprecated script modules
        from torch.utils import mkldnn

        blocked = mkldnn.to_mkldnn(rest, dtype)
    return lambda x: blocked((x - shift).to(dtype).to_mkldnn()).to_dense().float()


def channels_last(shift: Tensor, rest: nn.Module, dtype: torch.dtype) -> Forward:
    low = rest.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: low((x - shift).to(dtype, memory_format=torch.channels_last)).float()


def _autocast(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return network(x).float()

    return forward


def _difference(forward: Forward, reference: nn.Module, probe: Tensor) -> tuple[float, float]:
    """Largest difference of a fast form's logits from the network's, and the network's largest logit."""
    expected = reference(probe.clone())
    return (forward(probe.clone()) - expected).abs().max().item(), expected.abs().max().item()
