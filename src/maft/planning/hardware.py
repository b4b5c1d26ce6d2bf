"""Published figures of GPUs, each with the page of its maker.

Rates are those of dense bfloat16 matrix products, without sparsity; gigabytes are 10^9 bytes.
"""

import difflib

from maft.errors import UserError
from maft.records import Record

SAMPLING_UTILISATION = 0.4
"""Assumed share of the rate of matrix products in reading prompts and writing replies."""
BANDWIDTH_UTILISATION = 0.6
"""Assumed share of the memory bandwidth in writing replies."""
TRAINING_UTILISATION = 0.35
"""Assumed share of the rate of matrix products in finetuning."""
USABLE_MEMORY = 0.9
"""Share of a GPU's memory that can be used; the rest goes to libraries and fragmentation."""


class Gpu(Record):
    """The figures of a GPU's data sheet."""

    name: str
    tflops: float
    """Dense bfloat16 matrix products, 10^12 FLOP/s."""
    memory_gb: float
    bandwidth_gb: float
    """GB/s."""
    source: str


_NVIDIA = "https://www.nvidia.com/en-us/data-center"
GPUS = {
    gpu.name.lower(): gpu
    for gpu in (
        Gpu(name="A10", tflops=125, memory_gb=24, bandwidth_gb=600, source=f"{_NVIDIA}/products/a10-gpu/"),
        Gpu(name="L4", tflops=121, memory_gb=24, bandwidth_gb=300, source=f"{_NVIDIA}/l4/"),
        Gpu(name="L40S", tflops=362, memory_gb=48, bandwidth_gb=864, source=f"{_NVIDIA}/l40s/"),
        Gpu(
            name="RTX-4090",
            tflops=165,
            memory_gb=24,
            bandwidth_gb=1008,
            source="https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
        ),
        Gpu(name="A100-40GB", tflops=312, memory_gb=40, bandwidth_gb=1555, source=f"{_NVIDIA}/a100/"),
        Gpu(name="A100-80GB", tflops=312, memory_gb=80, bandwidth_gb=2039, source=f"{_NVIDIA}/a100/"),
        Gpu(name="H100-80GB", tflops=989, memory_gb=80, bandwidth_gb=3350, source=f"{_NVIDIA}/h100/"),
        Gpu(name="H200", tflops=989, memory_gb=141, bandwidth_gb=4800, source=f"{_NVIDIA}/h200/"),
        Gpu(name="B200", tflops=2250, memory_gb=180, bandwidth_gb=8000, source=f"{_NVIDIA}/dgx-b200/"),
        Gpu(
            name="MI300X",
            tflops=1307,
            memory_gb=192,
            bandwidth_gb=5300,
            source="https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
        ),
    )
}


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
