"""What a tracked run was trained from, and what came out of it: config, images, class names, network."""

from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.config import Config, UserError, load_config
from cifar_lab.datasets import Dataset, find_cached, load_dataset, select
from cifar_lab.models import Probabilities, make_network
from cifar_lab.train import load_checkpoint


def config_of(client: MlflowClient, run: Run) -> Config:
    """The tracked config of a run."""
    with TemporaryDirectory() as folder:
        return load_config(client.download_artifacts(run.info.run_id, "config.toml", folder))


def dataset_of(client: MlflowClient, run: Run, data_dir: Path | None = None) -> Dataset:
    """The images of a run from the cache, else what is found now, whose digest need not be the same."""
    dataset = None if data_dir else find_cached(run.data.tags["data_digest"])
    if dataset is None:
        name = client.get_experiment(run.info.experiment_id).name  # cifar10-jpeg and so on
        dataset, _ = load_dataset(name.partition("-")[0], data_dir)
    return select(dataset, config_of(client, run).data)


def classes_of(client: MlflowClient, run: Run) -> tuple[str, ...]:
    """The class names of a finished run, in the order of its network's outputs."""
    with TemporaryDirectory() as folder:
        table = Path(client.download_artifacts(run.info.run_id, "confusion/test.csv", folder)).read_text()
    return tuple(table.partition("\n")[0].split(",")[1:])


def network_of(client: MlflowClient, run: Run) -> Probabilities:
    """The trained network of a finished run, from its last checkpoint, on the CPU."""
    config = config_of(client, run)
    with TemporaryDirectory() as folder:
        checkpoint = load_checkpoint(Path(client.download_artifacts(run.info.run_id, "checkpoints/last.ckpt", folder)))
    network = make_network(config, len(classes_of(client, run)))
    try:
        network.load_state_dict(checkpoint["state_dict"])
    except RuntimeError:
        raise UserError(f"the model of {run.info.run_name} ({run.info.run_id}) was made by other code") from None
    return Probabilities(network, config.data.sides[-1]).eval()
