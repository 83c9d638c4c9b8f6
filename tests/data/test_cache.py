import errno
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from conftest import EXPERIMENTS
from packing import leftovers
from PIL import Image

from cifar_lab.__main__ import main
from cifar_lab.data.cache import find_cached, load_dataset, open_dataset
from cifar_lab.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("workplace")


def test_cache_opens_at_once_without_decoding(image_folder, monkeypatch):
    first, _ = load_dataset("auto", image_folder)
    monkeypatch.setattr(Image, "open", None)
    again, _ = load_dataset("auto", image_folder)
    assert again.digest == open_dataset(first.folder).digest == first.digest


def test_a_damaged_cache_is_made_anew(image_folder, capsys):
    dataset, _ = load_dataset("auto", image_folder)
    file = dataset.folder / "images_train.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"are damaged \(their digest is another one\); start again"):
        open_dataset(dataset.folder)
    assert find_cached(dataset.digest) is None
    again, _ = load_dataset("auto", image_folder)
    assert f"the decoded images in {dataset.folder} are damaged; decoding them anew" in capsys.readouterr().err
    assert again.digest == dataset.digest
    assert (again.images["train"] == dataset.images["train"]).all()
    (dataset.folder / "meta.json").write_text("{")
    assert load_dataset("auto", image_folder)[0].digest == dataset.digest
    shutil.rmtree(dataset.folder)
    with pytest.raises(DataError, match="are gone; start again to decode them anew"):
        open_dataset(dataset.folder)


def test_what_happens_to_the_cache_later_changes_no_image(image_folder):
    dataset, _ = load_dataset("auto", image_folder)
    before = dataset.images["train"].copy()
    with (dataset.folder / "images_train.npy").open("r+b") as file:
        file.truncate(1000)
    assert (dataset.images["train"] == before).all()


def load_digest(place, digests):
    digests.put(load_dataset("auto", place)[0].digest)


def test_two_processes_may_start_at_once(image_folder, workplace):
    context = multiprocessing.get_context("fork")
    digests = context.Queue()
    processes = [context.Process(target=load_digest, args=(image_folder, digests)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {digests.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert len(list(workplace.glob("data/cache/*"))) == 1
    assert not leftovers(workplace)


def test_full_disk_leaves_nothing_behind(image_folder, workplace, monkeypatch):
    def full(path, array):
        path.write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"cannot write data/cache/.*: No space left"):
        load_dataset("auto", image_folder)
    assert not list(workplace.glob("data/cache/*"))
    assert not leftovers(workplace)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user without permission")
def test_missing_permission_costs_one_line_that_names_the_path(workplace, capsys):
    workplace.chmod(0o755)
    os.seteuid(65534)
    try:
        code = main(["experiment", str(EXPERIMENTS / "linear.toml"), "--data", "digits"])
    finally:
        os.seteuid(0)
    assert (code, capsys.readouterr().err) == (1, "cifar_lab: data: Permission denied\n")
