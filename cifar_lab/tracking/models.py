"""Trained models as functions, by the beginning of a run's id, an experiment's name or a registered address."""

from collections.abc import Callable

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.errors import UsageError
from cifar_lab.tracking import queries, registry
from cifar_lab.tracking.lookup import find_repeats

BATCH = 250


class Model:
    """A trained model: (n, 32, 32, 3) uint8 images in, (n, classes) float32 probabilities out, on the CPU.

    `classes` has the names of the classes, in the order of the probabilities. Other shapes or types raise UsageError.
    """

    def __init__(self, name: str, classes: tuple[str, ...], compute: Callable[[np.ndarray], np.ndarray]) -> None:
        self.name, self.classes, self._compute = name, classes, compute

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
            raise UsageError(f"images of shape {images.shape}, {images.dtype}: a model takes (n, 32, 32, 3), uint8")
        parts = [self._compute(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)

    def __repr__(self) -> str:
        return f"<Model {self.name}, {len(self.classes)} classes>"


def load_model(client: MlflowClient, model: str | None, trust: bool = False) -> Model:
    """A registered model by its address, models:/..., the model of a run (see find_trained), or the champion.

    trust: see load.config_of. Raises UserError if it is missing, damaged or not trusted, or has no champion.
    """
    if model is None:
        model = registry.champion_address(client)
    if not model.startswith("models:/"):
        return model_of(client, find_trained(client, model), trust)
    found, classes = registry.load_registered(model)
    return Model(model, classes, found.predict)


def model_of(client: MlflowClient, run: Run, trust: bool = False) -> Model:
    """The model of a finished run. trust: see load.config_of."""
    import torch

    from cifar_lab.tracking.load import network_of  # imports Lightning, which a registered model does not need
    from cifar_lab.tracking.summaries import load_confusion

    network = network_of(client, run, trust)

    def compute(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(images))).numpy()

    return Model(run.info.run_name, load_confusion(client, run)[0], compute)


def find_trained(client: MlflowClient, name: str) -> Run:
    """The best finished run of the experiment with this name or config hash, or the run whose id begins with `name`.

    Best by validation accuracy; without any, the run of the first seed. Raises UserError.
    """
    for parent in queries.find_parents(client, name):
        if name in (parent.data.tags["experiment"], parent.data.tags["config_hash"]):
            return queries.best_of(queries.finished_runs(client, find_repeats(client, name)))
    return queries.find_trained_run(client, name)
