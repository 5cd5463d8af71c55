"""Losses against closed forms and an independent float64 reference; measures of collapse; that training learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import build, part
from modicum.maths.contrastive import nt_xent
from modicum.maths.losses import spread
from modicum.nn.encoder import Encoder
from modicum.objectives.supervised import fold_scaling
from modicum.training.apply import over
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=dtype)


def made(name: str, which: str) -> Any:
    """That instance of the zoo."""
    return next(row for row in zoo.OBJECTIVES if (row.name, row.which) == (name, which)).make()


# NT-Xent


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("b", [2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_identical_pairs_among_orthonormal_others(n: int, b: int, temperature: float) -> None:
    """Every positive has similarity 1, each of the n(B-1) negatives 0: log(1 + n(B-1)·exp(-1/T))."""
    z = torch.eye(8)[:b].expand(n, b, 8)
    wanted = math.log1p(n * (b - 1) * math.exp(-1 / temperature))
    # Logits of 1/T in float32 leave that much of a small loss.
    near = pytest.approx(wanted, rel=1e-5, abs=1.2e-7 / temperature)
    assert nt_xent(z, temperature).item() == near
    assert nt_xent(7 * z, temperature).item() == near


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_constant_embeddings_have_the_loss_of_chance(n: int, temperature: float) -> None:
    """All similarities are equal: log(1 + n(B-1)), whatever the temperature; for n = 2 it is log(2B-1)."""
    z = torch.ones(n, 6, 4)
    assert nt_xent(z, temperature).item() == pytest.approx(math.log(1 + n * 5), rel=1e-5)


def test_opposite_pairs() -> None:
    """Views v and -v of B orthonormal samples: positives -1, negatives 0: log(1 + 2(B-1)·exp(1/T))."""
    z = torch.stack([torch.eye(5), -torch.eye(5)])
    assert nt_xent(z, 0.5).item() == pytest.approx(math.log1p(8 * math.exp(2)), rel=1e-5)


def test_one_sample_alone_has_nothing_to_repel() -> None:
    z = drawn(3, 1, 4).requires_grad_()
    loss = nt_xent(z, 0.2)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def published(z: Tensor, temperature: float) -> Tensor:
    """Chen et al. 2020, equation 1, over ordered pairs, in float64 loops; the anchor's other views are no negatives."""
    n, b, _ = z.shape
    unit = [[v / v.square().sum().sqrt() for v in view] for view in z.double()]
    terms = []
    for i in range(n):
        for k in range(b):
            negatives = sum(
                torch.exp(unit[i][k] @ unit[j][m] / temperature) for j in range(n) for m in range(b) if m != k
            )
            for j in range(n):
                if j != i:
                    positive = torch.exp(unit[i][k] @ unit[j][k] / temperature)
                    terms.append(-torch.log(positive / (positive + negatives)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_value_and_gradient_agree_with_the_published_formula(n: int, temperature: float) -> None:
    for seed in range(3):
        a = drawn(n, 7, 5, seed=seed).requires_grad_()
        b = a.detach().double().requires_grad_()
        ours, theirs = nt_xent(a, temperature), published(b, temperature)
        ours.backward()
        theirs.backward()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 4), st.integers(2, 9), st.integers(1, 8), st.floats(0.05, 2), st.integers(0, 10**6))
def test_nt_xent_ignores_order_length_and_rotation(n: int, b: int, d: int, temperature: float, seed: int) -> None:
    z = drawn(n, b, d, seed=seed) + 0.01
    rng = seeds.generator(seed, "turn")
    wanted = pytest.approx(nt_xent(z, temperature).item(), rel=1e-4, abs=1e-4)
    assert nt_xent(z[:, torch.randperm(b, generator=rng)], temperature).item() == wanted
    assert nt_xent(z[torch.randperm(n, generator=rng)], temperature).item() == wanted
    assert nt_xent(z * torch.rand((n, b, 1), generator=rng).add(0.1), temperature).item() == wanted
    rotation = torch.linalg.qr(torch.randn((d, d), generator=rng))[0]
    assert nt_xent(z @ rotation, temperature).item() == wanted


# Collapse


def test_spread_of_known_covariances() -> None:
    z = drawn(20000, 6)
    found = spread(z)
    assert found["rank"].item() == pytest.approx(6, rel=0.01)
    assert found["spread"].item() == pytest.approx(1, rel=0.01)
    variances = torch.tensor([9.0, 4, 1, 1, 0.25, 0])
    stretched = spread(z * variances.sqrt())
    wanted = (variances.sum() ** 2 / variances.square().sum()).item()
    assert stretched["rank"].item() == pytest.approx(wanted, rel=0.03)
    assert spread(z[:, :1] * torch.ones(1, 5))["rank"].item() == pytest.approx(1, rel=1e-4)


def test_spread_sees_collapse() -> None:
    same = spread(torch.full((50, 4), 3.0))
    assert same["spread"].item() == 0
    assert same["rank"].item() <= 1
    assert spread(torch.zeros(50, 4))["spread"].item() == 0
    assert spread(100 + 0.01 * drawn(500, 4))["spread"].item() == pytest.approx(1e-4, rel=0.1)
    assert spread(5 * drawn(500, 4))["spread"].item() == pytest.approx(1, rel=0.1)


def test_the_rank_is_one_measure_with_few_rows_or_many() -> None:
    """The Gram matrix of rows and that of columns have the same eigenvalues."""
    z = drawn(20, 20)
    c = (z - z.mean(0)).double()
    values = torch.linalg.eigvalsh(c.T @ c)
    wanted = (values.sum() ** 2 / values.square().sum()).item()
    for x in (z, torch.cat([z, torch.zeros(20, 30)], 1)):
        assert spread(x)["rank"].item() == pytest.approx(wanted, rel=1e-4)
    assert not spread(z.requires_grad_())["rank"].requires_grad


# Views of an objective


def test_simclr_lays_views_one_after_the_other() -> None:
    objective = zoo.objective("simclr(n=3, hidden=16, out=8)", "convnet(width=4, stages=2)", zoo.images)()
    batch = zoo.images()[1]
    corrupted = objective.corrupt(batch, seeds.generator(4))
    rows = {"image": batch["image"].repeat(3, 1, 1, 1)}
    assert torch.equal(corrupted["views"]["image"], objective.transform(rows, seeds.generator(4))["image"])
    views = corrupted["views"]["image"].chunk(3)
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize("noise", [0.2, 0.7])
def test_denoising_hides_that_share_of_tokens_and_rebuilds_all(noise: float) -> None:
    objective = zoo.objective(f"autoencoder(code=4, noise={noise})", "mlp(width=16)", zoo.images)().eval()
    rows = {"image": zoo.images()[1]["image"].repeat(40, 1, 1, 1)}
    corrupted = objective.corrupt(rows, seeds.generator(0))
    hide = corrupted["hide"]
    assert hide.shape == (480, 64)
    assert hide.float().mean().item() == pytest.approx(noise, abs=5 * math.sqrt(0.25 / hide.numel()))
    assert len(hide.unique(dim=0)) == 480
    features = objective.encoder(rows, hide=hide)
    tokens = objective.mirror.grow(objective.mirror.squeeze(features))
    wanted = (tokens - objective.unembed.pixels(rows).x).square().mean()
    assert objective(corrupted)[0].item() == pytest.approx(wanted.item(), rel=1e-5)


# Supervised


def test_a_supervised_head_starts_from_the_mean_prediction() -> None:
    classes = made("supervised", "classes").eval()
    batch = zoo.images()[1]
    assert torch.allclose(classes.predict(batch), torch.full((12, 3), 1 / 3))
    numbers = made("supervised", "numbers").eval()
    assert torch.equal(numbers.predict(zoo.tables()[1]), torch.full((12,), 7.5))


def test_the_losses_of_a_supervised_head() -> None:
    batch = zoo.images()[1]
    logits = drawn(12, 3)
    target = torch.arange(12) % 3
    for smoothing in (0.0, 0.2):
        objective = zoo.objective(f"supervised(3, smoothing={smoothing})", "convnet(width=4)", zoo.images)()
        objective.head = torch.nn.Identity()
        objective.encoder.forward = lambda _: type("F", (), {"pooled": logits})  # type: ignore[method-assign, assignment]
        loss, metrics = objective({**batch, "target": target})
        hot = torch.eye(3)[target] * (1 - smoothing) + smoothing / 3
        wanted = -(hot * logits.log_softmax(1)).sum(1).mean()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert metrics["accuracy"].item() == pytest.approx((logits.argmax(1) == target).float().mean().item())
    numbers = zoo.objective("supervised(1, task='numbers', shift=2., scale=4.)", "convnet(width=4)", zoo.images)()
    numbers.head = torch.nn.Identity()
    out = drawn(12, 1)
    numbers.encoder.forward = lambda _: type("F", (), {"pooled": out})  # type: ignore[method-assign, assignment]
    true = drawn(12, seed=1)
    loss, _ = numbers({**batch, "target": true})
    assert loss.item() == pytest.approx((out[:, 0] - (true - 2) / 4).square().mean().item(), rel=1e-5)
    assert torch.allclose(numbers.predict(batch), out[:, 0] * 4 + 2)


def test_folding_the_scaling_into_the_head_is_exact() -> None:
    weight, bias = drawn(4, 6, seed=1, dtype=torch.float64), drawn(4, seed=2, dtype=torch.float64)
    mean, std = 10 * drawn(6, seed=3, dtype=torch.float64), drawn(6, seed=4, dtype=torch.float64).exp()
    x = drawn(50, 6, seed=5, dtype=torch.float64) * std + mean
    folded, shifted = fold_scaling(weight, bias, mean, std)
    torch.testing.assert_close(x @ folded.T + shifted, (x - mean) / std @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_supervised_training_without_labels_says_so() -> None:
    with pytest.raises(UserError, match="supervised training needs labels: name their column with --label"):
        made("supervised", "classes")(zoo.images()[1])


REFUSED = {
    "simclr(n=1)": "n >= 2",
    "simclr(temperature=0)": "temperature above 0",
    "simclr(hidden=0)": "hidden and out of at least 1",
    "autoencoder(code=0)": "at least 1 number; got code=0",
    "autoencoder(noise=1)": "noise < 1",
    "supervised(0)": "outputs >= 1",
    "supervised(2, smoothing=1)": "smoothing < 1",
    "supervised(2, task='ranks')": "unknown task 'ranks'; valid: ",
    "supervised(2, views={'zoom': 1})": "unknown image view 'zoom'; valid: ",
    "simclr(views={'flip': 2})": "wanted 0 <= flip <= 1",
}


@pytest.mark.parametrize("text", REFUSED)
def test_arguments_out_of_range(text: str) -> None:
    with pytest.raises(UserError) as raised:
        zoo.objective(text, "convnet(width=4)", zoo.images)()
    assert REFUSED[text] in str(raised.value)


# Learning


def test_an_autoencoder_rebuilds_data_of_few_dimensions() -> None:
    """Ten columns driven by two factors: a code of two numbers must hold nearly all (a linear one holds 100 %)."""
    rng = seeds.numpy(0, "factors")
    x = rng.standard_normal((600, 2)) @ rng.standard_normal((2, 10)) * 5 + 100

    table = pa.table({f"c{j}": x[:, j] for j in range(10)})
    made = part("modality", "tables").infer(table, np.arange(500))
    source = made.pack(table).source
    with seeds.forked(0, "init"):
        encoder = Encoder.of(made, "mlp(width=64, act='gelu', norm='layer')")
        objective = build("objective", "autoencoder(code=2)", encoder=encoder)
    batches = Batches(source, np.arange(500), batch=100, seed=0)
    optimizer = adamw(groups(objective, lr=4e-3, weight_decay=0.0))
    for _ in fit(objective, batches, optimizer, steps=400, seed=0, schedule=cosine(400), clip=1.0):
        pass
    objective.eval()
    held = source.rows(np.arange(500, 600))
    with torch.no_grad():
        again, errors = objective.reconstruct(held)
    assert errors.mean() < 0.05  # 1 is the error of predicting the means
    assert (again["numeric"] - held["numeric"]).abs().mean() < 2  # in the units of the columns, whose scale is about 7
    codes = over(objective, lambda b: objective.mirror.squeeze(objective.encoder(b)), source, np.arange(9))
    assert codes.shape == (9, 2)


def test_a_small_convnet_learns_real_digits_from_500_labels() -> None:
    """About .95 in a few seconds; logistic regression on the pixels of these labels has about .92."""
    images, labels = load_digits(return_X_y=True)
    raw = zoo.kind("images").as_raw((images * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8))
    order = seeds.numpy(0, "digits").permutation(len(labels))
    train, test = order[:500], order[500:]
    made = zoo.kind("images").infer(raw, train)
    source = made.pack(raw).source
    with seeds.forked(0, "init"):
        encoder = Encoder.of(made, "convnet(width=16, stages=2)")
        objective = build("objective", "supervised(10, views={'flip': 0., 'crop': (.7, 1.)})", encoder=encoder)
    batches = Batches(source, train, batch=100, seed=0, extra={"target": torch.as_tensor(labels[train])})
    optimizer = adamw(groups(objective, lr=4e-3, weight_decay=0.05))
    for _ in fit(objective, batches, optimizer, steps=150, seed=0, schedule=cosine(150), clip=1.0):
        pass
    found = over(objective, objective.predict, source, test)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert (found.argmax(1) == labels[test]).mean() > 0.9


# Masked prediction with donors


def test_donors_are_real_tokens_and_shares_hold_among_them() -> None:
    """BERT's 80/10/10 over ragged rows: what is hidden is real, and what takes its place is another real token."""
    input, batch = zoo.texts()
    rows, length = 4000, batch["ids"].shape[1]
    size = torch.randint(2, length + 1, (rows, 1), generator=seeds.generator(0))
    mask = torch.arange(length) < size
    ids = torch.randint(6, 20, (rows, length), generator=seeds.generator(1)) * mask
    objective: Any = build(
        "objective", "masked(ratio=.5, swap=.1, same=.1)", encoder=Encoder.of(input, "transformer(width=8, depth=1)")
    )
    out = objective.corrupt({"ids": ids, "mask": mask}, seeds.generator(2))
    hide, fate = out["hide"], out["fate"]
    assert not (hide & ~mask).any()
    assert mask.flatten()[out["donor"]].all(), "padding is never a donor"
    lengths = mask.sum(1)
    torch.testing.assert_close(hide.sum(1).float(), (0.5 * lengths).round().clamp(min=1))
    own = fate[hide]
    for low, high, share in ((0.0, 0.1, 0.1), (0.1, 0.2, 0.1), (0.2, 1.0, 0.8)):
        found = ((own >= low) & (own < high)).double().mean().item()
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / len(own)) ** 0.5)
    place = out["donor"].flatten().bincount(minlength=rows * length)[mask.flatten()].double()
    assert place.mean().item() == pytest.approx(rows * length / int(lengths.sum()), rel=1e-9)
    assert place.var().item() == pytest.approx(place.mean().item(), rel=0.05), "each real token alike: Poisson"


def test_a_trunk_sees_hidden_places_blanked_swapped_or_as_they_were() -> None:
    input, batch = zoo.texts()
    objective: Any = build(
        "objective", "masked(ratio=.6, swap=.3, same=.3)", encoder=Encoder.of(input, "transformer(width=8, depth=1)")
    )
    out, seen = objective.corrupt(batch, seeds.generator(0)), []
    objective.encoder.trunk.register_forward_pre_hook(lambda _, given: seen.append(given[0].x))
    objective(out)
    x, blank = objective.encoder.embed(batch).x, objective.encoder.embed.blank()
    hide, fate = out["hide"], out["fate"]
    swapped, same = hide & (fate < 0.3), hide & (fate >= 0.3) & (fate < 0.6)
    assert min(swapped.sum(), same.sum(), (hide & ~swapped & ~same).sum()) > 0
    assert torch.equal(seen[0][swapped], x.flatten(0, 1)[out["donor"]][swapped])
    assert torch.equal(seen[0][same | ~hide], x[same | ~hide])
    assert (seen[0][hide & ~swapped & ~same] == blank).all()
    assert seen[0][swapped].any(1).all(), "no token of zeros is put in"
