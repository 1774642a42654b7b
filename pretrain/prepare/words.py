"""Words and sentences for datatrove's rules, whose own splitters are models that would have to be fetched."""

import re

from datatrove.utils.word_tokenizers import WordTokenizer

from pretrain.data.corpus.sentences import END

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


class Words(WordTokenizer):
    """A word is a run of letters and digits, and every other sign is one of its own; a script without blanks has as
    few words as it has signs between them."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences of a text."""
        return [text[a:b].strip() for a, b in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where sentences begin and end; white space alone is none."""
        ends = [match.end() for match in END.finditer(text)] + [len(text)]
        return [(a, b) for a, b in zip([0, *ends], ends, strict=False) if text[a:b].strip()]


WORDS = Words()
