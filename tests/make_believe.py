"""A simulated GPU: tensors that claim to be on cuda:0 but are stored in the CPU's memory.

Like CUDA's tensors, they can't be mixed with the CPU's, and torch.cuda.set_sync_debug_mode reports the calls that make
the host wait for the GPU. Operations can be captured in a graph and replayed. It has fp32 only, no timing, and one
stream.

`install` lets torch find it; within `GPU()`, tensors can be created on it.
"""

import importlib
import warnings
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
COPIES = ("_to_copy", "copy_")
MEMORY = ("empty", "new_empty", "_unsafe_view", "set_")  # launch nothing
WAITS = {"_local_scalar_dense": 1, "bincount": 2, "nonzero": 1, "masked_select": 1, "_unique2": 1, "equal": 1}
Generator = torch.Generator
launches = [0]  # calls of operations that compute something; a foreach operation or a graph's replay counts as one


class GPUTensor(torch.Tensor):
    """A tensor on the simulated GPU, stored as the CPU's tensor `held`."""

    @staticmethod
    def __new__(cls, held):
        shape = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device="meta")
        tensor = cls._make_subclass(cls, shape, False, dispatch_device=False, device_for_backend_keys=DEVICE)
        tensor.held = held
        return tensor

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __repr__(self):
        return f"GPUTensor({self.held})"

    def __format__(self, spec):
        return format(self.item(), spec)

    def __reduce_ex__(self, protocol):
        return self.held.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})


class Graph:
    """Stands in for torch.cuda.CUDAGraph: the operations of a capture, without the Python code around them.

    As on CUDA, the capture computes nothing, and every replay works in the memory of the capture.
    """

    recording = None  # the graph that is being captured

    def __init__(self):
        self.operations, self.memory = [], {}

    def add(self, op, args, kwargs):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in self.memory:
                self.memory[tensor.data_ptr()] = tensor, tensor.clone()
        result = op(*args, **kwargs)
        self.operations.append((op, args, kwargs, result))
        return result

    def replay(self):
        launches[0] += 1
        for op, args, kwargs, result in self.operations:
            for new, old in zip(tree_leaves(op(*args, **kwargs)), tree_leaves(result), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def capture(graph, stream):
    """Stands in for torch.cuda.graph."""
    random = torch.get_rng_state()
    Graph.recording = graph
    try:
        yield
    finally:
        Graph.recording = None
        torch.set_rng_state(random)
        for tensor, before in graph.memory.values():
            tensor.copy_(before)
        graph.memory.clear()


class Stream:
    def wait_stream(self, stream): ...


class GPU(TorchDispatchMode):
    """Context in which tensors can be created on the device or copied there."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})

    def __enter__(self):
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(...) is made on the CPU, then copied
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.before)
        super().__exit__(*error)


def compute(op, args, kwargs):
    name = op._schema.name.removeprefix("aten::")
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    here = [isinstance(tensor, GPUTensor) for tensor in tensors]
    device = next((leaf.type for leaf in leaves if isinstance(leaf, torch.device)), None)
    if device == "meta" and any(here):
        device = "cuda"  # what C++ takes a GPUTensor's device for
    if not any(here) and device != "cuda":
        return op(*args, **kwargs)
    inference = torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors)
    if inference and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        with GPU():  # outside of inference mode torch takes these apart by itself
            parts = op.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    if name not in COPIES and any(not gpu and tensor.dim() for gpu, tensor in zip(here, tensors, strict=True)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({op})")
    if name == "_upsample_bilinear2d_aa" and tensors[0].dtype == torch.uint8:
        raise RuntimeError("\"upsample_bilinear2d_aa\" not implemented for 'Byte'")
    crosses = (name == "_to_copy" and any(here) != (device in (None, "cuda"))) or (name == "_to_copy" and not any(here))
    crosses |= name == "copy_" and len({*here}) > 1
    masks = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    for _ in range(WAITS.get(name, 0) + (crosses or masks)):
        wait()
    held = {k: torch.device("cpu") if k == "device" and v is not None else v for k, v in kwargs.items()}
    args_held, held = tree_map(lambda leaf: getattr(leaf, "held", leaf), (args, held))
    if Graph.recording:
        result = Graph.recording.add(op, args_held, held)
    else:
        launches[0] += not (op.is_view or name.startswith(MEMORY))
        result = op(*args_held, **held)
    if name == "_to_copy" and device == "cpu":
        return result
    written = [
        arg
        for arg, told in zip(args, op._schema.arguments, strict=False)
        if told.alias_info and told.alias_info.is_write
    ]
    if written and op._schema.returns and op._schema.returns[0].alias_info:
        return written[0]
    return tree_map(lambda leaf: GPUTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)


def wait():
    """Report, as torch does, a call that makes the host wait for the device."""
    if Graph.recording:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    if torch.cuda.get_sync_debug_mode() == 2:
        raise RuntimeError("called a synchronizing CUDA operation")
    if torch.cuda.get_sync_debug_mode() == 1:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)


class OtherGenerator(Generator):
    """With the same seed, a generator on the device draws other numbers than the CPU's."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls) if torch.device(device).type == "cuda" else Generator(device)

    def manual_seed(self, seed):
        return super().manual_seed(seed + 1)


def install(patch, count=1):
    """Let torch find `count` devices; `patch(object, name, value)` makes the changes."""
    mode = [0]
    modes = {"default": 0, "warn": 1, "error": 2}
    for name, value in {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "Make-believe GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: False,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "set_sync_debug_mode": lambda to: mode.__setitem__(0, modes.get(to, to)),
        "get_sync_debug_mode": lambda: mode[0],
        "CUDAGraph": Graph,
        "graph": capture,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
    }.items():
        patch(torch.cuda, name, value)
    patch(torch, "Generator", OtherGenerator)
    patch(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None)  # asks the driver
    # because a CPU's parameter can't become a GPUTensor in place
    torch.__future__.set_overwrite_module_params_on_conversion(True)


def install_for_lightning(patch):
    """Skip Lightning's calls to the real CUDA."""
    for module in "lightning_fabric.accelerators.cuda", "pytorch_lightning.accelerators.cuda":
        found = importlib.import_module(module)
        patch(found, "_clear_cuda_memory", lambda: None)
        patch(found, "_check_cuda_matmul_precision", lambda device: None)
