"""The report: its content, and its look in a browser."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import Driver, experiment_arguments
from mlflow.tracking import MlflowClient
from PIL import Image

from cifar_lab.analysis.comparison import summarise
from cifar_lab.data.cache import open_dataset
from cifar_lab.tracking.load import network_of

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tracked):
    driver = Driver(tracked.folder, "report", "linear", "cnn", "--output", "page.html")
    assert driver.wait() == 0, driver.output()
    assert re.search(r"written to page.html \(\d.\d MB\), and logged with linear, cnn\n", driver.output())
    return (tracked.folder / "page.html").read_text()


def test_page_says_what_was_measured(tracked, page):
    text = re.sub(r"\s+", " ", Page(page).text)
    children = tracked.runs("tags.kind = 'run'")
    best = max(children, key=lambda run: (run.data.metrics["val/acc"], -run.data.metrics["val/loss"]))
    val, test = (best.data.metrics[f"{stage}/acc"] for stage in ("val", "test"))
    assert f"{best.info.run_name}, chosen among 4 by its validation accuracy of {val:.2%}" in text
    assert f"Its test accuracy, not used to choose, is {test:.2%}" in text
    for name in ("linear", "cnn"):
        values = [run.data.metrics["test/acc"] for run in children if run.data.tags["experiment"] == name]
        assert str(summarise(values)) in text
    assert "n is too small for p < 0.05" in text
    assert f"make reproduce RUN={best.info.run_id}" in text
    assert 'make experiment EXPERIMENTS="linear cnn" SEEDS=2' in text
    for tag in ("device", "torch", "code_digest", "data_digest"):
        assert best.data.tags[tag] in text
    assert "learning_rate = 0.01" in text
    assert "scikit-learn digits" in text


def test_page_needs_no_other_file_and_every_image_says_what_it_shows(page):
    elements = Page(page).elements
    images = [attributes for tag, attributes in elements if tag == "img"]
    assert len(images) > 10
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 10 for image in images)
    assert not [tag for tag, attributes in elements if tag in ("script", "link") or "http" in str(attributes)]
    assert ("html", {"lang": "en"}) in elements
    assert all("scope" in attributes for tag, attributes in elements if tag == "th")


def test_examples_are_errors_of_the_run(tracked, page):
    dataset = open_dataset(next(tracked.folder.glob("data/cache/*")))
    (best,) = tracked.runs("tags.best = 'true'")
    network = network_of(tracked.client, best)
    predicted = network(torch.from_numpy(dataset.images["test"])).argmax(dim=1)
    found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="(\d) taken for (\d)"', page)
    assert len(found) > 6
    for picture, true, wrong in found:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        same = np.flatnonzero((dataset.images["test"] == pixels).all(axis=(1, 2, 3)))
        shown = {(dataset.classes[dataset.labels["test"][i]], dataset.classes[predicted[i]]) for i in same}
        assert (true, wrong) in shown
        assert true != wrong


def test_page_is_tracked_with_both_parents(tracked, page):
    for parent in tracked.runs("tags.kind = 'repeats'"):
        path = tracked.client.download_artifacts(parent.info.run_id, "report.html")
        with open(path) as file:
            assert file.read() == page


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_page_fits_screen_and_phone(tracked, page, browser, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.goto((tracked.folder / "page.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    tables = "[...document.querySelectorAll('.wide:has(.stack)')]"
    assert tab.evaluate(f"{tables}.length") == 2
    assert tab.evaluate(f"{tables}.every(table => table.scrollWidth <= table.clientWidth)")
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    colours = tab.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink < paper) == (scheme == "light")
    assert abs(ink - paper) > 500


def test_without_held_out_images_no_run_is_called_the_best(unused):
    cnn = experiment_arguments("--seeds", "1", "--epochs", "1", "--set", "data.val_size=0")[1:2]
    driver = Driver(unused, "experiment", *cnn, "--data", "digits", "--seeds", "1", "--set", "data.val_size=0")
    assert driver.wait() == 0, driver.output()
    driver = Driver(unused, "report", "linear")
    assert driver.wait() == 0, driver.output()
    text = re.sub(r"\s+", " ", Page((unused / "report.html").read_text()).text)
    assert "No images were held out, so no run can be chosen as the best one" in text
    assert "linear-seed0" in text
    client = MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id], "tags.kind = 'run'")
    assert f"test accuracy {run.data.metrics['test/acc']:.2%}" in text


def test_mistakes_cost_one_line(tracked):
    for arguments, code, message in (
        (("report", "lineer"), 1, "lineer: no finished runs with that name"),
        (("report", "linear", "linear"), 2, "two of linear, linear name the same runs"),
        (("report", "linear", "--output", "x.pdf"), 2, "'x.pdf' does not end in .html"),
    ):
        driver = Driver(tracked.folder, *arguments)
        assert driver.wait() == code
        assert driver.output().count("\n") == 1
        assert message in driver.output()
