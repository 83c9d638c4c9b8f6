"""Texts and arrays as artifacts of runs, logged with their digests, which are verified when they are read back."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException

from cifar_lab.errors import UserError
from cifar_lab.files import file_digest
from cifar_lab.tracking.places import is_local
from cifar_lab.tracking.store import explain

NETWORK = "network.py"  # artifact: the file of a network that is not of this package
DIGESTS = "digests"  # tag: JSON with the digest of each text by path


def log_texts(client: MlflowClient, run_id: str, texts: Mapping[str, str]) -> None:
    """Log texts, given by their artifact paths."""
    digests = _digests(client.get_run(run_id))
    for path, text in texts.items():
        client.log_text(run_id, text, path)
        digests[path] = digest_of(text)
    client.set_tag(run_id, DIGESTS, json.dumps(digests))


def log_arrays(client: MlflowClient, run_id: str, path: str, **arrays: np.ndarray) -> None:
    """Log arrays in one .npz file."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / Path(path).name
        np.savez_compressed(file, allow_pickle=False, **arrays)
        client.log_artifact(run_id, str(file), str(Path(path).parent))
        digests = _digests(client.get_run(run_id)) | {path: file_digest(file)[:16]}
    client.set_tag(run_id, DIGESTS, json.dumps(digests))


def load_arrays(client: MlflowClient, run: Run, path: str) -> dict[str, np.ndarray]:
    """Arrays that log_arrays logged. Raises UserError if they are missing or damaged."""
    with downloaded(client, run, path) as file:
        if _digests(run).get(path, "") != file_digest(file)[:16]:
            raise UserError(f"the artifact {path} of {run.info.run_name} ({run.info.run_id}) is damaged")
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def text_digest(run: Run, path: str) -> str:
    """The digest of a text or of arrays that were logged; "" if there are none of that path."""
    return _digests(run).get(path, "")


def load_text(client: MlflowClient, run: Run, path: str) -> str:
    """A text that log_texts logged. Raises UserError if it is missing or damaged."""
    with downloaded(client, run, path) as file:
        text = file.read_bytes().decode(errors="replace")
    if _digests(run).get(path, digest_of(text)) != digest_of(text):
        raise UserError(f"the artifact {path} of {run.info.run_name} ({run.info.run_id}) is damaged")
    return text


@contextmanager
def downloaded(client: MlflowClient, run: Run, path: str) -> Iterator[Path]:
    """A temporary local copy of an artifact. Raises UserError if it can't be downloaded."""
    with TemporaryDirectory() as folder:
        try:
            file = Path(client.download_artifacts(run.info.run_id, path, folder))
        except (MlflowException, OSError, RequestException) as error:
            absent = isinstance(error, MlflowException) and is_local()
            reason = f": {reason}" if not absent and (reason := explain(error)) else " is missing"
            raise UserError(f"the artifact {path} of {run.info.run_name} ({run.info.run_id}){reason}") from None
        yield file


def _digests(run: Run) -> dict[str, str]:
    try:
        return dict(json.loads(run.data.tags.get(DIGESTS, "{}")))
    except (ValueError, TypeError):  # the tag was edited
        return {}


def digest_of(text: str) -> str:
    """16 hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
