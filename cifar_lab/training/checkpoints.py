"""Checkpoints: written whole or not at all, read without unpickling, never used when damaged."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from cifar_lab.errors import UserError
from cifar_lab.files import atomic_write


class WholeCheckpoint(TorchCheckpointIO):
    """Checkpoint files that are there whole or not at all, and are read without unpickling."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)  # to a file, it would hide that the disk is full
        with atomic_write(Path(path)) as file:
            file.write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: Path, *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path, name: str = "") -> dict[str, Any]:
    """What train wrote, on the CPU, without unpickling objects.

    Raises UserError, which calls the file `name`, if a byte of it is not as it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if changed := archive.testzip():
                raise ValueError(f"{changed} is not what was written")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not {"state_dict", "epoch"} <= set(found):
            raise ValueError("it is no checkpoint of a run")
    except Exception as error:  # zip, pickle and torch each raise their own
        reason = str(error).partition("\n")[0]
        advice = "" if name else "; delete it and start again"
        raise UserError(f"{name or f'the checkpoint {path}'} is damaged ({reason}){advice}") from None
    return found


def weights_digest(model: torch.nn.Module) -> str:
    """16 hex digits over names, types, shapes and bytes of the state dict, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
