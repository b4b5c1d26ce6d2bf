"""Published figures of GPUs, each with the page of its maker.

Rates are those of dense bfloat16 matrix products, without sparsity; gigabytes are 10^9 bytes.
"""

import difflib
from typing import NamedTuple

from maft.errors import UserError

READING_SHARE, WRITING_SHARE, TRAINING_SHARE = 0.7, 0.55, 0.35
"""Of the rate of matrix products, in reading prompts, writing replies and finetuning."""
BANDWIDTH_SHARE = 0.79
"""Of the memory bandwidth, in writing replies."""
READ_TOKENS = 16384
"""Tokens of prompts that are read at a time."""
READ_LAUNCH, STEP_LAUNCH, ADAPTER_LAUNCH, TRAINING_LAUNCH = 5e-4, 3.2e-5, 3e-5, 5.5e-3
"""Seconds in each layer that do not depend on the GPU: of a read, of a token of all replies, of the same with adapters,
and of a forward and backward pass."""
SMALL_KERNEL_BYTES = 350
"""That a layer moves for each hidden unit and reply, besides weights and cache."""
ENGINE_START, TRAINING_START = 16.0, 12.0
"""Seconds: loading a model and capturing its graphs, for each society; starting the training, for each iteration."""
USABLE_MEMORY = 0.9
"""Share of a GPU's memory that can be used; the rest goes to libraries and fragmentation."""
NO_MEMORY = 1.0
"""Bytes of a GPU on which finetuning takes as little as it can."""


class Gpu(NamedTuple):
    """The figures of a GPU's data sheet."""

    name: str
    tflops: float
    """Dense bfloat16 matrix products, 10^12 FLOP/s."""
    memory_gb: float
    bandwidth_gb: float
    """GB/s."""
    source: str


_NVIDIA, _AMD = "https://www.nvidia.com/en-us/data-center", "https://www.amd.com/en/products/accelerators"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_GPUS = (
    Gpu("A10", 125, 24, 600, f"{_NVIDIA}/products/a10-gpu/"),
    Gpu("L4", 121, 24, 300, f"{_NVIDIA}/l4/"),
    Gpu("L40S", 362, 48, 864, f"{_NVIDIA}/l40s/"),
    Gpu("RTX-4090", 165, 24, 1008, _ADA),
    Gpu("A100-40GB", 312, 40, 1555, f"{_NVIDIA}/a100/"),
    Gpu("A100-80GB", 312, 80, 2039, f"{_NVIDIA}/a100/"),
    Gpu("H100-80GB", 989, 80, 3350, f"{_NVIDIA}/h100/"),
    Gpu("H200", 989, 141, 4800, f"{_NVIDIA}/h200/"),
    Gpu("B200", 2250, 180, 8000, f"{_NVIDIA}/dgx-b200/"),
    Gpu("MI300X", 1307, 192, 5300, f"{_AMD}/instinct/mi300/mi300x.html"),
)
GPUS = {gpu.name.lower(): gpu for gpu in _GPUS}


def gpu(name: str) -> Gpu:
    """Return the figures of a GPU.

    Raises:
        UserError: it is not in the table; names the nearest.
    """
    key = name.lower().replace(" ", "-").replace("_", "-")
    key = {"h100": "h100-80gb", "a100": "a100-80gb", "4090": "rtx-4090", "rtx4090": "rtx-4090"}.get(key, key)
    if key not in GPUS:
        near = difflib.get_close_matches(key, GPUS, n=1)
        hint = f" Did you mean {GPUS[near[0]].name}?" if near else ""
        known = ", ".join(one.name for one in GPUS.values())
        raise UserError(f"--gpu {name} is not in the table of GPUs.{hint} It has: {known}.")
    return GPUS[key]
