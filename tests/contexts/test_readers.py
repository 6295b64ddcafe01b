"""Text out of HTML and captions, with the file's own lines."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.contexts.readers import read_cues, read_html, read_subrip

PAGE = """<!doctype html>
<html><head><title>Our
 shop</title><style>p { color: red }</style></head>
<body>
<h1>Opening
   <i>hours</i></h1>
<p>We open at <b>9</b> and
  close at 18:00 &ndash; daily.</p>
<ul><li>Monday</li>
<li><p>Friday</p></li></ul>
<table><tr><th>Day</th><th>Till</th></tr>
<tr>
 <td>Monday</td>
 <td>17:00 &lt; 18:00</td></tr></table>
<script>alert("no")</script>
<pre>
 one
   two
</pre>end<br># no heading
more</body></html>"""


def test_html_keeps_marks_and_lines() -> None:
    assert read_html(PAGE) == [
        ("# Our shop", 2),
        ("", 5),
        ("# Opening hours", 5),
        ("", 7),
        ("We open at 9 and", 7),
        ("close at 18:00 – daily.", 8),
        ("", 9),
        ("- Monday", 9),
        ("- Friday", 10),
        ("", 11),
        ("Day | Till", 11),
        ("Monday | 17:00 < 18:00", 13),
        ("", 17),
        (" one", 17),
        ("   two", 18),
        ("", 19),
        ("end", 19),
        ("# no heading", 19),
        ("more", 20),
    ]


def test_a_long_line_of_many_tags_is_read_in_one_go() -> None:
    assert read_html("<p>" + "<b>x</b> " * 20_000) == [("x " * 19_999 + "x", 1)]


def test_markup_that_never_ends_is_text() -> None:
    assert read_html("<p>a</p>\n<b x='>c</b>\n<!-- d > e &amp; <i>f</i>") == [
        ("a", 1),
        ("", 2),
        ("<b x='>c", 2),
        ("<!-- d > e & f", 3),
    ]
    assert read_html("x <a") == [("x <a", 1)]
    assert read_html("a<![if !IE]>b<![endif]>c<![foo[d]]>e") == [("abce", 1)]


def test_markup_that_never_ends_is_not_looked_for_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []
    parse = HTMLParser.parse_starttag

    def counted(self: HTMLParser, i: int) -> int:
        looked.append(i)
        return parse(self, i)

    monkeypatch.setattr(HTMLParser, "parse_starttag", counted)
    assert read_html("<a " * 20_000) == [(("<a " * 20_000).strip(), 1)]
    assert len(looked) < 200


def test_a_line_end_by_reference_is_no_line_of_the_file() -> None:
    assert read_html("<p>a&#10;b&#x0A;c\nd&#10") == [("a b c", 1), ("d", 2)]
    assert read_html("<p>a&#100;b&#x0AB;c") == [("adb«c", 1)]


TAGS = "<p> </p> <li> <td> <h2> </h2> <br> <pre> </pre> <script> </script>".split()


@given(st.lists(st.sampled_from(["word", " ", "\n", "&#10;", "<", *TAGS])))
def test_html_lines_stand_in_order_within_the_file(pieces: list[str]) -> None:
    page = "".join(pieces)
    lines = read_html(page)
    numbers = [at for _, at in lines]
    assert numbers == sorted(numbers)
    assert all(1 <= at <= page.count("\n") + 1 for at in numbers)
    assert all("\n" not in text for text, _ in lines)


def test_no_word_of_a_page_is_lost() -> None:
    words = " ".join(text for text, _ in read_html("<div>a<span>b</span> c<td>d<li>e<p>f</x>g"))
    assert "".join(c for c in words if c.isalpha()) == "abcdefg"


VTT = """WEBVTT - A talk
Kind: captions
Language: en

NOTE nobody
says this

STYLE
::cue { color: red }

intro
00:01.000 --> 00:03.500 align:start position:0%
<v.first Ann Lee>Hello <c.big>big</c><00:00:02.000> world</v> <v Bob>Yes &amp; no

00:00:03.000 --> 00:00:04.000

<v Bob>not a cue line

100:00:04.000 --> 100:00:05.000
 
<v Bob>Yes &amp; no
a < b, they say
"""


def test_captions_become_speaker_and_text() -> None:
    assert read_cues(VTT) == [
        ("Ann Lee: Hello big world", 13),
        ("Bob: Yes & no", 13),
        ("Bob: Yes & no", 21),
        ("a < b, they say", 22),
    ]


def test_subrip_numbers_are_not_spoken() -> None:
    srt = (
        "1\n00:00:01,000 --> 00:00:02,000\n42\n2\n00:00:03,000 --> 00:00:04,000\n<i>Forty-two?</i>"
    )
    assert read_subrip(srt) == [("42", 3), ("Forty-two?", 6)]


def test_blank_lines_end_no_cue_of_subrip() -> None:
    srt = (
        "1\n00:00:01,000 --> 00:00:02,000\nfirst\n\nsecond\n \n\n"
        "2\n\n00:00:03,000 --> 00:00:04,000\n\nthird\n\n\n7 of them\n"
    )
    assert read_subrip(srt) == [("first", 3), ("second", 5), ("third", 12), ("7 of them", 15)]


def test_odd_times_and_what_is_no_tag_lose_no_words() -> None:
    srt = (
        "1\n00:00:01,5 --> 00:00:02\nx < 5 and y > 3\n\n"
        "2\n0:03 --> 0:04\nask <ann@x.org> or <I>Bob</I> <00:00:03.500><c.red>soon</c>"
    )
    assert read_subrip(srt) == [("x < 5 and y > 3", 3), ("ask <ann@x.org> or Bob soon", 7)]


def test_tags_that_never_end_are_words() -> None:
    line = "<v Ann <b " * 20_000
    assert read_cues(f"00:00.000 --> 00:01.000\n{line}") == [(line.strip(), 2)]


def test_rolling_captions_are_said_once() -> None:
    cues = ["one", "one\ntwo", "two\nthree", "three", "one"]
    text = "".join(f"00:0{i}.000 --> 00:0{i + 1}.000\n{cue}\n\n" for i, cue in enumerate(cues))
    assert [line for line, _ in read_cues(text)] == ["one", "two", "three", "one"]


def test_what_is_said_again_later_is_kept() -> None:
    later = "00:01.000 --> 00:02.000\nNo.\n\n00:02.100 --> 00:03.000\nNo.\n"
    assert read_cues(later) == [("No.", 2), ("No.", 5)]
    both = "1\n0:00:01,000 --> 0:00:02,000\n- No.\n- No.\n\n2\n0:00:01,500 --> 0:00:03,000\n- No.\n"
    assert read_subrip(both) == [("- No.", 3), ("- No.", 4)]
    assert read_cues("1:00:01.000 -->\nNo.\n\n00:02.000 --> soon\nNo.") == [("No.", 2), ("No.", 5)]
