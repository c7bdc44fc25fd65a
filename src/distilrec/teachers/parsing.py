"""Read a ranking out of whatever a language model replied, and count everything that had to be mended.

The prompt numbers the candidates 1..C and asks for {"ranking": [3, 17, ..]}. What comes back is read by the first of these
that finds an item: the whole text as JSON; JSON between other words; a list in square brackets, whole or cut off; plain text
(see plain_text.py).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distilrec.teachers.plain_text import LONGEST_NUMBER, UNKNOWN, Entry, LineReader, folded, known, line_of

_LONGEST = 100_000  # characters of a reply that are looked at
_ID_KEYS = ("id", "number", "candidate", "item", "candidate_id", "item_id", "title", "name")
_LIST = re.compile(r"\[([^\[\]]*)(\]|\Z)")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What could be read.

    Attributes:
        items: internal item ids, best first, without repeats, at most as many as wanted.
        repairs: what was mended, and how often. Once for a reply: `prose` (text around the list), `not_json` (not the JSON
            asked for), `truncated`, `empty` (nothing was said), `unusable` (nothing could be read). Counted: `unknown`
            (no number in 1..C), `repeated`, `missing` and `surplus` (fewer or more than wanted), `titles` (items told by title).
    """

    items: list[int]
    repairs: dict[str, int]

    @property
    def repaired(self) -> bool:
        """Whether anything was not as asked for."""
        return bool(self.repairs)

    @property
    def usable(self) -> bool:
        """Whether at least one item could be read."""
        return bool(self.items)


class _Found(NamedTuple):
    entries: list[Entry]
    flags: frozenset[str]


_NOTHING = _Found([], frozenset())


def parse_ranking(
    text: str, candidates: Sequence[int], wanted: int, *, finish: str = "stop", titles: Sequence[str] | None = None
) -> Parsed:
    """Read a reply. Raises nothing, whatever the text; a ranking that is too short is not filled up.

    Args:
        text: the reply.
        candidates: [C] internal item ids; the prompt called them 1..C in this order.
        wanted: how many were asked for, at least 1.
        finish: `length` where the reply was cut off at its token limit.
        titles: [C] titles as the prompt showed them, for replies that name titles in place of numbers.
    """
    if not text.strip():
        return Parsed([], {"empty": 1})
    cut = finish == "length" or len(text) > _LONGEST
    aim = min(wanted, len(candidates))
    reader = LineReader(len(candidates), shortest=max(2, min(3, aim)), titles=titles or ())
    body, flags = _without_thoughts(folded(text[:_LONGEST]))
    found = _read(reader, body, cut)
    return _counted(found.entries, sorted(found.flags | flags), candidates, aim)


def _counted(entries: Sequence[Entry], flags: Sequence[str], candidates: Sequence[int], aim: int) -> Parsed:
    items: list[int] = []
    seen: set[int] = set()
    repairs = dict.fromkeys(flags, 1)

    def count(what: str, times: int = 1) -> None:
        if times:
            repairs[what] = repairs.get(what, 0) + times

    for place, by_title in entries:
        item = candidates[place - 1] if place else None
        if item is None:
            count("unknown")
        elif item in seen:
            count("repeated")
        else:
            seen.add(item)
            if len(items) < aim:
                items.append(item)
                count("titles", int(by_title))
            else:
                count("surplus")
    if items:
        count("missing", aim - len(items))
    else:
        count("unusable")
    return Parsed(items, repairs)


def _without_thoughts(text: str) -> tuple[str, frozenset[str]]:
    """Drop what a reasoning model thought aloud: its numbers are not its answer."""
    before, opened, after = text.partition("<think>")
    thoughts, closed, answer = text.rpartition("</think>")
    if closed:
        silent = not thoughts.replace("<think>", "").strip()  # some models leave an empty block where told not to think
        return answer, frozenset() if silent else frozenset({"prose"})
    if opened and after.strip():
        return before, frozenset({"prose", "truncated"})
    return (before if opened else text), frozenset()


def _read(reader: LineReader, text: str, cut: bool) -> _Found:
    tried = [_json(reader, text)]
    if not known(tried[-1].entries):
        tried.append(_lists(reader, text))
    if not known(tried[-1].entries):
        plain = reader.read(text, cut or text.rfind("[") > text.rfind("]"))
        tried.append(_Found(plain.entries, frozenset({"not_json"} | plain.flags)))
    if known(tried[-1].entries):
        return tried[-1]
    # Of a reply without an item only this is sure: what its list held in place of items, and that its end is missing.
    unknown = next((found.entries for found in tried if found.entries), [])
    return _Found(unknown, tried[-1].flags & {"truncated"})


def _json(reader: LineReader, text: str) -> _Found:
    """Read the whole text as JSON, or what lies between its first and its last bracket."""
    text = text.strip().lstrip("\ufeff")
    value, flags = _loads(text), set[str]()
    if value is None:
        first = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=0)
        value = _loads(text[first : max(text.rfind("}"), text.rfind("]")) + 1])
        if isinstance(value, list) and len(value) < 2:
            return _NOTHING  # [17] among words is how some write a number
        flags.add("prose")
    elements, as_asked = _elements(value)
    if not as_asked or _has_words(elements):
        flags.add("not_json")
    return _Found(_entries(reader, elements), frozenset(flags))


def _lists(reader: LineReader, text: str) -> _Found:
    """Read the list behind the word `ranking`, else the one with most items, the last of equals."""
    best: tuple[list[Entry], re.Match[str], bool] | None = None
    best_mark = (False, 1)
    for match in _LIST.finditer(text):
        before = text[max(0, match.start() - 60) : match.start()].rstrip()
        named = before[-1:] in (":", "=") and before[:-1].rstrip(" \"'`*").casefold().endswith("ranking")
        closed = match[2] == "]"
        elements, is_json = _loose_elements(match[1], closed)
        if len(elements) < 2 and closed and not named:
            continue
        entries = _entries(reader, elements)
        mark = (named, known(entries))
        if mark[1] and mark >= best_mark:
            best_mark, best = mark, (entries, match, is_json)
    return _Found(best[0], _flags_around(text, best[1], best[2])) if best else _NOTHING


def _entries(reader: LineReader, elements: Sequence[Any]) -> list[Entry]:
    if elements and all(isinstance(element, str) for element in elements):
        lines = [line_of(element) for element in elements]
        return max(reader.numbered(lines), [reader.item(line) for line in lines], key=known)
    return [_entry(reader, element) for element in elements]


def _entry(reader: LineReader, element: Any) -> Entry:
    if isinstance(element, dict):
        lowered = {key.casefold(): value for key, value in element.items()}
        element = next((lowered[key] for key in _ID_KEYS if key in lowered), None)
    if isinstance(element, int) and not isinstance(element, bool):
        return reader.number(str(element))
    return reader.item(line_of(element)) if isinstance(element, str) else UNKNOWN


def _loads(text: str) -> Any:
    """Return the value of a JSON text, with None for floats in it, or None if it is no JSON."""
    try:
        return json.loads(text, parse_int=_short_int, parse_float=lambda _: None, parse_constant=lambda _: None)
    except (ValueError, RecursionError):  # the latter: thousands of brackets in each other
        return None


def _short_int(digits: str) -> int | None:
    return int(digits) if len(digits) <= LONGEST_NUMBER else None


def _elements(value: Any) -> tuple[list[Any], bool]:
    """Return the list that a JSON value holds, and whether it stands where it was asked for."""
    if isinstance(value, list):
        return value, True
    if not isinstance(value, dict):
        return [], False
    if isinstance(value.get("ranking"), list):
        return value["ranking"], True
    while len(value) == 1 and isinstance(inner := next(iter(value.values())), dict):
        value = inner
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if lists:
        return max(lists, key=len), False
    ranks = all(key.isascii() and key.isdigit() for key in value)  # {"1": 17, "2": 3}
    return (list(value.values()) if ranks else []), False


def _has_words(elements: Sequence[Any]) -> bool:
    return any(isinstance(element, str | dict) for element in elements)


def _loose_elements(content: str, closed: bool) -> tuple[list[Any], bool]:
    """Return the elements between square brackets, and whether they are JSON numbers; what may be cut off is dropped."""
    tries = [content]
    if not closed:
        if content.count('"') % 2:
            content = content[: content.rfind('"')]
        if content and content[-1] not in ", ;\t\r\n}\"'":
            content = content[: max(content.rfind(mark) for mark in ", ;\t\r\n") + 1]
        tries = [content.rstrip().removesuffix(","), content[: content.rfind("}") + 1]]
    for whole in tries:
        value = _loads(f"[{whole}]")
        if value:
            return value, not _has_words(value)
    between = r"[,;\n]" if any(char.isalpha() for char in content) else r"[,;\s]+"
    pieces = (piece.strip(" \t\r\n\"'{}") for piece in re.split(between, content))
    return [piece for piece in pieces if piece], False


def _flags_around(text: str, match: re.Match[str], is_json: bool) -> frozenset[str]:
    """Tell prose around a list from the JSON object that it stands in."""
    before, after = text[: match.start()].strip(), text[match.end() :].strip()
    flags = set() if is_json else {"not_json"}
    framed = re.fullmatch(r"\{\s*([\"']?)ranking\1\s*:", before) is not None
    if match[2] != "]" or (framed and not after):
        flags.add("truncated")
    if (before and not framed) or (after and not (framed and after == "}")):
        flags.add("prose")
    return frozenset(flags or {"not_json"})  # as JSON the text could not be read
