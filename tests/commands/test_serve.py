"""The champion behind MLflow's model server."""

import gzip
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import REPOSITORY, Driver

from cifar_lab.data.cache import open_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tracked):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = Driver(tracked.folder, "serve", "--port", str(port))
    address = f"http://127.0.0.1:{port}"
    driver.wait("/invocations")
    assert f"probabilities of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9: {address}/invocations" in driver.output()
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/ping")
            break
        except OSError:
            assert driver.process.is_alive(), driver.output()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield address
    other = Driver(tracked.folder, "serve", "--port", str(port))
    assert other.wait() == 1
    assert f"port {port} is in use; give another, such as make serve PORT={port + 1}" in other.output()
    driver.process.terminate()
    assert driver.wait() == 0
    assert "Traceback" not in driver.output()


def post(address, body, kind="application/json", **headers):
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_images_get_probabilities(tracked, address):
    dataset = open_dataset(next(tracked.folder.glob("data/cache/*")))
    status, text = post(address, json.dumps({"inputs": dataset.images["test"][:50].tolist()}).encode())
    assert status == 200
    probabilities = np.array(json.loads(text)["predictions"])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == dataset.labels["test"][:50]).mean() > 0.5


def test_the_guide_s_question_is_answered(tracked, address):
    lines = (REPOSITORY / "docs/guide.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    python3 -c"))
    command = "\n".join(lines[start : start + 2]).replace("http://127.0.0.1:5001", address)
    answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    blue = np.full((1, 32, 32, 3), (90, 140, 200)).tolist()
    assert json.loads(answer) == json.loads(post(address, json.dumps({"inputs": blue}).encode())[1])
    assert len(json.loads(answer)["predictions"][0]) == 10


def test_other_habits_are_understood(tracked, address):
    images = open_dataset(next(tracked.folder.glob("data/cache/*"))).images["test"][:3]
    plain = post(address, json.dumps({"inputs": images.tolist()}).encode())
    assert plain[0] == 200
    assert post(address, json.dumps({"instances": images.tolist()}).encode()) == plain  # TensorFlow's
    assert post(address, json.dumps({"inputs": images.astype(float).tolist()}).encode()) == plain
    packed = gzip.compress(json.dumps({"inputs": images.tolist()}).encode())
    assert post(address, packed, **{"Content-Encoding": "gzip"}) == plain


IMAGE = np.zeros((1, 32, 32, 3), int)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"inputs": IMAGE[0].tolist()}, "has the shape (32, 32, 3)"),
        ({"inputs": IMAGE[:, :16].tolist()}, "has the shape (1, 16, 32, 3)"),
        ({"inputs": []}, "has the shape (0,)"),
        ({"inputs": [[1, 2], [3]]}, "has rows of different lengths"),
        ({"inputs": ((IMAGE + 1) / 255).tolist()}, "has other values than whole numbers (float64)"),
        ({"inputs": (IMAGE + 256).tolist()}, "has values from 256 to 256"),
        ({"inputs": (IMAGE - 1).tolist()}, "has values from -1 to -1"),
        ({"inputs": (IMAGE + np.nan).tolist()}, "has other values than whole numbers"),
        ({"inputs": "cat"}, "has the shape ()"),
        ({"inputs": [[[[[1]]]]] * 2}, "has the shape (2, 1, 1, 1, 1)"),
        ({"inputs": [10**30]}, "has the shape (1,)"),
        ({"input": IMAGE.tolist()}, '"inputs" is missing'),
        ([1], '"inputs" is missing'),
        ("cat", '"inputs" is missing'),
    ],
)
def test_anything_else_gets_400_and_the_reason(address, request_, complaint):
    status, text = post(address, json.dumps(request_).encode())
    assert status == 400
    assert complaint in json.loads(text)["message"]
    assert "images of shape (n, 32, 32, 3)" in json.loads(text)["message"]


def test_what_is_no_json_is_refused(address):
    assert post(address, b"cat")[0] == 400
    deep = b'{"inputs": ' + 5000 * b"[" + 5000 * b"]" + b"}"
    assert post(address, deep)[0] == 400
    assert post(address, b"cat", **{"Content-Encoding": "gzip"})[0] == 400
    assert post(address, b"cat", "image/jpeg")[0] == 415
