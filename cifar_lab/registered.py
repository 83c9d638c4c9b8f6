"""Registered models, loaded to be asked: only ours, only whole, nothing unpickled."""

from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel

from cifar_lab import store
from cifar_lab.config import UserError
from cifar_lab.sources import file_digest

ON_CPU = {"device": "cpu"}  # MLflow would take CUDA where there is some, and the weights are not there
EXPORTED = "data/model.pt2"  # torch.export's format


def load_registered(address: str) -> tuple[PyFuncModel, tuple[str, ...]]:
    """A model by its address, models:/..., and its classes. Raises UserError."""
    with TemporaryDirectory() as folder:
        try:
            path = Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))
            metadata = Model.load(str(path)).metadata or {}
        except (MlflowException, OSError, ValueError) as error:
            raise UserError(f"{address}: {store.explain(error) or str(error).partition(chr(10))[0]}") from None
        if not metadata.get("classes") or not (path / EXPORTED).is_file():
            raise UserError(f"{address} was not registered by cifar_lab: it is no exported model with its classes")
        if metadata.get("digest", digest := model_digest(path)) != digest:
            raise UserError(f"{address} is damaged: its files are not those that were registered")
        return mlflow.pyfunc.load_model(str(path), model_config=ON_CPU), tuple(metadata["classes"])


def model_digest(folder: Path) -> str:
    """16 hex digits of what a saved model computes with."""
    return file_digest(folder / EXPORTED)[:16]
