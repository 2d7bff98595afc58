"""Products in float8 (e4m3, a scale a row of each operand) for a model that is only run forward: the reference."""

import torch
from torch import Tensor, nn

from vikhr_fast.config import RuntimeConfig
from vikhr_fast.errors import InputError
from vikhr_fast.model import Mistral
from vikhr_fast.model_config import ModelConfig

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max
_CAPABILITY = (8, 9)  # of the first GPUs with float8
_MULTIPLE = 16  # of a GPU's operands


class Float8Linear(nn.Module):
    """A frozen linear layer without bias: x [..., in] -> [..., out] in the dtype of x.

    Args:
        size_in: columns of the weight.
        size_out: its rows.
    """

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_out, size_in, dtype=FLOAT8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(size_out, 1, dtype=torch.float32), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The product, summed in float32."""
        values, scales = quantise(x.flatten(0, -2))
        if x.is_cuda:
            y = torch._scaled_mm(
                values, self.weight.t(), scale_a=scales, scale_b=self.scale.t(), out_dtype=x.dtype
            )  # fmt: skip
        else:
            y = ((values.float() * scales) @ (self.weight.float() * self.scale).t()).to(x.dtype)
        return y.view(*x.shape[:-1], -1)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] as float8 [N, K] and the float32 factor [N, 1] of each row, whose largest element becomes the largest."""
    scales = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-30) / _LARGEST
    return (x.float() / scales).clamp(-_LARGEST, _LARGEST).to(FLOAT8), scales


def replace_linears(model: Mistral) -> None:
    """Puts float8 in the place of every linear layer but the head; the model is on "meta", without values."""
    for layer in model.model.layers:
        for module in list(layer.children()):
            for name, linear in list(module.named_children()):
                if isinstance(linear, nn.Linear):
                    with torch.device("meta"):
                        setattr(module, name, Float8Linear(linear.in_features, linear.out_features))


def require_float8(runtime: RuntimeConfig, model: ModelConfig) -> None:
    """Refuses a GPU that has no float8, and products that it can't make.

    Raises:
        InputError: one line.
    """
    if runtime.device == "cpu" or not torch.cuda.is_available():
        return
    if torch.cuda.get_device_capability() < _CAPABILITY:
        raise InputError(
            f"runtime.float8_reference: {torch.cuda.get_device_name()} has no float8; it needs compute "
            f"capability {'.'.join(map(str, _CAPABILITY))}"
        )
    if runtime.dtype != "bfloat16":
        raise InputError(f'runtime.float8_reference: needs runtime.dtype = "bfloat16" on a GPU, not {runtime.dtype!r}')
    sizes = (model.hidden_size, model.intermediate_size, model.head_dim * model.num_key_value_heads)
    if any(size % _MULTIPLE for size in sizes):
        raise InputError(f"runtime.float8_reference: the model's sizes {sizes} aren't all multiples of {_MULTIPLE}")
