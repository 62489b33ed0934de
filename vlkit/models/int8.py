"""8-bit weights on a CPU: linear layers and embeddings, through oneDNN's integer products.

Each output channel of a weight is rounded to 8 bits with a scale of its own. A row of activations
is split into two 8-bit numbers, a high and a low one, so that it keeps 15 bits: what remains is the
rounding of the weights, as with kernels that round weights alone, but several times faster.
"""

from typing import Any

import torch

from vlkit.errors import ModelError

LOW = 254  # the low number counts in this part of the high one's unit


class Int8Linear(torch.nn.Module):
    """A linear layer with 8-bit weights, for float32 activations.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,), or None.
    """

    def __init__(self, weight: Any, bias: Any = None):
        super().__init__()
        rounded, scale = _round(weight)
        self.out_features, self.in_features = weight.shape
        self.scale = torch.nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().float(), False)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(scale), dtype=torch.int32)

    def forward(self, values: Any) -> Any:
        """(..., inputs) to (..., outputs)."""
        rows = values.reshape(-1, self.in_features).float()
        unit = rows.abs().amax(1, keepdim=True).clamp_(min=1e-30) / 127
        scaled = rows / unit
        high = scaled.round()
        low = scaled.sub_(high).mul_(LOW).round_()
        parts = torch.cat([high, low]).add_(128).to(torch.uint8)
        products = torch.ops.onednn.qlinear_pointwise(
            parts, 1.0, 128, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        output = products[: len(rows)].add_(products[len(rows) :], alpha=1 / LOW).mul_(unit)
        output = output if self.bias is None else output.add_(self.bias)
        return output.to(values.dtype).view(*values.shape[:-1], -1)


class Int8Embedding(torch.nn.Module):
    """Embeddings with 8-bit values and a scale for each token."""

    def __init__(self, weight: Any):
        super().__init__()
        self.rounded, scale = _round(weight)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)

    def forward(self, tokens: Any) -> Any:
        """Token ids (...) to float32 (..., width)."""
        return self.rounded[tokens] * self.scale[tokens][..., None]


def _round(weight: Any) -> tuple[Any, Any]:
    """Rounded weights in int8, and the scale of each row."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp(min=1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def pack(network: Any, name: str) -> None:
    """Replace a network's linear layers and token embeddings, one after the other.

    Args:
        network: on the CPU, of any dtype; what is not replaced becomes float32.
        name: of the model, for errors.

    Raises:
        ModelError: this CPU has no 8-bit products, or the model has parts that cannot be packed.
    """
    if not torch.cpu._is_vnni_supported():
        raise ModelError(
            'quantize="8bit" on a CPU needs its 8-bit products (VNNI: Intel since 2019, AMD since '
            '2022); load without quantize=, or with dtype="bfloat16" for half the memory'
        )
    if any("experts" in path for path, _ in network.named_parameters()):
        raise ModelError(
            f'{name} is a mixture of experts, which quantize="8bit" cannot pack on a CPU; load it '
            'with dtype="bfloat16"'
        )
    for path, module in list(network.named_modules()):
        if type(module) is torch.nn.Linear and ".lora_" not in path:
            new: Any = Int8Linear(module.weight, module.bias)
        elif type(module) is torch.nn.Embedding and path.endswith("embed_tokens"):
            new = Int8Embedding(module.weight)
        else:
            continue
        parent, _, child = path.rpartition(".")
        setattr(network.get_submodule(parent), child, new)
    network.float()
    network.packed_bits = "8bit"
