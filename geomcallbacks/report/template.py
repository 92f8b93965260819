"""The HTML page of a report as a Jinja2 template, and its style. What is filled in is escaped by `report.page`."""

from __future__ import annotations

STYLE = """
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #f5f7fa; color: #1f2933;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1, h2, p, figcaption, td, th { overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
p { margin: .4rem 0; max-width: 46rem; }
section, figure { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; margin: 1.25rem 0;
  padding: 1rem 1.25rem; }
figure img { display: block; width: 100%; max-width: 54rem; height: auto; margin: 0 auto; }
figcaption, .quiet, footer { color: #52606d; font-size: .9rem; margin-top: .6rem; }
strong { unicode-bidi: isolate; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #e4e7eb; padding: .4rem 1.4rem .4rem 0; text-align: left; vertical-align: top; }
td { max-width: 32rem; }
th { color: #52606d; font-weight: 600; white-space: nowrap; }
th[scope=row] { color: #1f2933; white-space: normal; min-width: 7.5rem; max-width: 16rem; }
td.words { min-width: 9rem; }
.number { text-align: right; white-space: nowrap; }
.phase { border-radius: 4px; padding: .05rem .45rem; white-space: nowrap; }
.warm-up { background: #f9e6de; }
.entropy-seeking { background: #deecf8; }
.compression-seeking { background: #ebe2f4; }
footer { margin-top: 2rem; }
@media (max-width: 40rem) {
  main { padding: 1.25rem .75rem 3rem; }
  section, figure { padding: .85rem .75rem; }
  h1 { font-size: 1.35rem; }
}
@media print {
  body { background: #fff; }
  section, figure { break-inside: avoid; border: 0; padding: 0; }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
{% for run in runs %}
<p>{% if runs|length > 1 %}<strong>{{ run.name }}</strong>: {% endif %}{{ run.words }}</p>
{% endfor %}
</header>
{% for figure in figures %}
<figure>
<h2>{{ figure.title }}</h2>
<img src="{{ figure.data }}" alt="{{ figure.title }}. {{ figure.caption }}">
<figcaption>{{ figure.caption }}</figcaption>
</figure>
{% endfor %}
{% for table in tables %}
<section>
<h2>{{ table.title }}</h2>
<div class="scroll" role="region" tabindex="0" aria-label="{{ table.title }}">
<table>
<thead><tr>
{% for head in table.heads %}
<th scope="col"{% if head in table.numbers %} class="number"{% endif %}>{{ head }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
{% if table.heads[loop.index0] == "phase" and cell in phases %}
<td><span class="phase {{ cell }}">{{ cell }}</span></td>
{% elif loop.first %}
<th scope="row">{{ cell }}</th>
{% else %}
<td class="{{ "number" if table.heads[loop.index0] in table.numbers else "words" }}">{{ cell }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table.note %}
<p class="quiet">{{ table.note }}</p>
{% endif %}
</section>
{% endfor %}
<footer>RankMe = exp(−Σ p ln p), p = λ/Σλ, of the eigenvalues λ of the centred covariance (Li et al. 2025, arXiv
2509.23024). α: exponent of λ ∝ rank<sup>−α</sup>, least squares weighted by 1/rank (Agrawal et al. 2022). Made by
geomcallbacks {{ version }}.</footer>
</main>
</body>
</html>
"""
