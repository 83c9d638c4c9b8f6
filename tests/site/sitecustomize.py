"""On PYTHONPATH, it gives every process GPUS simulated GPUs, or one without a driver (GPUS=broken)."""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))


class After(importlib.abc.MetaPathFinder):
    """Calls a function after the import of a module."""

    def __init__(self, module, call):
        self.module, self.call = module, call

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self.call()

        spec.loader.exec_module = exec_module
        return spec


def break_it():
    import torch

    torch.cuda.is_available = lambda: True


def install():
    import make_believe
    from pytorch_lightning.accelerators import CUDAAccelerator

    make_believe.install_for_lightning(setattr)
    within = []
    CUDAAccelerator.setup_device = lambda self, device: within.append(make_believe.GPU().__enter__())
    CUDAAccelerator.teardown = lambda self: within.pop().__exit__(None, None, None)


def evaluate_as_the_cpu():
    from cifar_lab.training import batches

    batches.GPU_EVALUATION_BATCH = batches.EVALUATION_BATCH


def install_torch():
    import make_believe

    make_believe.install(setattr, int(os.environ["GPUS"]))


if os.environ["GPUS"] == "broken":
    sys.meta_path.insert(0, After("torch", break_it))
else:
    sys.meta_path.insert(0, After("torch", install_torch))
    sys.meta_path.insert(0, After("pytorch_lightning", install))
    sys.meta_path.insert(0, After("cifar_lab.training.batches", evaluate_as_the_cpu))
