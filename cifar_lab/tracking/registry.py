"""Registered models: names, champions, and loading a model without unpickling anything."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import torch
from mlflow.entities import Run
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from mlflow.tracking import MlflowClient

from cifar_lab.errors import UserError, first_line
from cifar_lab.files import file_digest
from cifar_lab.tracking import store
from cifar_lab.tracking.queries import pages
from cifar_lab.tracking.store import DATASET

ALIAS = "champion"
ON_CPU = {"device": "cpu"}  # by default MLflow takes CUDA if there is a GPU, but the weights are on the CPU
EXPORTED = "data/model.pt2"  # torch.export's format
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes if a model, alias or run is missing


def champion_address(client: MlflowClient) -> str:
    """The address of the only champion. Raises UserError if there is none, or if several data sets have one."""
    found = [f"models:/{model.name}@{ALIAS}" for model in _models(client) if find_champion(client, model.name)]
    if not found:
        raise UserError("no champion yet; make experiment trains models and chooses one")
    if len(found) > 1:
        raise UserError(f"several data sets have a champion; choose one: {', '.join(found)}")
    return found[0]


def load_registered(address: str) -> tuple[PyFuncModel, tuple[str, ...]]:
    """The model at an address, models:/..., and its classes.

    Raises UserError, before anything is loaded, if it is missing, damaged or not registered by cifar_lab.
    """
    with TemporaryDirectory() as folder:
        try:
            path = Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))
        except (MlflowException, OSError) as error:
            raise UserError(f"{address}: {store.explain(error) or first_line(error)}") from None
        try:
            found = Model.load(str(path))
            flavor, metadata = found.flavors["python_function"], found.metadata or {}
            exported = (
                flavor["loader_module"] == "mlflow.pytorch" and not flavor.get("code") and (path / EXPORTED).exists()
            )
            ours = exported and metadata.get("classes") and not _has_pickles(path / EXPORTED)
            whole = metadata.get("digest", digest := model_digest(path)) == digest if ours else True
        except Exception as error:  # a damaged file raises many kinds
            raise UserError(f"{address} is damaged ({first_line(error)})") from None
        if not ours:
            raise UserError(f"{address} was not registered by cifar_lab: it is not an exported model with classes")
        if not whole:
            raise UserError(f"{address} is damaged: its digest is not the registered one")
        return mlflow.pyfunc.load_model(str(path), model_config=ON_CPU), tuple(metadata["classes"])


def _has_pickles(exported: Path) -> bool:
    """Whether an exported model has parts that torch would unpickle; ours contain only tensors."""
    with zipfile.ZipFile(exported) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("_config.json") and b'"use_pickle": true' in content:
                return True
            if name.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(content), weights_only=True)
                except Exception:  # torch.export would unpickle it
                    return True
    return False


def model_digest(folder: Path) -> str:
    """16 hex digits from the exported network of a saved model."""
    return file_digest(folder / EXPORTED)[:16]


def model_name(client: MlflowClient, dataset: str) -> str:
    """The name of a data set's registered model: the data set's, unless the model was renamed."""
    return next((model.name for model in _models(client) if model.tags.get(DATASET) == dataset), dataset)


def find_champion(client: MlflowClient, name: str) -> Run | None:
    """The run of a registered model's champion, or None."""
    try:
        run_id = client.get_model_version_by_alias(name, ALIAS).run_id
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


def _models(client: MlflowClient) -> Iterator[RegisteredModel]:
    return pages(lambda token: client.search_registered_models(page_token=token))
