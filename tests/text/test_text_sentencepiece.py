"""SigLIP's tokenizer, with sentencepiece models trained on the spot."""

from __future__ import annotations

import io
import pickle
import warnings

import pytest

from ostension.errors import CheckpointError, ConfigError, LimitError
from ostension.text.cleaning import clean_siglip
from ostension.text.prompts import compose, fill
from ostension.text.sentencepiece import SentencePieceTokenizer
from ostension.text.tokenizer import SentencePieceConfig, TokenizerConfig, build_tokenizer, load_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # SWIG's types warn on import
    sentencepiece = pytest.importorskip("sentencepiece")

WORDS = [
    "a",
    "the",
    "photo",
    "picture",
    "of",
    "cat",
    "dog",
    "bird",
    "red",
    "blue",
    "green",
    "big",
    "small",
    "on",
    "with",
    "and",
]


@pytest.fixture(scope="module")
def model() -> bytes:
    sentences = [" ".join(WORDS[(7 * row + 3 * column * column) % len(WORDS)] for column in range(8)) for row in range(200)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=written, vocab_size=80, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture
def tokenizer(model) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(SentencePieceConfig(vocab_size=100, context_length=16), model)


def test_a_text_ends_with_the_end_token_and_its_padding(tokenizer):
    tokens = tokenizer(["a photo of a cat", ""])
    ids = tokenizer.encode("a photo of a cat")
    assert tokens.shape == (2, 16)
    assert tokens[0].tolist() == ids + [1] * (16 - len(ids))
    assert tokens[1].tolist() == [1] * 16
    assert tokenizer.decode(tokens[0]) == "a photo of a cat"


def test_siglip_2_pads_with_zero_and_keeps_punctuation(model):
    config = SentencePieceConfig(vocab_size=100, context_length=8, canonicalize=False, pad_id=0)
    tokenizer = SentencePieceTokenizer(config, model)
    ids = tokenizer.encode("a cat")
    assert tokenizer("a cat")[0].tolist() == [*ids, 1] + [0] * (7 - len(ids))
    assert tokenizer.clean("A_Cat!") == "a_cat!"


def test_canonical_text_has_lower_case_no_punctuation_and_single_spaces(tokenizer):
    assert tokenizer.clean(' The  "Big"\tred_dog, isn\'t. ') == "the big red dog isnt"
    assert tokenizer.encode("A Photo, of the Cat!") == tokenizer.encode("a photo of the cat")
    assert clean_siglip("A\ud800", lowercase=False, canonicalize=False) == "A\ufffd"


def test_a_text_that_is_cut_keeps_its_end_token(tokenizer):
    text = "two big dogs and three small birds on a blue picture with the red cat at the photo"
    with pytest.raises(LimitError, match="more than 16 tokens"):
        tokenizer(text)
    assert tokenizer(text, truncate=True)[0].tolist() == [*tokenizer.encode(text)[:15], 1]
    assert tokenizer.num_truncated == 1


def test_control_symbols_in_a_text_are_characters(tokenizer):
    assert 1 not in tokenizer.encode("a </s> cat")


@pytest.mark.slow
def test_ids_equal_transformers_siglip_tokenizer(tokenizer, model, tmp_path):
    (tmp_path / "spiece.model").write_bytes(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"), model_max_length=16)
    texts = ["a photo of a cat", "A Photo, of the   CAT!", "", "two dogs", "zebra-crossing é", "it's 5 o'clock"]
    expected = theirs(texts, padding="max_length", max_length=16, truncation=True)["input_ids"]
    assert tokenizer(texts, truncate=True).tolist() == expected


def test_a_saved_tokenizer_carries_its_model(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config
    assert loaded.encode("a red bird") == tokenizer.encode("a red bird")
    assert pickle.loads(pickle.dumps(loaded)).encode("a red bird") == tokenizer.encode("a red bird")


def test_a_changed_or_missing_or_broken_model_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model + b"\0")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: the file has changed"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"no sentencepiece model; expected tokenizer\.model or spiece\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        SentencePieceTokenizer(SentencePieceConfig(), b"not a model")
    with pytest.raises(ConfigError, match="model folder"):
        build_tokenizer(SentencePieceConfig())


def test_a_model_with_more_pieces_than_the_embedding_has_rows_is_refused(model):
    with pytest.raises(CheckpointError, match="at most 20"):
        SentencePieceTokenizer(SentencePieceConfig(vocab_size=20), model)


def test_a_hugging_face_folder_gives_its_model(model, tmp_path):
    (tmp_path / "spiece.model").write_bytes(model)
    assert build_tokenizer(SentencePieceConfig(vocab_size=100), tmp_path).encode("cat")


def test_composing_tokenises_the_filled_prompts(tokenizer):
    forms, names = ("a photo of {}.", "the {}s"), ("cat", "bird")
    expected = [tokenizer.ragged([fill(form, name) for form in forms]) for name in names]
    assert compose(tokenizer, forms, names) == expected


def test_settings_of_the_two_kinds_are_told_apart(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    with pytest.raises(CheckpointError, match="another one"):
        build_tokenizer(TokenizerConfig(), tmp_path)
    with pytest.raises(ConfigError, match="pad_id"):
        SentencePieceConfig(vocab_size=10, pad_id=10)
