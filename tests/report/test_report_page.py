"""The page has what there is to show, says what is missing, and shows text as text."""

import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from hamjepa_jax.errors import StorageError, UserError
from hamjepa_jax.report import drawing
from hamjepa_jax.report.page import write_report

# Files without which a page is made faster.
CURVES = ("metrics.jsonl", "evaluation/metrics.json", "evaluation/diagnostics.json")
SECTIONS = ["configuration", "warnings", "accuracy", "training", "geometry", "views", "neighbours", "maps"]


class Outline(html.parser.HTMLParser):
    """What a page holds: ids, elements with their attributes, and that every element is closed."""

    def __init__(self, document):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(document)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A function from directories of runs to the outline of their report, and its HTML."""

    def make(*directories):
        path = tmp_path_factory.mktemp("report") / "report.html"
        write_report(directories, path)
        document = path.read_text()
        return Outline(document), document

    return make


@pytest.fixture(scope="module")
def whole(make_run, report):
    """The outline and the HTML of the report of a run that has everything."""
    return report(make_run())


def figures(outline):
    return [attributes["aria-label"] for attributes in outline.of("svg") if "aria-label" in attributes]


def test_a_whole_run_has_every_section(whole):
    outline, document = whole
    assert [attributes["id"] for attributes in outline.of("section")] == [*SECTIONS, "predictor"]
    linked = [attributes["href"] for attributes in outline.of("a")]
    assert linked == [f"#{name}" for name in (*SECTIONS, "predictor")]
    assert document.startswith('<!doctype html>\n<html lang="en">')
    for figure in (
        "Nearest neighbours: accuracy against k",
        "Weighted nearest neighbours: accuracy against k",
        "Linear probe: accuracy against the learning rate",
        "Covariance spectrum",
        "Cosines of pairs",
        "Norms",
        "Canonical correlations of q and p",
        "loss against the step",
        "online_knn20 against the step",
        "Change of volume",
        "Symplectic defect",
        "Reversibility",
        "Inverse",
        "Modified energy over a roll-out",
        "Prediction errors",
        "Neighbours kept by the map",
    ):
        assert figures(outline).count(figure) == 1, figure
    assert len(outline.of("figure")) == len(outline.of("figcaption"))
    assert all(attributes.get("alt") for attributes in outline.of("img"))


def test_accuracies_are_in_the_table_with_their_intervals(whole):
    _, document = whole
    cells = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', document)
    row = next(rest for name, rest in cells if name == "q")
    assert row.startswith("<td>90.0<small>88.0–91.0</small></td><td>91.1<small>89.1–92.1</small></td>")
    # The protocol's rate, the best of the sweep, and the few-label probes.
    assert "<td>91.0<small>89.0–92.0</small></td><td>92.0<small>90.0–93.0</small></td>" in row
    assert row.count("<td>80.0<small>78.0–81.0</small></td>") == 2
    assert "<td>12.3</td>" in row


def test_the_same_runs_give_the_same_page(make_run, report):
    directory = make_run(without=("metrics.jsonl", "evaluation/diagnostics.json"))
    assert report(directory)[1] == report(directory)[1]


def test_several_runs_show_what_differs_and_share_figures(make_run, report):
    first, second = make_run("a"), make_run("b", variant="sigreg", split=False)
    outline, document = report(first, second)
    keys = re.findall(r'<th scope="row"><code>(.*?)</code></th>', document)
    assert keys == ["variant", "model.split_qp"]
    # Terms of one run, of the other, and of both.
    for name in ("budget_q", "sigreg", "loss"):
        assert figures(outline).count(f"{name} against the step") == 1
    assert len(outline.ids) == len(set(outline.ids))
    assert {"hamjepa: q", "sigreg: whole"} <= set(re.findall(r"</svg>([^<]*)</li>", document))


def test_equal_runs_differ_in_nothing(make_run, report):
    outline, _ = report(make_run("a"), make_run("b"))
    assert "The configurations are the same." in outline.words
    assert len(outline.ids) == len(set(outline.ids))


SECTIONS_OF = {
    "metrics.jsonl": {"training", "warnings"},
    "evaluation/metrics.json": {"geometry"},
    "evaluation/diagnostics.json": set(),
    "evaluation/pictures.npz": {"neighbours", "maps"},
    "views.png": {"views"},
}


@pytest.mark.parametrize("there", SECTIONS_OF)
def test_what_is_missing_is_left_out_or_named(make_run, report, there):
    missing = SECTIONS_OF.keys() - {there}
    outline, _ = report(make_run(without=missing))
    left_out = set().union(*(SECTIONS_OF[file] for file in missing))
    sections = [name for name in (*SECTIONS, "predictor") if name not in left_out]
    assert [attributes["id"] for attributes in outline.of("section")] == sections
    for file, mode in (("evaluation/metrics.json", "evaluate"), ("evaluation/diagnostics.json", "diagnose")):
        assert (f"--mode={mode} --workdir=" in outline.words) == (file in missing)


def test_a_run_that_has_only_begun_has_a_page(make_run, report):
    files = ("metrics.jsonl", "evaluation/metrics.json", "evaluation/diagnostics.json", "evaluation/pictures.npz")
    outline, _ = report(make_run(without=(*files, "views.png"), split=False))
    assert [attributes["id"] for attributes in outline.of("section")] == ["configuration", "accuracy"]


def remove(tree, path):
    *outer, last = path.split(".")
    for key in outer:
        tree = tree[key]
    del tree[last]


@pytest.mark.parametrize(
    "paths",
    [
        ["features"],
        ["baselines", "state", "class_names", "features.q.knn", "features.p.linear_probe", "features.qp.spectrum"],
        ["features.q.geometry", "features.p.knn.k", "features.qp.knn.weighted_top1", "baselines.pixels.dim"],
        ["features.q.dim", "features.p.spectrum.eigenvalues", "features.qp.geometry.gaussianity", "state.shuffled"],
        ["features.q.few_label_probe", "features.p.linear_probe.sweep.best", "features.qp.knn.top1_interval"],
        ["features.q.geometry.gaussianity.plain.null", "features.p.linear_probe.sweep", "state.energy"],
    ],
    ids=" ".join,
)
def test_evaluations_without_a_part_have_a_page(make_run, report, paths):
    directory = make_run(without=("metrics.jsonl", "evaluation/diagnostics.json", "evaluation/pictures.npz"))
    file = directory / "evaluation" / "metrics.json"
    metrics = json.loads(file.read_text())
    for path in paths:
        remove(metrics, path)
    file.write_text(json.dumps(metrics))
    assert "accuracy" in report(directory)[0].ids


def test_the_oldest_evaluations_have_a_page(make_run, report):
    directory = make_run(without=("evaluation/diagnostics.json", "evaluation/pictures.npz", "views.png"))
    file = directory / "evaluation" / "metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["state"], metrics["class_names"]
    for scores in (*metrics["features"].values(), *metrics["baselines"].values()):
        del scores["geometry"]
        scores["knn"] = {"k": [1, 20], "top1": [0.9, 0.8766], "top5": [1.0, 1.0]}
        scores["linear_probe"] = {"top1": 0.95, "top5": 1.0}
        scores["few_label_probe"] = {"labels_per_class": 5, "draws": 10, "top1": 0.81, "top1_std": 0.02, "top5": 0.9}
        scores["spectrum"] = {"eigenvalues": [2.0, 1.0, 0.0], "effective_rank": 1.9}
    file.write_text(json.dumps(metrics))
    outline, _ = report(directory)
    assert "87.7" in outline.words
    assert "Bands are 95 % intervals" not in outline.words


def test_features_without_variance_and_values_that_are_not_finite_have_a_page(make_run, report):
    directory = make_run()
    file = directory / "evaluation" / "metrics.json"
    metrics = json.loads(file.read_text())
    spectrum = metrics["features"]["q"]["spectrum"]
    spectrum |= {"eigenvalues": [0.0] * 16, "effective_rank": None, "alpha": {"exponent": None}}
    file.write_text(json.dumps(metrics))
    file = directory / "evaluation" / "diagnostics.json"
    diagnostics = json.loads(file.read_text())
    diagnostics["log_abs_det"] = {"float64": [0.0] * 8, "float32": [None] * 8}
    diagnostics["rollout"]["norm"]["upper"] = [None] * 11
    diagnostics["sensitivity"]["error"][1][2] = None
    file.write_text(json.dumps(diagnostics))
    with (directory / "metrics.jsonl").open("a") as log:
        log.write('{"step": 60, "loss": "nan", "gradient_norm": "inf", "views_per_second": null}\n')
    outline, document = report(directory)
    assert "Exact zeros are drawn at 10⁻¹⁸." in outline.words
    assert ">10⁻¹⁸</text>" in document


@pytest.mark.parametrize(
    "fields", [["rollout", "singular_values", "sensitivity"], ["prediction", "neighbourhood", "state_dim", "inverse"]]
)
def test_diagnostics_without_a_part_have_a_page(make_run, report, fields):
    directory = make_run(without=("metrics.jsonl", "evaluation/metrics.json", "evaluation/pictures.npz"))
    file = directory / "evaluation" / "diagnostics.json"
    diagnostics = json.loads(file.read_text())
    file.write_text(json.dumps(diagnostics | dict.fromkeys(fields)))
    assert "predictor" in report(directory)[0].ids


def test_nothing_that_is_shown_can_become_html(make_run, report):
    evil = '<script>alert("1")</script>&amp;'
    directory = make_run(variant=evil, config={evil: {evil: evil}})
    metrics = json.loads((directory / "evaluation" / "metrics.json").read_text())
    metrics["class_names"] = [evil, "$x_1$", "dog"]
    metrics["features"] = {evil: metrics["features"]["q"]}
    (directory / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    diagnostics = json.loads((directory / "evaluation" / "diagnostics.json").read_text())
    (directory / "evaluation" / "diagnostics.json").write_text(json.dumps(diagnostics | {"predictor": evil}))
    with (directory / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 60, evil: 1.0, f"gradient_share_{evil}": 0.5, "warnings": [evil]}) + "\n")
    outline, document = report(directory, make_run("other", without=SECTIONS_OF))
    assert not outline.of("script")
    assert "<script" not in document
    assert "&amp;amp;" in document
    # In the map's labels, which matplotlib writes.
    assert ">$x_1$</text>" in document


def test_class_names_and_marks_of_neighbours(whole):
    outline, document = whole
    assert document.count('class="right"') == 6 / 3 * (3 + 3 + 2)
    assert document.count('class="wrong"') == 48 - 16
    assert "same class, cat, similarity 0.99" in {attributes.get("alt") for attributes in outline.of("img")}
    assert "another class, dog, similarity 0.93" in {attributes.get("alt") for attributes in outline.of("img")}
    assert "33 % of the neighbours shown are of their query's class." in outline.words


def test_photographs_are_stored_small(make_run, report):
    directory = make_run(without=CURVES)
    rng = np.random.default_rng(0)
    arrays = dict(np.load(directory / "evaluation" / "pictures.npz"))
    arrays["query_images"] = rng.integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)
    np.savez(directory / "evaluation" / "pictures.npz", **arrays)
    outline, _ = report(directory)
    queries = [a["src"] for a in outline.of("img") if a["alt"].startswith("query")]
    assert len(queries) == 6
    assert all(source.startswith("data:image/jpeg;base64,") and len(source) < 8_000 for source in queries)


@pytest.mark.parametrize(("classes", "named"), [(20, True), (21, False)])
def test_many_classes_are_a_scale(make_run, report, classes, named):
    directory = make_run(without=CURVES)
    arrays = dict(np.load(directory / "evaluation" / "pictures.npz"))
    arrays["map_labels"] = np.arange(60) % classes
    np.savez(directory / "evaluation" / "pictures.npz", **arrays)
    words = report(directory)[0].words
    assert ("One colour is one class." in words) == named
    assert (f"Colour runs over the {classes} classes" in words) != named


def test_many_points_are_an_image(make_run, report):
    directory = make_run(without=CURVES)
    arrays = dict(np.load(directory / "evaluation" / "pictures.npz"))
    rng = np.random.default_rng(0)
    arrays |= {"map_labels": rng.integers(0, 3, 2001), "map_pca": rng.normal(size=(2001, 2))}
    del arrays["map_points"]
    np.savez(directory / "evaluation" / "pictures.npz", **arrays)
    assert report(directory)[0].of("image")[0]["href"].startswith("data:image/png;base64,")


def test_a_sheet_of_views_that_is_no_picture_is_named(make_run, tmp_path):
    directory = make_run()
    (directory / "views.png").write_text("no picture")
    with pytest.raises(UserError, match=r"views.png: cannot be read") as caught:
        write_report([directory], tmp_path / "report.html")
    assert "\n" not in str(caught.value)


def test_a_page_that_cannot_be_written_is_named(make_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/report.html: cannot be written"):
        write_report([make_run(without=CURVES)], tmp_path / "file" / "report.html")


def test_figures_take_the_colours_of_the_page(whole):
    _, document = whole
    drawn = "".join(re.findall(r"<svg.*?</svg>", document, flags=re.DOTALL))
    assert "currentColor" in drawn
    assert "DejaVu" not in drawn
    assert "var(--series-0)" in drawn
    for color in drawing.PAGE_COLORS:
        assert color not in drawn
    assert "#000000" not in drawn
    assert "#ffffff" not in drawn.lower()


def test_labels_keep_their_digits(make_run, report):
    directory = make_run()
    lines = [json.dumps({"step": i, "loss": 0.12345 + 0.00001 * i}) for i in range(5)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "0.1234" in report(directory)[0].words


def test_only_light_libraries_are_imported(make_run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from hamjepa_jax.report.page import write_report; "
        "assert 'matplotlib' not in sys.modules; "
        f"write_report([Path({str(make_run())!r})], Path({str(tmp_path / 'report.html')!r})); "
        "print(*({'jax', 'flax', 'optax', 'orbax', 'ml_collections', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
