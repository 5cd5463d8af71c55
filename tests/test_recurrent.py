"""`recurrent`: equal to torch's own networks on packed sequences, whatever the mask; steps, decoders, attention."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.types import Tokens
from modicum.nn.encoder import Encoder
from modicum.nn.trunks.recurrent import CELLS, Recurrent
from modicum.testing.tools import check_gradients, stirred
from modicum.testing.trunks import weighted
from modicum.training.fit import fit
from modicum.training.optim import adamw, groups

VARIANTS = list(product(CELLS, (False, True)))


def made(cell: str = "lstm", dtype: torch.dtype = torch.float32, **options: object) -> Recurrent:
    with seeds.forked(0, "init"):
        return Recurrent(4, (9,), cell, width=5, **{"depth": 2, **options}).to(dtype).eval()  # type: ignore[arg-type]


def twin(trunk: Recurrent) -> nn.RNNBase:
    """torch's own network with all layers in one module, with the same weights."""
    kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[trunk.cell]
    both = trunk.bidirectional
    out = kind(trunk.dim, trunk.width, trunk.depth, batch_first=True, bidirectional=both)
    own = {
        n.replace("_l0", f"_l{k}"): p for k, cell in enumerate(trunk.stack.cells) for n, p in cell.named_parameters()
    }
    out.load_state_dict(own)
    return out


def random(*shape: int, name: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(0, name), dtype=dtype)


@pytest.mark.parametrize(("cell", "both"), VARIANTS)
def test_it_equals_torch_on_packed_sequences(cell: str, both: bool) -> None:
    trunk = made(cell, bidirectional=both)
    reference = twin(trunk)
    x, lengths = random(6, 9, 4), torch.tensor([9, 3, 1, 7, 9, 2])
    mask = torch.arange(9) < lengths.unsqueeze(1)
    out = trunk(Tokens(x, mask, (9,)))
    packed, state = reference(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
    wanted = pad_packed_sequence(packed, True)[0]
    hidden = state[0] if cell == "lstm" else state
    ends = torch.cat([hidden[-2], hidden[-1]] if both else [hidden[-1]], 1)
    assert torch.allclose(out.x, wanted, rtol=0, atol=1e-6)
    assert torch.allclose(out.pooled, ends, rtol=0, atol=1e-6)
    assert torch.allclose(trunk(Tokens(x, None, (9,))).x, reference(x)[0], rtol=0, atol=1e-6)
    weighted(out.x).backward()
    weighted(wanted).backward()
    own = [p.grad for p in trunk.stack.parameters()]
    assert all(torch.allclose(a, p.grad, rtol=0, atol=1e-5) for a, p in zip(own, reference.parameters(), strict=True))


@pytest.mark.parametrize(("cell", "both"), VARIANTS)
def test_a_mask_of_any_pattern_gives_what_the_real_tokens_alone_give(cell: str, both: bool) -> None:
    trunk = made(cell, bidirectional=both, attention=both)
    x = random(7, 9, 4)
    mask = torch.rand((7, 9), generator=seeds.generator(0, "mask")) < 0.5
    mask[3], mask[4] = False, True
    x[~mask] = torch.nan
    x.requires_grad_()
    out = trunk(Tokens(x, mask, (9,)))
    for k in range(7):
        if k == 3:
            continue
        alone = trunk(Tokens(x[k][mask[k]].unsqueeze(0), None, (9,)))
        assert torch.allclose(out.x[k][mask[k]], alone.x[0], rtol=0, atol=1e-6)
        assert torch.allclose(out.pooled[k], alone.pooled[0], rtol=0, atol=1e-6)
    assert not out.x[~mask].any()
    assert not out.pooled[3].any(), "a row without real tokens has no state"
    (weighted(out.x) + weighted(out.pooled)).backward()
    assert all(p.grad.isfinite().all() for p in trunk.parameters())
    assert not x.grad[~mask].any()


def test_a_batch_without_any_real_token_gives_zeros() -> None:
    out = made()(Tokens(random(3, 9, 4), torch.zeros(3, 9, dtype=torch.bool), (9,)))
    assert not out.x.any()
    assert not out.pooled.any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masked", [False, True])
def test_steps_equal_one_forward(cell: str, masked: bool) -> None:
    trunk = made(cell)
    x = random(5, 9, 4)
    mask = torch.rand((5, 9), generator=seeds.generator(1, "mask")) < 0.5 if masked else None
    whole, state, steps = trunk(Tokens(x, mask, (9,)), causal=True), None, []
    for start, end in ((0, 1), (1, 2), (2, 6), (6, 9)):
        part = Tokens(x[:, start:end], None if mask is None else mask[:, start:end])
        out, state = trunk.step(part, state)
        steps.append(out.x)
    assert torch.allclose(torch.cat(steps, 1), whole.x, rtol=0, atol=1e-6)
    assert torch.allclose(out.pooled, whole.pooled, rtol=0, atol=1e-6), "the state is lost where a row has no token"


def test_a_bidirectional_trunk_is_not_causal() -> None:
    trunk = made(bidirectional=True)
    assert "causal" not in trunk.can
    with pytest.raises(UserError, match=r"sees later tokens: build it with bidirectional=False"):
        trunk(Tokens(random(2, 9, 4)), causal=True)
    with pytest.raises(UserError, match="cannot go on from a state"):
        trunk.step(Tokens(random(2, 9, 4)))


def test_attention_is_the_softmax_of_the_scores_of_real_states() -> None:
    trunk = made(attention=True)
    x, mask = random(1, 9, 4), torch.tensor([[1, 0, 1, 1, 0, 0, 0, 1, 0]]).bool()
    out = trunk(Tokens(x, mask, (9,)))
    first, _, second = trunk.attend.score
    real = out.x[mask]
    score = (real @ first.weight.T + first.bias).tanh() @ second.weight[0]
    wanted = (score.exp() / score.exp().sum()) @ real
    assert torch.allclose(out.pooled[0], wanted, atol=1e-6)


def test_what_is_written_by_hand_has_the_right_gradients() -> None:
    trunk = made("gru", torch.float64, attention=True, depth=1)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]]).bool()
    tokens = random(3, 3, 4, dtype=torch.float64).requires_grad_()

    def whole(x: Tensor) -> tuple[Tensor, ...]:
        out = trunk(Tokens(x, mask, (3,)))
        return out.x, out.pooled

    assert torch.autograd.gradcheck(whole, tokens)
    decoder = trunk.decoder(2).double()
    assert torch.autograd.gradcheck(decoder, random(2, 2, dtype=torch.float64).requires_grad_())
    attentive = trunk.seq2seq(3).double()
    memory, targets = random(3, 3, 5, dtype=torch.float64), random(3, 2, 3, dtype=torch.float64)
    inputs = (targets.requires_grad_(), memory.requires_grad_())
    assert torch.autograd.gradcheck(lambda t, m: attentive(t, Tokens(m, mask)), inputs)


@pytest.mark.parametrize(("cell", "both"), VARIANTS)
def test_the_attentive_decoder_is_causal_and_sees_the_real_memory(cell: str, both: bool) -> None:
    trunk = made(cell, bidirectional=both)
    decoder = stirred(trunk.seq2seq(3)).eval()
    memory = random(4, 9, trunk.dim_out, name="memory")
    mask = torch.rand((4, 9), generator=seeds.generator(2, "mask")) < 0.5
    mask[0] = False
    targets = random(4, 6, 3, name="targets")
    out = decoder(targets, Tokens(memory, mask))
    assert out.shape == (4, 6, trunk.dim_out)
    assert out.isfinite().all()
    later = torch.cat([targets[:, :3], 9 - targets[:, 3:]], 1)
    changed = decoder(later, Tokens(memory, mask))
    assert torch.allclose(changed[:, :3], out[:, :3], atol=1e-6)
    assert not torch.allclose(changed[:, 3], out[:, 3], atol=1e-3)
    padded = decoder(targets, Tokens(memory.where(mask.unsqueeze(2), 99 * memory), mask))
    assert torch.allclose(padded, out, atol=1e-6)
    other = decoder(targets, Tokens(memory.flip(2), mask))
    assert not torch.allclose(other[1:, 0], out[1:, 0], atol=1e-3)
    check_gradients(decoder, weighted(out))


def test_the_attentive_decoder_learns_to_turn_sequences_round() -> None:
    with seeds.forked(0, "init"):
        trunk = Recurrent(8, (6,), "gru", width=32, bidirectional=True)
        decoder, head = trunk.seq2seq(8), nn.Linear(trunk.dim_out, 8)
    model = nn.ModuleList([trunk, decoder, head])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    one_hot = torch.eye(8)
    rng = seeds.generator(0, "sequences")

    def logits(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.flip(1)
        before = torch.cat([torch.zeros(len(x), 1, 8), one_hot[y[:, :-1]]], 1)
        return head(decoder(before, trunk(Tokens(one_hot[x], None, (6,))))), y

    for _ in range(150):
        out, y = logits(torch.randint(8, (64, 6), generator=rng))
        optimizer.zero_grad()
        nn.functional.cross_entropy(out.flatten(0, 1), y.flatten()).backward()
        optimizer.step()
    out, y = logits(torch.randint(8, (256, 6), generator=rng))
    assert (out.argmax(2) == y).float().mean() > 0.9  # chance is 1/8


def test_a_recurrent_autoencoder_rebuilds_digits() -> None:
    build_one = zoo.objective("autoencoder(code=8)", "recurrent(cell='gru', width=32)", zoo.images)
    objective, batch = build_one(), zoo.images()[1]
    optimizer = adamw(groups(objective, lr=1e-2, weight_decay=0.0))
    for step in fit(objective, lambda _: batch, optimizer, steps=70, seed=0, clip=1.0):
        loss = step.loss
    pixels = objective.encoder.embed(batch).x
    assert loss < 0.3 * (pixels - pixels.mean(0)).square().mean()  # the mean picture's error


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="unknown recurrent cell 'lstn'; valid: lstm"):
        made("lstn")
    for wrong in ({"depth": 0}, {"dropout": 1.0}):
        with pytest.raises(UserError, match="recurrent wants width and depth of at least 1 and 0 <= dropout < 1"):
            made(**wrong)


def test_dropout_falls_between_the_layers_in_training_only() -> None:
    x, mask = random(4, 9, 4), torch.ones(4, 9, dtype=torch.bool)
    for tokens in (Tokens(x), Tokens(x, mask)):
        for depth, differs in ((1, False), (2, True)):
            trunk = made(dropout=0.5, depth=depth)
            plain = trunk(tokens).x
            with seeds.forked(0, "dropout"):
                assert torch.equal(trunk.train()(tokens).x, plain) != differs


def test_it_is_built_for_any_data() -> None:
    encoder = Encoder.of(zoo.tables()[0], "recurrent(width=8)")
    assert encoder(zoo.tables()[1]).pooled.shape == (12, 8)
