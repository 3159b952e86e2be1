"""Tables, plots and the page of a score report."""

import math
import random
from html.parser import HTMLParser

import pytest

from engine.evaluation import class_table, coco_metrics, describe_confusion, draw_curves, draw_matrix, render_scores
from engine.evaluation.score_plots import matrix_for_display, shown_classes
from engine.evaluation.score_report import score_report


def evaluated(classes: int, images: int = 12, *, name: str = "class"):
    """Every class has objects, most of which are found, and false alarms; the last image has no objects."""
    draw = random.Random(classes)
    truth = {
        "images": [{"id": index, "width": 200, "height": 200} for index in range(1, images + 1)],
        "categories": [{"id": index, "name": f"{name} {index}"} for index in range(1, classes + 1)],
        "annotations": [],
    }
    results = []
    for index in range(4 * classes):
        box = [draw.uniform(0, 100), draw.uniform(0, 100), 40.0, 40.0]
        entry = {"image_id": index % (images - 1) + 1, "category_id": index % classes + 1, "bbox": box}
        truth["annotations"].append(entry | {"id": index + 1, "area": 1600.0, "iscrowd": 0})
        found = entry if index % 5 else entry | {"category_id": (index + 1) % classes + 1}
        results.append(found | {"score": draw.uniform(0.3, 1)})
        results.append(entry | {"image_id": images, "score": draw.uniform(0, 0.6)})
    return score_report(truth, results), coco_metrics(truth, results)


def test_a_table_of_the_first_classes():
    report, metrics = evaluated(7)
    lines = class_table(metrics | report.metrics, 3).splitlines()
    assert lines[0].split() == ["class", "objects", "AP", "best", "threshold", "precision", "recall", "F1"]
    assert [line.split()[:2] for line in lines[2:5]] == [["class", "1"], ["class", "2"], ["class", "3"]]
    assert lines[5].split()[:3] == ["all", "classes", "28"]
    assert "... and 4 more classes" in lines[6]
    best = report.metrics["per_class_score_threshold"]["class 1"]
    assert f" {best:.3f}? " in lines[2], "4 objects are few"
    assert "fewer than 30 objects here (7 classes)" in lines[-1]


def test_errors_in_words():
    report, _ = evaluated(7)
    text = describe_confusion(report.confusion)
    correct, wrong = report.confusion.matrix.diagonal().sum(), report.confusion.largest()
    assert f"{correct} of 28 detected, {sum(count for *_, count in wrong)} detected as another class" in text
    assert f"most frequent confusions: {wrong[0][0]} as {wrong[0][1]} {wrong[0][2]}, " in text
    per_image = report.confusion.metrics()["empty_detections_per_image"]
    assert f"images without objects: 1, of which 100.0 % have a detection; {per_image:.2f} detections for" in text


class Cells(HTMLParser):
    """Texts of the cells of the confusion matrix, and addresses of everything that a page loads."""

    def __init__(self):
        super().__init__()
        self.rows, self.inside, self.loaded = [], False, []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.loaded += [value for key, value in attributes.items() if key in ("src", "href") and value[:1] != "#"]
        self.inside |= attributes.get("class") == "matrix"
        if self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside &= tag != "table"

    def handle_data(self, data):
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.mark.parametrize("classes", [2, 80])
def test_the_page_has_the_matrix_and_loads_nothing(classes):
    name = "<b>\x1b&"
    report, metrics = evaluated(classes, name=name)
    html = render_scores(report, metrics, title="runs/<x>", about="12 images.")
    page = Cells()
    page.feed(html)
    assert page.loaded == ["data:,"]
    assert "<b>" not in html
    matrix = report.confusion.matrix
    assert len(page.rows) == 1 + classes + 3
    for index, row in enumerate(page.rows[1 : classes + 1]):
        counts = [*matrix[index].tolist(), report.confusion.missed[index]]
        assert row[0] == f"<b>\\x1b& {index + 1}"
        assert [int(text or 0) for text in row[1:]] == counts
    assert [int(text or 0) for text in page.rows[-1][1:-1]] == report.confusion.false_alarms.tolist()
    assert len(shown_classes(report)) == min(classes, 24)


def test_a_matrix_keeps_the_classes_with_the_most_errors():
    report, _ = evaluated(30)
    matrix = matrix_for_display(report.confusion, most=10)
    assert matrix.left_out == 20
    assert matrix.counts.shape == (13, 11)
    kept = [int(name.split()[1]) - 1 for name in matrix.rows[:10]]
    found = report.confusion
    errors = found.false_alarms + found.missed + found.duplicates + found.badly_placed
    errors = errors + found.matrix.sum(0) + found.matrix.sum(1) - 2 * found.matrix.diagonal()
    left_out = set(range(30)) - {*kept}
    assert min(errors[kept]) >= max(errors[[*left_out]])
    assert (matrix.counts[:10, :10] == report.confusion.matrix[kept][:, kept]).all()


@pytest.mark.parametrize("classes", [1, 80])
def test_images_for_tensorboard(classes):
    report, _ = evaluated(classes, name="$x_")
    for image in (draw_curves(report), draw_matrix(report.confusion)):
        assert image.shape[0] == 3
        assert 200 < min(image.shape[1:]) < max(image.shape[1:]) < 3000
        assert image.float().std() > 1


def test_plots_without_objects():
    truth = {"images": [{"id": 1, "width": 9, "height": 9}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    report = score_report(truth, [])
    assert math.isnan(report.metrics["score_threshold"])
    render_scores(report, coco_metrics(truth, []), title="a", about="b")
    draw_curves(report)
    draw_matrix(report.confusion)
