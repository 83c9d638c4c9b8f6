"""The devices of this machine: which there are, their names and fast precision, settings for exact results."""

import ctypes
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils import collect_env

from cifar_lab.errors import UsageError, UserError, first_line

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def resolve_accelerator(accelerator: str) -> str:
    """The device for "auto", "cpu" or "gpu": "cuda", "mps" or "cpu".

    Raises UsageError for another word, or if "gpu" is asked for and there is none, UserError if torch can't use the one
    that is there.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UsageError(f"accelerator = {accelerator!r}: use auto, cpu or gpu")
    if accelerator != "cpu":
        if torch.cuda.is_available():
            try:
                torch.cuda.init()
            except RuntimeError as error:
                reason = first_line(error).rstrip(".")
                raise UserError(f"torch can't use the GPU here: {reason}. Without it: --accelerator cpu") from None
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
    if accelerator == "gpu":
        raise UsageError("--accelerator gpu: torch finds no GPU here; use cpu or auto")
    return "cpu"


def check_devices(accelerator: str, devices: int) -> None:
    """Raises UsageError if there are fewer than `devices` GPUs. A CPU counts as any number of devices."""
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(accelerator, devices)
    if devices > there:
        raise UsageError(f"trainer.devices = {devices}: torch finds {there} GPU here; use fewer, or --accelerator cpu")


def exact_fp32() -> None:
    """Turn off TF32: fp32 has 24 bits of precision on a GPU too, not 11, which is cuDNN's default."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put torch's settings that a training changes back at the end: threads, determinism, TF32, and warnings."""
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    kept = cudnn.allow_tf32, cudnn.benchmark, memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        cudnn.allow_tf32, cudnn.benchmark, memory.fill_uninitialized_memory = kept  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def fast_precision(accelerator: str) -> str:
    """ "bf16" if that is faster on the device, else "fp32"; decided by its kind, so that it does not depend on load.

    Measured: bf16 takes two thirds of the time of fp32 on AMD's Zen 4, and twice the time on Intel's Sapphire Rapids if
    AMX is missing or hidden by a virtual machine.
    """
    if accelerator == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and "AMD" in processor())
        bf16 = accelerator == "cpu" and fast
    return "bf16" if bf16 else "fp32"


def device_tags(accelerator: str) -> dict[str, str]:
    """The tags of the device that a run's bits depend on: its name; on CUDA also TF32, cuDNN and driver."""
    if accelerator != "cuda":
        return {"device": torch.backends.mps.get_name() if accelerator == "mps" else processor()}
    return {
        "device": torch.cuda.get_device_name(),
        "tf32": "on" if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1" else "off",  # overrides exact_fp32
        "cudnn": str(torch.backends.cudnn.version()),
        "driver": collect_env.get_nvidia_driver_version(collect_env.run) or "unknown",
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        names = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Let glibc, if it is the C library, reuse freed memory: by default every large tensor gets new pages."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26):
            libc.mallopt(option, value)
