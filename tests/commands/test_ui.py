"""MLflow's UI on real runs, in a browser."""

import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(browser):
    return browser.new_page(viewport={"width": 1600, "height": 1000})


@pytest.fixture(scope="module")
def ui(tracked):
    """The output of `cifar_lab ui`, which runs on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tracked.folder / "ui.log"
    command = [sys.executable, "-m", "cifar_lab", "ui", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=tracked.folder, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    yield log.read_text()
    process.terminate()
    process.wait(30)


def test_leaderboard_shows_the_runs_with_their_accuracies(tracked, ui, page, tmp_path_factory):
    address = re.search(r"digits leaderboard: (\S+)", ui).group(1)
    page.goto(address)
    runs = sorted(tracked.runs("tags.kind = 'run'"), key=lambda run: -run.data.metrics["val/acc"])
    page.get_by_text(runs[-1].info.run_name).first.wait_for(timeout=60_000)
    page.get_by_text("val/acc").first.wait_for()
    text = page.inner_text("body")
    page.screenshot(path=tmp_path_factory.getbasetemp() / "leaderboard.png")
    for run in runs:
        assert run.info.run_name in text
        for name in ("val/acc", "test/acc"):
            assert name in text
            assert str(run.data.metrics[name])[:5] in text
    shown = sorted(runs, key=lambda run: text.index(run.info.run_name))
    accuracies = [run.data.metrics["val/acc"] for run in shown]
    assert accuracies == sorted(accuracies, reverse=True)


def test_ui_answers_on_127_0_0_1_alone(ui):
    port = int(re.search(r"http://127.0.0.1:(\d+)", ui).group(1))
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError, match=r"refused|unreachable|timed out|assign"):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_heatmaps_of_the_epochs_are_seen_at_the_first_look_at_a_run(tracked, ui, page, tmp_path_factory):
    (best,) = tracked.runs("tags.best = 'true'")
    server = re.search(r"http://127.0.0.1:\d+", ui).group()
    page.goto(f"{server}/#/experiments/{tracked.experiment_id}/runs/{best.info.run_id}?workflowType=machine_learning")
    for picture, width in (("val_epochs.png", 800), ("test.png", 800)):
        image = page.locator(f"img[src*='confusion%2F{picture}']")
        image.wait_for(timeout=60_000)
        page.wait_for_function("element => element.complete", arg=image.element_handle())
        assert image.evaluate("element => element.naturalWidth") == width
    page.screenshot(path=tmp_path_factory.getbasetemp() / "overview.png")


def test_confusion_heatmap_is_shown_with_the_run(tracked, ui, page, tmp_path_factory):
    (best,) = tracked.runs("tags.best = 'true'")
    server = re.search(r"http://127.0.0.1:\d+", ui).group()
    page.goto(f"{server}/#/experiments/{tracked.experiment_id}/runs/{best.info.run_id}/artifacts/confusion/test.png")
    image = page.locator("img[src^='blob:'], img[src*='test.png']").first
    image.wait_for(timeout=60_000)
    page.screenshot(path=tmp_path_factory.getbasetemp() / "heatmap.png")
    shown = image.evaluate("async element => [...new Uint8Array(await (await fetch(element.src)).arrayBuffer())]")
    assert bytes(shown) == Path(tracked.client.download_artifacts(best.info.run_id, "confusion/test.png")).read_bytes()
