"""Registering the best run's model as the champion."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from cifar_lab.data.cache import Dataset
from cifar_lab.errors import UserError, first_line
from cifar_lab.tracking import registry
from cifar_lab.tracking.load import NotTrusted, network_of
from cifar_lab.tracking.registry import ON_CPU, find_champion, model_digest, model_name
from cifar_lab.tracking.store import DATASET


class NotExportable(UserError):
    """torch.export can't take a network."""


def promote(client: MlflowClient, best: Run, dataset: Dataset) -> str:
    """Tag `best` as the best run with its images and split, and make its model the champion of the data set.

    Returns "", or why it is not the champion: its network can't be exported, or the champion was chosen on other
    validation images, so that they can't be compared.
    """
    same = {tag: best.data.tags[tag] for tag in ("data_digest", "split_digest")}
    name = model_name(client, dataset.name)
    champion = find_champion(client, name)
    reason = ""
    if champion and not same.items() <= champion.data.tags.items():
        reason = "the champion stays, because it was chosen on other validation images"
    elif champion is None or champion.info.run_id != best.info.run_id:
        try:
            client.set_registered_model_alias(name, registry.ALIAS, register_model(client, best, dataset, name))
        except (NotExportable, NotTrusted) as error:
            reason = str(error)
    for run in client.search_runs([best.info.experiment_id], "tags.best = 'true'"):
        if run.info.run_id != best.info.run_id and same.items() <= run.data.tags.items():
            client.delete_tag(run.info.run_id, "best")
    client.set_tag(best.info.run_id, "best", "true")
    return reason


class _OnCPU:
    """MLflow's torch flavor, for models on the CPU: by default it would load them for CUDA if there is a GPU."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **options: Any) -> None:
        mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **options)
        mlflow_model.flavors["python_function"]["config"] = ON_CPU
        mlflow_model.metadata = {**(mlflow_model.metadata or {}), "digest": model_digest(Path(path))}
        mlflow_model.save(f"{path}/{MLMODEL_FILE_NAME}")


def register_model(client: MlflowClient, run: Run, dataset: Dataset, name: str) -> str:
    """Log the Predictor of a run in torch.export's format (no pickles) and register it as `name`; its new version.

    Raises NotExportable.
    """
    model = network_of(client, run)
    tags = {
        "mlflow.user": "-",
        "mlflow.source.name": run.data.tags["mlflow.source.name"],
    }  # by default the login and a path
    logged = client.create_logged_model(run.info.experiment_id, "model", run.info.run_id, tags)
    warnings.filterwarnings("ignore", message="No complete tensor found in the group")  # from torch.export itself
    try:
        Model.log(
            None,
            _OnCPU,
            name="model",
            model_id=logged.model_id,
            pytorch_model=model,
            input_example=dataset.images["test"][:2].copy(),  # two: with one, torch.export would fix the batch size
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.uint8), (-1, 32, 32, 3))]),
                Schema([TensorSpec(np.dtype(np.float32), (-1, len(dataset.classes)))]),
            ),
            metadata={"classes": list(dataset.classes)},
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
        )
    except (MlflowException, OSError):  # of the store; requests' errors are OSErrors
        raise
    except Exception as error:  # torch.export has many kinds
        client.delete_logged_model(logged.model_id)
        raise NotExportable(f"torch.export can't take its network ({first_line(error)})") from None
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.set_registered_model_tag(name, DATASET, dataset.name)
    source = f"models:/{logged.model_id}"
    return client.create_model_version(name, source, run.info.run_id, model_id=logged.model_id).version
