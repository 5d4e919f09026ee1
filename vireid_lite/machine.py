"""What a run is computed on: device, versions, memory; and the precision of a network's passes."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import resource
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from torch import nn

from vireid_lite.errors import InputError

PRECISIONS = ("float32", "tf32", "bf16")

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Compute:
    """How a network's passes are computed; what each choice costs is measured by `benchmarks/gpu.py`.

    precision: "float32" is IEEE float32, TF32 switched off in products and convolutions alike. "tf32" is float32 with
    both allowed to round their inputs to 10 bits of mantissa (NVIDIA, compute capability 8.0 up); torch's own default
    allows it in convolutions alone. "bf16" runs the five blocks under autocast; weights, their gradients, BatchNorm
    statistics, what hooks behind the blocks see, and everything after block 4 stay float32, as in "float32".
    compile: blocks 1 to 4 go through torch.compile while they train. Block 0 does not, as it splits a batch by a tensor
    on the CPU; nor does evaluation or crafting, where batches come in many sizes and few of each.
    deterministic: the same seed gives the same bits on one GPU, or RuntimeError where an operation has no such form
    (Col.+Del.'s lattice). It gives up the fastest kernels; its cost is measured by `benchmarks/gpu.py`.
    Raises InputError for other values.
    """

    precision: str = "float32"
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"compute: precision {self.precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
        for name in ("compile", "deterministic"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"compute: {name} must be true or false, got {getattr(self, name)!r}")

    def describe(self) -> dict:
        """Return every field as plain values, for run cards and keys."""
        return asdict(self)

    @contextmanager
    def on(self, model: nn.Module, device: torch.device | str) -> Iterator[None]:
        """Let a two-stream network run so inside the `with`; afterwards it and torch's switches are as they were.

        Train it, call it, embed with it or attack it inside; gradients reach the images and the weights as usual, and
        `ModelOutput` is float32. Its weights, hooks and modes are not touched; `type` of a block differs inside.
        device: where it will run; float32 on a CPU changes nothing. cuBLAS reads its part of `deterministic` when the
        process makes its first product on the GPU: enter before, or export CUBLAS_WORKSPACE_CONFIG=:4096:8.
        Raises InputError where the device lacks the precision, or compiling its tools.
        """
        device = torch.device(device)
        self._check(device)
        with ExitStack() as stack:
            if device.type == "cuda":
                stack.enter_context(_tf32(self.precision == "tf32"))
            if self.deterministic:
                stack.enter_context(_deterministic())
            if self.precision == "bf16" or self.compile:
                stack.enter_context(_exchanged(model.stages, device.type, self.precision == "bf16", self.compile))
            yield

    def _check(self, device: torch.device) -> None:
        if device.type == "cuda":
            capable = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            capable = self.precision != "tf32"
        if self.precision != "float32" and not capable:
            raise InputError(f"compute: {device} cannot compute in {self.precision}; choose precision float32")
        if not self.compile:
            return
        if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
            raise InputError("compute: compile needs a C compiler (cc, gcc or clang), none is on PATH; leave it out")
        if device.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise InputError("compute: compile needs Triton on a GPU; install the package triton, or leave it out")


@contextmanager
def _exchanged(stages: nn.ModuleList, kind: str, bf16: bool, compiled: bool) -> Iterator[None]:
    """Give each block a class whose forward pass runs as asked, and each its own class back afterwards.

    A class, unlike a function set on the block, belongs to a deep copy made inside as well.
    """
    own = [type(stage) for stage in stages]
    try:
        for number, stage in enumerate(stages):
            stage.__class__ = _block(own[number], kind, bf16, compiled and number > 0, number == len(stages) - 1)
        yield
    finally:
        for stage, was in zip(stages, own, strict=True):
            stage.__class__ = was


@functools.cache  # a compiled pass is guarded by the class it was traced with: a new one would be compiled again
def _block(own: type[nn.Module], kind: str, bf16: bool, compiled: bool, last: bool) -> type[nn.Module]:
    """Return a subclass of a block's class."""
    plain = own.forward
    fast = torch.compile(plain) if compiled else plain

    def forward(self, *arguments, **keywords):
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            maps = (fast if self.training else plain)(self, *arguments, **keywords)
        # Between blocks bf16 may stay bf16. Hooks run after this, outside autocast: a Fourier transform, say, has no
        # bf16 form.
        return maps.float() if bf16 and (last or self._forward_hooks) else maps

    return type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__, "__doc__": own.__doc__})


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in products and convolutions."""
    with warnings.catch_warnings():
        # These switches announce a successor, which the compiler of some versions still refuses beside them.
        warnings.filterwarnings("ignore", message=".*TF32 behavior.*")
        product, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TF32 behavior.*")
            torch.set_float32_matmul_precision(product)
            torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def _deterministic() -> Iterator[None]:
    """Ask torch, cuDNN and cuBLAS for the same bits every time."""
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    asked, lenient = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags, filled, workspace = (
        (cudnn.deterministic, cudnn.benchmark),
        memory.fill_uninitialized_memory,
        os.environ.get(CUBLAS),
    )
    os.environ.setdefault(CUBLAS, ":4096:8")
    cudnn.deterministic, cudnn.benchmark = True, False
    # Nothing here reads memory before it is written, and filling it costs a pass each time.
    memory.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=lenient)
        memory.fill_uninitialized_memory = filled
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(CUBLAS, None)


def versions() -> dict[str, str]:
    """Return the versions a numerical result depends on."""
    names = ("torch", "torchvision", "numpy", "pillow", "vireid-lite")
    found = {"python": platform.python_version()}
    for name in names:
        # The package itself may run from a plain checkout, uninstalled.
        with contextlib.suppress(ModuleNotFoundError):
            found[name] = version(name)
    return found


def pick_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu", "cuda" or "cuda:N".

    Raises InputError where a GPU is asked for by name and is not there; "auto" takes the first GPU, or the CPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"DEVICE {name!r}: give auto, cpu, cuda or cuda:N")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise InputError(f"DEVICE {name!r} is not on this machine ({torch.cuda.device_count()} GPUs); use auto or cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return a person's name for a device: the GPU's model, or the processor with its core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: the GPU allocator's on a GPU, else this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
