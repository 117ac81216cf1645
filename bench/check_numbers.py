"""Whether README and docs say what the committed outputs of commands say: `python -m bench.check_numbers`.

1. Places of figures hold what the outputs in docs/runs give (`bench.figures`), each of the command that stands there.
2. Everywhere else on a page, a number that was measured must be in one of the outputs that the page shows, as it stands
   there or rounded. Measured is what has a decimal point, fills a cell of a table, or is followed by one of `MEASURED`
   such as "times" or "seconds". Other numbers are sizes, dimensions, settings.

Not looked at: code (a setting such as `0.05` is code), versions, targets of links, and what stands between
`<!-- stated: SOURCE -->` and `<!-- end of stated -->`, which is somebody else's number.
"""

import re
import sys
from collections.abc import Iterator
from decimal import Decimal

from . import figures

#: What follows a whole number that was measured.
MEASURED = (
    r"\s?(%|percent|times\b|×(?!\s?\d)|points?\b|s\b|ms\b|µs|seconds?\b|minutes?\b|hours?\b"
    r"|(vectors|queries)(/s| a second))"
)
_NUMBER = re.compile(r"(?<![\w.,/^-])(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?![\w]|[.,]\d)")
_LEFT_OUT = (
    r"^```.*?^```",
    r"`[^`\n]*(?:\n[^`\n]*)?`",
    r"<!-- stated: .*? -->.*?<!-- end of stated -->",
    r"<!--.*?-->",
    r"\]\([^)]*\)",  # targets of links
    r"(?:Python|FAISS|FAISS's|faiss-cpu|torch|numpy|faiss-dpq|release) \d+(?:\.\d+)+",  # versions
    r"\bEq\. \d+",
)


def problems() -> Iterator[str]:
    """What is wrong, a line each."""
    for name, figure in figures.FIGURES.items():
        yield from _problems_of_output(name, figure)
    for page in figures.pages():
        yield from _problems_of_page(page.relative_to(figures.ROOT).as_posix(), page.read_text())


def _problems_of_output(name: str, figure: figures.Figure) -> Iterator[str]:
    path = figures.OUTPUTS / f"{name}.txt"
    if not path.exists():
        yield f"docs/runs/{name}.txt is missing; run: python -m bench.figures run {name}"
        return
    commands = re.findall(r"^command: (.*)$", path.read_text().partition("\n\n")[0], re.MULTILINE)
    if commands != figures.as_typed(figure):
        yield f"docs/runs/{name}.txt is the output of other commands; run: python -m bench.figures run {name}"


def _problems_of_page(name: str, text: str) -> Iterator[str]:
    try:
        if figures.filled(text) != text:
            yield f"{name}: a place of figures is not what the output gives; run: python -m bench.figures fill"
    except ValueError as error:
        yield f"{name}: {error}"
        return
    shown = {match["what"].split()[0] for match in figures.PLACE.finditer(text)}
    printed = " ".join((figures.OUTPUTS / f"{output}.txt").read_text().partition("\n\n")[2] for output in shown)
    outputs = {_value(match[0]) for match in _NUMBER.finditer(printed) if match[0]}
    for line, number in measured(text):
        if not any(_rounds_to(output, number) for output in outputs):
            yield f"{name}:{line}: {number} is in none of the outputs that the page shows ({', '.join(sorted(shown))})"


def measured(text: str) -> Iterator[tuple[int, str]]:
    """Line and digits of every number of a page that must come from an output."""
    text = figures.PLACE.sub(_blank, text)
    for pattern in _LEFT_OUT:
        text = re.sub(pattern, _blank, text, flags=re.DOTALL | re.MULTILINE)
    for match in _NUMBER.finditer(text):
        fills_cell = text[: match.start()].rstrip(" ").endswith("|") and text[match.end() :].lstrip(" ").startswith("|")
        if match[2] or (match[1] and (fills_cell or re.match(MEASURED, text[match.end() :]))):
            yield text.count("\n", 0, match.start()) + 1, match[0]


def _blank(match: re.Match[str]) -> str:
    """As many lines, so that line numbers stay."""
    return re.sub(r"[^\n]", " ", match[0])


def _value(digits: str) -> Decimal:
    return Decimal(digits.replace(",", ""))


def _rounds_to(output: Decimal, digits: str) -> bool:
    number = _value(digits)
    return abs(output - number) <= Decimal(5).scaleb(number.as_tuple().exponent - 1)


def main() -> None:
    """Print what is wrong; the exit status tells whether anything is."""
    found = list(problems())
    print("\n".join(found) or f"{len(figures.pages())} pages say what {len(figures.FIGURES)} outputs say.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
