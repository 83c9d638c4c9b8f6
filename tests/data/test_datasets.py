import errno
import functools
import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import EXPERIMENTS, write_images
from PIL import Image
from torchvision import datasets

from cifar_lab.__main__ import main
from cifar_lab.commands.predict import read_image
from cifar_lab.config import DataConfig
from cifar_lab.data import imagefiles, official
from cifar_lab.data.cache import find_cached, load_dataset, open_dataset
from cifar_lab.data.catalogue import CIFAR10, CIFAR100
from cifar_lab.data.selection import select
from cifar_lab.errors import DataError, UsageError, UserError

pytestmark = pytest.mark.usefixtures("workplace")


def pack(folder, archive):
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*.*")):
                file.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder, folder.name)
    return archive


def leftovers(workplace):
    """Everything under data/ but the lock and finished caches."""
    return [str(path) for path in workplace.glob("data/**/*") if path.name.startswith(".") and path.name != ".lock"]


# --- image files ---


@pytest.mark.parametrize("name", ["images", "cifar10.tar.gz", "CIFAR-10_images.zip"])
def test_image_files_read_the_same_from_folder_and_archives(image_folder, tmp_path, name):
    place = image_folder if name == "images" else pack(image_folder, tmp_path / name)
    dataset, fallback_reason = load_dataset("cifar10", place)
    assert (dataset.name, dataset.title, dataset.classes, fallback_reason) == (
        "cifar10-png",
        "CIFAR-10 (PNG copy)",
        CIFAR10.classes,
        "",
    )
    assert dataset.images["train"].shape == (120, 32, 32, 3)
    assert dataset.labels["test"].tolist() == sorted([*range(10)] * 4)
    for split, label, index in (("train", 3, 5), ("test", 9, 2)):
        file = image_folder / split / CIFAR10.classes[label] / f"{index:04}.png"
        per_class = len(dataset.labels[split]) // 10
        np.testing.assert_array_equal(dataset.images[split][label * per_class + index], np.asarray(Image.open(file)))
    pixels = dataset.images["train"] / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 1, 2)))


def test_digest_is_of_the_images_not_of_their_packing(image_folder, tmp_path):
    folder, _ = load_dataset("auto", image_folder)
    archive, _ = load_dataset("auto", pack(image_folder, tmp_path / "cifar10.zip"))
    assert folder.digest == archive.digest
    assert folder.folder != archive.folder
    (image_folder / "test" / "cat" / "0000.png").unlink()
    changed, _ = load_dataset("auto", image_folder)
    assert changed.digest != folder.digest


def test_jpeg_files_are_named_as_the_copy_they_are(tmp_path):
    dataset, _ = load_dataset("auto", write_images(tmp_path / "x", (1, 1), "jpg"))
    assert (dataset.name, dataset.title) == ("cifar10-jpeg", "CIFAR-10 (JPEG copy)")


def test_what_a_file_is_says_its_content_not_its_name(image_folder):
    file = image_folder / "test" / "dog" / "0001.png"
    Image.open(file).save(file, "JPEG")
    assert load_dataset("auto", image_folder)[0].name == "cifar10-jpeg"


LEFT = np.zeros((32, 32), np.uint8)
LEFT[:, :16] = 200
ODD = {
    "grey16.png": (Image.fromarray(LEFT.astype(np.uint16) * 257), 200),
    "palette.gif": (Image.fromarray(LEFT).convert("P"), 200),
    "transparent.png": (Image.fromarray(np.stack([LEFT] * 3 + [np.zeros_like(LEFT)], -1)), 255),
    "cmyk.jpg": (Image.fromarray(np.stack([LEFT] * 3, -1)).convert("CMYK"), 200),
    "upper.PNG": (Image.fromarray(LEFT), 200),
    "photo.webp": (Image.fromarray(np.stack([LEFT] * 3, -1)), 200),
}


def test_training_and_predict_read_a_file_alike(image_folder):
    folder = image_folder / "train" / "cat"
    shutil.rmtree(folder)
    folder.mkdir()
    for name, (image, _) in ODD.items():
        image.save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 3  # by 180 degrees
    Image.fromarray(LEFT).save(folder / "zz.png", exif=turned)
    dataset, _ = load_dataset("auto", image_folder)
    images = dataset.images["train"][dataset.labels["train"] == 3]
    files = sorted(folder.iterdir())
    assert len(images) == len(files) == len(ODD) + 1
    for file, pixels in zip(files, images, strict=True):
        np.testing.assert_array_equal(pixels, read_image(file))
        left = ODD[file.name][1] if file.name in ODD else 0  # the turned one
        assert pixels[16, 4].tolist() == pytest.approx([left] * 3, abs=4), file


def test_what_is_left_out_is_counted_and_named(image_folder, capsys):
    whole, _ = load_dataset("auto", image_folder)
    capsys.readouterr()
    (image_folder / "train" / "cat" / "more").mkdir()
    shutil.copy(image_folder / "train" / "cat" / "0000.png", image_folder / "train" / "cat" / "more" / "0000.png")
    (image_folder / "train" / "dog" / "notes.txt").write_text("x")
    (image_folder / "train" / "dog" / "gone.png").symlink_to("nowhere")
    os.mkfifo(image_folder / "train" / "dog" / "pipe.png")
    for litter in (".DS_Store", "Thumbs.db"):
        (image_folder / "test" / "dog" / litter).write_text("x")
    again, _ = load_dataset("auto", image_folder)
    assert again.digest == whole.digest
    told = f"{image_folder}: 4 files are no image <split>/<class>/<name>, and left out: train/cat/more/0000.png, "
    assert told + "train/dog/gone.png, train/dog/notes.txt, ...\n" in capsys.readouterr().err


def test_members_that_an_archive_has_twice_count_once(image_folder, tmp_path):
    archive = tmp_path / "cifar10.tar"
    with tarfile.open(archive, "w") as file:
        for _ in range(2):  # as `tar --append` leaves it
            file.add(image_folder, "images")
    assert load_dataset("auto", archive)[0].digest == load_dataset("auto", image_folder)[0].digest


def test_an_archive_with_two_copies_of_the_images_is_refused(image_folder, tmp_path):
    archive = tmp_path / "cifar10.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for root in "cifar10", "cifar10 copy":
            for path in sorted(image_folder.rglob("*.png")):
                file.write(path, f"{root}/{path.relative_to(image_folder)}")
    more = r"has the images more than once: cifar10/test/airplane/0000.png and cifar10 copy/test/airplane/0000.png"
    with pytest.raises(DataError, match=more):
        load_dataset("auto", archive)


def test_a_zip_with_backslashes_is_read(image_folder, tmp_path):
    archive = tmp_path / "cifar10.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(image_folder.rglob("*.png")):
            member = zipfile.ZipInfo("x")
            member.filename = str(path.relative_to(image_folder)).replace("/", "\\")
            file.writestr(member, path.read_bytes())
    assert load_dataset("auto", archive)[0].digest == load_dataset("auto", image_folder)[0].digest


def many_members(archive):
    with tarfile.open(archive, "w") as file:
        for index in range(30):
            file.addfile(tarfile.TarInfo(f"train/cat/{index}.txt"))


def long_header(archive):
    member = tarfile.TarInfo("train/cat/0.png")
    member.pax_headers = {"comment": "x" * 3000}
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(member)


def huge_members(archive):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for index in range(3):
            file.writestr(f"train/cat/{index}.txt", bytes(5000))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (many_members, "cifar10.tar", "has more than 20 files, or 0 GiB"),
        (long_header, "cifar10.tar", r"is truncated, damaged or unreadable \(a header of 3,\d+ bytes\)"),
        (huge_members, "cifar10.zip", "has more than 20 files, or 0 GiB"),
    ],
)
def test_archives_have_limits(tmp_path, monkeypatch, make, name, message):
    for limit, value in {"MOST_MEMBERS": 20, "MOST_HEADER_BYTES": 2000, "MOST_BYTES": 12_000}.items():
        monkeypatch.setattr(imagefiles, limit, value)
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        load_dataset("auto", tmp_path / name)


@pytest.mark.parametrize("name", ["cifar10.tar", "cifar-10-batches-py", "train"])
def test_what_is_no_file_is_not_waited_for(workplace, name, monkeypatch):
    (workplace / "data").mkdir()
    os.mkfifo(workplace / "data" / name)
    (workplace / "data" / "archive.zip").write_text("")
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/")
    with pytest.raises(DataError, match=f"passed over: data/archive.zip, data/{name}; put it there"):
        load_dataset("cifar10")
    with pytest.raises(DataError, match="no CIFAR-10 in"):
        load_dataset("cifar10", workplace / "data" / name)


def test_places_are_searched_in_order(workplace):
    write_images(workplace.parent / "shared" / "data", (1, 1), "jpg")
    assert load_dataset("auto")[0].name == "cifar10-jpeg"
    write_images(workplace / "data" / "any name", (1, 1), "png")
    assert load_dataset("auto")[0].name == "cifar10-png"
    assert load_dataset("auto", workplace.parent / "shared" / "data")[0].name == "cifar10-jpeg"


def test_chosen_classes_are_a_data_set_of_their_own(image_folder):
    whole, _ = load_dataset("auto", image_folder)
    chosen = select(whole, DataConfig(classes=("ship", "cat")))
    assert (chosen.name, chosen.title, chosen.classes, chosen.digest) == (
        "cifar10-png-cat-ship",
        "CIFAR-10 (PNG copy), only cat, ship",
        ("cat", "ship"),
        whole.digest,
    )
    for split in ("train", "test"):
        kept = [np.flatnonzero(whole.labels[split] == label) for label in (3, 8)]
        assert chosen.labels[split].tolist() == [0] * len(kept[0]) + [1] * len(kept[1])
        np.testing.assert_array_equal(chosen.images[split], whole.images[split][np.concatenate(kept)])
    np.testing.assert_allclose(chosen.mean, (chosen.images["train"] / 255).mean(axis=(0, 1, 2)))
    assert select(whole, DataConfig()) is whole
    with pytest.raises(UsageError, match="has no class lion, puma; it has: airplane, automobile, bird"):
        select(whole, DataConfig(classes=("puma", "cat", "lion")))


def test_many_chosen_classes_have_a_short_name_that_tells_them_apart(image_folder):
    whole, _ = load_dataset("auto", image_folder)
    nine = [tuple(name for name in CIFAR10.classes if name != left_out) for left_out in CIFAR10.classes]
    names = {select(whole, DataConfig(classes=classes)).name for classes in nine}
    assert len(names) == 10
    assert all(name.startswith("cifar10-png-9-classes-") and len(name) < 40 for name in names)


def cut_short(folder, archive):
    data = pack(folder, archive).read_bytes()
    archive.write_bytes(data[: len(data) // 2])


def no_archive(folder, archive):
    archive.write_bytes(b"hello" * 100)


def no_class(folder, archive):
    shutil.rmtree(folder / "train" / "cat")


def other_class(folder, archive):
    (folder / "train" / "cat").rename(folder / "train" / "lion")


def no_split(folder, archive):
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()


def wrong_size(folder, archive):
    Image.new("RGB", (28, 28)).save(folder / "test" / "dog" / "0001.png")


def no_image(folder, archive):
    (folder / "test" / "dog" / "0001.png").write_text("not a picture")


def half_image(folder, archive):
    file = folder / "test" / "dog" / "0001.png"
    file.write_bytes(file.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "suffix", "message"),
    [
        (cut_short, "tar.gz", "is truncated, damaged or unreadable"),
        (cut_short, "zip", "is truncated, damaged or unreadable"),
        (no_archive, "tar.gz", "is truncated, damaged or unreadable"),
        (no_archive, "zip", "is truncated, damaged or unreadable"),
        (no_class, None, "train/ has no images of cat"),
        (other_class, None, "train/lion is not a class of CIFAR-10; expected airplane"),
        (no_split, None, "the split test/ has no images"),
        (wrong_size, None, "test/dog/0001.png is 28x28, not 32x32"),
        (no_image, None, "test/dog/0001.png is not a readable image"),
        (half_image, None, "test/dog/0001.png is not a readable image"),
    ],
)
def test_damaged_image_files_are_named_in_one_line(image_folder, workplace, damage, suffix, message):
    place = image_folder if suffix is None else image_folder.parent / f"cifar10.{suffix}"
    damage(image_folder, place)
    with pytest.raises(DataError) as caught:
        load_dataset("auto", place)
    assert message in str(caught.value)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(workplace.glob("data/cache/*"))
    assert not leftovers(workplace)


HOSTILE = [
    ("../../test/dog/0.png", {}),
    ("{outside}/test/dog/0.png", {}),
    ("test/dog/0.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    ("test/dog/0.png", {"type": tarfile.LNKTYPE, "linkname": "../../secret"}),
]


@pytest.mark.parametrize(("name", "kind"), HOSTILE)
@pytest.mark.parametrize("archive", ["cifar10.tar", "cifar10.zip", CIFAR10.archive])
def test_hostile_archives_are_refused_and_write_nothing(workplace, tmp_path, archive, name, kind):
    name = name.format(outside=tmp_path / "harm")
    path = workplace / "given" / archive
    path.parent.mkdir()
    if path.suffix == ".zip":
        member = zipfile.ZipInfo(name)
        member.external_attr = (0o120777 if kind else 0o100644) << 16
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(member, "/etc/passwd")
    else:
        member = tarfile.TarInfo(name)
        member.size = 0 if kind else 4
        for key, value in kind.items():
            setattr(member, key, value)
        with tarfile.open(path, "w") as file:
            file.addfile(member, io.BytesIO(b"harm"))
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", path)
    official_name = archive == CIFAR10.archive
    refusal = "not the official file" if official_name else "is a link or leads out of the archive, which is refused"
    assert refusal in str(caught.value)
    written = [file for file in workplace.rglob("*") if file.is_file() and file.name != ".lock"]
    assert written == [path]
    assert not (tmp_path / "harm").exists()


def test_a_place_without_images_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*: expected cifar-10-python.tar.gz"):
        load_dataset("auto", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("auto", tmp_path / "nowhere")


# --- the original files ---


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def write_official(folder, monkeypatch, reader, train, test, meta):
    """An archive of an official layout; torchvision's `reader` is told to expect its checksums."""
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    monkeypatch.setattr(reader, "train_list", [[name, write(name, content)] for name, content in train.items()])
    monkeypatch.setattr(reader, "test_list", [[name, write(name, content)] for name, content in test.items()])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": write(reader.meta["filename"], meta)})
    archive = pack(folder, folder.parent / reader.filename)
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def noise(n):
    return np.random.default_rng(n).integers(0, 256, (n, 3072), dtype=np.uint8)


@pytest.fixture
def small_official(tmp_path, monkeypatch):
    """CIFAR-10 with 100 + 10 images."""

    def batch(n):
        return {"data": noise(n), "labels": [i % 10 for i in range(n)]}

    train = {f"data_batch_{i}": batch(20) for i in range(1, 6)}
    meta = {"label_names": list(CIFAR10.classes)}
    folder = tmp_path / "source" / CIFAR10.folder
    return write_official(folder, monkeypatch, datasets.CIFAR10, train, {"test_batch": batch(10)}, meta)


@pytest.fixture
def small_official_100(tmp_path, monkeypatch):
    """CIFAR-100 with 200 + 100 images; there fine and coarse labels count the names in alphabetical order."""
    fine, coarse = sorted(CIFAR100.classes), sorted(set(CIFAR100.superclasses))
    superclass = dict(zip(CIFAR100.classes, CIFAR100.superclasses, strict=True))

    def content(n):
        labels = [i % 100 for i in range(n)]
        coarse_labels = [coarse.index(superclass[fine[label]]) for label in labels]
        return {"data": noise(n), "fine_labels": labels, "coarse_labels": coarse_labels}

    meta = {"fine_label_names": fine, "coarse_label_names": coarse}
    folder = tmp_path / "source" / CIFAR100.folder
    return write_official(folder, monkeypatch, datasets.CIFAR100, {"train": content(200)}, {"test": content(100)}, meta)


def serve(folder, monkeypatch, handler=http.server.SimpleHTTPRequestHandler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for reader in datasets.CIFAR10, datasets.CIFAR100:
        address = f"http://127.0.0.1:{server.server_address[1]}/{reader.filename}"
        monkeypatch.setattr(reader, "url", address)


def test_cifar100_is_downloaded_verified_and_labelled_in_the_order_of_its_superclasses(
    small_official_100, workplace, monkeypatch
):
    serve(small_official_100.parent, monkeypatch)
    dataset, fallback_reason = load_dataset("cifar100")
    assert (dataset.name, dataset.title, fallback_reason) == ("cifar100", "CIFAR-100", "")
    assert (workplace / "data" / CIFAR100.archive).read_bytes() == small_official_100.read_bytes()
    content = pickle.loads((small_official_100.parent / CIFAR100.folder / "train").read_bytes())
    np.testing.assert_array_equal(dataset.images["train"][7], content["data"][7].reshape(3, 32, 32).transpose(1, 2, 0))
    named = [dataset.classes[label] for label in dataset.labels["train"]]
    assert named == sorted(CIFAR100.classes) * 2
    assert len(set(dataset.classes)) == 100
    assert list(dataset.superclasses) == sorted(dataset.superclasses, key=dataset.superclasses.index)
    coarse = select(dataset, DataConfig(labels="coarse"))
    assert (coarse.name, coarse.title, len(coarse.classes)) == ("cifar100-coarse", "CIFAR-100, superclasses", 20)
    expected = [sorted(coarse.classes)[label] for label in content["coarse_labels"]]
    assert [coarse.classes[label] for label in coarse.labels["train"]] == expected
    trees = select(dataset, DataConfig(classes=("oak_tree", "girl")))
    assert (trees.classes, trees.superclasses) == (("girl", "oak_tree"), ("people", "trees"))
    monkeypatch.setattr(datasets.CIFAR100, "url", "http://127.0.0.1:1/")
    assert load_dataset("cifar100")[0].digest == dataset.digest


def test_cifar10_and_cifar100_lie_side_by_side(workplace, monkeypatch):
    for entry in CIFAR10, CIFAR100:
        write_images(workplace.parent / entry.name, (1, 1), classes=entry.classes)
    pack(workplace.parent / "cifar100", workplace.parent / "cifar-100.zip")
    (workplace / "data").mkdir()
    (workplace.parent / "cifar-100.zip").rename(workplace / "data" / "cifar-100.zip")
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/")
    assert load_dataset("cifar100")[0].name == "cifar100-png"
    with pytest.raises(DataError, match="CIFAR-10 is not in data/"):
        load_dataset("cifar10")
    (workplace.parent / "cifar10").rename(workplace / "data" / "a")
    (workplace.parent / "cifar100").rename(workplace / "data" / "b")
    for entry in CIFAR10, CIFAR100:
        dataset, _ = load_dataset(entry.name)
        assert (dataset.title, len(dataset.classes)) == (f"{entry.title} (PNG copy)", len(entry.classes))
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*data/b: expected cifar-10-python"):
        load_dataset("cifar10", workplace / "data" / "b")
    with pytest.raises(UsageError, match=r"CIFAR-10 \(PNG copy\) has no superclasses"):
        select(load_dataset("cifar10")[0], DataConfig(labels="coarse"))


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_official_files_read_through_torchvision(small_official, form):
    place = small_official if form == "archive" else small_official.parent / CIFAR10.folder
    dataset, _ = load_dataset("cifar10", place)
    assert (dataset.name, dataset.title) == ("cifar10", "CIFAR-10")
    assert dataset.labels["train"].tolist() == [*range(10)] * 10
    content = pickle.loads((small_official.parent / CIFAR10.folder / "data_batch_1").read_bytes())
    np.testing.assert_array_equal(dataset.images["train"][3], content["data"][3].reshape(3, 32, 32).transpose(1, 2, 0))


def test_download_is_verified_and_kept(small_official, workplace, monkeypatch):
    serve(small_official.parent, monkeypatch)
    assert load_dataset("auto")[0].name == "cifar10"
    assert (workplace / "data" / CIFAR10.archive).read_bytes() == small_official.read_bytes()
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/")
    assert load_dataset("cifar10")[0].name == "cifar10"


def test_download_of_a_wrong_file_is_refused(small_official, workplace, monkeypatch):
    serve(small_official.parent, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(DataError, match=r"the download from 127.0.0.1 is truncated or not the official file"):
        load_dataset("auto")
    assert not (workplace / "data" / CIFAR10.archive).exists()
    assert not leftovers(workplace)


class BreaksOff(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5000000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)


@pytest.mark.parametrize("trouble", ["refused", "no such host", "silent", "breaks off", "not found"])
def test_without_network_digits_stand_in_for_cifar10_where_that_is_allowed(tmp_path, workplace, monkeypatch, trouble):
    monkeypatch.setattr(official, "CONNECT_SECONDS", 0.5)
    silent = socket.create_server(("127.0.0.1", 0))
    urls = {"refused": "127.0.0.1:1", "no such host": "nowhere.invalid"}
    address = urls.get(trouble, f"127.0.0.1:{silent.getsockname()[1]}")
    for reader in datasets.CIFAR10, datasets.CIFAR100:
        monkeypatch.setattr(reader, "url", f"http://{address}/x")
    if trouble in ("breaks off", "not found"):
        serve(tmp_path, monkeypatch, BreaksOff if trouble == "breaks off" else http.server.SimpleHTTPRequestHandler)
    started = time.monotonic()
    for entry in CIFAR10, CIFAR100:
        expected = rf"{entry.title} is not in data/ or ../shared/data/ and .*download.*; put it there or give"
        with pytest.raises(DataError, match=expected):
            load_dataset(entry.name)
    assert time.monotonic() - started < 10
    dataset, fallback_reason = load_dataset("auto")
    assert (dataset.name, len(dataset.labels["train"]), len(dataset.labels["test"])) == ("digits", 1437, 360)
    assert "download" in fallback_reason
    assert not leftovers(workplace)


def test_nothing_unverified_is_unpickled(small_official, workplace):
    folder = small_official.parent / CIFAR10.folder
    (folder / "data_batch_1").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(DataError, match="not the official CIFAR-10: a file is missing or its checksum is wrong"):
        load_dataset("auto", folder)
    small_official.unlink()
    with pytest.raises(DataError, match="is truncated or not the official file"):
        load_dataset("auto", pack(folder, small_official))
    assert not (workplace / "exploited").exists()
    assert not leftovers(workplace)


def test_truncated_official_archive_is_refused(small_official):
    small_official.write_bytes(small_official.read_bytes()[:-100])
    with pytest.raises(DataError, match="is truncated or not the official file"):
        load_dataset("auto", small_official)


# --- the cache ---


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
