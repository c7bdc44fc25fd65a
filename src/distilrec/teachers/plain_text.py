"""Read candidates' numbers out of plain text: numbered lines, series of numbers, titles.

Three readings compete and the one with most items wins. A number that may be a rank is not taken for an item: a wrong ranking
is worse than none, and nobody would notice it.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

LONGEST_NUMBER = 9  # digits; what is longer is no candidate's number

_SEPARATORS = " \t,;/|>#→、"
_JOINING = frozenset(("", "and", "und", "et", "y", "e", "id", "和", "と"))
_EDGES = " \"'`.,;:-_"
_BULLETS = "•·>|#~ "
_BLOCKS = frozenset(("li", "br", "p", "tr", "div", "ol", "ul"))
_FOLDED = dict.fromkeys(range(0x2010, 0x2016), "-") | {0x2212: "-"}  # dashes and minus
_FOLDED |= dict.fromkeys((0x2018, 0x2019, 0x201A, 0x201B), "'") | dict.fromkeys((0x201C, 0x201D, 0x201E, 0x201F), '"')

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])[-+]?[0-9]+(?:\.[0-9]+)*(?:[A-Za-z_][A-Za-z0-9_]*)?%?")
_TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9]*)\b[^<>]*>")
_DASHES = re.compile(r"\A(?:- )+")  # a dash without a space may be a minus
_ASIDE = re.compile(r"\([^()]*\)")
_INLINE = re.compile(r"[,;]? (?=[0-9]{1,4}[.)] )")
# A mark ends in a full stop with no digit behind it (3.5 is not the third line), a bracket, a colon, a bar or a lone dash.
_MARK = re.compile(
    r"(?:rank|place|platz|top|no\.?|nr\.?|第)? ?[#(\[]?([0-9]{1,9}) ?(?:\.(?![0-9])|[):\]|名位、]|-(?= ))+ ?(.*)",
    re.IGNORECASE,
)
_WEAK_MARK = re.compile(r"([0-9]{1,9})[ ,;]+([^0-9 ,;].*|[0-9]+)")
_NAMED = re.compile(
    r"(?<![a-z])(?:id|number|no|nr|item|candidate|option)[\"']?\.? ?[:=#]? ?([0-9]+)(?![0-9a-z]|\.[0-9])", re.IGNORECASE
)
_LEADING = re.compile(r"#?[(\[]?([0-9]+)(?=$|[ ,;:|)\]-]|\.(?![0-9]))")
_BRACKETED = re.compile(r"[(\[]#?([0-9]+)[)\]][.,;|]?$")


class Entry(NamedTuple):
    """One place of a ranking: a candidate's number in 1..C, or 0 where something else was said."""

    place: int
    by_title: bool = False


UNKNOWN = Entry(0)


class PlainReading(NamedTuple):
    """The entries, and `prose` or `truncated` where that applies."""

    entries: list[Entry]
    flags: frozenset[str]


class _Numbered(NamedTuple):
    entries: list[Entry]
    used: int  # lines explained
    unranked: Sequence[str]  # all lines, without the numbers that are ranks: no other reading may take them for items


class LineReader:
    """Reads lines about candidates 1..n.

    Args:
        n: number of candidates.
        shortest: so many numbers side by side among words make a ranking; fewer are a remark.
        titles: [n] titles of the candidates, or none.
    """

    def __init__(self, n: int, *, shortest: int, titles: Sequence[str]) -> None:
        self._n, self._shortest = n, shortest
        self._titles: dict[str, int] = {}
        for place, title in enumerate(titles[:n], 1):
            if key := _key(folded(title)):
                self._titles.setdefault(key, place)

    def read(self, text: str, cut: bool) -> PlainReading:
        """Read a text; `cut` says that its end is missing."""
        if cut:
            text = text.rstrip("0123456789")  # there may have been more digits
        text = _TAG.sub(lambda tag: "\n" if tag[1].casefold() in _BLOCKS else " ", text)
        lines = [line for raw in text.splitlines() for line in _split_inline(line_of(raw)) if line]
        entries, used = self._best(lines)
        if not known(entries):
            entries, used = self._best([line_of(_ASIDE.sub(" ", line)) for line in lines])
        prose, truncated = {"prose"} if used < len(lines) else set(), {"truncated"} if cut else set()
        return PlainReading(entries, frozenset(prose | truncated))

    def numbered(self, lines: Sequence[str]) -> list[Entry]:
        """Read lines that start with a number, as `_numbered` does."""
        return self._numbered(lines).entries

    def item(self, text: str) -> Entry:
        """Read the item of one line: a number, a title, `Title (id 17)`, `17 - Title` or `Title [17]`."""
        text = text.strip()
        if (number := self.number(text)).place:
            return number
        for part in (text, re.split(r" [-|] ", text, maxsplit=1)[0]):  # Title - why it was chosen
            if place := self._titles.get(_key(part)):
                return Entry(place, by_title=True)
        match = _NAMED.search(text) or _LEADING.match(text) or _BRACKETED.search(text)
        return self.number(match[1]) if match else UNKNOWN

    def number(self, text: str) -> Entry:
        """Read a number in 1..n, and nothing but that."""
        if text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER and 1 <= int(text) <= self._n:
            return Entry(int(text))
        return UNKNOWN

    def _best(self, lines: Sequence[str]) -> tuple[list[Entry], int]:
        """Return the entries of the reading with most items, and how many lines it explains."""
        numbered = self._numbered(lines)
        others = [*reversed(self._series(numbered.unranked)), self._named(numbered.unranked)]
        readings = [(numbered.entries, numbered.used), *others]
        return max(readings, key=lambda reading: known(reading[0]))

    def _numbered(self, lines: Sequence[str]) -> _Numbered:
        """Read lines that start with a number.

        The numbers are ranks where they count up from 1 (or 0), or merely rise from there and an item stands behind most of
        them, or are all 1, as Markdown allows. Then the item stands behind. Else the number is the item.
        """
        matches = [_MARK.fullmatch(line) for line in lines]
        weak = not any(matches)
        if weak:
            matches = [_WEAK_MARK.fullmatch(line) for line in lines]
        marked = [match for match in matches if match]
        numbers = [int(match[1]) for match in marked]
        if not numbers or (weak and len(numbers) < 2):
            return _Numbered([], 0, lines)
        behind = [self.item(match[2]) for match in marked]
        counts_up = numbers[0] <= 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        rising = numbers[0] <= 1 and all(before < after for before, after in pairwise(numbers))
        alike = len(numbers) > 1 and set(numbers) == {1}
        if counts_up or alike or (rising and 2 * known(behind) >= len(behind)):
            entries = [entry for entry, match in zip(behind, marked, strict=True) if match[2].strip()]
            unranked = [match[2] if match else line for line, match in zip(lines, matches, strict=True)]
            return _Numbered(entries, len(marked), unranked)
        if weak:
            return _Numbered([], 0, lines)
        return _Numbered([self.number(match[1]) for match in marked], len(marked), lines)

    def _series(self, lines: Sequence[str]) -> list[tuple[list[Entry], int]]:
        """Find numbers side by side. Lines of nothing but numbers go on with each other."""
        found: list[tuple[list[Entry], int]] = []
        going_on = False
        for line in lines:
            series, whole = self._series_of(line)
            if whole and going_on:
                found[-1] = (found[-1][0] + series[0], found[-1][1] + 1)
            else:
                # Beside words a series does not explain its line.
                found += [(entries, int(whole)) for entries in series if whole or len(entries) >= self._shortest]
            going_on = whole
        return found

    def _series_of(self, line: str) -> tuple[list[list[Entry]], bool]:
        series: list[list[Entry]] = []
        end, whole = 0, True
        for match in _NUMBER.finditer(line):
            joined = line[end : match.start()].strip(_SEPARATORS).casefold() in _JOINING
            whole = whole and joined
            if not series or not joined:
                series.append([])
            series[-1].append(self.number(match[0]))
            end = match.end()
        return series, bool(series) and whole and not line[end:].strip(_SEPARATORS + ".")

    def _named(self, lines: Sequence[str]) -> tuple[list[Entry], int]:
        """Read lines that are a title, or that name an id; a few numbers among prose are not taken for a ranking."""
        entries = [entry for line in lines if (entry := self.item(line)).place]
        if sum(not entry.by_title for entry in entries) < self._shortest:
            entries = [entry for entry in entries if entry.by_title]
        return entries, len(entries)


def folded(text: str) -> str:
    """Return the text with full-width letters and digits, dashes and quotation marks made plain."""
    return unicodedata.normalize("NFKC", text).translate(_FOLDED)


def known(entries: Sequence[Entry]) -> int:
    """Count the distinct candidates among entries."""
    return len({entry.place for entry in entries} - {0})


def line_of(text: str) -> str:
    """Strip a line of Markdown: emphasis, quotation, bullets, headings, borders of tables."""
    line = " ".join(text.replace("*", "").replace("`", "").split()).strip(_BULLETS)
    return _DASHES.sub("", line).strip(_BULLETS)


def _split_inline(line: str) -> list[str]:
    if line.startswith(("1. ", "1) ")) and re.search(r" 2[.)] ", line):
        return _INLINE.split(line)
    return [line]


def _key(title: str) -> str:
    """Return what two spellings of one title share."""
    return " ".join(title.replace("*", "").casefold().split()).strip(_EDGES)
