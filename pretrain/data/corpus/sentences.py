"""Cuts a text into sentences."""

import re

# After . ! or ?, with closing quotes or brackets, if a space follows; at every line break.
END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]\u201d\u2019])\s+|\s*\n\s*")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them. One sentence a line comes back as it is.

    Abbreviations end a sentence here; next sentence prediction does not mind.
    """
    return [sentence for part in END.split(text) if (sentence := part.strip())]
