"""The page: reads the directories of runs, and puts what there is to say about them in order."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hamjepa_jax.atomic_files import replacing
from hamjepa_jax.report import drawing, figures_geometry, figures_scores, figures_training, pictures, tables
from hamjepa_jax.report import figures_diagnostics as diagnostics
from hamjepa_jax.report.elements import Html, Key, element, grid, joined, legend
from hamjepa_jax.report.figures_maps import maps
from hamjepa_jax.report.reading import HEADLINE_K, Run, at, read_runs
from hamjepa_jax.report.style import CSS

# Nothing is fetched, and nothing is executed.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
COMMAND = "python -m hamjepa_jax.main --mode={mode} --workdir={directory}"


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        name: its id.
        title: its heading.
        content: what is below.
    """

    name: str
    title: str
    content: Html


def write_report(directories: Sequence[Path], path: Path) -> None:
    """Writes one page about one or several runs, side by side; it needs no network, fonts or scripts.

    What was not evaluated or diagnosed yet is left out, or named with the command that makes it.

    Args:
        directories: those of the runs.
        path: where the HTML goes.

    Raises:
        UserError: naming a directory that holds no run, or a file in it that cannot be read.
        StorageError: if the page cannot be written; an older one is intact then.
    """
    document = page(read_runs(directories))
    with replacing(path) as replacement:
        replacement.write_text(document)


def page(runs: Sequence[Run]) -> str:
    """The page as HTML.

    Args:
        runs: the runs.

    Returns:
        The document.
    """
    makers = (
        _configuration,
        _warnings,
        _accuracy,
        _training,
        _geometry,
        _views,
        _neighbours,
        _maps,
        _predictor,
    )
    sections = [section for make in makers if (section := make(runs)) is not None]
    title = f"{at(runs[0].config, 'name') or 'Runs'}: {', '.join(run.label for run in runs)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Html(CSS)),
    )
    links = (element("li", element("a", section.title, href=f"#{section.name}")) for section in sections)
    header = element(
        "header",
        element("h1", title),
        element("p", _sentence(runs), class_="note"),
        element("div", *(_card(number, run) for number, run in enumerate(runs)), class_="runs"),
        element("nav", element("ol", *links), aria_label="Contents"),
    )
    main = element(
        "main",
        *(element("section", element("h2", s.title), s.content, id=s.name) for s in sections),
        element("footer", "Written by hamjepa_jax."),
    )
    document = element("html", head, element("body", header, main), lang="en")
    return f"<!doctype html>\n{drawing.numbered(document)}\n"


def _sentence(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return "One run: what it learned, how it was trained, and what its predictor does."
    return f"{len(runs)} runs side by side; every run has its colour throughout, where a figure shows several."


def _card(number: int, run: Run) -> Html:
    step = at(run.metrics, "step") or (run.log[-1]["step"] + 1 if run.log else None)
    facts = [at(run.config, "name"), f"variant {at(run.config, 'variant')}", f"seed {run.seed}"]
    facts += [f"step {step:,}"] if step else []
    found = tables.of_k(at(run.metrics, "features", run.headline), "top1", HEADLINE_K) if run.headline else None
    score = element("p", "not evaluated", class_="score")
    if found:
        value, interval = found
        bounds = element("span", f"({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else "")
        words = f" % kNN@{HEADLINE_K} of {run.headline} "
        score = element("p", element("b", f"{100 * value:.1f}"), words, bounds, class_="score")
    facts_line = element("p", " · ".join(str(fact) for fact in facts if fact is not None))
    paint = f"--paint: var(--series-{number % len(drawing.SERIES)})"
    return element("div", element("h3", run.label), facts_line, score, class_="run", style=paint)


def _missing(runs: Sequence[Run], what: str, mode: str) -> Html:
    """One sentence for each run that something is missing of, with the command that makes it."""
    lines = (
        element(
            "p",
            f"{what} of {run.label} yet; this makes it: " if len(runs) > 1 else f"{what} yet; this makes it: ",
            element("code", COMMAND.format(mode=mode, directory=run.directory)),
            class_="note",
        )
        for run in runs
    )
    return joined(*lines)


def _run_legend(runs: Sequence[Run]) -> Html:
    if len(runs) == 1:
        return Html("")
    return legend(tuple(Key(run.label, f"var(--series-{i % len(drawing.SERIES)})") for i, run in enumerate(runs)))


def _heading(run: Run, runs: Sequence[Run]) -> list[Html]:
    return [element("h3", run.label)] if len(runs) > 1 else []


def _configuration(runs: Sequence[Run]) -> Section:
    several = len(runs) > 1
    folded = (
        element(
            "details",
            element("summary", f"Configuration of {run.label}" if several else "Every setting"),
            element("div", tables.configuration(run), class_="settings"),
        )
        for run in runs
    )
    table = element("div", tables.configuration_differences(runs), class_="differences") if several else Html("")
    content = joined(table, *folded)
    return Section("configuration", "What differs" if several else "Configuration", content)


def _warnings(runs: Sequence[Run]) -> Section | None:
    lists = []
    for run in runs:
        said = [warning for record in run.log for warning in at(record, "warnings") or ()]
        if said:
            items = element("ul", *(element("li", warning) for warning in said), class_="warnings")
            lists += [*_heading(run, runs), items]
    return Section("warnings", "Warnings", joined(*lists)) if lists else None


def _accuracy(runs: Sequence[Run]) -> Section:
    missing = [run for run in runs if run.headline is None]
    series = figures_scores.compared(runs)
    panels = [
        figures_scores.neighbour_accuracy(series, weighted=False),
        figures_scores.neighbour_accuracy(series, weighted=True),
        figures_scores.probe_sweep(series),
    ]
    table = tables.accuracies(runs)
    return Section(
        "accuracy",
        "Accuracy",
        joined(
            _missing(missing, "There is no evaluation", "evaluate"),
            element("div", table, class_="figures") if table else Html(""),
            grid([panel for panel in panels if panel]),
        ),
    )


def _training(runs: Sequence[Run]) -> Section | None:
    groups = figures_training.training_groups(runs)
    if not groups:
        return None
    terms = figures_training.share_terms(runs)
    titles = ["gradient shares" + (f" of {run.label}" if len(runs) > 1 else "") for run in runs]
    shares = [figures_training.gradient_shares(run, terms, title=t) for run, t in zip(runs, titles, strict=True)]
    shares = [panel for panel in shares if panel]
    parts = [_run_legend(runs)]
    for title, panels in groups.items():
        parts += [element("h3", title), grid(shares + panels, size="small")]
        shares = []
    return Section("training", "Training", joined(*parts))


def _geometry(runs: Sequence[Run]) -> Section | None:
    table = tables.geometry(runs)
    if table is None:
        return None
    series, embeddings = figures_scores.compared(runs), figures_scores.compared(runs, pixels=False)
    panels = [
        figures_geometry.spectrum(embeddings),
        figures_geometry.cosines(embeddings),
        figures_geometry.norms(embeddings),
        *(figures_geometry.p_values(embeddings, standardized=flag) for flag in (True, False)),
        *(figures_geometry.statistic(series, standardized=flag) for flag in (True, False)),
        figures_geometry.canonical_correlations(runs),
        figures_geometry.energy(runs),
    ]
    content = joined(element("div", table, class_="figures"), grid([panel for panel in panels if panel]))
    return Section("geometry", "Spectra and geometry", content)


def _views(runs: Sequence[Run]) -> Section | None:
    sheets = []
    for run in runs:
        if sheet := pictures.contact_sheet(run):
            # Those of the first run say most of what there is to see.
            folded = element(
                "details", element("summary", f"Views of {run.label}"), sheet, open=None if sheets else True
            )
            sheets.append(folded if len(runs) > 1 else sheet)
    return Section("views", "Views", joined(*sheets)) if sheets else None


def _neighbours(runs: Sequence[Run]) -> Section | None:
    sheets = []
    for run in runs:
        if sheet := pictures.neighbour_sheets(run, folded=len(runs) > 1):
            sheets += [*_heading(run, runs), sheet]
    if not sheets:
        return None
    caption = (
        "Test images, and the training images most similar to them in the headline coordinate, from the nearest on. ✓ "
        "and a solid frame mark the query's class, ✗ and a dashed frame another; the number is the cosine."
    )
    return Section("neighbours", "Nearest neighbours", joined(element("p", caption), *sheets))


def _maps(runs: Sequence[Run]) -> Section | None:
    panels = [
        panel._replace(title=f"{run.label}: {panel.title}" if len(runs) > 1 else panel.title)
        for run in runs
        for panel in maps(run)
    ]
    return Section("maps", "Maps of the embedding", grid(panels)) if panels else None


def _predictor(runs: Sequence[Run]) -> Section | None:
    diagnosed = [run for run in runs if run.diagnostics]
    states = [run for run in runs if at(run.config, "model", "split_qp")]
    missing = [run for run in states if not run.diagnostics]
    if not diagnosed and not missing:
        return None
    parts = [_missing(missing, "There are no diagnostics of the predictor", "diagnose")]
    if diagnosed:
        parts += [_run_legend(runs), tables.diagnosed(diagnosed), grid(diagnostics.panels(runs))]
    return Section("predictor", "The predictor", joined(*parts))
