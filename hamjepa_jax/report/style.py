"""How the page looks: on light and dark, on a phone and on paper."""

from hamjepa_jax.report.drawing import SERIES

# For dark backgrounds, in the order of SERIES.
SERIES_ON_DARK = (
    *("#5ab0ee", "#ff8b4d", "#2fc79a", "#e493c8", "#e6b93c"),
    *("#a5dbff", "#b3a2ff", "#d0a07a", "#bccb58", "#ff7b93"),
)


def _palette(colors: tuple[str, ...]) -> str:
    return " ".join(f"--series-{number}: {color};" for number, color in enumerate(colors))


_LIGHT = (
    f"{_palette(SERIES)} --surface: #ffffff; --page: #f6f7f9; --ink: #1b2430; --soft: #55606e; --neutral: #5d6875; "
    "--grid: #dfe4ea; --line: #d5dbe2; --accent: #0a5c99; --right: #00704e; --wrong: #b3261e;"
)
_DARK = (
    f"{_palette(SERIES_ON_DARK)} --surface: #171c23; --page: #0e1217; --ink: #e8edf3; --soft: #a7b2bf; "
    "--neutral: #98a4b2; --grid: #2b333d; --line: #323b46; --accent: #7cc0f5; --right: #4fd0a3; --wrong: #ff8f86;"
)

CSS = (
    f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
"""
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header { max-width: 80rem; margin: 0 auto; padding: 0 clamp(0.9rem, 3vw, 2rem); }
header { padding-top: 2rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 0.4rem; letter-spacing: -0.015em; }
h2 { font-size: 1.35rem; margin: 0 0 0.6rem; letter-spacing: -0.01em; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.6rem; }
p { margin: 0.4rem 0 0.8rem; max-width: 46rem; }
a { color: var(--accent); }
code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
section { margin: 2.4rem 0; padding-top: 1.4rem; border-top: 1px solid var(--line); }
small { font-size: 0.8em; color: var(--soft); }
.note { color: var(--soft); }
.note code {
  display: block; overflow-x: auto; white-space: nowrap; overflow-wrap: normal; padding: 0.2rem 0; color: var(--ink);
}

nav ol { display: flex; flex-wrap: wrap; gap: 0.4rem; margin: 1.4rem 0 0; padding: 0; list-style: none; }
nav a {
  display: block; padding: 0.25rem 0.8rem; border: 1px solid var(--line); border-radius: 1rem;
  background: var(--surface); text-decoration: none; font-size: 0.9rem;
}
nav a:hover, nav a:focus-visible { border-color: var(--accent); }

.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 0.9rem; }
.run {
  background: var(--surface); border: 1px solid var(--line); border-top: 4px solid var(--paint); border-radius: 0.6rem;
  padding: 0.8rem 1rem;
}
.run h3 { margin: 0 0 0.2rem; }
.run p { margin: 0; font-size: 0.9rem; color: var(--soft); overflow-wrap: anywhere; }
.run .score { font-size: 1rem; color: var(--ink); margin: 0.5rem 0 0; }
.run .score span { white-space: nowrap; }
.run .score b { font-size: 2rem; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }

.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0.9rem; }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(min(45%, 11.5rem), 1fr)); gap: 0.6rem; }
.grid.small > .panel { padding: 0.5rem 0.5rem 0.6rem; }
.grid.small figcaption { font-size: 0.78rem; line-height: 1.4; }
.grid.small > .large { grid-column: span 2; grid-row: span 2; }
.grid.small .title { font: 600 0.8rem/1.3 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.panel {
  margin: 0; padding: 0.8rem 0.9rem 0.9rem; background: var(--surface); border: 1px solid var(--line);
  border-radius: 0.6rem; min-width: 0; break-inside: avoid;
}
.panel.wide { margin-bottom: 0.9rem; }
.panel > svg { display: block; width: 100%; height: auto; max-width: 36rem; margin: 0 auto; }
.panel svg { stroke-linejoin: round; stroke-linecap: butt; }
.title { font-weight: 650; margin: 0 0 0.25rem; }
figcaption { font-size: 0.88rem; color: var(--soft); margin-top: 0.5rem; }
.legend {
  display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; margin: 0 0 0.3rem; padding: 0; list-style: none;
  font-size: 0.85rem;
}
.legend li { min-width: 0; display: flex; align-items: center; gap: 0.35rem; }
.swatch { width: 1.4rem; height: 0.65rem; flex: none; }

.scroll { overflow-x: auto; max-width: 100%; margin: 0.6rem 0 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
/* Words may be broken, but that makes no column narrower. */
table {
  overflow-wrap: break-word; border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  background: var(--surface);
}
caption { caption-side: bottom; text-align: left; color: var(--soft); padding: 0.5rem 0; font-size: 0.88rem; }
th, td { padding: 0.35rem 0.55rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 600; }
td small { display: block; white-space: nowrap; font-weight: 400; }
.still { display: block; position: sticky; left: 0; width: min(100%, 100vw - 2rem); max-width: 60rem; }
.figures table { font-size: 0.85rem; }
.figures td, .figures thead th + th { text-align: right; }
.figures tbody th { white-space: nowrap; }
.figures td:nth-child(2) { font-weight: 650; }

details { margin: 0.6rem 0; }
summary { cursor: pointer; font-weight: 600; padding: 0.3rem 0; color: var(--accent); }
.settings { columns: 24rem; column-gap: 1.2rem; }
.settings .scroll { break-inside: avoid; margin-top: 0; }
.settings table { width: 100%; font-size: 0.82rem; }
.settings caption { caption-side: top; font-weight: 650; color: var(--ink); }
.settings thead { display: none; }
.settings th { font-weight: 400; }
.differences .scroll { max-height: 34rem; overflow-y: auto; }
.differences table { font-size: 0.82rem; }
.differences caption { caption-side: top; }
.differences thead th { position: sticky; top: 0; background: var(--surface); }
.differences td, .differences tbody th { padding-top: 0.15rem; padding-bottom: 0.15rem; font-weight: 400; }
.warnings li { margin: 0.2rem 0; }

.sheet {
  display: block; height: auto; max-width: none; width: min(100%, 74rem); min-width: 40rem; border-radius: 0.3rem;
}
.sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 0.7rem; }
.neighbours {
  display: grid; grid-template-columns: 5rem 1fr; gap: 0.8rem; padding: 0.7rem; background: var(--surface);
  border: 1px solid var(--line); border-radius: 0.6rem; break-inside: avoid; min-width: 0;
}
.neighbours ol {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(3.1rem, 1fr)); gap: 0.45rem; margin: 0; padding: 0;
  list-style: none; min-width: 0;
}
.neighbours span, .neighbours small { display: block; font-size: 0.75rem; line-height: 1.3; overflow-wrap: anywhere; }
.neighbours img { display: block; width: 100%; height: auto; border-radius: 0.2rem; }
.neighbours .sharp { image-rendering: pixelated; }
.query span { font-weight: 650; margin-top: 0.2rem; }
.right img { border: 2px solid var(--right); }
.wrong img { border: 2px dashed var(--wrong); }
.right .mark { color: var(--right); }
.wrong .mark { color: var(--wrong); }

footer { color: var(--soft); font-size: 0.85rem; padding: 1rem 0 2rem; }

@media (max-width: 30rem) {
  .neighbours { grid-template-columns: 4rem 1fr; }
  .grid.small { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures tbody th { white-space: normal; min-width: 7rem; }
  .differences tbody th { overflow-wrap: anywhere; min-width: 9rem; }
}
@media print {
  body { background: none; font-size: 10pt; }
  main, header { max-width: none; padding: 0; }
  nav { display: none; }
  summary { list-style: none; color: var(--ink); }
  section { break-before: auto; border: 0; padding-top: 0; }
  h2, h3, .title { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .grid { grid-template-columns: 1fr 1fr; }
  .grid.small { grid-template-columns: repeat(4, 1fr); }
  .scroll, .differences .scroll { overflow: visible; max-height: none; }
  .settings { columns: 3; column-gap: 0.6rem; }
  .settings .scroll { break-inside: auto; margin-bottom: 0.5rem; }
  .settings table, .differences table { font-size: 6pt; }
  .settings th, .settings td, .differences th, .differences td { padding: 0 0.2rem; }
  .settings code, .differences code { font-size: 1em; }
  .figures table { font-size: 6.5pt; }
  .figures th, .figures td { padding: 0.15rem 0.25rem; }
  .sheet { min-width: 0; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
)
