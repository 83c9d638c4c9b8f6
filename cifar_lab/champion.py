"""The best run's model in the registry."""

import tempfile
import warnings
from importlib.metadata import version

import mlflow
import numpy as np
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from cifar_lab.config import load_config
from cifar_lab.datasets import Dataset
from cifar_lab.models import Probabilities, make_model

ALIAS = "champion"


def crown(client: MlflowClient, best: Run, dataset: Dataset) -> None:
    """Tag `best` as the best run of its MLflow experiment and make its model the champion of `dataset.name`."""
    for run in client.search_runs([best.info.experiment_id], "tags.best = 'true'"):
        if run.info.run_id != best.info.run_id:
            client.delete_tag(run.info.run_id, "best")
    client.set_tag(best.info.run_id, "best", "true")
    try:
        if client.get_model_version_by_alias(dataset.name, ALIAS).run_id == best.info.run_id:
            return
    except MlflowException:
        pass  # no champion yet
    model = load_model(client, best, dataset)
    warnings.filterwarnings("ignore", message="No complete tensor found in the group")  # torch.export's own bookkeeping
    with mlflow.start_run(run_id=best.info.run_id):
        info = mlflow.pytorch.log_model(
            Probabilities(model).eval(),
            name="model",
            input_example=dataset.images["test"][:2].copy(),  # two: of one, torch.export would fix the batch size
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.uint8), (-1, 32, 32, 3))]),
                Schema([TensorSpec(np.dtype(np.float32), (-1, len(dataset.classes)))]),
            ),
            registered_model_name=dataset.name,
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
        )
    client.set_terminated(best.info.run_id, "FINISHED", best.info.end_time)  # start_run moved its end to now
    client.set_registered_model_alias(dataset.name, ALIAS, info.registered_model_version)


def load_model(client: MlflowClient, run: Run, dataset: Dataset) -> torch.nn.Module:
    """The trained network of a run, from its tracked config and last checkpoint, on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(client.download_artifacts(run.info.run_id, "config.toml", folder))
        checkpoint = torch.load(
            client.download_artifacts(run.info.run_id, "checkpoints/last.ckpt", folder),
            map_location="cpu",
            weights_only=True,
        )
    model = make_model(config, dataset)
    model.load_state_dict(checkpoint["state_dict"])
    return model
