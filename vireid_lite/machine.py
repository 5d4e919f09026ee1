"""What a run is computed on: device, versions, memory; and the precision of a network's passes."""

import contextlib
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from torch import nn

from vireid_lite.errors import InputError, check_choice

try:
    import resource
except ModuleNotFoundError:  # Windows has none
    resource = None

PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Compute:
    """How a network's passes are computed, with TF32 switched off in "float32".

    "tf32" allows products and convolutions to round their inputs to 10 bits of mantissa (NVIDIA, compute capability 8.0
    up). "bf16" runs the five blocks under autocast; weights, gradients, BatchNorm statistics, what hooks see, and
    everything after block 4 stay float32.
    """

    precision: str = "float32"

    def __post_init__(self) -> None:
        check_choice("compute", "precision", self.precision, PRECISIONS)

    def describe(self) -> dict:
        return asdict(self)

    @contextlib.contextmanager
    def on(self, model: nn.Module, device: torch.device | str) -> Iterator[None]:
        """Let a two-stream network run so inside the `with`, where the device can; `type` of a block differs inside."""
        device = torch.device(device) if str(device).startswith("cuda") else pick_device(device)
        gpu = device.type == "cuda"
        capable = torch.cuda.get_device_capability(device) >= (8, 0) if gpu else self.precision != "tf32"
        if self.precision != "float32" and not capable:
            raise InputError(f"compute: {device} cannot compute in {self.precision}; choose precision float32")
        with contextlib.ExitStack() as after:
            if gpu:
                wanted = ("high", True) if self.precision == "tf32" else ("highest", False)
                after.callback(_set_tf32, *_set_tf32(*wanted))
            for stage in model.stages if self.precision == "bf16" else ():
                after.callback(setattr, stage, "__class__", type(stage))
                # A class, unlike a function set on the block, belongs to a deep copy made inside as well.
                stage.__class__ = _bf16_block(type(stage), device.type, stage is model.stages[-1])
            yield


def _bf16_block(own, kind, last):
    """Return a subclass of a block's class that runs under autocast; between blocks maps stay bf16 where no hook is."""

    def forward(self, *arguments, **keywords):
        with torch.autocast(kind, torch.bfloat16):
            maps = own.forward(self, *arguments, **keywords)
        # Hooks run after this, outside autocast: a Fourier transform, say, has no bf16 form.
        return maps.float() if last or self._forward_hooks else maps

    return type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__, "__doc__": own.__doc__})


def _set_tf32(product, convolution):
    """Set the switches of TF32 and return what they were."""
    with warnings.catch_warnings():
        # These switches announce a successor, which some versions still refuse beside them.
        warnings.filterwarnings("ignore", message=".*TF32 behavior.*")
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision(product)
        torch.backends.cudnn.allow_tf32 = convolution
    return before


def versions() -> dict[str, str]:
    """Return the versions a numerical result depends on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "pillow", "vireid-lite"):
        with contextlib.suppress(ModuleNotFoundError):  # the package itself may run from a checkout, uninstalled
            found[name] = version(name)
    return found


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device for "auto" (the first CUDA GPU, or the CPU), "cpu", "mps", "cuda" or "cuda:N", where it is."""
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps(:0)?|cuda(:[0-9]+)?", name):
        raise InputError(f"DEVICE {name!r}: give auto, cpu, mps, cuda or cuda:N")
    kind, _, number = name.partition(":")
    gpus = torch.backends.mps.is_available() if kind == "mps" else torch.cuda.is_available() * torch.cuda.device_count()
    if kind != "cpu" and int(number or 0) >= gpus:
        raise InputError(f"DEVICE {name!r} is not on this machine ({gpus:d} such GPUs); use auto or cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return a person's name for a device: the GPU's model, or the processor with its core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {'GPU' if device.type == 'mps' else 'CPU'}, {os.cpu_count()} cores"


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: the GPU allocator's, or this process's resident set; 0 on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit if resource else 0.0
