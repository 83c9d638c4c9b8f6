"""Checkpoints: written atomically, read without unpickling objects, never used when damaged."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from cifar_lab.errors import UserError
from cifar_lab.files import atomic_write, is_whole, seal


class WholeCheckpoint(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints, with a digest in each file (see files.seal)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)  # writing to a file, it would not report a full disk
        with atomic_write(Path(path)) as file:
            file.write_bytes(seal(buffer.getvalue()))

    def load_checkpoint(self, path: Path, *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of WholeCheckpoint, with its tensors on the CPU. Raises UserError if it is damaged."""
    if not is_whole(path):
        raise UserError(f"the checkpoint {path} is damaged; delete it and start again")
    return torch.load(path, map_location="cpu", weights_only=True)


def weights_digest(model: torch.nn.Module) -> str:
    """16 hex digits from names, dtypes, shapes and bytes of the state dict, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted((name.removeprefix("network."), t) for name, t in model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
