"""Config, images and network of a tracked run."""

import re
from pathlib import Path

import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.config import Config, parse_config
from cifar_lab.data.cache import Dataset, find_cached, load_dataset
from cifar_lab.data.catalogue import ENTRIES
from cifar_lab.data.selection import select
from cifar_lab.errors import UserError, first_line
from cifar_lab.networks.build import Predictor, make_network
from cifar_lab.tracking import store
from cifar_lab.tracking.artifacts import downloaded, load_text
from cifar_lab.tracking.summaries import load_confusion
from cifar_lab.training.checkpoints import weights_digest


def config_of(client: MlflowClient, run: Run) -> Config:
    """The tracked config of a run."""
    text = load_text(client, run, "config.toml")
    return parse_config(text, f"config.toml of {run.info.run_name} ({run.info.run_id})")


def dataset_of(client: MlflowClient, run: Run, data_dir: Path | None = None) -> Dataset:
    """The images of a run, from the cache or searched for again. Raises UserError if only other images are found."""
    digest = run.data.tags["data_digest"]
    dataset = None if data_dir else find_cached(digest)
    if dataset is None:
        name = store.dataset_name(client, run.info.experiment_id)
        known = next((known for known in (*ENTRIES, "digits") if re.match(f"{known}(-|$)", name)), "")
        if not (known or data_dir):
            raise UserError(
                f"the images of {name} are not in data/cache/; make data DATA_DIR=<their folder> decodes them"
            )
        dataset, _ = load_dataset("auto" if data_dir else known, data_dir)
    if not dataset.digest.startswith(digest):
        place = f"in {data_dir}" if data_dir else "found here"
        raise UserError(
            f"{run.info.run_name} was trained on other images (digest {digest[:12]}) than those {place}: "
            f"{dataset.title} (digest {dataset.digest[:12]})"
        )
    return select(dataset, config_of(client, run).data)


def network_of(client: MlflowClient, run: Run) -> Predictor:
    """The trained network of a finished run, on the CPU. Raises UserError if its checkpoint is damaged or foreign."""
    config, name = config_of(client, run), f"{run.info.run_name} ({run.info.run_id})"
    network = make_network(config, len(load_confusion(client, run)[0]))
    with downloaded(client, run, "checkpoints/last.ckpt") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:  # zip, pickle and torch raise many kinds
            raise UserError(f"the checkpoint of {name} is damaged ({first_line(error)})") from None
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"the checkpoint of {name} does not fit the network: it was written by other code") from None
    if weights_digest(network) != run.data.tags.get("weights_digest"):
        raise UserError(f"the weights in the checkpoint of {name} are not those that the run logged")
    return Predictor(network, config.data.sides[-1]).eval()
