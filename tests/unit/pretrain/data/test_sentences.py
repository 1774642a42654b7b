"""Where a sentence ends."""

import pytest

from pretrain.data.corpus.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said, "Go." She (went.) They: 3.5 cm', ['He said, "Go."', "She (went.)", "They: 3.5 cm"]),
        ("a line\nanother\n\n  third ", ["a line", "another", "third"]),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """At . ! ? before white space, closing quotes included, and at line breaks."""
    assert sentences(text) == expected
