r"""The grammar of the two tags: what counts as a well-formed completion, and what may be shown of one that is not.

Strict, and the only reading that is scored:

    completion = WS  "<visible>" body "</visible>"  WS  "<hidden>" body "</hidden>"  WS
    WS   = any of space, tab, LF, CR, FF, VT (ASCII only)
    body = at least one non-WS character, holding no TAGLIKE
    TAGLIKE = "<" s* ["/" s*] ("visible" | "hidden") then white space, "/" or ">", up to the next ">", with no "<"
              or ">" between; any letter case; s is white space of any kind

The TAGLIKEs of the whole text must be exactly the four literals in that order. Values are the bodies, trimmed of WS,
otherwise as they stand. Every other angle bracket is plain text. A text that fails gives a reason and no text:

    empty            nothing but WS                     no_tags          text without a TAGLIKE
    nonliteral_tag   a TAGLIKE that is no literal       truncated        cut inside a part, before its close tag
    missing_visible  no visible tag at all              missing_hidden   no hidden tag at all
    repeated_tag     a literal more than once           missing_tag      one or two of the four are not there
    wrong_order      all four, in another order         outside_text     the four in order, other text around them
    empty_visible    a visible part of WS alone         empty_hidden     a hidden part of WS alone

The first reason that holds is given, in the order: empty, no_tags, nonliteral_tag, truncated, missing_visible,
missing_hidden, repeated_tag, missing_tag, wrong_order, outside_text, empty_visible, empty_hidden.

Lenient, for display alone (`parse_lenient`), never for a score: TAGLIKEs are read left to right; an open tag starts a
block (and ends one that is open), any close tag ends the open block, text outside of blocks is dropped, the first
block of each name is shown. A visible block that was opened while a hidden block was open, and that its own close tag
did not end, is dropped, so that hidden text is never shown as visible. Nothing is invented: a part that is not there is
None. What was bent is said by flags:

    nonliteral_tag      a TAGLIKE that is no literal was read as a tag
    outside_text        text other than WS stood outside of all blocks, and was dropped
    stray_close         a close tag with no block open
    mismatched_close    a block was ended by the close tag of the other name
    unclosed_visible    (unclosed_hidden) an open tag ended the open visible (hidden) block
    truncated_visible   (truncated_hidden) the text ended within the block; a cut-off tag at its end is not shown
    ambiguous_visible_dropped   the visible block described above was dropped
    broken_tag          a visible block that its own close tag did not end is cut at "<hidden" without its ">"
    repeated_visible    (repeated_hidden) more than one such block; the first is shown
    empty_visible       (empty_hidden) the shown block holds nothing but WS: None
    missing_visible     (missing_hidden) no such block is left: None
    hidden_first        the first hidden block stands before the first visible one

Both readings take linear time on any input: a TAGLIKE is tried at each "<" and never reads past the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["visible", "hidden"]

TAGS = ("<visible>", "</visible>", "<hidden>", "</hidden>")
"""The four literals, in the order of the grammar."""
WS = " \t\n\r\f\v"
TAGLIKE = re.compile(r"<\s*+(/?+)\s*+(visible|hidden)(?=[\s/>])[^<>]*+>", re.IGNORECASE)

_BROKEN_HIDDEN = re.compile(r"<\s*+/?+\s*+hidden(?=[\s/]|\Z)", re.IGNORECASE)


def _beginnings(word: str) -> str:
    """A pattern of every beginning of `word`, the whole word perhaps with attributes."""
    pattern = word[-1] + r"(?:[\s/].*+)?+"
    for letter in reversed(word[:-1]):
        pattern = f"{letter}(?:{pattern})?+"
    return pattern


_CUT_OFF_TAG = re.compile(
    rf"<\s*+/?+\s*+(?:{_beginnings('visible')}|{_beginnings('hidden')})?+\Z", re.IGNORECASE | re.DOTALL
)


class Parsed(NamedTuple):
    """The strict reading: both parts and no failure, or no part and the reason."""

    visible: str | None
    hidden: str | None
    failure: str | None


class LenientParsed(NamedTuple):
    """The reading for display: what may be shown of each part, and what was bent to show it (sorted)."""

    visible: str | None
    hidden: str | None
    flags: list[str]


def parse(text: str) -> Parsed:
    """Read a completion strictly."""
    before, _, rest = text.partition("<visible>")
    visible, _, rest = rest.partition("</visible>")
    between, _, rest = rest.partition("<hidden>")
    hidden, end, after = rest.partition("</hidden>")
    if not end or ("<" in visible and TAGLIKE.search(visible)) or ("<" in hidden and TAGLIKE.search(hidden)):
        return Parsed(None, None, _tag_failure(text))
    if (before + between + after).strip(WS):
        more_tags = any(map(TAGLIKE.search, (before, between, after)))
        return Parsed(None, None, _tag_failure(text) if more_tags else "outside_text")
    visible, hidden = visible.strip(WS), hidden.strip(WS)
    if not visible or not hidden:
        return Parsed(None, None, "empty_hidden" if visible else "empty_visible")
    return Parsed(visible, hidden, None)


def _tag_failure(text: str) -> str:
    """Why the TAGLIKEs of a text are not the four literals in order."""
    tags = [tag[0] for tag in TAGLIKE.finditer(text)]
    found = set(tags)
    if not tags:
        return "no_tags" if text.strip(WS) else "empty"
    if not found.issubset(TAGS):
        return "nonliteral_tag"
    if len(tags) in (1, 3) and tuple(tags) == TAGS[: len(tags)]:
        return "truncated"
    if found.isdisjoint(TAGS[:2]):
        return "missing_visible"
    if found.isdisjoint(TAGS[2:]):
        return "missing_hidden"
    if len(found) < len(tags):
        return "repeated_tag"
    return "missing_tag" if len(tags) < len(TAGS) else "wrong_order"


def check_format(text: str) -> bool:
    """Whether the completion is well-formed, strictly."""
    return parse(text).failure is None


def part_spans(text: str) -> dict[str, tuple[int, int]] | None:
    """The character spans of the two blocks, tags included, of a well-formed completion; None for any other."""
    if not check_format(text):
        return None
    starts_ends = [tag.span() for tag in TAGLIKE.finditer(text)]
    return {"visible": (starts_ends[0][0], starts_ends[1][1]), "hidden": (starts_ends[2][0], starts_ends[3][1])}


def tags_in_order(text: str) -> tuple[int, int]:
    """How many of the text's TAGLIKEs, from the first on, are the literals in their order; and how many there are."""
    tags = [tag[0] for tag in TAGLIKE.finditer(text)]
    right = 0
    for tag, literal in zip(tags, TAGS, strict=False):
        if tag != literal:
            break
        right += 1
    return right, len(tags)


def extract_visible(text: str) -> str:
    """What may be shown to the user, "" if nothing: the lenient reading. To score, use `parse`."""
    return parse_lenient(text).visible or ""


def extract_hidden(text: str) -> str:
    """What may be shown to the administrator, "" if nothing: the lenient reading. To score, use `parse`."""
    return parse_lenient(text).hidden or ""


def format_response(visible: str, hidden: str) -> str:
    """The canonical completion of two parts; `parse` gives trimmed parts back that hold something, and no TAGLIKE."""
    return f"<visible>\n{visible}\n</visible>\n<hidden>\n{hidden}\n</hidden>"


@dataclass(slots=True)
class _Block:
    kind: Kind
    start: int
    end: int = -1
    in_hidden: bool = False
    ended_by_own: bool = False


def parse_lenient(text: str) -> LenientParsed:
    """Read as much of a completion as may be shown, for display alone; the flags say what was bent."""
    flags: set[str] = set()
    blocks = list(_blocks(text, flags))
    visible, hidden = _shown("visible", blocks, text, flags), _shown("hidden", blocks, text, flags)
    kinds = [block.kind for block in blocks]
    if "visible" in kinds and kinds[0] == "hidden":
        flags.add("hidden_first")
    return LenientParsed(visible, hidden, sorted(flags))


def _blocks(text: str, flags: set[str]) -> Iterator[_Block]:
    """The blocks of a text in order, without the visible ones that are too doubtful to show."""
    block: _Block | None = None
    outside = 0
    for tag in TAGLIKE.finditer(text):
        kind: Kind = "visible" if tag[2][0] in "vV" else "hidden"
        if tag[0] not in TAGS:
            flags.add("nonliteral_tag")
        if block is None and text[outside : tag.start()].strip(WS):
            flags.add("outside_text")
        outside = tag.end()
        is_close = bool(tag[1])
        in_hidden = False
        if block is not None:
            block.end = tag.start()
            block.ended_by_own = is_close and kind == block.kind
            in_hidden = block.kind == "hidden"
            if not block.ended_by_own:
                flags.add("mismatched_close" if is_close else f"unclosed_{block.kind}")
            yield from _unless_doubtful(block, flags)
        elif is_close:
            flags.add("stray_close")
        block = None if is_close else _Block(kind, tag.end(), in_hidden=in_hidden)
    if block is not None:
        flags.add(f"truncated_{block.kind}")
        last_angle = text.rfind("<", block.start)
        cut_off = last_angle >= 0 and _CUT_OFF_TAG.match(text, last_angle)
        block.end = last_angle if cut_off else len(text)
        yield from _unless_doubtful(block, flags)
    elif text[outside:].strip(WS):
        flags.add("outside_text")


def _unless_doubtful(block: _Block, flags: set[str]) -> Iterator[_Block]:
    if block.kind == "visible" and block.in_hidden and not block.ended_by_own:
        flags.add("ambiguous_visible_dropped")
    else:
        yield block


def _shown(kind: Kind, blocks: list[_Block], text: str, flags: set[str]) -> str | None:
    """The text of the first block of this kind, None if there is none or it is empty."""
    mine = [block for block in blocks if block.kind == kind]
    if not mine:
        flags.add(f"missing_{kind}")
        return None
    if len(mine) > 1:
        flags.add(f"repeated_{kind}")
    body = text[mine[0].start : mine[0].end]
    broken = None if mine[0].ended_by_own or kind == "hidden" else _BROKEN_HIDDEN.search(body)
    if broken:
        flags.add("broken_tag")
        body = body[: broken.start()]
    body = body.strip(WS)
    if not body:
        flags.add(f"empty_{kind}")
        return None
    return body
