"""Figures as part of a page: in the page's colours, light or dark, and with names that no other figure has."""

import re

# colours that figures are drawn in, and the CSS variables that a page gives them; any other stays as it is
COLOURS = {
    "#ffffff": "paper",
    "#000000": "ink",
    "#333333": "ink",
    "#555555": "soft",
    "#999999": "edge",
    "#e6e6e6": "grid",
    "#eef1f5": "band",
    "#777777": "control",
    "#0173b2": "blue",
    "#de8f05": "orange",
    "#029e73": "green",
    "#d55e00": "red",
    "#cc78bc": "pink",
    "#ca9161": "brown",
    "#56b4e9": "sky",
}
LEFT_OUT = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
DOTS = re.compile(r'<a xlink:href="#(run-[^"]*)"[^>]*>(.*?)</a>', re.DOTALL)


def run_id(model: str, variant: str, seed: int) -> str:
    """The name of a run on its page: of its row in the table of runs, and what its dots in figures lead to."""
    return f"run-{model}-{variant}-{seed}"


def inline_svg(drawn: str, name: str, label: str) -> str:
    """An SVG file of Matplotlib as an element of a page.

    name: unlike that of any other figure of the page, stands before each of its ids; label: the id of the element that
    describes it.  A dot that links to a run, `#run-...`, has that in `data-run`: inside a picture nothing is reached
    by keyboard, and the table of runs has the same.
    """
    start = drawn.index("<svg")
    head_end = drawn.index(">", start) + 1
    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', drawn[start:head_end])
    assert box is not None
    width, height = float(box[1]), float(box[2])
    body = DOTS.sub(r'<g data-run="\1">\2</g>', LEFT_OUT.sub("", drawn[head_end:]))
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body).replace('xlink:href="#', f'href="#{name}-')
    body = re.sub(r": (#[0-9a-f]{6})", lambda found: f": {in_page(found[1])}", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    # 96 CSS pixels are 72 points
    size = f'viewBox="0 0 {width:g} {height:g}" style="--width: {width / 0.75:.0f}px"'
    return f'<svg {size} role="img" aria-labelledby="{label}">{body.strip()}'


def in_page(colour: str) -> str:
    return f"var(--{COLOURS[colour]})" if colour in COLOURS else colour
