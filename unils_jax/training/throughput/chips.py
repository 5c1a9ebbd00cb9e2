"""Accelerators as their data sheets describe them: matrix peak, memory, and how fast both move."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One JAX device by its data sheet. Most TPUs and GPUs are one device, a TPU 7x is two."""

    kind: str  # what JAX's `device_kind` begins with
    flops: float  # of dense products in bfloat16, FLOP/s
    memory: float  # bytes
    bandwidth: float  # of its memory, bytes/s
    link: float  # what it sends to its neighbours (ICI, NVLink), bytes/s in one direction; 0: PCIe alone
    clock: float = 0.0  # cycles/s that the TPU compiler's estimates count in; 0: it estimates nothing


# The longest kind that fits a device counts: "NVIDIA H100 PCIe" begins with "NVIDIA H100", too.
CHIPS = (
    Chip("TPU v4", 275e12, 32e9, 1.23e12, 300e9, 1.05e9),
    Chip("TPU v5 lite", 197e12, 16e9, 0.82e12, 200e9, 1.5e9),
    Chip("TPU v5p", 459e12, 95e9, 2.77e12, 600e9, 1.75e9),
    Chip("TPU v5", 459e12, 95e9, 2.77e12, 600e9, 1.75e9),
    Chip("TPU v6 lite", 918e12, 32e9, 1.64e12, 400e9, 1.75e9),
    Chip("TPU7x", 1153e12, 96e9, 3.69e12, 600e9),
    Chip("NVIDIA A100", 312e12, 80e9, 2.04e12, 300e9),
    Chip("NVIDIA A100-SXM4-40GB", 312e12, 40e9, 1.56e12, 300e9),
    Chip("NVIDIA A100-PCIE-40GB", 312e12, 40e9, 1.56e12, 0.0),
    Chip("NVIDIA H100", 989e12, 80e9, 3.35e12, 450e9),
    Chip("NVIDIA H100 PCIe", 756e12, 80e9, 2.04e12, 0.0),
    Chip("NVIDIA H200", 989e12, 141e9, 4.8e12, 450e9),
    Chip("NVIDIA GH200", 989e12, 96e9, 4.0e12, 450e9),
    Chip("NVIDIA B200", 2250e12, 180e9, 8.0e12, 900e9),
    Chip("NVIDIA GB200", 2500e12, 186e9, 8.0e12, 900e9),
    Chip("NVIDIA B300", 2250e12, 270e9, 8.0e12, 900e9),
    Chip("NVIDIA GB300", 2500e12, 279e9, 8.0e12, 900e9),
    Chip("NVIDIA L4", 121e12, 24e9, 0.30e12, 0.0),
    Chip("NVIDIA L40S", 362e12, 48e9, 0.86e12, 0.0),
)


def chip_of(device_kind: str) -> Chip | None:
    """Returns the data sheet of a device, None where it is not known."""
    fitting = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(fitting, key=lambda chip: len(chip.kind), default=None)
