"""Config, images and network of a tracked run."""

import re
import tomllib
from pathlib import Path

import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.config import Config, parse_config
from cifar_lab.data.cache import Dataset, find_cached, load_dataset
from cifar_lab.data.catalogue import ENTRIES
from cifar_lab.data.selection import select
from cifar_lab.errors import UsageError, UserError, first_line
from cifar_lab.network_files import FOLDER, find_source
from cifar_lab.networks.build import Predictor, make_network
from cifar_lab.sections import DataConfig
from cifar_lab.tracking import store
from cifar_lab.tracking.artifacts import NETWORK, digest_of, downloaded, load_text, text_digest
from cifar_lab.tracking.places import is_local
from cifar_lab.tracking.summaries import load_confusion
from cifar_lab.training.checkpoints import weights_digest


class NotTrusted(UserError):
    """A network file from a server that nobody has said may be executed."""


def config_of(client: MlflowClient, run: Run, trust: bool = False) -> Config:
    """The tracked config of a run.

    The file of a network that is not of this package is executed. That of this folder is taken if it is the same, else
    the run's own. Raises NotTrusted if the latter is on a server, unless `trust` is true.
    """
    source, digest = "", text_digest(run, NETWORK)
    text, name = load_text(client, run, "config.toml"), f"{run.info.run_name} ({run.info.run_id})"
    if digest:
        kind = tomllib.loads(text)["model"]["kind"]
        source = _local(kind)
        if digest_of(source) != digest:
            if not (trust or is_local()):
                raise NotTrusted(
                    f"{name} has its own network file, which is not the {FOLDER}/{kind}.py here: read its artifact "
                    f"{NETWORK}, and give --trust to execute it (in Python trust=True)"
                )
            source = load_text(client, run, NETWORK)
    return parse_config(text, f"config.toml of {name}", source=source)


def _local(kind: str) -> str:
    try:
        return find_source(kind)
    except UsageError:
        return ""


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
    settings = tomllib.loads(load_text(client, run, "config.toml"))
    return select(dataset, DataConfig.model_validate(settings["data"]))


def network_of(client: MlflowClient, run: Run, trust: bool = False) -> Predictor:
    """The trained network of a finished run, on the CPU. Raises UserError if its checkpoint is damaged or foreign.

    trust: see config_of.
    """
    config, name = config_of(client, run, trust), f"{run.info.run_name} ({run.info.run_id})"
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
