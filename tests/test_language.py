"""Masked and next-token prediction against transformers' losses and gradients; cached sampling against uncached."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import zoo
from peers import peer

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.types import Batch, Input
from modicum.maths.sampling import Sampler, likeliest
from modicum.nn.encoder import Encoder
from modicum.objectives.denoising import Denoising
from modicum.objectives.masked import Masked
from modicum.objectives.next_token import NextToken

WIDTH = 32


@cache
def given() -> tuple[Input, Batch]:
    return zoo.texts()


def input_of(width: int = WIDTH) -> Input:
    made: Any = type(given()[0])
    like: Any = given()[0]
    return made(like.tokenizer, like.length, width)


def encoder(trunk: str) -> Encoder:
    with seeds.forked(0, "init"):
        return Encoder.of(input_of(), trunk)


@pytest.fixture(scope="module")
def transformers() -> Any:
    return peer("transformers")


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    assert a is not None
    assert b is not None
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_masked_loss_and_gradients_are_those_of_bert(transformers: Any) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 4 * WIDTH}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "tie_word_embeddings": False}
    vocabulary = int(input_of().vocabulary)  # type: ignore[attr-defined]
    config = transformers.BertConfig(vocab_size=vocabulary, layer_norm_eps=1e-5, **sizes, **still)
    with seeds.forked(1, "bert"):
        bert = transformers.BertForMaskedLM(config)
    own = encoder("transformer(width=32, depth=2, heads=2, prenorm=False, eps=1e-5)")
    length = own.embed.grid[0]
    state = {k: v[:length] if "position_embeddings" in k else v for k, v in bert.state_dict().items()}
    own.trunk.load_state_dict(own.trunk.translate({k: v for k, v in state.items() if k.startswith("bert.")}))
    objective: Any = Masked(own, ratio=0.4)
    table = bert.bert.embeddings.word_embeddings
    with torch.no_grad():
        objective.encoder.embed.words.weight.copy_(table.weight)
        for ours, theirs in zip(objective.head[::2], (
            bert.cls.predictions.transform.dense, bert.cls.predictions.transform.LayerNorm,
        ), strict=True):  # fmt: skip
            ours.load_state_dict(theirs.state_dict())
        objective.unembed.logits.weight.copy_(bert.cls.predictions.decoder.weight)
        objective.unembed.logits.bias.copy_(bert.cls.predictions.decoder.bias)
    batch = given()[1]
    corrupted = objective.corrupt(batch, seeds.generator(3))
    hide = corrupted["hide"]
    assert hide.any(1).all()
    assert not (hide & ~batch["mask"]).any()
    loss = objective(corrupted)[0]
    masked = batch["ids"].masked_fill(hide, input_of().special["mask"])  # type: ignore[attr-defined]
    labels = batch["ids"].masked_fill(~hide, -100)
    reference = bert(input_ids=masked, attention_mask=batch["mask"].long(), labels=labels).loss
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    loss.backward()
    reference.backward()
    assert same(objective.encoder.embed.words.weight.grad, table.weight.grad)
    assert same(objective.unembed.logits.weight.grad, bert.cls.predictions.decoder.weight.grad)
    assert same(objective.head[0].weight.grad, bert.cls.predictions.transform.dense.weight.grad)


def test_next_token_loss_and_gradients_are_those_of_gpt2(transformers: Any) -> None:
    own = encoder("transformer(width=32, depth=2, heads=2, causal=True, act='gelu_tanh', eps=1e-5)")
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_positions": own.embed.grid[0]}
    vocabulary = int(input_of().vocabulary)  # type: ignore[attr-defined]
    with seeds.forked(1, "gpt2"):
        gpt: Any = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=vocabulary, n_embd=WIDTH, n_layer=2, n_head=2, **still)
        )
    state = gpt.transformer.state_dict()
    own.trunk.load_state_dict(own.trunk.translate({k: v for k, v in state.items() if not k.startswith("wte")}))
    objective: Any = NextToken(own)
    assert objective.start is None, "texts begin with <bos>"
    with torch.no_grad():
        objective.encoder.embed.words.weight.copy_(gpt.transformer.wte.weight)
        objective.unembed.logits.bias.zero_()
    batch = given()[1]
    loss = objective(batch)[0]
    labels = batch["ids"].masked_fill(~batch["mask"], -100)
    reference = gpt(input_ids=batch["ids"], attention_mask=batch["mask"].long(), labels=labels).loss
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    loss.backward()
    reference.backward()
    assert same(objective.encoder.embed.words.weight.grad, gpt.transformer.wte.weight.grad)


CAUSAL = [
    "transformer(width=32, depth=2, heads=2, causal=True)",
    "transformer(width=32, depth=1, heads=2, causal=True, positions='rotary')",
    "recurrent(width=32)",
]


@pytest.mark.parametrize("trunk", CAUSAL)
@pytest.mark.parametrize("prompt", [None, "the small"])
def test_cached_sampling_is_uncached_sampling(trunk: str, prompt: str | None) -> None:
    objective: Any = NextToken(encoder(trunk)).eval()
    start = objective.encoder.input.prompt(prompt, 5)

    def uncached(choose: Any) -> Batch:
        batch = start
        for at in range(start["ids"].shape[1], 20):
            with torch.no_grad():
                seen = objective.encoder(batch, causal=True).tokens
            batch = objective.unembed.draw(objective.out(seen[:, -1:]), at, batch, choose)
            if not batch["mask"][:, -1].any():
                break
        return batch

    for make in (lambda: likeliest, lambda: Sampler(seeds.generator(0, "draw"), 0.9, 20, 0.95)):
        wanted = uncached(make())
        got = objective.sample(5, make(), start, 20)
        assert torch.equal(got["mask"], wanted["mask"])
        assert torch.equal(got["ids"][got["mask"]], wanted["ids"][wanted["mask"]])


def test_a_small_gpt_learns_its_texts_and_says_them_again() -> None:
    from modicum.training.fit import fit
    from modicum.training.optim import adamw, cosine, groups

    batch = given()[1]
    with seeds.forked(0, "init"):
        objective: Any = NextToken(encoder("transformer(width=32, depth=2, heads=2, causal=True)"))
    optimizer = adamw(groups(objective, lr=1e-2, weight_decay=0.0))
    for step in fit(objective, lambda _: batch, optimizer, steps=150, seed=0, schedule=cosine(150), clip=1.0):
        last = step.loss
    assert float(last) < 0.3, "the entropy of twelve sentences' beginnings is less"
    objective.eval()
    made = objective.sample(1, likeliest, objective.encoder.input.prompt("<eos> is", 1))
    assert objective.encoder.input.texts(made) == ["<eos> is no special token here"]
    start = objective.encoder.input.prompt("<eos> is", 1)
    with pytest.raises(UserError, match="shorten the prompt or raise length"):
        objective.sample(1, likeliest, start, start["ids"].shape[1])


def test_denoising_rebuilds_what_it_was_trained_on() -> None:
    from modicum.training.fit import fit
    from modicum.training.optim import adamw, cosine, groups

    batch = given()[1]
    with seeds.forked(0, "init"):
        objective: Any = Denoising(encoder("transformer(width=32, depth=1, heads=2)"), views={"delete": 0.1})
    optimizer = adamw(groups(objective, lr=1e-2, weight_decay=0.0))
    for _ in fit(objective, lambda _: batch, optimizer, steps=200, seed=0, schedule=cosine(200), clip=1.0):
        pass
    again, error = objective.eval().reconstruct(batch)
    assert error.shape == (len(batch["ids"]),)
    texts = objective.encoder.input.texts
    right = sum(a == b for a, b in zip(texts(again), texts(batch), strict=True))
    assert right >= 9, f"only {right} of 12 texts are rebuilt"
