"""Offsets carried over redactions: sections still begin where they began."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.screening import Edit, carry, load_policy, screen
from tasks.screening.edits import apply


def test_sections_keep_their_beginnings() -> None:
    text = "in\u200btro x@y.org\n# One\ncafÃ© and +49 30 901820 call\n# Two\nz@y.org"
    found = screen(text, load_policy())
    starts = [0, text.index("# One"), text.index("# Two"), len(text)]
    moved = carry(starts, found.edits)
    assert [found.text[at : at + 5] for at in moved] == ["intro", "# One", "# Two", ""]
    assert moved[-1] == len(found.text)


def test_an_offset_inside_a_redaction_moves_to_its_beginning() -> None:
    assert carry([0, 2, 3, 4, 5, 9], [[Edit(2, 5, 1)]]) == [0, 2, 2, 2, 3, 7]
    assert carry([0, 1], [[Edit(0, 0, 0)], [Edit(0, 1, 3)]]) == [0, 3]
    assert carry([4], []) == [4]


@given(st.text(min_size=1), st.data())
def test_what_is_left_is_found_again(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8).filter(lambda cuts: len(cuts) % 2 == 0)))
    places = [(cuts[at], cuts[at + 1], data.draw(st.text(max_size=4))) for at in range(0, len(cuts), 2)]
    after, edits = apply(text, places)
    kept = [at for at in range(len(text)) if not any(start <= at < end for start, end, _ in places)]
    assert [after[at] for at in carry(kept, [edits])] == [text[at] for at in kept]
    offsets = list(range(len(text) + 1))
    assert carry(offsets, [edits]) == sorted(carry(offsets, [edits]))
