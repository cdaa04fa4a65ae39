"""Words and marks as NLTK sets them apart; the expected lists are NLTK 3.10.4's with its English sentence model."""

from __future__ import annotations

import pytest

from ostension.evals.elevater.word_tokens import word_tokens

NLTK = {
    ' ; dog , A "small" animal (pet). It can\'t fly... U.S. cannot. Foo.)':
        "; dog , A `` small '' animal ( pet ) . It ca n't fly ... U.S. can not . Foo . )",
    " ; crane , ": "; crane ,",
    "It costs $3,000 at 12:30; that's 5%, isn't it?": "It costs $ 3,000 at 12:30 ; that 's 5 % , is n't it ?",
    "He said 'no' -- then “yes”.": "He said ' no ' -- then “ yes ” .",
    "gonna wanna gimme more": "gon na wan na gim me more",
    "A film (1999) [sic] about O'Brien's boat.": "A film ( 1999 ) [ sic ] about O'Brien 's boat .",
    "A ship, e.g. a frigate. Large.": "A ship , e.g . a frigate . Large .",
}  # fmt: skip


@pytest.mark.parametrize("text", NLTK)
def test_words_are_nltks(text):
    theirs = NLTK[text]
    # The one difference: where a sentence ends after an abbreviation is found by a rule here.
    assert " ".join(word_tokens(text)).replace("e.g.", "e.g .") == theirs


def test_nothing_has_no_words():
    assert word_tokens("  ") == []
