"""The page: one HTML file, or a piece for a notebook; no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bvllm_adapters.report.costs import budget_told, costs, size, spent
from bvllm_adapters.report.drawing import HUES
from bvllm_adapters.report.sheet import MOST_MAPS, cards, legend, token_maps
from bvllm_adapters.report.svg import FONT, safe, svg
from bvllm_adapters.report.timeline import timeline

Form = Mapping[str, Any]

# Of what is inside of .bvllm-report alone, since in a notebook it stands among others.
STYLE = f"""
.bvllm-report{{color:#1b1f24;background:#fff;font:14px/1.45 {FONT};max-width:1180px;margin:0 auto;
padding:20px 24px;box-sizing:border-box;text-align:left}}
.bvllm-report *{{box-sizing:border-box}}
.bvllm-report h1{{font-size:21px;line-height:1.25;margin:0 0 2px;font-weight:650;color:inherit}}
.bvllm-report h2{{font-size:15px;margin:22px 0 8px;font-weight:650;color:inherit}}
.bvllm-report p{{margin:0 0 6px}}
.bvllm-report .told{{color:#566069}}
.bvllm-report .answer{{font-size:16px;margin:4px 0}}
.bvllm-report .beside{{display:grid;grid-template-columns:repeat(auto-fit,minmax(388px,1fr));
gap:8px 32px}}
.bvllm-report .cards{{display:flex;flex-wrap:wrap;gap:12px;margin:10px 0 4px;padding:0;
list-style:none}}
.bvllm-report .cards li{{margin:0;padding:0;line-height:0;break-inside:avoid}}
.bvllm-report figure{{margin:14px 0 0;overflow-x:auto}}
.bvllm-report figure>svg{{width:100%;min-width:660px}}
.bvllm-report .legend,.bvllm-report figcaption{{color:#566069;font-size:12.5px;max-width:90ch}}
.bvllm-report table{{border-collapse:collapse;font-size:13px;width:100%;margin:4px 0 0;
font-variant-numeric:tabular-nums;color:inherit}}
.bvllm-report th{{font-weight:400;color:#566069;border-bottom:1px solid #aab2b9;text-align:right;
padding:2px 8px;background:none}}
.bvllm-report td{{text-align:right;padding:2px 8px;border-bottom:1px solid #eceff1;
background:none;white-space:nowrap}}
.bvllm-report th:first-child,.bvllm-report td:first-child{{text-align:left;padding-left:0}}
.bvllm-report table.wide{{max-width:860px}}
.bvllm-report td.told,.bvllm-report th.what{{text-align:left}}
.bvllm-report th.time{{padding-right:98px}}
.bvllm-report .bar{{display:inline-block;height:8px;vertical-align:baseline;margin-left:6px}}
.bvllm-report .track{{display:inline-block;width:90px;text-align:left}}
.bvllm-report summary{{cursor:pointer;color:#566069;margin:6px 0}}
.bvllm-report .number{{display:inline-block;min-width:20px;height:20px;border-radius:10px;
color:#fff;font-size:12px;line-height:20px;text-align:center;margin-right:8px;font-weight:650;
vertical-align:2px}}
@media print{{.bvllm-report{{padding:0;max-width:none;font-size:11px;
print-color-adjust:exact;-webkit-print-color-adjust:exact}}
.bvllm-report figure,.bvllm-report tr{{break-inside:avoid}}
.bvllm-report .beside{{grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:8px 16px}}
.bvllm-report h1{{font-size:16px}}.bvllm-report h2{{font-size:12.5px;margin:12px 0 4px}}
.bvllm-report .answer{{font-size:12.5px}}.bvllm-report .cards{{gap:8px}}
.bvllm-report .legend,.bvllm-report figcaption{{font-size:10px}}
.bvllm-report .cards svg{{width:110px}}
.bvllm-report .beside table{{font-size:10.5px}}.bvllm-report .beside td{{padding:2px 4px}}
.bvllm-report details:not([open]){{display:none}}}}
"""


def page(forms: Sequence[Form]) -> str:
    """A whole page. Its policy keeps a browser from fetching or running anything."""
    title = safe(_title(forms))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n"
        '<link rel="icon" href="data:,">\n'
        "<style>body{margin:0;background:#fff}</style>\n</head>\n"
        f"<body>\n<main>\n{fragment(forms)}\n</main>\n</body>\n</html>\n"
    )


def fragment(forms: Sequence[Form]) -> str:
    """The same to be put into another page."""
    several = len(forms) > 1
    parts = [f"<style>{STYLE}</style>", _head(forms)]
    parts.append(
        f"<figure>{svg(timeline(forms))}<figcaption>{safe(timeline_told(forms))}</figcaption>"
        "</figure>"
    )
    budget = MOST_MAPS // len(forms)
    sections = [_section(form, i, several, budget) for i, form in enumerate(forms)]
    parts.append(f'<div class="beside">{"".join(sections)}</div>' if several else sections[0])
    return f'<div class="bvllm-report">{"".join(parts)}</div>'


def timeline_told(forms: Sequence[Form]) -> str:
    """What is to be seen in the timeline."""
    words = []
    if any(form.get("query_scores") for form in forms):
        words.append(
            "Curve: the share of the choices that each frame would get from the queries' scores. "
            "Strip: the scores of each query, from its lowest (white) to its highest."
        )
    if any(form.get("scores") for form in forms):
        words.append("Curve: the score of each frame.")
    marks = "Marks: chosen frames"
    if any(form["num_tokens"] for form in forms):
        marks += ", as large as their tokens are many; hollow: none was left"
    words.append(marks + ".")
    if any(len(frame["weights"]) > 1 for form in forms for frame in form["frames"]):
        words.append("Ticks: the frames that a choice is mixed of, as high as their weights.")
    return " ".join(words)


def source_told(form: Form) -> str:
    """What was read, in words."""
    times = form.get("times")
    words = [f"{form['frames_decoded']:,} frame" + "s" * (form["frames_decoded"] != 1)]
    if times and len(times) > 1:
        words.append(f"{times[0]:.4g} to {times[-1]:.5g} s")
    name = str(form.get("source") or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    return ", ".join(filter(None, (name, *words)))


def _title(forms: Sequence[Form]) -> str:
    asked = [str(form.get("question") or "") for form in forms]
    return " · ".join(filter(None, asked)) or "Chosen frames"


def _head(forms: Sequence[Form]) -> str:
    sources = list(dict.fromkeys(source_told(form) for form in forms))
    told = "".join(f'<p class="told">{safe(source)}</p>' for source in sources)
    if len(forms) > 1:
        return f"<header><h1>{len(forms)} questions about a video</h1>{told}</header>"
    form = forms[0]
    answer = form.get("answer")
    said = "" if answer is None else f'<p class="answer">{safe(str(answer))}</p>'
    return (
        f"<header><h1>{safe(str(form.get('question') or 'Chosen frames'))}</h1>{said}"
        f'{told}<p class="told">{safe(budget_told(form))}</p>{_note(form)}</header>'
    )


def _note(form: Form) -> str:
    return f'<p class="told">Note: {safe(str(form["note"]))}</p>' if form.get("note") else ""


def _section(form: Form, index: int, several: bool, budget: int) -> str:
    hue = HUES[index % len(HUES)]
    parts = []
    if several:
        asked = safe(str(form.get("question") or "(no question)"))
        answer = form.get("answer")
        said = (
            ""
            if answer is None
            else (f'<p class="answer" style="color:{hue}">{safe(str(answer))}</p>')
        )
        parts.append(
            f'<h2><span class="number" style="background:{hue}">{index + 1}</span>{asked}</h2>'
            f'{said}<p class="told">{safe(budget_told(form))}</p>{_note(form)}'
        )
    else:
        parts.append("<h2>Chosen frames</h2>")
    words = legend(form)
    if words:
        parts.append(f'<p class="legend">{safe(words)}</p>')
    shown = "".join(f"<li>{svg(card)}</li>" for card in cards(form, hue))
    parts.append(f'<ol class="cards">{shown}</ol>')
    parts.append(_tokens(form, budget))
    parts.append(_ledger(form, hue, several))
    return f"<section>{''.join(parts)}</section>"


def _tokens(form: Form, budget: int) -> str:
    maps = token_maps(form, budget)
    if not maps:
        return ""
    rows = "".join(
        f'<p class="legend">{safe(time)}</p><ul class="cards">'
        + "".join(f"<li>{svg(each)}</li>" for each in own)
        + "</ul>"
        for time, own in maps
    )
    return f"<details><summary>Where each token looked</summary>{rows}</details>"


def _ledger(form: Form, hue: str, several: bool) -> str:
    lines = costs(form)
    if not lines:
        return ""
    longest = max((each.seconds or 0 for each in lines), default=0) or 1
    bytes_too = any(each.bytes is not None for each in lines)
    head = ["stage", *([] if several else ["what it does"]), "time"]
    head += [*(["peak memory"] if bytes_too else []), "left behind it"]
    rows = []
    for each in lines:
        took = "" if each.seconds is None else _bar(each.seconds, longest, hue)
        cells = [] if several else [f'<td class="told">{safe(each.what)}</td>']
        cells.append(f"<td>{took}</td>")
        if bytes_too:
            cells.append(f"<td>{'' if each.bytes is None else size(each.bytes)}</td>")
        cells.append(f"<td>{safe(each.left)}</td>")
        name = f'<td title="{safe(each.what)}">{safe(each.stage)}</td>'
        rows.append(f"<tr>{name}{''.join(cells)}</tr>")
    total = _bar(sum(each.seconds or 0 for each in lines), 0, hue)
    skipped, behind = "<td></td>" * (not several), "<td></td>" * (1 + bytes_too)
    rows.append(f"<tr><td>all</td>{skipped}<td>{total}</td>{behind}</tr>")
    heading, wide = ("", "") if several else ("<h2>Costs</h2>", ' class="wide"')
    return (
        f"{heading}<table{wide}><thead><tr>"
        + "".join(f'<th scope="col" class="{name.split()[0]}">{name}</th>' for name in head)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _bar(seconds: float, longest: float, hue: str) -> str:
    """Seconds, and how much of the longest of them that is; 0: there is none."""
    width = max(90 * seconds / longest, 1) if longest else 0
    bar = f'<span class="bar" style="width:{width:.0f}px;background:{hue}"></span>'
    return f'{spent(seconds)}<span class="track">{bar if longest else ""}</span>'
