"""Registered models, loaded to be asked: only ours, only whole, nothing unpickled."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from mlflow.tracking import MlflowClient

from cifar_lab.errors import UserError
from cifar_lab.files import file_digest
from cifar_lab.tracking import store
from cifar_lab.tracking.store import DATASET

ALIAS = "champion"
ON_CPU = {"device": "cpu"}  # MLflow would take CUDA where there is some, and the weights are not there
EXPORTED = "data/model.pt2"  # torch.export's format


def champion_address(client: MlflowClient) -> str:
    """The address of the champion. Raises UserError if there is none, or one of each of several data sets."""
    found = []
    for model in client.search_registered_models():
        with suppress(MlflowException):  # the alias may be left of a version that was deleted
            if ALIAS in model.aliases and client.get_model_version_by_alias(model.name, ALIAS):
                found.append(f"models:/{model.name}@{ALIAS}")
    if not found:
        raise UserError("no champion yet; make experiment trains some models and chooses one")
    if len(found) > 1:
        raise UserError(f"several data sets have a champion; give one of them: {', '.join(found)}")
    return found[0]


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


def model_name(client: MlflowClient, dataset: str) -> str:
    """Of the registered model of a data set: the data set's, unless it was renamed since."""
    models = client.search_registered_models()
    return next((model.name for model in models if model.tags.get(DATASET) == dataset), dataset)


def find_champion(client: MlflowClient, name: str) -> Run | None:
    """The run of the champion version of a registered model."""
    try:
        return client.get_run(client.get_model_version_by_alias(name, ALIAS).run_id)
    except MlflowException:  # no such model, alias or run
        return None
