"""The best run's model in the registry."""

import warnings
from importlib.metadata import version
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from cifar_lab import runs
from cifar_lab.datasets import Dataset
from cifar_lab.trained import network_of


def crown(client: MlflowClient, best: Run, dataset: Dataset) -> bool:
    """Tag `best` as the best of the runs with its images and split, and make its model the champion of its data set.

    False, and no new champion, if the present one was chosen on other validation images: they can't be compared.
    """
    same = {tag: best.data.tags[tag] for tag in ("data_digest", "split_digest")}
    for run in client.search_runs([best.info.experiment_id], "tags.best = 'true'"):
        if run.info.run_id != best.info.run_id and same.items() <= run.data.tags.items():
            client.delete_tag(run.info.run_id, "best")
    client.set_tag(best.info.run_id, "best", "true")
    champion = find_champion(client, dataset.name)
    if champion and not same.items() <= champion.data.tags.items():
        return False
    if champion is None or champion.info.run_id != best.info.run_id:
        client.set_registered_model_alias(dataset.name, runs.ALIAS, register_model(client, best, dataset))
    return True


def find_champion(client: MlflowClient, name: str) -> Run | None:
    """The run of the champion model of a data set."""
    try:
        return client.get_run(client.get_model_version_by_alias(name, runs.ALIAS).run_id)
    except MlflowException:  # no such model, alias or run
        return None


class _OnCPU:
    """MLflow's flavor for torch, for weights that stay on the CPU: by itself it takes CUDA where there is some."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **options: Any) -> None:
        mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **options)
        mlflow_model.flavors["python_function"]["config"] = runs.ON_CPU
        mlflow_model.save(f"{path}/{MLMODEL_FILE_NAME}")


def register_model(client: MlflowClient, run: Run, dataset: Dataset) -> str:
    """Log and register the model of a run (torch.export's format, no pickle); returns its version.

    It takes (n, 32, 32, 3) uint8 images and gives (n, classes) float32 probabilities.
    """
    model = network_of(client, run)
    tags = {"mlflow.user": "-", "mlflow.source.name": run.data.tags["mlflow.source.name"]}  # not the login and a path
    logged = client.create_logged_model(run.info.experiment_id, "model", run.info.run_id, tags)
    warnings.filterwarnings("ignore", message="No complete tensor found in the group")  # torch.export's own bookkeeping
    info = Model.log(
        None,
        _OnCPU,
        name="model",
        model_id=logged.model_id,
        pytorch_model=model,
        input_example=dataset.images["test"][:2].copy(),  # two: of one, torch.export would fix the batch size
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), (-1, 32, 32, 3))]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, len(dataset.classes)))]),
        ),
        registered_model_name=dataset.name,
        metadata={"classes": list(dataset.classes)},
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
    )
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return info.registered_model_version
