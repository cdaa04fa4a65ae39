"""The baselines of Figure 2: their losses and scores against the plain forms, and folders that load."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from ostension.errors import CheckpointError, ConfigError, DataError
from ostension.formats.load import load
from ostension.formats.word_models import load_word_model, save_word_model
from ostension.model import word_models
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig
from ostension.model.insert import TextInsert
from ostension.model.presets import preset
from ostension.model.towers.config import BagConfig
from ostension.model.word_models import LanguageModelConfig
from ostension.runtime import torch_generator
from ostension.train.batches import Batch
from ostension.train.loop import train
from ostension.train.prediction import BagPredictionConfig, NextTokenConfig
from ostension.train.step import backward
from ostension.train.train_config import TrainConfig

NAMES = ["red", "green dot", "blue", "a yellow car", "red dot"]
HEADS = {
    "language": NextTokenConfig(head=LanguageModelConfig(width=32, decoder=DecoderConfig(layers=2, head_width=16))),
    "bag": BagPredictionConfig(),
}


def built(kind, name="tiny-vit"):
    return HEADS[kind].build(CLIP(preset(name), seed=4))


def images(count, size=32):
    return torch.randn(count, 3, size, size, generator=torch_generator("images"))


def batch_of(model):
    return Batch(images=images(5, model.config.vision.image_size), tokens=model.name_tokens(NAMES), keys=list("abcde"))


def bag_model():
    base = preset("tiny-vit")
    text = BagConfig(context_length=base.text.context_length, vocab_size=base.text.vocab_size, width=24)
    return CLIP(dataclasses.replace(base, text=text), seed=2).eval()


def test_the_language_models_score_is_the_mean_log_likelihood_of_the_name_and_its_end(monkeypatch):
    model = built("language").words.double().eval()
    pictures = images(2).double()
    plain = torch.zeros(2, len(NAMES), dtype=torch.float64)
    for column, name in enumerate(NAMES):
        ids = torch.tensor(model.tokenizer.ragged(name))
        for row in range(2):
            places = model.tap(pictures[row : row + 1], "patches")
            logits = model.head.decoder.logits(model.states(places, ids)[0, :-1])
            plain[row, column] = logits.log_softmax(1)[torch.arange(len(ids[0]) - 1), ids[0, 1:]].mean()
    for limit in (2**14, 9):  # in one piece, and one or two names at a time
        monkeypatch.setattr(word_models, "SCORE_TOKENS", limit)
        assert torch.allclose(model.scores(pictures, model.name_tokens(NAMES)).double(), plain, atol=1e-6)


def test_the_bag_predicts_each_different_word_with_an_equal_share():
    model = built("bag").words.double().eval()
    tokens = model.name_tokens(["dot red dot", "blue"])
    pictures = images(2).double()
    logits = model.logits(pictures)
    found = model.losses(pictures, tokens)
    for row, words in enumerate((["dot", "red"], ["blue"])):
        ids = {index for word in words for index in model.tokenizer.encode(word)}
        expected = -logits.log_softmax(1)[row, sorted(ids)].mean()
        assert found[row].item() == pytest.approx(expected.item(), abs=1e-10)
    ids = model.tokenizer.encode("dot red dot")
    scored = model.scores(pictures, tokens)[1, 0]
    assert scored.item() == pytest.approx(logits[1, ids].mean().item(), abs=1e-5)


@pytest.mark.parametrize("kind", list(HEADS))
def test_pieces_of_a_batch_give_its_gradients(kind):
    made = built(kind)
    made.module.double().eval()
    batch = dataclasses.replace(batch_of(made.words), images=images(5).double())
    gradients = []
    for micro in (None, 2):
        made.module.zero_grad()
        backward(made, batch, micro)
        gradients.append({key: value.grad.clone() for key, value in made.module.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][key], atol=1e-10), key


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_run_saves_a_model_that_scores_alike_after_loading(kind, tmp_path):
    made = built(kind, "tiny-resnet")

    class Source:
        worker_kind, batch_size, num_samples = "threads", 5, 5

        def identity(self):
            return {"fingerprint": "names"}

        def batch(self, step, rank=0, world_size=1):
            return batch_of(made.words)

    result = train(made, Source(), TrainConfig(steps=3, precision="fp32", average=0.5), tmp_path / "run")
    loaded = load_word_model(result.model_folder)
    assert loaded.provenance["run"]["step"] == 3
    tokens = loaded.name_tokens(NAMES)
    with torch.no_grad():
        assert torch.equal(loaded.scores(images(2, 64), tokens), made.words.scores(images(2, 64), tokens))
    with pytest.raises(CheckpointError):  # it has no text tower, and is not to be taken for a model that has one
        load(result.model_folder)
    (result.model_folder / "words.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="words.safetensors"):
        load_word_model(result.model_folder)
    with pytest.raises(CheckpointError, match="already has something"):
        save_word_model(loaded, result.model_folder)


def test_a_bag_of_words_is_the_mean_of_its_tokens_in_any_order():
    model = bag_model()
    one, other = model.embed_texts(["red dot", "dot red"])
    assert torch.allclose(one, other, atol=1e-6)
    ids = model.tokenizer.encode("red dot")
    plain = model.text.token_embedding.weight[ids].mean(0) @ model.text.text_projection
    assert torch.allclose(one, F.normalize(plain, dim=0), atol=1e-6)
    assert torch.equal(model.encode_text(model.tokenizer([""])), torch.zeros(1, model.config.embed_dim))


def test_a_model_with_a_bag_of_words_is_saved_and_loaded_like_any_other(tmp_path):
    from ostension.formats.load import save

    model = bag_model()
    save(model, tmp_path / "bag")
    loaded = load(tmp_path / "bag", device="cpu", dtype="float32")
    assert loaded.config == model.config and torch.equal(loaded.embed_texts(NAMES), model.embed_texts(NAMES))
    assert loaded.classifier(NAMES).weights.shape == (5, model.config.embed_dim)
    with pytest.raises((CheckpointError, ConfigError)):
        save(model, tmp_path / "other", layout="open_clip")
    with pytest.raises(ConfigError, match="no place"):
        model.encode_text(model.tokenizer(["x"]), insert=TextInsert(context=torch.zeros(1, 24)))
    with pytest.raises(DataError, match="ids from 0 to 1023"):
        model.encode_text(torch.tensor([[1, 99999]]))


def test_word_models_have_the_image_tower_that_the_run_began_with():
    first = CLIP(preset("tiny-vit"), seed=4).visual.state_dict()
    for kind in HEADS:
        state = built(kind).words.visual.state_dict()
        assert all(torch.equal(state[name], value) for name, value in first.items())
