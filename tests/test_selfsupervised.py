"""What each self-supervised objective computes, against its formula, and what teachers and queues do after a step."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import small
import torch
import zoo
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

import modicum
from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import parse, text_of
from modicum.maths.contrastive import supcon
from modicum.maths.losses import margin_pairs, sigreg
from modicum.maths.representation import alignment, deviations, rank_me, uniformity, unused
from modicum.maths.sampling import Sampler
from modicum.nn.ema import rising
from modicum.probes import ridge
from modicum.training.guard import Diverged

CONV = "convnet(width=4, stages=2)"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def made(text: str, encoder: str = CONV, given: Any = zoo.images, **context: Any) -> Any:
    return zoo.objective(text, encoder, given, **context)().eval()


def material(objective: Any, batch: dict[str, Tensor], seed: int = 0) -> Any:
    return objective.corrupt(batch, seeds.generator(seed))


# Teachers


def test_the_momentum_rises_to_one_along_a_cosine() -> None:
    momentum = rising(0.9, 400)
    assert [momentum(k) for k in (0, 200, 400, 900)] == pytest.approx([0.9, 0.95, 1, 1])
    assert [rising(None, steps)(0) for steps in (10, 100, 1000, 9000)] == pytest.approx([0, 0.8, 0.98, 0.99])
    assert [rising(m, 100)(0) for m in (0.99, 0.996)] == pytest.approx([0.99, 0.996])  # asked for, it is kept
    assert rising(0.9, 0)(10**6) == 0.9


@pytest.mark.parametrize(
    "text", ["byol(momentum=.8)", "moco(momentum=.8, queue=40)", "dino(momentum=.8, prototypes=9)"]
)
def test_a_teacher_follows_after_the_step(text: str) -> None:
    objective = made(text)
    before = [p.clone() for p in objective.teacher.parameters()]
    with torch.no_grad():
        for p in objective.encoder.parameters():
            p.add_(1)
    objective(material(objective, zoo.images()[1]))
    objective.after_step(0)
    own = {id(p): q for p, q in zip(objective.encoder.parameters(), before, strict=False)}
    for p, mine in zip(objective.encoder.parameters(), objective.teacher.parameters(), strict=False):
        torch.testing.assert_close(mine, 0.8 * own[id(p)] + 0.2 * p.detach())


@pytest.mark.parametrize(("text", "chance"), [("moco(queue=512)", 6.24), ("dino(prototypes=256)", 5.55)])
def test_a_teacher_with_batch_norm_teaches(text: str, chance: float, tmp_path: Path) -> None:
    """Its statistics are those of its batch: with the student's running ones all rows look alike to it."""
    run = modicum.pretrain(
        "digits",
        objective=text,
        encoder="convnet(width=8, stages=2)",
        steps=150,
        batch=64,
        limit=600,
        out=tmp_path / "r",
    )
    last = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()][-10:]
    assert np.mean([row["loss"] for row in last]) < 0.85 * chance


def test_a_teacher_is_its_own_in_evaluation() -> None:
    objective = made("byol()").train()
    assert any(m.training for m in objective.teacher.modules())
    assert not any(m.training for m in objective.eval().teacher.modules())


def test_byol_is_the_distance_of_unit_vectors() -> None:
    objective = made("byol(hidden=16, out=8)")
    given = material(objective, zoo.images()[1])
    z = objective.head(objective.encoder(given["views"]).pooled)
    one, two = objective.predictor(z).chunk(2)
    encoder, head = objective.teacher.module
    first, second = head(encoder(given["views"]).pooled).chunk(2)
    wanted = sum(
        (F.normalize(p, dim=1) - F.normalize(t, dim=1)).square().sum(1).mean() / 2
        for p, t in ((one, second), (two, first))
    )
    torch.testing.assert_close(objective(given)[0], wanted)


def test_the_queue_of_moco_holds_the_newest_first_and_gives_the_negatives() -> None:
    objective = made("moco(queue=30, temperature=.5, hidden=16, out=8)")
    given, before = material(objective, zoo.images()[1]), objective.keys.clone()
    q = F.normalize(objective.head(objective.encoder(given["views"]).pooled), dim=1)
    encoder, head = objective.teacher.module
    k = F.normalize(head(encoder(given["views"]).pooled), dim=1)
    other = torch.cat([k[12:], k[:12]])
    logits = torch.cat([(q * other).sum(1, keepdim=True), q @ before.T], 1) / 0.5
    wanted = F.cross_entropy(logits, torch.zeros(24, dtype=torch.long))
    torch.testing.assert_close(objective(given)[0], wanted)
    objective.after_step(0)
    torch.testing.assert_close(objective.keys, torch.cat([k, before])[:30])


def test_the_centre_of_dino_is_a_running_mean_of_the_teachers_first_two_views() -> None:
    objective = made("dino(n=3, prototypes=9, centring=.7, hidden=16, out=8)")
    given = material(objective, zoo.images()[1])
    encoder, head, choose = objective.teacher.module
    seen = choose(head(encoder({"image": given["views"]["image"][:24]}).pooled))
    objective(given)
    objective.after_step(0)
    torch.testing.assert_close(objective.centre, 0.3 * seen.mean(0))
    weight = F.normalize(objective.choose.weight, dim=1)
    z = F.normalize(objective.head(objective.encoder(given["views"]).pooled), dim=1)
    logits = z @ weight.T
    wanted, pairs = torch.zeros(()), 0
    for t in range(2):
        target = ((seen[12 * t : 12 * t + 12] - objective.centre) / 0.04).softmax(1)
        for s in range(3):
            if s != t:
                wanted = wanted - (target * (logits[12 * s : 12 * s + 12] / 0.1).log_softmax(1)).sum(1).mean()
                pairs += 1
    torch.testing.assert_close(objective(given)[0], wanted / pairs)


def test_latent_masked_compares_hidden_places_with_the_normed_teacher() -> None:
    objective = made("latent_masked(.4)", "transformer(width=16, depth=1, heads=2, patch=2)")
    given = material(objective, zoo.images()[1])
    assert given["hide"].sum(1).unique().tolist() == [6]
    with torch.no_grad():
        for p in objective.teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=seeds.generator(1)))
    wanted = objective.teacher.module(given["batch"]).tokens
    wanted = (wanted - wanted.mean(2, keepdim=True)) / (wanted.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    found = objective.predictor(objective.hiding(objective.encoder, given)[1])
    apart = (found - wanted)[given["hide"]].abs()
    torch.testing.assert_close(objective(given)[0], torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean())


def test_lejepa_weighs_agreement_against_gaussianity() -> None:
    objective = made("lejepa(n=3, weight=.3, count=5, hidden=16, out=8)")
    given = material(objective, zoo.images()[1])
    z = objective.head(objective.encoder(given["views"]).pooled).view(3, 12, 8)
    for views, found in ((z, objective(given)[0]), (far := drawn(3, 12, 8), objective.loss(far, given))):
        # About the mean of all views, the mean square is the sum over pairs of views of their squares, over views².
        apart = sum((views[i] - views[k]).square().mean() for i, k in ((0, 1), (0, 2), (1, 2))) / 9
        gauss = torch.stack([sigreg(view, given["drawn"]) for view in views]).mean()
        torch.testing.assert_close(found, 0.7 * apart + 0.3 * gauss)
    torch.testing.assert_close(given["drawn"].norm(dim=0), torch.ones(5))
    assert not torch.equal(given["drawn"], material(objective, zoo.images()[1], 1)["drawn"])


# Masked prediction


def test_visible_pixels_are_no_target_of_masked() -> None:
    objective = made("masked(.5)", "transformer(width=16, depth=1, heads=2, patch=2)")
    given = material(objective, zoo.images()[1])
    _, x = objective.hiding(objective.encoder, given)
    hidden = objective.hiding.hidden(given)
    tokens, image = objective.out(objective.head(x)), given["batch"]["image"]
    changed = torch.where(hidden.view(12, 8, 8, 1), image, 255 - image)
    for batch in (image, changed):
        loss = objective.unembed.loss(tokens, {"image": batch}, hidden).mean()
        torch.testing.assert_close(loss, objective(given)[0])
    other = torch.where(hidden.view(12, 8, 8, 1), 255 - image, image)
    assert objective.unembed.loss(tokens, {"image": other}, hidden).mean() > objective(given)[0]


def test_normalised_patches_are_those_of_mae() -> None:
    objective = made("masked(.5, normalise=True)", "transformer(width=16, depth=1, heads=2, patch=2)")
    image = zoo.images()[1]["image"]
    pixels = objective.unembed.pixels({"image": image}).x.view(12, 8, 8)
    wanted = torch.zeros_like(pixels)
    for i in range(0, 8, 2):
        for j in range(0, 8, 2):
            patch = pixels[:, i : i + 2, j : j + 2].reshape(12, 4)
            normed = (patch - patch.mean(1, keepdim=True)) / (patch.var(1, keepdim=True) + 1e-6).sqrt()
            wanted[:, i : i + 2, j : j + 2] = normed.view(12, 2, 2)
    error = objective.unembed.loss(torch.zeros(12, 64, 1), {"image": image})
    torch.testing.assert_close(error, wanted.flatten(1).square())
    with pytest.raises(UserError, match="is for images: tables have no values on a grid"):
        made("masked(normalise=True)", "mlp(width=8)", zoo.tables)


def test_a_patch_is_predicted_from_those_before_it_alone() -> None:
    """Changing the pixels of a patch changes what is said of later patches, and of none before or of itself."""
    objective = made("next_token()", "transformer(width=16, depth=2, heads=2, patch=2, causal=True)")
    image, said = zoo.images()[1]["image"], []
    objective.out.register_forward_hook(lambda _, __, out: said.append(out.view(12, 8, 8)))
    objective({"image": image})
    changed = image.clone()
    changed[:, 2:4, 4:6] = 255 - changed[:, 2:4, 4:6]  # patch (1, 2), the seventh of sixteen
    objective({"image": changed})
    moved = (said[0] - said[1]).abs().amax(0).view(4, 2, 4, 2).amax((1, 3)).flatten() > 1e-6
    assert moved.tolist() == [False] * 7 + [True] * 9


# Labels, pairs and triplets


def test_rows_without_a_class_are_their_own_in_supcon_and_nothing_in_triplet() -> None:
    batch = zoo.some_labels(zoo.images)()
    objective = made("supcon(temperature=.3, hidden=16, out=8)")
    given = material(objective, batch)
    z = objective.head(objective.encoder(given["views"]).pooled)
    own = torch.where(batch["target"] < 0, 100 + torch.arange(12), batch["target"]).repeat(2)
    torch.testing.assert_close(objective(given)[0], supcon(z, own, 0.3))
    objective = made("triplet(mining='hard', hidden=16, out=8)")
    given = material(objective, batch)
    unknown = (batch["target"] < 0).view(-1, 1, 1, 1)
    views = torch.where(unknown, 255 - given["views"]["image"], given["views"]["image"])
    torch.testing.assert_close(objective({**given, "views": {"image": views}})[0], objective(given)[0])


def test_pairs_are_hadsells() -> None:
    x, y = drawn(6, 3), drawn(6, 3, seed=1)
    similar = torch.tensor([1, 0, 1, 0, 0, 1])
    each = []
    for a, b, s in zip(x, y, similar.tolist(), strict=True):
        distance = float(((a - b) ** 2).sum().sqrt())
        each.append(distance**2 / 2 if s else max(0.0, 2 - distance) ** 2 / 2)
    assert margin_pairs(x, y, similar, 2.0).item() == pytest.approx(np.mean(each), rel=1e-12)
    objective = made("pairs(margin=.7, hidden=16, out=8)")
    batch = zoo.in_halves(zoo.images)()
    given = material(objective, batch)
    z = objective.head(objective.encoder(given["views"]).pooled)
    torch.testing.assert_close(objective(given)[0], margin_pairs(z[:6], z[6:], batch["similar"][:6], 0.7))


def test_triplets_of_a_file_are_taken_as_they_are() -> None:
    objective = made("triplet(.3, hidden=16, out=8)", from_file=True)
    given = material(objective, zoo.in_thirds(zoo.images)())
    z = F.normalize(objective.head(objective.encoder(given["views"]).pooled), dim=1)
    a, p, n = z.view(3, 4, 8)
    wanted = ((a - p).norm(dim=1) - (a - n).norm(dim=1) + 0.3).clamp(min=0).mean()
    torch.testing.assert_close(objective(given)[0], wanted)


# Sums


def test_a_sum_weighs_its_terms_and_shares_the_encoder() -> None:
    text = "masked(ratio=0.5) + 0.1*vicreg(hidden=16, out=8)"
    objective = made(text)
    assert text_of(parse(text)) == text
    given = material(objective, zoo.images()[1])
    first, second = objective.parts
    assert first.encoder is second.encoder is objective.encoder
    wanted = first(given["0"])[0] + 0.1 * second(given["1"])[0]
    loss, metrics = objective(given)
    torch.testing.assert_close(loss, wanted)
    assert {"masked loss", "vicreg loss", "rank", "spread", "projected"} == set(metrics)
    assert made("2*(simclr() + .5*masked()) + vae()").terms[1][0] == 1


def test_a_sum_is_saved_with_its_encoder_once() -> None:
    objective = made("masked(.3) + masked(.6) + byol(hidden=16, out=8)")
    names = objective.state_dict()
    assert not [n for n in names if n.startswith("parts.") and ".encoder." in n]
    other = zoo.objective("masked(.3) + masked(.6) + byol(hidden=16, out=8)", CONV, zoo.images)()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(names)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), objective.parameters(), strict=True))
    _, metrics = objective(material(objective, zoo.images()[1]))
    assert {"masked 1 loss", "masked 2 loss", "byol loss", "projected"} <= set(metrics)


def test_a_sum_draws_what_one_term_draws(tmp_path: Path) -> None:
    run = modicum.pretrain("digits", objective="vae(code=4) + .1*simclr()", out=tmp_path / "r", limit=60, **small.TINY)
    assert modicum.generate(run, n=3).num_rows == 3
    with pytest.raises(UserError, match="vae draws codes and not tokens"):
        modicum.generate(run, n=3, top_k=2)


def test_weights_that_are_nan_end_in_the_guards_words(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="the loss is"):
        modicum.pretrain("digits", lr=1e30, out=tmp_path / "r", limit=60, **{**small.TINY, "steps": 20})


def test_hints_on_views_go_to_every_term(tmp_path: Path) -> None:
    run = modicum.pretrain(
        "digits", objective="simclr() + .1*vicreg(views=views(crop=.9))", out=tmp_path / "r", limit=100, **small.TINY
    )
    parts = modicum.load(run).objective.parts
    assert [part.transform.flip for part in parts] == [0, 0]
    assert parts[1].transform.crop == (0.9, 1.0) != parts[0].transform.crop


@pytest.mark.parametrize("beside", ["{}", "simclr() + {}"])
def test_a_classifier_sees_rows_as_they_are_unless_views_are_asked_for(tmp_path: Path, beside: str) -> None:
    """The data's hints go under views that are asked for, written as a call or as a dictionary."""
    for text, crop in (
        ("supervised()", None),
        ("supervised(views=views(crop=(.5, 1.)))", (0.5, 1.0)),
        ("supervised(views={'crop': (.5, 1.)})", (0.5, 1.0)),
    ):
        run = modicum.pretrain(
            "digits", objective=beside.format(text), out=tmp_path / f"{text}{beside}", limit=100, **small.TINY
        )
        objective = modicum.load(run).objective
        own = objective.parts[1] if hasattr(objective, "parts") else objective
        batch = {"image": zoo.images()[1]["image"], "target": torch.arange(12) % 10}
        if crop is None:
            assert own.corrupt(batch, seeds.generator(0)) is batch
        else:
            assert (own.transform.crop, own.transform.flip) == (crop, 0)


# The variational autoencoder


def test_the_bound_of_a_vae_and_its_free_bits() -> None:
    for beta, bits in ((1.0, 0.0), (0.3, 0.5)):
        objective = made(f"vae(code=4, beta={beta}, free_bits={bits})")
        given = material(objective, zoo.images()[1])
        mean, log = objective._posterior(objective.encoder(given["batch"]))
        code = mean + (log / 2).exp() * given["drawn"]
        error = (objective.mirror.grow(code) - objective.unembed.pixels(given["batch"]).x).square().mean()
        kl = ((mean**2 + log.exp() - 1 - log) / 2).mean(0)
        loss, metrics = objective(given)
        torch.testing.assert_close(loss, error + beta * kl.clamp(min=bits).sum() / 64)
        torch.testing.assert_close(metrics["kl"], kl.sum())


def test_a_vae_draws_digits_that_look_like_digits(tmp_path: Path) -> None:
    """Of 200 samples the mean and deviation of every pixel are near the data's, and no two samples are the same."""
    run = modicum.pretrain(
        "digits", objective="vae(code=8)", encoder="mlp(width=128, depth=2)", steps=500, batch=128, out=tmp_path / "r"
    )
    model = modicum.load(run)
    made = model.sample(200, seed=3)["image"].float().flatten(1)
    true = torch.from_numpy(load_digits().images).flatten(1).float() * (255 / 16)
    assert (made.mean(0) - true.mean(0)).abs().mean() < 15
    assert made.std(0).mean() / true.std(0).mean() > 0.6
    assert len(made.unique(dim=0)) == 200
    assert torch.equal(made, model.sample(200, seed=3)["image"].float().flatten(1))
    still = model.sample(3, temperature=0)["image"]
    assert torch.equal(still[0], still[1])
    table = modicum.generate(run, n=5, output=tmp_path / "five.png")
    assert Image.open(io.BytesIO(table.column("image")[0].as_py())).size == (8, 8)
    with Image.open(tmp_path / "five.png") as sheet:
        assert sheet.size == (28, 19)
    with pytest.raises(UserError, match="vae draws whole rows"):
        model.sample(2, length=3)


def test_a_vae_draws_rows_of_a_table(tmp_path: Path) -> None:
    run = modicum.pretrain(
        pa.table(small.columns(60)), objective="vae(code=4)", encoder="mlp(width=16)", steps=20, out=tmp_path / "r"
    )
    table = modicum.generate(run, n=7, output=tmp_path / "rows.parquet")
    assert table.num_rows == 7
    assert set(table.column_names) == {"num", "whole", "cat", "flag"}
    assert set(table.column("cat").to_pylist()) <= {"u", "v", "w"}
    with pytest.raises(UserError, match="tables are no pictures"):
        modicum.generate(run, n=7, output=tmp_path / "rows.png")


def test_a_vae_of_texts_cannot_draw_any() -> None:
    objective = made("vae(code=4)", "mlp(width=16, over='set')", zoo.texts)
    with pytest.raises(UserError, match="text have different ones: generate with next_token"):
        objective.sample(2, Sampler(seeds.generator(0)))


@pytest.mark.parametrize(
    ("given", "encoder", "inputs"),
    [
        (zoo.images, CONV, 64),
        (zoo.tables, "mlp(width=8)", 6),
        (zoo.series, "mlp(width=8)", 26),  # two channels of 13 steps
        (zoo.texts, "mlp(width=8, over='set')", 0),  # tokens are no numbers
    ],
)
def test_an_autoencoder_that_is_not_undercomplete_says_so(given: Any, encoder: str, inputs: int) -> None:
    note = made(f"autoencoder(code={inputs or 500})", encoder, given).note()
    assert (f"a row has {inputs} inputs" in note) if inputs else note == ""
    assert made(f"autoencoder(code={inputs - 1 if inputs else 3})", encoder, given).note() == ""
    assert made(f"autoencoder(code={inputs or 500}, noise=.3)", encoder, given).note() == ""


@pytest.mark.parametrize("objective", ["vae(code=4)", "autoencoder(code=4)"])
def test_rows_shorter_than_the_longest_are_rebuilt_and_shown(objective: str) -> None:
    """The mirror gives as many tokens as the longest row has; a batch may have fewer."""
    for given, raw, encoder in (
        (zoo.graphs, zoo.drugs, zoo.GIN),
        (zoo.series, zoo.curves, zoo.RNN),
        (zoo.texts, zoo.sentences, zoo.SET),
    ):
        input, batch = given()
        made = zoo.objective(objective, encoder, given)().eval()
        shortest = int(batch["mask"].sum(1).argmin())
        row = input.pack(raw()).source.rows(np.array([shortest]))
        assert row["mask"].shape[1] < batch["mask"].shape[1]
        with torch.no_grad():
            again, error = made.reconstruct(row)
        assert error.shape == (1,)
        assert len(input.show(again)) == 1


def test_a_vae_draws_series(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 1, 40))
    run = modicum.pretrain(x, objective="vae(code=4)", encoder="recurrent(width=16)", steps=3, out=tmp_path / "r")
    table = modicum.generate(run, n=3)
    assert table.column_names == ["id", "time", "value"]
    assert table.num_rows == 120


# Measures of features


def test_rank_me_of_known_spectra() -> None:
    orthogonal = torch.linalg.qr(drawn(40, 8))[0]
    assert rank_me(orthogonal).item() == pytest.approx(8, rel=1e-4)
    values = torch.tensor([4.0, 2, 1, 1], dtype=torch.float64)
    p = values / values.sum()
    wanted = torch.exp(-(p * p.log()).sum()).item()
    assert rank_me(orthogonal[:, :4] * values).item() == pytest.approx(wanted, rel=1e-4)
    assert rank_me(torch.ones(20, 5)).item() == pytest.approx(1, rel=1e-3)


def test_alignment_and_uniformity() -> None:
    x = drawn(30, 5)
    assert alignment(x, 3 * x).item() == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x).item() == pytest.approx(4)
    unit = F.normalize(x, dim=1)
    wanted = torch.pdist(unit).square().mul(-2).exp().mean().log().item()
    assert uniformity(x).item() == pytest.approx(wanted, rel=1e-9)
    assert uniformity(torch.ones(9, 3)).item() == pytest.approx(0, abs=1e-6)


def test_unused_dimensions_are_counted() -> None:
    x = drawn(50, 8) * torch.tensor([1, 1, 1, 1, 1, 1, 1e-3, 0])
    assert unused(x).item() == 0.25


def test_deviations_are_quantiles_over_dimensions() -> None:
    x = drawn(50, 21) * torch.arange(21)
    wanted = np.quantile(x.numpy().std(0), [0, 0.1, 0.5, 1])
    assert [v.item() for v in deviations(x).values()] == pytest.approx(list(wanted))
    assert list(deviations(x)) == ["lowest", "tenth", "median", "highest"]


@pytest.mark.parametrize("d", [5, 90])
def test_the_linear_probe_is_ridge_regression(d: int) -> None:
    x, y = drawn(60, d).numpy(), np.arange(60) % 3
    query = drawn(40, d, seed=1).numpy()
    mean, std = x.mean(0), x.std(0)
    scale = std + 0.1 * std.mean()
    rule = Ridge(alpha=0.01 * 60).fit((x - mean) / scale, np.eye(3)[y])
    wanted = rule.predict((query - mean) / scale).argmax(1)
    assert (ridge(x, y, query) == wanted).all()


def test_probes_and_measures_are_logged_and_drawn(tmp_path: Path) -> None:
    run = modicum.pretrain("digits", out=tmp_path / "r", **{**small.TINY, "steps": 30})
    last = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"knn", "ridge", "rank_me", "alignment", "uniformity", "unused"} <= set(last)
    deviation = [last[f"deviation_{name}"] for name in ("lowest", "tenth", "median", "highest")]
    assert deviation == sorted(deviation)
    assert deviation[2] > 0
    page = (run.path / "report.html").read_text("utf-8")
    assert all(title in page for title in ("Linear probe", "RankMe", "Alignment", "Uniformity"))
    assert "Deviation of dimensions" in page
    assert "deviation_tenth against" not in page  # the four are one chart


def test_a_collapse_stops_the_run_with_advice(tmp_path: Path) -> None:
    """Views that must agree, and nothing against their being all the same."""
    with pytest.raises(Diverged, match=r"the projections collapsed at step .*vicreg: variance, covariance"):
        modicum.pretrain(
            "digits", objective="vicreg(variance=0, covariance=0, hidden=8, out=4)", encoder="mlp(width=16, depth=1)",
            lr=0.05, steps=300, batch=64, out=tmp_path / "r",
        )  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        r
        for r in zoo.OBJECTIVES
        if r.name in ("masked", "latent_masked") and r.which not in ("images-mlp", "text-bert", "nodes")
    ],
    ids=str,
)
def test_what_is_hidden_does_not_leak(row: Any) -> None:
    """Other values of hidden tokens change neither what is predicted for them nor the features of what is visible."""
    objective, batch = row.make().eval(), row.batch()
    corrupted = objective.corrupt(batch, seeds.generator(0))
    hide = objective.hiding.hidden(corrupted)
    assert hide.any()
    with torch.no_grad():
        seen, found = objective.hiding(objective.encoder, corrupted)
        noise = torch.randn(1, generator=seeds.generator(1))

        def other(module: Any, given: Any, out: Any) -> Any:
            return out._replace(x=torch.where(hide.unsqueeze(2), 3 * out.x + noise, out.x))

        hook = objective.encoder.embed.register_forward_hook(other)
        again, changed = objective.hiding(objective.encoder, corrupted)
        hook.remove()
    torch.testing.assert_close(again.pooled, seen.pooled)
    torch.testing.assert_close(changed, found)


def test_a_sum_tells_the_nearest_to_a_collapse_and_every_other_measure_by_its_term() -> None:
    objective = made("triplet(mining='hard') + .5*triplet(out=4)", outputs=3)
    _, batch = zoo.images()
    batch = {**batch, "target": torch.arange(len(batch["image"])) % 3}
    corrupted = material(objective, batch)
    _, metrics = objective(corrupted)
    alone = [part(corrupted[str(k)])[1] for k, part in enumerate(objective.parts)]
    for key in ("spread", "projected", "rank"):
        assert metrics[key] == min(own[key] for own in alone)
    assert "triplets" not in metrics
    for k, own in enumerate(alone, 1):
        assert metrics[f"triplet {k} triplets"] == own["triplets"]


def test_mining_and_given_triplets_exclude_each_other() -> None:
    with pytest.raises(UserError, match="chooses among labelled rows; --triplets gives them: leave it out"):
        made("triplet(mining='hard')", from_file=True)
