import pytest
import torch

from cifar_lab.errors import UsageError
from cifar_lab.training import hardware
from cifar_lab.training.hardware import fast_precision, processor, resolve_accelerator


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_missing_gpu_is_named():
    assert resolve_accelerator("auto") == "cpu"
    with pytest.raises(UsageError, match="--accelerator gpu: torch finds no GPU"):
        resolve_accelerator("gpu")


@pytest.mark.parametrize(
    ("name", "bf16", "amx", "fast"),
    [
        ("Intel(R) Xeon(R) Processor", True, True, True),
        ("Intel(R) Xeon(R) Processor", True, False, False),
        ("AMD EPYC", True, False, True),
        ("AMD EPYC 7B13", False, False, False),
    ],
)
def test_precision_depends_on_what_the_cpu_is(monkeypatch, name, bf16, amx, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(hardware, "processor", lambda: name)
    assert fast_precision("cpu") == ("bf16" if fast else "fp32")
    assert fast_precision("mps") == "fp32"


def test_the_processor_has_a_name():
    assert processor().strip()
