"""Whole lists: groups in order, thresholds and ranks, exclusions, limits, the same list however it was counted."""

from __future__ import annotations

import gzip
import json
import math
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from queries_making import made_texts, plain_counts

from ostension.curate.queries import read_queries
from ostension.curate.queries.build import build
from ostension.curate.queries.rules import Bigrams, QueryRules, Titles, Wordnet, Words
from ostension.curate.queries.titles import count_titles
from ostension.curate.queries.wordnet import synset_names
from ostension.errors import ConfigError, DataError

TEXTS = made_texts(600, seed=1)
NOUNS = """  1 This software and database is being provided to you, the LICENSEE
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
00002137 03 n 02 hot_dog 0 frank 0 001 @ 00001740 n 0000 | a frankfurter
00002452 15 n 02 Paris 0 City_of_Light 0 001 @ 00001740 n 0000 | the capital
00002684 03 n 0a entity 1 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 000 | ten words
"""
ADJECTIVES = """00014358 00 s 02 abounding 0 galore(ip) 0 001 & 00013887 a 0000 | existing
00019731 00 a 01 outback(a) 0 000 | remote
"""


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS))
    return str(path)


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "dict"
    folder.mkdir()
    for name, text in (("noun", NOUNS), ("verb", ""), ("adj", ADJECTIVES), ("adv", "")):
        (folder / f"data.{name}").write_text(text)
    return str(folder)


def of_group(queries, group):
    return [text for text, origin in zip(queries.texts, queries.origins, strict=True) if origin == group]


def group_facts(queries, group):
    return next(one for one in queries.facts["groups"] if one["group"] == group)


def by_rank(counts):
    return sorted(counts, key=lambda word: (-counts[word], word.encode()))


def test_words_over_a_count_come_most_frequent_first(corpus, tmp_path):
    words, _ = plain_counts(TEXTS)
    made = build(QueryRules(corpora=(corpus,), words=Words(min_count=7), order=("words",)), tmp_path / "counts")
    assert made.texts == [word for word in by_rank(words) if words[word] >= 7]
    assert made.counts.tolist() == [words[text] for text in made.texts]
    assert made.ranks.tolist() == list(range(1, len(made) + 1))
    assert group_facts(made, "words")["lowest_count"] == min(made.counts)


@pytest.mark.parametrize("top", [1, 10, 200, 100_000])
def test_words_by_rank_break_ties_by_their_bytes(corpus, tmp_path, top):
    words, _ = plain_counts(TEXTS)
    made = build(QueryRules(corpora=(corpus,), words=Words(top=top), order=("words",)), tmp_path / "counts")
    assert made.texts == by_rank(words)[:top]


def pmi_of(words, pairs, pair):
    return math.log2(pairs[pair] * words.total() / (words[pair[0]] * words[pair[1]]))


@pytest.mark.parametrize("top", [None, 15])
def test_bigrams_by_pmi_are_those_of_the_equation(corpus, tmp_path, top):
    words, pairs = plain_counts(TEXTS)
    scores = {pair: pmi_of(words, pairs, pair) for pair in pairs if pairs[pair] >= 3}
    rule = Bigrams(min_count=3, top=top, min_score=0.1 if top is None else None)
    made = build(QueryRules(corpora=(corpus,), bigrams=rule, order=("bigrams",)), tmp_path / "counts")
    wanted = [pair for pair, score in scores.items() if score >= (0.1 if top is None else 1e-9)]
    wanted.sort(key=lambda pair: (-round(scores[pair], 9), -pairs[pair], [word.encode() for word in pair]))
    joined = ["".join(pair) if pair[0] == pair[1] == "猫" else " ".join(pair) for pair in wanted]
    assert made.texts == joined[:top]
    assert len(made) == (top or len(wanted)) and len(wanted) > 15
    np.testing.assert_allclose(made.scores, [scores[pair] for pair in wanted[:top]], atol=1e-8)


def test_without_a_threshold_bigrams_keep_the_published_proportion_to_words(corpus, tmp_path):
    rules = QueryRules(corpora=(corpus,), words=Words(top=50), bigrams=Bigrams(min_count=2), order=("words", "bigrams"))
    assert build(rules, tmp_path / "counts").by_origin() == {"words": 50, "bigrams": 20}


def test_a_threshold_that_nothing_can_reach_says_so_and_offers_the_rank(corpus, tmp_path):
    total = plain_counts(TEXTS)[0].total()
    rules = QueryRules(corpora=(corpus,), words=Words(top=5), bigrams=Bigrams(min_score=30.0))
    with pytest.raises(ConfigError) as caught:
        build(rules, tmp_path / "counts")
    said = str(caught.value)
    assert f"in {total:,} words no pair seen 10 times can have a pmi above {math.log2(total / 10):.2f}" in said
    assert "1.07e+10 words" in said and "--bigrams.top" in said
    with pytest.raises(ConfigError, match=r"words.min_count is 9,999, and no word .* seen more than .*--words.top 1000"):
        build(QueryRules(corpora=(corpus,), words=Words(min_count=9999)), tmp_path / "counts")


def test_an_entry_belongs_to_the_first_group_and_top_counts_new_entries(corpus, wordnet, tmp_path):
    (tmp_path / "mine.txt").write_text("w0\n  hot   dog\nw0\n\n")
    words = by_rank(plain_counts(TEXTS)[0])
    rules = QueryRules(
        corpora=(corpus,), words=Words(top=4), wordnet=Wordnet(folder=wordnet), add=(str(tmp_path / "mine.txt"),), integers=3,
        order=("lists", "integers", "words", "wordnet"),
    )  # fmt: skip
    made = build(rules, tmp_path / "counts")
    assert of_group(made, "lists") == ["w0", "hot dog"]
    assert of_group(made, "integers") == ["0", "1", "2"]
    assert of_group(made, "words") == [word for word in words if word != "w0"][:4]
    assert of_group(made, "wordnet") == ["entity", "Paris", "abounding", "outback"]  # "hot dog" is there already
    assert group_facts(made, "wordnet")["refused"] == {"in an earlier group": 1}
    assert (made.counts[0], made.ranks[-1]) == (-1, 5)


def test_the_limit_cuts_the_last_groups_and_is_reported(corpus, tmp_path):
    rules = QueryRules(corpora=(corpus,), words=Words(min_count=1), integers=10, limit=30, order=("integers", "words"))
    made = build(rules, tmp_path / "counts")
    assert made.by_origin() == {"integers": 10, "words": 20}
    different = len(plain_counts(TEXTS)[0])
    assert group_facts(made, "words")["beyond_limit"] == different - 20


def test_exclusions_make_room_for_the_next(corpus, tmp_path):
    words = by_rank(plain_counts(TEXTS)[0])
    (tmp_path / "stop.txt").write_text("\n".join(words[:30]))
    rules = QueryRules(
        corpora=(corpus,), words=Words(top=10), exclude=(str(tmp_path / "stop.txt"),), exclude_matching=("[0-9]$",),
        order=("words",),
    )  # fmt: skip
    made = build(rules, tmp_path / "counts")
    wanted = [word for word in words[30:] if not word[-1].isdigit()][:10]
    assert made.texts == wanted
    assert group_facts(made, "words")["refused"]["excluded by a list"] == 30


def test_folded_lists_have_each_entry_once(tmp_path):
    (tmp_path / "a.txt").write_text("Dog dog DOG cat\n")
    (tmp_path / "mine.txt").write_text("CAT\nNew York\n")
    rules = QueryRules(
        corpora=(str(tmp_path / "a.txt"),), words=Words(min_count=1), add=(str(tmp_path / "mine.txt"),), case="folded",
        order=("lists", "words"),
    )  # fmt: skip
    made = build(rules, tmp_path / "counts")
    assert (made.texts, made.counts.tolist()) == (["cat", "new york", "dog"], [-1, -1, 3])


def test_the_same_rules_give_the_same_bytes_and_counts_are_used_again(corpus, wordnet, tmp_path):
    rules = QueryRules(corpora=(corpus,), words=Words(top=60), bigrams=Bigrams(min_count=2), wordnet=Wordnet(folder=wordnet))
    said = []
    files = []
    for number, folder in enumerate(("one", "two", "one")):
        made = build(rules, tmp_path / folder, progress=lambda step, _: said.append(step))
        made.save(tmp_path / f"{number}.parquet")
        files.append((tmp_path / f"{number}.parquet").read_bytes())
    assert files[0] == files[1] == files[2]
    assert said.count("counted") == 2 and said.count("counted before") == 1
    small = build(rules, tmp_path / "three", chunk_bytes=2000)
    assert small.fingerprint() == made.fingerprint() == read_queries(tmp_path / "0.parquet").fingerprint()


def test_page_views_are_summed_over_hours_by_the_published_rules(tmp_path):
    hours = [
        "en Paris 60 1\nen Dog 49 1\nen Special:Search 900 1\nen.m Paris 500 1\nde Paris 100 1\nen New_York_City 70 1\n",
        'en Paris 50 1\nen Dog 80 1\nen "quoted"_name 55 1\nbroken line\nen caf\u00e9 51 1\n',
    ]
    for number, text in enumerate(hours):
        (tmp_path / f"pageviews-20220829-0{number}0000.gz").write_bytes(gzip.compress(text.encode()))
    rule = Titles(files=(str(tmp_path / "pageviews-*.gz"),), min_views=51)
    made = build(QueryRules(titles=rule, order=("titles",)), tmp_path / "counts")
    assert list(zip(made.texts, made.counts.tolist(), strict=True)) == [
        ("Paris", 110), ("Dog", 80), ("New York City", 70), ('"quoted" name', 55), ("café", 51),
    ]  # fmt: skip
    assert made.facts["titles"]["rejects"] == {"hours below the floor": 1, "lines of another form": 1, "titles with a colon": 1}
    both = build(
        QueryRules(titles=Titles(files=rule.files, top=1, projects=("en", "en.m")), order=("titles",)), tmp_path / "mobile"
    )  # fmt: skip
    assert (both.texts, both.counts.tolist()) == (["Paris"], [610])
    with pytest.raises(ConfigError, match=r"no title of en has more than 110; .*--titles.top"):
        build(QueryRules(titles=Titles(files=rule.files, min_views=1000), order=("titles",)), tmp_path / "counts")


def test_titles_in_other_forms_are_the_same(tmp_path):
    rows = [("New York", 700), ("Dog_food", 30), ("File:A", 5)]
    days = [f"en.wikipedia {title.replace(' ', '_')} 12 desktop {views} A1B2\n" for title, views in rows]
    (tmp_path / "daily").write_text("".join(days))
    (tmp_path / "a.tsv").write_text("title\tviews\n" + "".join(f"{title}\t{views}\n" for title, views in rows))
    titles, views = zip(*rows, strict=True)
    parquet.write_table(pa.table({"title": titles, "count": views}), tmp_path / "a.parquet")
    for name in ("daily", "a.tsv", "a.parquet"):
        found = count_titles([str(tmp_path / name)], tmp_path / f"counts-{name}", projects=("en.wikipedia",), hourly_floor=50)
        keys, views = next(found.batches())
        assert (keys.to_pylist(), views.tolist()) == ([b"Dog food", b"New York"], [30, 700]), name


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("views", "no page views\nat all\n" * 300, "lines are no page views"),
        ("a.tsv", "title\tviews\nDog\tmany\n", "the views in line 2 are 'Dog,many'"),
        ("a.csv", "a,b\n1,2\n", "columns 'a', 'b'; expected a column of titles"),
        ("empty", "", "0 of 0 lines are no page views"),
    ],
)
def test_files_that_are_no_titles_are_one_clear_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        count_titles([str(tmp_path / name)], tmp_path / "counts", projects=("en",), hourly_floor=50)
    assert said in str(caught.value) and name in str(caught.value)


def test_titles_by_two_processes_are_those_of_one(tmp_path):
    for number in range(3):
        lines = [f"en T{place} {50 + place * number} 1\n" for place in range(number, 40)]
        (tmp_path / f"views-{number}").write_text("".join(lines))
    names = [str(tmp_path / "views-*")]
    found = [
        count_titles(names, tmp_path / f"counts{workers}", projects=("en",), hourly_floor=50, workers=workers).path.read_bytes()
        for workers in (0, 2)
    ]
    assert found[0] == found[1]


def test_wordnet_is_read_from_a_folder_an_archive_or_where_it_usually_is(wordnet, tmp_path, monkeypatch):
    heads = ["entity", "hot dog", "Paris", "abounding", "outback"]
    assert synset_names(wordnet) == (heads, wordnet)
    every = synset_names(wordnet, "all")[0]
    assert every[:5] == ["entity", "hot dog", "frank", "Paris", "City of Light"] and "galore" in every and "j" in every
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        for name in os.listdir(wordnet):
            archive.write(os.path.join(wordnet, name), f"wordnet/{name}")
    assert synset_names(str(tmp_path / "wordnet.zip"))[0] == heads
    monkeypatch.setenv("WNSEARCHDIR", wordnet)
    assert synset_names("find") == (heads, wordnet)


def test_a_missing_or_broken_wordnet_is_one_clear_line(wordnet, tmp_path):
    with pytest.raises(DataError, match=r"no data.noun in this folder; expected WordNet's database files"):
        synset_names(str(tmp_path / "none"))
    with open(os.path.join(wordnet, "data.verb"), "w") as handle:
        handle.write("this is no synset at all\n")
    with pytest.raises(DataError, match=r"line 1 of data.verb is no synset"):
        synset_names(wordnet)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"integers": 0}, "nothing to make a list of"),
        ({"words": Words(top=3)}, "there is no corpus to count in"),
        ({"order": ("words", "words")}, "different groups"),
        ({"titles": Titles(files=("x",)), "order": ("integers",)}, "'titles' in order"),
        ({"titles": Titles(top=3)}, "nothing without titles.files"),
        ({"exclude_matching": ("[",)}, "exclude_matching has '['"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_rules_that_cannot_be_meant_are_one_clear_line(settings, said):
    with pytest.raises(ConfigError) as caught:
        QueryRules(**settings)
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match=r"words.min_count is 0; expected 1 or more"):
        Words(min_count=0)


def test_a_corpus_without_words_is_one_clear_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="not a word in the corpora, 1 lines that are no JSON object"):
        build(QueryRules(corpora=(str(tmp_path / "a.jsonl"),)), tmp_path / "counts")


def run(*words):
    from ostension.cli._curate_queries import MakeQueries
    from ostension.cli.main import _parse_and_run

    return _parse_and_run(MakeQueries, "ostension curate queries", list(map(str, words)))


def test_the_command_writes_a_list_says_what_is_in_it_and_leaves_no_counts(corpus, wordnet, tmp_path, capsys):
    out = tmp_path / "out" / "queries.parquet"
    options = ["--words.top", 20, "--bigrams.min-count", 3, "--wordnet.folder", wordnet, "--json"]
    assert run(corpus, "-o", out, *options) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    queries = read_queries(out)
    assert facts["fingerprint"] == queries.fingerprint() and facts["origins"]["words"] == 20
    assert queries.facts["rules"]["words"] == {"min_count": None, "top": 20}
    assert queries.facts["corpora"][0]["name"] == corpus
    assert "words         20 of" in said.err and "pmi" in said.err and "words, " in said.err
    assert os.listdir(out.parent) == ["queries.parquet"]
    assert run("--show", out) == 0
    assert capsys.readouterr().out in said.err


def test_counts_that_are_kept_serve_other_thresholds(corpus, tmp_path, capsys):
    counts = tmp_path / "kept"
    for number, top in enumerate((10, 30)):
        run(corpus, "-o", tmp_path / f"{number}.parquet", "--counts", counts, "--words.top", top, "--order", "words")
        assert len(read_queries(tmp_path / f"{number}.parquet")) == top
    assert (counts / "text" / "words.parquet").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "the output is missing"), (["-o", "a.txt"], "ends in .parquet"), (["a", "--show", "b"], "--show makes no list")],
)
def test_commands_that_cannot_be_meant_are_one_clear_line(words, said):
    with pytest.raises(ConfigError, match=said):
        run(*words)
