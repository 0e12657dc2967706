"""A network made fast for inference alone: pixels in float32 go in, logits in float32 come out.

In float32 the network runs as it is. In lower precision it is traced, normalisation and BatchNorm are folded into
the convolutions (in float32), and the result is laid out as the device likes best. A network that cannot be traced, or
whose fast form disagrees with it, runs under autocast instead.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from ddviz.networks import Normalize

Forward = Callable[[Tensor], Tensor]
"""Maps pixels (B, C, H, W) in float32 to logits (B, classes) in float32."""

_AGREEMENT = 0.1  # largest difference of logits, relative to their largest, that lower precision may make


def compile_forward(network: nn.Module, example: Tensor, dtype: torch.dtype) -> Forward:
    """The fastest form of a network for images like `example` (C, H, W), on its device, in `dtype`.

    The network is copied, not changed; the copy is in eval mode.
    """
    reference = copy.deepcopy(network).to(example.device).eval().requires_grad_(False)
    if dtype == torch.float32:
        return reference
    probe = torch.stack([example, example.flip(-1)]).float()
    makers = (_blocked, _channels_last) if example.device.type == "cpu" else (_channels_last,)
    for make in makers:
        try:
            forward = make(*_folded(reference), dtype)
            if _agrees(forward, reference, probe):
                return forward
        except Exception:  # tracing runs foreign code, which may raise anything: the plain way remains
            continue
    return _autocast(reference, example.device, dtype)


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


def _channels_last(shift: Tensor, rest: nn.Module, dtype: torch.dtype) -> Forward:
    low = rest.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: low((x - shift).to(dtype, memory_format=torch.channels_last)).float()


def _autocast(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return network(x).float()

    return forward


@torch.no_grad()
def _agrees(forward: Forward, reference: nn.Module, probe: Tensor) -> bool:
    """Whether a fast form gives the logits of the network, up to what its precision must lose."""
    expected = reference(probe.clone())
    return bool((forward(probe.clone()) - expected).abs().max() <= _AGREEMENT * expected.abs().max())
