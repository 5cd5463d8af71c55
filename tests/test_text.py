"""Text: tokenizers, files, packing, views, buckets of length, and the verbs on sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import absent, peer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch.nn import functional as F

import modicum
from modicum import UserError, open_data
from modicum.core import seeds
from modicum.core.ragged import join
from modicum.core.types import Batch
from modicum.datasets import fortunes, wordnet_nouns
from modicum.datasets.data import Chain
from modicum.modalities import _texttokens
from modicum.modalities.text import Text
from modicum.nn.encoder import Encoder
from modicum.training import baselines
from modicum.training.apply import embed, over
from modicum.training.batches import Batches
from modicum.training.rows import marked
from modicum.training.transfer import Task

ANIMALS = ["cat", "dog", "owl", "fox", "bee"]
THINGS = ["chair", "spoon", "lamp", "clock", "rope"]


def corpus(n: int = 60) -> tuple[list[str], list[str]]:
    """Sentences of several lengths about animals and things, and their classes."""
    rng = np.random.default_rng(0)
    texts, labels = [], []
    for k in range(n):
        words = rng.choice([ANIMALS, THINGS][k % 2], 2 + int(rng.integers(9)))
        texts.append(f"number {k} is a {' and a '.join(words)}.")
        labels.append(["animal", "thing"][k % 2])
    return texts, labels


def packed(texts: list[str], **options: Any) -> tuple[Text, Any]:
    raw = Text.as_raw(texts)
    made = Text.infer(raw, np.arange(len(raw)), **options)
    return made, made.pack(raw)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, labels = corpus()
    return small.csv(tmp_path_factory.mktemp("text") / "texts.csv", {"text": texts, "label": labels})


# Tokens


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(max_size=30).filter(lambda t: bool(t.strip())), min_size=1, max_size=5))
def test_any_unicode_comes_back_from_its_tokens(texts: list[str]) -> None:
    made, held = packed(texts, size=200)
    assert made.texts(held.source.rows(np.arange(len(texts)))) == [t.strip() for t in texts]


def test_rows_begin_and_end_and_are_padded_with_zeros() -> None:
    made, held = packed(["one two three four", "one"])
    batch = held.source.rows(np.array([1, 0]))
    assert made.special == {"pad": 0, "mask": 1, "bos": 2, "eos": 3}
    assert made.begins
    assert (batch["ids"][:, 0] == 2).all()
    assert [int(row[m][-1]) for row, m in zip(batch["ids"], batch["mask"], strict=True)] == [3, 3]
    assert (batch["ids"][~batch["mask"]] == 0).all()
    assert batch["mask"].sum(1).tolist() == held.source.lengths[[1, 0]].tolist()
    assert made.length == held.source.lengths.max()


def test_a_word_is_the_same_token_first_and_later_and_training_is_deterministic() -> None:
    texts = ["owl sees owl"] * 20
    made, held = packed(texts)
    ids = held.source.rows(np.array([0]))["ids"][0]
    assert ids[1] == ids[-2]
    assert packed(texts)[0].tokenizer == made.tokenizer


def test_a_vocabulary_is_as_large_as_asked() -> None:
    assert packed(corpus()[0], vocabulary=300)[0].vocabulary == 300
    assert packed(corpus()[0])[0].vocabulary <= 512


@pytest.mark.parametrize("which", ["bert", "gpt2"])
def test_adopted_tokenizers_give_the_ids_of_hugging_face(which: str, tmp_path: Path) -> None:
    transformers = peer("transformers")
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    texts = [*corpus(12)[0], "Ünïcode 東京!", "A VERY " + "long " * 30 + "text"]
    if which == "bert":
        plain = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        plain.normalizer, plain.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        plain.decoder = decoders.WordPiece()
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        plain.train_from_iterator(texts[:8], trainers.WordPieceTrainer(vocab_size=120, special_tokens=marks))
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        plain.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
        names: dict[str, str] = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    else:
        plain = Tokenizer(models.BPE())
        plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        plain.train_from_iterator(
            texts[:8], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], vocab_size=300, initial_alphabet=alphabet)
        )
        names = {"pad_token": "<|endoftext|>"}
    plain.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **names)
    ours = Text.from_tokenizer(tmp_path, length=20, width=8)
    assert ours.tokenizer == Text.from_tokenizer(tmp_path / "tokenizer.json").tokenizer
    assert Text.from_tokenizer(ours.tokenizer).tokenizer == ours.tokenizer
    source = ours.pack(Text.as_raw(texts)).source
    batch = source.rows(np.arange(len(texts)))
    wanted = theirs(texts, truncation=True, max_length=20, padding=True, return_tensors="pt")
    assert torch.equal(batch["mask"], wanted["attention_mask"].bool())
    assert torch.equal(batch["ids"], wanted["input_ids"] * batch["mask"])
    assert ours.begins == (which == "bert")
    assert ours.embed().words.weight.shape == (len(theirs), 8)
    assert (ours.embed().blank() is None) == (which == "gpt2")


def test_an_unknown_script_becomes_unknown_tokens_and_no_error(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "owl": 1}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    made = Text(plain.to_str(), 8)
    rows = made.pack(made.as_raw(["東京 🦉", "owl"])).source.rows(np.arange(2))
    assert rows["ids"].tolist() == [[0, 0], [1, 0]]
    assert not made.begins


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda text: Text("{}"), "not the content of a tokenizer.json"),
        (lambda text: Text(text.tokenizer, 2), "a length of at least 3 tokens, special ones included; got 2"),
        (lambda text: Text(text.tokenizer, width=0), "width of at least 1, got 0"),
        (lambda text: Text.from_tokenizer("nowhere.json"), "nowhere.json: the tokenizer cannot be read"),
        (lambda text: text.views(delete=1), "0 <= delete < 1, got 1"),
        (lambda text: text.views(cut=0.1), "unknown text view 'cut'"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(packed(["some words"])[0])


# Packing


def test_the_cache_holds_what_memory_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path))
    raw = Text.as_raw(["a b c", None, *corpus()[0]])
    made = Text.infer(raw, np.arange(len(raw)))
    memory = made.pack(raw, skip_bad=True)
    assert not list(tmp_path.rglob("*.ids"))
    monkeypatch.setattr(_texttokens, "IN_MEMORY", 0)
    told: list[tuple[int, int, str]] = []
    for _ in range(2):
        held = made.pack(raw, skip_bad=True, progress=lambda *a: told.append(a))
        assert isinstance(held.source.ids, np.memmap)
        assert held.source.ids.dtype == np.uint16
        a, b = (p.source.rows(np.arange(p.source.size)) for p in (memory, held))
        assert torch.equal(a["ids"], b["ids"])
        assert torch.equal(a["mask"], b["mask"])
        assert (memory.hashes == held.hashes).all()
        assert memory.bad == held.bad
    assert len(told) == 2, "the second time it is there already"
    file = next(iter(tmp_path.rglob("*.ids")))
    file.write_bytes(file.read_bytes()[:10])
    assert made.pack(raw, skip_bad=True).source.ids.size == held.source.ids.size, "a damaged file is made anew"


def test_hashes_are_of_the_words_whatever_the_tokenizer() -> None:
    a, b = packed(["one two", "three"])[1], packed(["three", "one two", " three "], vocabulary=400)[1]
    assert a.hashes.tolist() == b.hashes[[1, 0]].tolist()
    assert b.hashes[2] == b.hashes[0]


# Batches of one length


def test_batches_are_of_one_length_and_a_function_of_seed_and_step() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(2.7, 0.6, 5000).astype(int).clip(3, 200)
    source = _texttokens.Sentences(np.zeros(lengths.sum(), np.uint16), lengths)
    index = rng.permutation(5000)[:4990]
    batches = Batches(source, index, batch=64, seed=3, extra={"row": torch.from_numpy(index)})
    masks, rows = [], []
    for step in range(batches.per_epoch):
        batch = batches(step)
        masks.append(batch["mask"])
        rows.append(batch["row"])
        assert batch["mask"].sum(1).tolist() == lengths[batch["row"]].tolist(), "extras stay with their rows"
    padding = 1 - sum(m.sum().item() for m in masks) / sum(m.numel() for m in masks)
    assert padding < 0.1
    assert len(np.unique(torch.cat(rows))) == 64 * (4990 // 64), "each row once"
    sizes = [m.shape[1] for m in masks]
    assert sizes != sorted(sizes), "long and short batches alternate"
    again = Batches(source, index, batch=64, seed=3, extra={"row": torch.from_numpy(index)})
    for step in (200, 5, batches.per_epoch + 1):
        assert torch.equal(again(step)["row"], batches(step)["row"])
    assert not torch.equal(batches(batches.per_epoch)["row"].sort().values, rows[0].sort().values)


def test_features_come_back_in_order_whatever_runs_together() -> None:
    made, held = packed(corpus()[0])
    with seeds.forked(0, "init"):
        encoder = Encoder.of(made, "mlp(width=8, over='set')")
    index = np.random.default_rng(0).permutation(60)
    alone = np.concatenate([embed(encoder, held.source, index[k : k + 1]) for k in range(60)])
    np.testing.assert_allclose(embed(encoder, held.source, index), alone, atol=1e-6)
    rows = over(encoder, lambda batch: batch["mask"].sum(1), held.source, index)
    assert rows.tolist() == held.source.lengths[index].tolist()


def test_a_trunk_of_fixed_length_sees_the_same_row_in_any_batch() -> None:
    made, held = packed(corpus()[0])
    with seeds.forked(0, "init"):
        encoder = Encoder.of(made, "mlp(width=8, norm='none')").eval()
    short = int(held.source.lengths.argmin())
    alone, beside = (held.source.rows(np.array(i)) for i in ([short], [short, int(held.source.lengths.argmax())]))
    assert alone["ids"].shape != beside["ids"].shape
    torch.testing.assert_close(encoder(alone).pooled, encoder(beside).pooled[:1])


def test_two_sources_of_other_lengths_chain() -> None:
    made, held = packed(corpus()[0])
    a, b = (made.pack(made.as_raw(texts)).source for texts in (corpus()[0][:5], corpus()[0][5:]))
    chain = Chain(a, b)
    index = np.array([40, 2, 3, 59, 0])
    assert torch.equal(chain.rows(index)["ids"], held.source.rows(index)["ids"])
    assert (chain.lengths == held.source.lengths).all()


def test_joining_pads_with_zeros() -> None:
    a: Batch = {"x": torch.ones(1, 2, 3), "y": torch.tensor([1])}
    b: Batch = {"x": torch.ones(2, 4, 1), "y": torch.tensor([2, 3])}
    both = join([a, b])
    assert both["y"].tolist() == [1, 2, 3]
    assert both["x"].shape == (3, 4, 3)
    assert both["x"].sum(dim=(1, 2)).tolist() == [6, 4, 4]


# Views and losses


def test_views_delete_a_span_and_keep_the_ends() -> None:
    made, held = packed(corpus()[0])
    batch = held.source.rows(np.arange(60))
    same = made.views(delete=0)(batch, seeds.generator(0))
    assert torch.equal(same["ids"], batch["ids"])
    assert torch.equal(same["mask"], batch["mask"])
    view = made.views(delete=0.4)(batch, seeds.generator(0))
    for k in range(60):
        before, after = batch["ids"][k][batch["mask"][k]].tolist(), view["ids"][k][view["mask"][k]].tolist()
        gone = len(before) - len(after)
        assert gone == int(0.4 * (len(before) - 2))
        starts = [s for s in range(1, len(before)) if before[:s] + before[s + gone :] == after]
        assert starts, "what is left is the row without one span"
        assert before[0] == after[0] == 2
        assert before[-1] == after[-1] == 3
    assert (view["ids"][~view["mask"]] == 0).all()
    assert (view["mask"].long().diff(dim=1) <= 0).all(), "padding stays at the end"
    assert view["mask"][:, -1].any(), "no more padding than the longest row leaves"


def test_token_dropout_drops_its_share_and_never_all() -> None:
    made, _ = packed(corpus()[0])
    ids = torch.full((400, 102), 20)
    ids[:, 0], ids[:, -1] = 2, 3
    view = made.views(delete=0, drop=0.3)({"ids": ids, "mask": ids > 0}, seeds.generator(1))
    assert abs((view["mask"].sum(1) - 2).float().mean() / 100 - 0.7) < 0.01
    one = {"ids": torch.tensor([[2, 20, 3, 0]]).expand(50, -1), "mask": torch.tensor([[True] * 3 + [False]] * 50)}
    for options in ({"delete": 0.9}, {"delete": 0, "drop": 0.99}, {"delete": 0.9, "drop": 0.99}):
        assert torch.equal(made.views(**options)(one, seeds.generator(0))["ids"], one["ids"][:, :3])


def test_the_loss_is_cross_entropy_of_the_real_tokens() -> None:
    made, held = packed(corpus()[0], width=8)
    batch = held.source.rows(np.arange(6))
    unembed, words = made.unembed(), made.embed()
    tokens = torch.randn(*batch["ids"].shape[:1], made.length, 8, generator=seeds.generator(0))
    t = batch["ids"].shape[1]
    wanted = F.cross_entropy(unembed.logits(tokens[:, :t]).transpose(1, 2), batch["ids"], reduction="none")
    torch.testing.assert_close(unembed.loss(tokens, batch), wanted * batch["mask"])
    where = batch["mask"] & (torch.rand(batch["mask"].shape, generator=seeds.generator(1)) < 0.5)
    torch.testing.assert_close(unembed.loss(tokens, batch, where), wanted[where])
    unembed.tie(words)
    assert unembed.logits.weight is words.words.weight


def test_drawing_goes_on_until_the_end() -> None:
    made, _ = packed(corpus()[0], width=8)
    unembed = made.unembed()
    start = made.prompt("number 3", 2)
    assert start is not None
    assert start["ids"][0, 0] == 2
    assert made.texts(start) == ["number 3"] * 2
    assert made.prompt(None, 3)["ids"].tolist() == [[2]] * 3  # type: ignore[index]
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return torch.tensor([3, 50]) if len(seen) == 1 else torch.tensor([60, 61])

    tokens, at = torch.randn(2, 1, 8, generator=seeds.generator(0)), start["ids"].shape[1]
    one = unembed.draw(tokens, at, start, choose)
    two = unembed.draw(tokens, at + 1, one, choose)
    assert two["ids"][:, at:].tolist() == [[3, 0], [50, 61]]
    assert two["mask"][:, at:].tolist() == [[True, False], [True, True]]
    assert seen[0].isneginf().nonzero().tolist() == [[r, i] for r in range(2) for i in range(3)], "no pad, mask or bos"


def test_decoded_rows_stop_at_their_end() -> None:
    made, _ = packed(corpus()[0], width=8)
    unembed = made.unembed()
    with torch.no_grad():
        unembed.logits.weight.zero_()
        unembed.logits.bias.zero_()
        unembed.logits.weight[:8] = torch.eye(8)
    out = unembed.decode(F.one_hot(torch.tensor([[2, 5, 3, 6, 7], [2, 4, 4, 4, 4]]), 8).float())
    assert out["ids"].tolist() == [[2, 5, 3, 0, 0], [2, 4, 4, 4, 4]]
    assert out["mask"].sum(1).tolist() == [3, 5]


# The baseline


def test_the_baseline_is_tfidf_and_logistic_regression_as_scikit_learn_has_them() -> None:
    texts, labels = corpus(80)
    made, held = packed(texts)
    y = np.array([label == "thing" for label in labels]).astype(int)
    task = Task(held.source, y, "classes", 2)
    train, test = np.arange(40), np.arange(40, 80)
    predict, words = baselines.train("TF-IDF + logistic", baselines.Plain(made, task), train, (train, train[:0]))
    wanted = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=500))
    wanted.fit(texts[:40], y[:40])
    assert words == "10"
    np.testing.assert_allclose(predict(test), wanted.predict_proba(texts[40:]), atol=1e-4)
    assert baselines.names(made, "classes") == ["TF-IDF + logistic"]
    assert baselines.names(made, "numbers") == ["TF-IDF + ridge"]


# The verbs


TINY: dict[str, Any] = {"encoder": "mlp(width=8, over='set')", "steps": 3, "batch": 16, "device": "cpu"}


@pytest.mark.usefixtures("quick")
def test_from_unlabelled_text_to_predictions(csv: Path, tmp_path: Path) -> None:
    run = modicum.pretrain(csv, out=tmp_path / "pre", **TINY)
    assert "tokenizer" in run.spec["parts"]["objective"]["args"]["encoder"]["args"]["input"]["args"]
    tuned = modicum.finetune(run, csv, out=tmp_path / "fine", **small.FEW)
    names = [c["name"] for c in tuned.read_json("results.json")["contestants"]]
    assert "TF-IDF + logistic" in names
    new = written(tmp_path / "new.txt", "a cat and a dog\na chair and a lamp\nowl\n")
    out = modicum.predict(tuned, new, output=tmp_path / "p.parquet")
    assert out.column("id").to_pylist() == ["1", "2", "3"]
    assert set(out.column("predicted").to_pylist()) <= {"animal", "thing"}
    vectors = modicum.embed(run, new, output=tmp_path / "e.parquet")
    again = modicum.load(run).embed(["owl", "a cat and a dog"])
    np.testing.assert_allclose(vectors.column("embedding").to_pylist()[2], again[0], atol=1e-6)
    one = modicum.load(tuned).predict_proba(["owl"])
    assert one.shape == (1, 2)


@pytest.mark.usefixtures("quick")
def test_one_text_is_not_enough_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one.txt leaves 1 rows to train on; at least 2 are needed"):
        modicum.pretrain(written(tmp_path / "one.txt", "alone\n"), out=tmp_path / "run", **TINY)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("encoder", ["mlp(width=32)", "mlp(width=32, over='set')"])
def test_texts_are_rebuilt(csv: Path, tmp_path: Path, encoder: str) -> None:
    given: dict[str, Any] = {**TINY, "encoder": encoder, "objective": "autoencoder(code=4, noise=.2)"}
    run = modicum.pretrain(csv, out=tmp_path / "auto", **given)
    out = modicum.reconstruct(run, csv, output=tmp_path / "rebuilt")
    assert out.column("input").to_pylist() == corpus()[0]
    assert np.isfinite(out.column("error").to_numpy()).all()


# The data sets


def check_split(data: Any) -> None:
    split = marked(data, None)
    assert split is not None
    assert abs(len(split.test) / len(data) - 0.1) < 0.01
    texts = np.array(data.table.column("text").to_pylist(), object)
    assert not set(texts[split.test]) & set(texts[split.train]), "equal texts are on one side"


def test_wordnet_nouns() -> None:
    if not wordnet_nouns.PATH.exists():
        absent("WordNet", "scripts/get-data")
    data = open_data("wordnet-nouns")
    labels = data.labels()
    assert labels is not None
    assert (len(data), len(labels.classes)) == (82115, 26)
    rows = dict(zip(data.table.column("text").to_pylist(), labels.values.tolist(), strict=True))
    known = {"organisms (plants and animals) that live at or near the bottom of a sea": "Tops"}
    known |= {"a member of the genus Canis (probably descended from the common wolf)": "animal"}
    for gloss, name in known.items():
        assert labels.classes[next(code for text, code in rows.items() if text.startswith(gloss))] == name
    check_split(data)


def test_fortunes() -> None:
    if not (fortunes.FOLDER / "wisdom.dat").exists():
        absent("fortunes", "scripts/get-data")
    data = open_data("fortunes")
    labels = data.labels()
    assert labels is not None
    assert (len(data), len(labels.classes)) == (14396, 40)
    check_split(data)


def test_without_the_packages_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wordnet_nouns, "PATH", tmp_path / "data.noun")
    monkeypatch.setattr(fortunes, "FOLDER", tmp_path)
    for name, package in (("wordnet-nouns", "wordnet-base"), ("fortunes", "fortunes")):
        with pytest.raises(UserError, match=f"{name} is not on this machine.*scripts/get-data.*install {package}"):
            open_data(name)
