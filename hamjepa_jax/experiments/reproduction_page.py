"""The page that says of each published gain whether it holds: a section for each reproduction, in Markdown."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hamjepa_jax.evaluation.diagnosis_numbers import NUMBERS, written
from hamjepa_jax.evaluation.summary import BASELINES
from hamjepa_jax.experiments.claims import DOES_NOT_HOLD, SCORES, Gain, gains, verdict
from hamjepa_jax.experiments.records import Records
from hamjepa_jax.experiments.reproductions import Reproduction
from hamjepa_jax.experiments.significance import summarize

# Of a state, beside its headline q.
OTHER_COORDINATES = ("p", "qp")
SECONDS_PER_MINUTE = 60


def section(
    reproduction: Reproduction, records: Records, missing: Sequence[str], diagnoses: Mapping[str, Any], directory: str
) -> str:
    """What came of a reproduction.

    Args:
        reproduction: the reproduction.
        records: its runs.
        missing: names of the runs that are not done.
        diagnoses: name of a run → what its diagnostics.json holds.
        directory: where records, table and plot lie, as a link from the page.

    Returns:
        Markdown, without a heading.
    """
    claimed = gains(reproduction.claims, records)
    parts = [
        _sentence(reproduction, claimed),
        _gain_table(claimed),
        *_other_gains(reproduction, records),
        f"![Every seed of every row, with means and intervals]({directory}/plot.png)",
        _score_table(records),
        _run_table(records),
        *_diagnosis(diagnoses),
        f"{_machines(records)} Every number is in [{directory.removeprefix('../')}]({directory}).",
    ]
    if missing:
        parts.append(f"Missing: {len(missing)} runs: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def _sentence(reproduction: Reproduction, claimed: Sequence[Gain]) -> str:
    if not claimed:
        return f"**{reproduction.title}: no two seeds of HamJEPA and of SIGReg are done.**"
    said = verdict(claimed)
    if said != DOES_NOT_HOLD:
        return f"**{reproduction.title}: the claim {said}.**"
    below = [gain for gain in claimed if gain.summary.high < 0]
    reason = (
        f"HamJEPA is below SIGReg in {' and '.join(gain.claim.score for gain in below)}, with the whole 95 % interval"
        if below
        else f"{claimed[0].summary.n} seeds cannot tell its gains from zero"
    )
    return f"**{reproduction.title}: the claim {said}: {reason}.**"


def _gain_table(found: Sequence[Gain]) -> str:
    lines = ["| gain | score | published | ours | 95 % interval | n | t-test | Wilcoxon | |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for gain in found:
        s, published = gain.summary, gain.claim.published
        cells = [
            _pair(gain),
            gain.claim.score,
            "" if published is None else _signed(published),
            f"{_signed(s.mean)} ± {s.std:.2f}",
            f"{_signed(s.low)} … {_signed(s.high)}",
            str(s.n),
            _p(gain.t_test),
            _p(gain.wilcoxon),
            gain.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(gain: Gain) -> str:
    of_row, of_reference = gain.coordinates
    return f"{gain.claim.row} {of_row} − {gain.claim.reference} {of_reference}"


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _other_gains(reproduction: Reproduction, records: Records) -> Iterator[str]:
    for coordinates in OTHER_COORDINATES:
        if found := gains(reproduction.claims, records, coordinates):
            yield f"The same of {coordinates}:"
            yield _gain_table(found)
    if found := gains(reproduction.corrected, records):
        yield "With sound choices where the published recipe leaves them to chance (`_corrected`):"
        yield _gain_table(found)
    if found := gains(reproduction.controls, records):
        yield "Is it the flow? HamJEPA against the same with other predictors:"
        yield _gain_table(found)


def _score_table(records: Records) -> str:
    """All coordinates of all rows: mean ± standard deviation over seeds."""
    lines = [f"| row | features | n | {' | '.join(f'{score}, %' for score in SCORES)} | effective rank |"]
    lines.append("| --- | --- | ---: |" + " ---: |" * (len(SCORES) + 1))
    for label, of_seeds in records.items():
        for name in next(iter(of_seeds.values()))["features"]:
            lines.append(_scores(label, name, [record["features"][name] for record in of_seeds.values()]))
    for label, of_seeds in list(records.items())[:1]:
        for name, shown in BASELINES.items():
            lines.append(_scores(shown, f"of {label}", [record["baselines"][name] for record in of_seeds.values()]))
    return "\n".join(lines)


def _scores(label: str, features: str, of_seeds: Sequence[Mapping[str, Any]]) -> str:
    columns = [[find(scores) for scores in of_seeds] for find in SCORES.values()]
    # Features without any variance have no rank.
    ranks = [scores["spectrum"]["effective_rank"] or 0.0 for scores in of_seeds]
    cells = [_mean(values, digits) for values, digits in [*((column, 2) for column in columns), (ranks, 1)]]
    return f"| {label} | {features} | {len(of_seeds)} | {' | '.join(cells)} |"


def _mean(values: Sequence[float], digits: int) -> str:
    s = summarize(values)
    return f"{s.mean:.{digits}f}" + (f" ± {s.std:.{digits}f}" if s.n > 1 else "")


def _run_table(records: Records) -> str:
    """Speed, wall time and warnings of every row."""
    lines = ["| row | steps | views/s | wall time, min | warnings |", "| --- | ---: | ---: | ---: | --- |"]
    for label, of_seeds in records.items():
        runs = list(of_seeds.values())
        speeds = [run["views_per_second"] for run in runs if run["views_per_second"]]
        minutes = [run["wall_seconds"] / SECONDS_PER_MINUTE for run in runs if run["wall_seconds"]]
        cells = [
            str(runs[0]["step"]),
            _mean(speeds, 0) if speeds else "",
            _mean(minutes, 1) if minutes else "",
            _warnings(runs),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _warnings(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the runs warned of, without the numbers, and how many of them did."""
    counts: dict[str, int] = {}
    for run in runs:
        for warning in {re.sub(r"^step \d+: warning: |[:,(] .*", "", text) for text in run["warnings"]}:
            counts[warning] = counts.get(warning, 0) + 1
    return "; ".join(f"{warning} ({count} of {len(runs)})" for warning, count in sorted(counts.items())) or "none"


def _diagnosis(diagnoses: Mapping[str, Any]) -> Iterator[str]:
    """The trained maps: a column of numbers for each, and how the error depends on step size and number of steps."""
    if not diagnoses:
        return
    yield "The trained map:"
    lines = [f"| | {' | '.join(diagnoses)} |", f"| --- |{' ---: |' * len(diagnoses)}"]
    lines += [
        f"| {name} | {' | '.join(written(find(found)) for found in diagnoses.values())} |"
        for name, find in NUMBERS.items()
    ]
    yield "\n".join(lines)
    for name, found in diagnoses.items():
        sensitivity = found["sensitivity"]
        if sensitivity is None:
            continue
        trained = sensitivity["trained"]
        yield (
            f"Its prediction error with other step sizes τ and numbers of steps K, {name}, trained with "
            f"τ = {trained['step_size']} and K = {trained['num_steps']}:"
        )
        steps = sensitivity["step_size"]
        lines = [f"| K | {' | '.join(f'τ = {step:g}' for step in steps)} |", f"| ---: |{' ---: |' * len(steps)}"]
        for number, errors in zip(sensitivity["num_steps"], sensitivity["error"], strict=True):
            lines.append(f"| {number} | {' | '.join(map(written, errors))} |")
        yield "\n".join(lines)


def _machines(records: Records) -> str:
    found = []
    for of_seeds in records.values():
        for record in of_seeds.values():
            at = record["environment"]
            device = ", ".join(at["accelerators"]) or f"{at['cores']} cores of an {at['processor']}"
            packages = ", ".join(f"{name} {at['packages'][name]}" for name in ("jax", "flax", "optax", "numpy"))
            found.append(f"{device}, Python {at['python']}, {packages}")
    return f"Mean ± standard deviation over seeds. Measured on {'; and on '.join(dict.fromkeys(found))}."


def replace_section(page: str, name: str, text: str) -> str:
    """Puts a section in the place of an older one, or at the end of the page.

    Args:
        page: the page, in which two comments enclose each section; what is written by hand stays.
        name: name of the section.
        text: the section.

    Returns:
        The page.
    """
    begin, end = f"<!-- {name}: written by a program -->", f"<!-- end of {name} -->"
    section_text = f"{begin}\n\n{text}\n\n{end}"
    if begin in page and end in page:
        before, _, rest = page.partition(begin)
        return before + section_text + rest.partition(end)[2]
    return f"{page.rstrip()}\n\n{section_text}\n" if page else f"{section_text}\n"
