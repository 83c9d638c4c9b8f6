"""Results of experiments to paste elsewhere: as CSV, Markdown and LaTeX."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import groupby

from cifar_lab.analysis.tables import SUMMARY_HEADER, interval, markdown_table, number
from cifar_lab.errors import printable

ACCURACY = "test/acc"
HEADER = (*SUMMARY_HEADER, "validation", "epochs", "seconds per run", "config hash")
INTERVALS = "95 % intervals: for another seed on these images (Student's t), and for another seed on other such images"
ESCAPED = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row, LaTeX would take it for an option
    "]": "{]}",
}


@dataclass(frozen=True)
class Result:
    """The test accuracy of one experiment over n seeds, from 0 to 1; what can't be told is nan.

    ci: 95 % interval of the mean over seeds; images_ci: over seeds and images; val: mean validation accuracy; seconds:
    of training, mean of the runs. Only results with equal dataset, data_digest and split_digest can be compared.
    """

    experiment: str
    dataset: str
    n: int
    mean: float
    std: float
    ci_low: float
    ci_high: float
    images_ci_low: float
    images_ci_high: float
    ensemble: float
    val: float
    epochs: str
    seconds: float
    config_hash: str
    data_digest: str
    split_digest: str

    @property
    def images(self) -> tuple[str, str, str]:
        """What has to be equal for results to be compared."""
        return self.dataset, self.data_digest, self.split_digest


def ranked(results: Sequence[Result]) -> list[Result]:
    """Results on the same images and split one after another, the highest mean first."""
    return sorted(results, key=lambda result: (*result.images, -result.mean, result.experiment, result.config_hash))


def as_csv(results: Sequence[Result]) -> str:
    """A header with the names of the fields, and a row per result, numbers in full; nan is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Result))
    for result in ranked(results):
        writer.writerow(map(_raw, astuple(result)))
    return text.getvalue()


def as_markdown(results: Sequence[Result]) -> str:
    """A heading and a table for each data set and split, accuracies in percent."""
    parts = ["# Results"]
    for group in _groups(results):
        dataset, images, split = group[0].images
        parts.append(f"## {_code(dataset)}\n\nTest accuracy in percent; images {images}, split {split}.")
        rows = [[_code(result.experiment), *_cells(result)] for result in group]
        parts.append(markdown_table(HEADER, rows))
    return "\n\n".join([*parts, f"{INTERVALS}.\n"])


def as_latex(results: Sequence[Result]) -> str:
    r"""A table for each data set and split, accuracies in percent; it needs \usepackage{booktabs}."""
    return "% \\usepackage{booktabs}\n" + "".join(map(_latex_table, _groups(results)))


def _latex_table(group: Sequence[Result]) -> str:
    dataset, images, split = map(escape, group[0].images)
    where = rf"{dataset} (images \texttt{{{images}}}, split \texttt{{{split}}})"
    rows = "".join(_latex_row([result.experiment, *_cells(result)]) for result in group)
    return (
        "\\begin{table}\n  \\centering\n"
        f"  \\caption{{Test accuracy in percent on {where}. {escape(INTERVALS)}.}}\n"
        f"  \\begin{{tabular}}{{l{'r' * (len(HEADER) - 2)}l}}\n    \\toprule\n"
        f"{_latex_row(HEADER)}    \\midrule\n{rows}"
        "    \\bottomrule\n  \\end{tabular}\n\\end{table}\n"
    )


def _latex_row(cells: Sequence[str]) -> str:
    return f"    {' & '.join('--' if cell == '-' else escape(cell) for cell in cells)} \\\\\n"


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(ESCAPED.get(character, character) for character in printable(text))


def _groups(results: Sequence[Result]) -> Iterator[list[Result]]:
    for _, group in groupby(ranked(results), key=lambda result: result.images):
        yield list(group)


def _cells(result: Result) -> list[str]:
    """Cells under HEADER, without the name."""
    accuracies = result.mean, result.std, result.ci_low, result.ci_high, result.images_ci_low, result.images_ci_high
    mean, std, *bounds = (number(ACCURACY, value) for value in accuracies)
    intervals = interval(*bounds[:2]), interval(*bounds[2:])
    ensemble, val = (number(ACCURACY, value) for value in (result.ensemble, result.val))
    seconds = "-" if math.isnan(result.seconds) else f"{result.seconds:.1f}"
    return [str(result.n), mean, std, *intervals, ensemble, val, result.epochs, seconds, result.config_hash]


def _raw(value: object) -> object:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _code(text: str) -> str:
    """Text as it is, in the cell of a table."""
    text = printable(text).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"
