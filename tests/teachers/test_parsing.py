# ruff: noqa: RUF001 (characters of real replies)
"""What is read out of replies of every kind, and what is counted as mended."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.teachers.parsing import Parsed, parse_ranking

# The candidate called n is item 100 + n; there are 20, and 4 are wanted.
CANDIDATES = [101 + place for place in range(20)]
TITLES = [f"Film {chr(65 + place)} ({1980 + place})" for place in range(20)]
TITLES[2] = "12 Angry Men (1957)"  # candidate 3
TITLES[4] = "Star Wars: Episode IV - A New Hope"  # candidate 5
TITLES[6] = "M*A*S*H"  # candidate 7
TITLES[8] = "[REC]"  # candidate 9
BAD = {"unusable": 1}


def read(text: str, *, wanted: int = 4, finish: str = "stop", titles: list[str] | None = None) -> Parsed:
    return parse_ranking(text, CANDIDATES, wanted, finish=finish, titles=titles)


# name: reply, numbers read, repairs
REPLIES = {
    "as asked": ('{"ranking": [3, 17, 5, 8]}', [3, 17, 5, 8], {}),
    "spread over lines": ('{\n  "ranking": [\n    3,\n    17,\n    5,\n    8\n  ]\n}\n', [3, 17, 5, 8], {}),
    "bare list": ("[3, 17, 5, 8]", [3, 17, 5, 8], {}),
    "other keys beside": ('{"reason": "likes 90s", "ranking": [3, 17, 5, 8]}', [3, 17, 5, 8], {}),
    "byte order mark": ('\ufeff{"ranking": [3, 17, 5, 8]}', [3, 17, 5, 8], {}),
    "empty thoughts": ('<think>\n\n</think>\n\n{"ranking": [3, 17, 5, 8]}', [3, 17, 5, 8], {}),
    "thoughts": ('<think>[1, 2, 3, 4] or 9?</think>{"ranking": [3, 17, 5, 8]}', [3, 17, 5, 8], {"prose": 1}),
    "endless thoughts": ("<think>Perhaps 3, 17, 5, 8, or", [], {"prose": 1, "truncated": 1, **BAD}),
    "fenced": ('```json\n{"ranking": [3, 17, 5, 8]}\n```', [3, 17, 5, 8], {"prose": 1}),
    "fenced list": ("```\n[3, 17, 5, 8]\n```", [3, 17, 5, 8], {"prose": 1}),
    "chatty": ('Sure! Here are the top 4:\n{"ranking": [3, 17, 5, 8]}\nEnjoy!', [3, 17, 5, 8], {"prose": 1}),
    "German": ('Gerne, hier die 4 besten: {"ranking": [3, 17, 5, 8]} Viel Spaß!', [3, 17, 5, 8], {"prose": 1}),
    "Chinese around": ('根据历史，推荐如下：\n{"ranking": [3, 17, 5, 8]}\n希望您喜欢。', [3, 17, 5, 8], {"prose": 1}),
    "history first": ("You chose [1, 2, 6, 7]. So: [3, 17, 5, 8].", [3, 17, 5, 8], {"prose": 1}),
    "key wins over length": ('{"ranking": [3, 17]} of [1, 2, 5, 6]', [3, 17], {"prose": 1, "missing": 2}),
    "other key": ('{"items": [3, 17, 5, 8]}', [3, 17, 5, 8], {"not_json": 1}),
    "capital key": ('{"Ranking": [3, 17, 5, 8]}', [3, 17, 5, 8], {"not_json": 1}),
    "wrapped": ('{"result": {"ranking": [3, 17, 5, 8]}}', [3, 17, 5, 8], {"not_json": 1}),
    "ranks as keys": ('{"1": 3, "2": 17, "3": 5, "4": 8}', [3, 17, 5, 8], {"not_json": 1}),
    "strings": ('{"ranking": ["3", "17", "5", "8"]}', [3, 17, 5, 8], {"not_json": 1}),
    "numbered strings": ('["1. 3", "2. 17", "3. 5", "4. 8"]', [3, 17, 5, 8], {"not_json": 1}),
    "objects": (
        '[{"rank": 1, "id": 3}, {"rank": 2, "id": 17}, {"rank": 3, "id": 5}, {"rank": 4, "id": 8}]',
        [3, 17, 5, 8],
        {"not_json": 1},
    ),
    "single quotes": ("{'ranking': [3, 17, 5, 8]}", [3, 17, 5, 8], {"not_json": 1}),
    "trailing comma": ('{"ranking": [3, 17, 5, 8,]}', [3, 17, 5, 8], {"not_json": 1}),
    "no commas": ("[3 17 5 8]", [3, 17, 5, 8], {"not_json": 1}),
    "list of lists": ("[[3, 17, 5, 8]]", [3, 17, 5, 8], {"prose": 1}),
    "cut in a number": ('{"ranking": [3, 17, 5, 1', [3, 17, 5], {"truncated": 1, "missing": 1}),
    "cut behind a comma": ('{"ranking": [3, 17, 5,', [3, 17, 5], {"truncated": 1, "missing": 1}),
    "cut behind a space": ("[3 17 5 ", [3, 17, 5], {"not_json": 1, "truncated": 1, "missing": 1}),
    "cut behind the list": ('{"ranking": [3, 17, 5, 8]', [3, 17, 5, 8], {"truncated": 1}),
    "cut in an object": (
        '[{"id": 3}, {"id": 17}, {"id": 5, "ti',
        [3, 17],
        {"not_json": 1, "truncated": 1, "missing": 2},
    ),
    "cut in a string": ('["3", "17", "1', [3, 17], {"not_json": 1, "truncated": 1, "missing": 2}),
    "cut fence": ('```json\n{"ranking": [3, 17, 5, ', [3, 17, 5], {"prose": 1, "truncated": 1, "missing": 1}),
    "cut at the first": ('{"ranking": [3', [], {"truncated": 1, **BAD}),
    "cut at the key": ('{"rank', [], BAD),
    "commas": ("3, 17, 5, 8", [3, 17, 5, 8], {"not_json": 1}),
    "full stop": ("3, 17, 5 and 8.", [3, 17, 5, 8], {"not_json": 1}),
    "lines": ("3\n17\n5\n8", [3, 17, 5, 8], {"not_json": 1}),
    "arrows": ("3 > 17 > 5 > 8", [3, 17, 5, 8], {"not_json": 1}),
    "series in prose": ("Of all 20, I would take 3, 17, 5, and 8.", [3, 17, 5, 8], {"not_json": 1, "prose": 1}),
    "heading": ("Top 4\n3\n17\n5\n8", [3, 17, 5, 8], {"not_json": 1, "prose": 1}),
    "German series": ("Ich empfehle 3, 17, 5 und 8.", [3, 17, 5, 8], {"not_json": 1, "prose": 1}),
    "Chinese series": ("推荐：３、１７、５和８。", [3, 17, 5, 8], {"not_json": 1, "prose": 1}),
    "numbered": ("1. 3\n2. 17\n3. 5\n4. 8", [3, 17, 5, 8], {"not_json": 1}),
    "numbered with brackets": ("1) 3\n2) 17\n3) 5\n4) 8", [3, 17, 5, 8], {"not_json": 1}),
    "numbered from 0": ("0: 3\n1: 17\n2: 5\n3: 8", [3, 17, 5, 8], {"not_json": 1}),
    "numbered, one left out": ("1. 3\n2. 17\n4. 5\n5. 8", [3, 17, 5, 8], {"not_json": 1}),
    "numbered, all 1": ("1. 3\n1. 17\n1. 5\n1. 8", [3, 17, 5, 8], {"not_json": 1}),
    "numbered on one line": ("1. 3 2. 17 3. 5 4. 8", [3, 17, 5, 8], {"not_json": 1}),
    "named ranks": ("Rank 1: 3\nRank 2: 17\n#3: 5\n第4名：8", [3, 17, 5, 8], {"not_json": 1}),
    "pairs": ("rank,id\n1,3\n2,17\n3,5\n4,8", [3, 17, 5, 8], {"not_json": 1, "prose": 1}),
    "table": (
        "| Rank | No | Title |\n|---|---|---|\n| 1 | 3 | X |\n| 2 | 17 | Y |\n| 3 | 5 | Z |\n| 4 | 8 | W |",
        [3, 17, 5, 8],
        {"not_json": 1, "prose": 1},
    ),
    "title and id": ("1. Heat (id 3)\n2. Up (id: 17)\n3. Big [5]\n4. Jaws (#8)", [3, 17, 5, 8], {"not_json": 1}),
    "bold": ("**1.** **3** - because\n**2.** 17 – fine\n**3.** 5\n**4.** `8`", [3, 17, 5, 8], {"not_json": 1}),
    "bullets": ("- 3\n- 17\n* 5\n• 8", [3, 17, 5, 8], {"not_json": 1}),
    "candidates copied": ("3. Heat\n17. Up\n5. Big\n8. Jaws", [3, 17, 5, 8], {"not_json": 1}),
    "bracketed numbers": ("[3] Heat\n[17] Up\n[5] Big\n[8] Jaws", [3, 17, 5, 8], {"not_json": 1}),
    "asides": ("3 (Heat), 17 (Up), 5 (Big), 8 (Jaws)", [3, 17, 5, 8], {"not_json": 1}),
    "HTML": ("<ol><li>3</li><li>17</li><li><b>5</b></li><li>8</li></ol>", [3, 17, 5, 8], {"not_json": 1}),
    "reasons, then a series": (
        "1. You like war.\n2. You like 90s.\nSo: 3, 17, 5, 8",
        [3, 17, 5, 8],
        {"not_json": 1, "prose": 1},
    ),
    "one JSON a line": ('{"id": 3}\n{"id": 17}\n{"id": 5}\n{"id": 8}', [3, 17, 5, 8], {"not_json": 1}),
    "repeated": ("[3, 17, 3, 5, 3]", [3, 17, 5], {"repeated": 2, "missing": 1}),
    "too many": ("[3, 17, 5, 8, 1, 2]", [3, 17, 5, 8], {"surplus": 2}),
    "zero": ("[0, 3, 17, 5, 8]", [3, 17, 5, 8], {"unknown": 1}),
    "outside": ("[21, 3, 17, 5, 8, 1995]", [3, 17, 5, 8], {"unknown": 2}),
    "negative": ("[-3, 3, 17, 5, 8]", [3, 17, 5, 8], {"unknown": 1}),
    "negative in text": ("-4, 3, 17, 5, 8", [3, 17, 5, 8], {"not_json": 1, "unknown": 1}),
    "floats": ("[3.0, 17, 5.5, 8]", [17, 8], {"unknown": 2, "missing": 2}),
    "floats in text": ("3.5, 17, 5, 1e1, 8", [17, 5, 8], {"not_json": 1, "unknown": 2, "missing": 1}),
    "null and true": ("[null, true, 3, 17, 5, 8, NaN]", [3, 17, 5, 8], {"unknown": 3}),
    "huge": (f"[{'9' * 5000}, 3, 17, 5, 8]", [3, 17, 5, 8], {"unknown": 1}),
    "all outside": ("[50, 60]", [], {"unknown": 2, **BAD}),
    "empty list": ('{"ranking": []}', [], BAD),
    "empty": ("", [], {"empty": 1}),
    "white space": (" \n\t ", [], {"empty": 1}),
    "refusal": ("I am sorry, I can rank at most 10 items.", [], BAD),
    "no numbers": ("Je ne peux pas répondre à cette question.", [], BAD),
    "ranks without items": ("1. Heat\n2. Up\n3. Big\n4. Jaws", [], {"unknown": 4, **BAD}),
    "a citation": ("As shown in [1], nobody can know.", [], BAD),
    "a year": ("Films of 1995 and 1996.", [], BAD),
    "many brackets": ("[" * 5000, [], {"truncated": 1, **BAD}),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies(name: str) -> None:
    text, numbers, repairs = REPLIES[name]
    parsed = read(text)
    assert (parsed.items, parsed.repairs) == ([100 + number for number in numbers], repairs)
    assert parsed.usable == bool(numbers)
    assert parsed.repaired == bool(repairs)


# With titles at hand: a title read is counted.
TITLED = {
    "lines": ("Film B (1981)\nfilm  t (1999)\n", [2, 20], {"titles": 2}),
    "numbered": ("1. Film B (1981)\n2. Film T (1999)", [2, 20], {"titles": 2}),
    "a number in the title": ("1. 12 Angry Men (1957)\n2. Film T (1999)", [3, 20], {"titles": 2}),
    "a reason behind it": ("1. **Film B (1981)** – a classic\n2. “Film T (1999)”", [2, 20], {"titles": 2}),
    "a dash in the title": ("1. Star Wars: Episode IV – A New Hope\n2. M*A*S*H", [5, 7], {"titles": 2}),
    "JSON": ('{"ranking": ["Film B (1981)", "[REC]"]}', [2, 9], {"titles": 2}),
    "objects": ('[{"title": "Film B (1981)"}, {"title": "Film T (1999)"}]', [2, 20], {"titles": 2}),
    "the number counts": ("3. Film B (1981)\n1. Film T (1999)", [3, 1], {}),
    "one is invented": ("1. Film B (1981)\n2. Made Up\n3. Film T (1999)", [2, 20], {"titles": 2, "unknown": 1}),
    "the same one by number and title": ('[2, "Film B (1981)", 20]', [2, 20], {"repeated": 1}),
    "ranks in the way of numbers": ("1. Film B (1981) (id 17)\n2. Film T (1999) (id 8)", [17, 8], {}),
}


@pytest.mark.parametrize("name", TITLED)
def test_titles(name: str) -> None:
    text, numbers, repairs = TITLED[name]
    parsed = read(text, wanted=2, titles=TITLES)
    assert (parsed.items, parsed.repairs) == ([100 + number for number in numbers], {"not_json": 1, **repairs})


def test_a_reply_cut_off_by_its_limit() -> None:
    assert read("1. 3\n2. 17\n3. 1", finish="length") == Parsed(
        [103, 117], {"not_json": 1, "truncated": 1, "missing": 2}
    )
    assert read("3, 17, 1", finish="length") == Parsed([103, 117], {"not_json": 1, "truncated": 1, "missing": 2})
    assert read("3, 17, 1", finish="stop") == Parsed([103, 117, 101], {"not_json": 1, "missing": 1})
    # The list was whole; only what the model went on to say is missing.
    assert read("[3, 17, 5, 8] because the us", finish="length") == Parsed([103, 117, 105, 108], {"prose": 1})


def test_fewer_candidates_than_wanted_are_not_missing() -> None:
    assert parse_ranking("[2, 1]", [70, 71], 25) == Parsed([71, 70], {})
    assert parse_ranking("[2]", [70, 71], 25) == Parsed([71], {"missing": 1})
    assert parse_ranking("[1]", [], 25) == Parsed([], {"unknown": 1, "unusable": 1})


def test_a_single_wanted_number() -> None:
    assert read("17", wanted=1) == Parsed([117], {"not_json": 1})
    assert read("1. 17", wanted=1) == Parsed([117], {"not_json": 1})
    assert read('{"ranking": [17]}', wanted=1) == Parsed([117], {})
    assert read("The best 1 of 20 would be:", wanted=1) == Parsed([], BAD)


places = st.lists(st.integers(1, 20), unique=True, min_size=1, max_size=20)
styles = {
    "object": lambda numbers: json.dumps({"ranking": numbers}),
    "indented": lambda numbers: json.dumps({"ranking": numbers}, indent=2),
    "compact": lambda numbers: json.dumps(numbers, separators=(",", ":")),
    "chatty": lambda numbers: (
        f"Of course, the best {len(numbers)}:\n```json\n{json.dumps({'ranking': numbers})}\n```\nBye!"
    ),
    "commas": lambda numbers: ", ".join(map(str, numbers)),
    "numbered": lambda numbers: "\n".join(f"{rank}. {number}" for rank, number in enumerate(numbers, 1)),
    "bracketed": lambda numbers: "\n".join(f"{rank}) {number}" for rank, number in enumerate(numbers, 1)),
    "titled": lambda numbers: "\n".join(f"{rank}. Some film (id {n})" for rank, n in enumerate(numbers, 1)),
}


@pytest.mark.parametrize("style", styles)
@given(numbers=places)
def test_whole_replies_are_read_whole(style: str, numbers: list[int]) -> None:
    parsed = read(styles[style](numbers), wanted=len(numbers))
    assert parsed.items == [100 + number for number in numbers]
    assert not set(parsed.repairs) - {"prose", "not_json"}


@pytest.mark.parametrize("style", styles)
@given(numbers=places, data=st.data())
def test_what_is_left_of_a_reply_is_a_beginning_of_its_ranking(
    style: str, numbers: list[int], data: st.DataObject
) -> None:
    whole = styles[style](numbers).encode()
    text = whole[: data.draw(st.integers(0, len(whole)))].decode()
    parsed = read(text, wanted=len(numbers), finish="length")
    assert parsed.items == [100 + number for number in numbers[: len(parsed.items)]]
    if text.strip():
        kept = len(parsed.items) + parsed.repairs.get("missing", 0)
        assert kept == len(numbers) or parsed.repairs["unusable"] == 1


@pytest.mark.parametrize("style", ["object", "indented", "compact"])
@given(numbers=places, data=st.data())
def test_json_shows_by_itself_that_it_was_cut(style: str, numbers: list[int], data: st.DataObject) -> None:
    whole = styles[style](numbers)
    text = whole[: data.draw(st.integers(1, len(whole) - 1))]
    parsed = read(text, wanted=len(numbers), finish="stop")
    assert parsed.items == [100 + number for number in numbers[: len(parsed.items)]]
    assert parsed.repairs.get("truncated", 0) + parsed.repairs.get("unusable", 0) >= 1


def sound(parsed: Parsed, wanted: int) -> None:
    assert len(parsed.items) <= min(wanted, len(CANDIDATES))
    assert len(set(parsed.items)) == len(parsed.items)
    assert set(parsed.items) <= set(CANDIDATES)
    assert all(times > 0 for times in parsed.repairs.values())
    assert parsed.usable != bool({"empty", "unusable"} & set(parsed.repairs))


pieces = st.sampled_from(
    ["[", "]", "{", "}", '"', "ranking", ":", ",", " ", "\n", "- ", "-", "1. ", "2) ", "3", "17", "0", "1.5", "99", "(id 4)",
     "Film B (1981)", "```json", "<li>", "</think>", "<think>", "|", "**", "和", "、", "１", "\x00", "\ud800", "½", "true"]
)  # fmt: skip


@given(text=st.one_of(st.text(), st.lists(pieces).map("".join)), wanted=st.integers(1, 30), cut=st.booleans())
def test_no_text_raises(text: str, wanted: int, cut: bool) -> None:
    sound(parse_ranking(text, CANDIDATES, wanted, finish="length" if cut else "stop", titles=TITLES), wanted)


@pytest.mark.parametrize("style", styles)
@given(numbers=places, data=st.data())
def test_no_mangled_reply_raises(style: str, numbers: list[int], data: st.DataObject) -> None:
    text = styles[style](numbers)
    at = data.draw(st.integers(0, len(text)))
    text = data.draw(st.text(max_size=5)) + text[:at] + data.draw(pieces) + text[at + data.draw(st.integers(0, 3)) :]
    sound(read(text, titles=TITLES), 4)
    sound(read("".join(data.draw(st.permutations(text[:60]))), titles=TITLES), 4)


@pytest.mark.parametrize(
    "piece",
    [
        "[",
        "[1,",
        '{"a":',
        "(",
        "<a",
        "- ",
        "1. ",
        " ",
        ",",
        "3 ",
        "(1)",
        "<think>",
        "1.",
        "id ",
        "[1,2]",
        "\n",
        "9",
        '"',
    ],
)
def test_no_long_text_hangs(piece: str) -> None:
    """Texts on which a careless pattern takes minutes; the suite's limit would tell."""
    sound(read(piece * (120_000 // len(piece))), 4)
    sound(read(piece * (90_000 // len(piece)) + "x"), 4)
