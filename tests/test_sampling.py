"""Drawing tokens: frequencies against the exact distribution."""

from __future__ import annotations

import pytest
import torch

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.maths.sampling import Sampler, likeliest

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5])
N = 200_000


def shares(**options: float) -> torch.Tensor:
    choose = Sampler(seeds.generator(0, "draw"), **options)  # type: ignore[arg-type]
    return choose(LOGITS.expand(N, -1)).bincount(minlength=5) / N


@pytest.mark.parametrize(
    ("options", "allowed", "temperature"),
    [
        ({}, [0, 1, 2, 3, 4], 1.0),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4], 0.5),
        ({"top_k": 2}, [0, 4], 1.0),
        ({"top_k": 50}, [0, 1, 2, 3, 4], 1.0),
        # Probabilities .464, .281, .171, .063, .023 (of 0, 4, 2, 1, 3): .7 is reached within the second.
        ({"top_p": 0.7}, [0, 4], 1.0),
        ({"top_p": 0.76}, [0, 4, 2], 1.0),
        ({"top_p": 1e-9}, [0], 1.0),
        # At temperature 2 the three likeliest have .35, .27 and .21.
        ({"temperature": 2.0, "top_k": 3, "top_p": 0.7}, [0, 4], 2.0),
    ],
)
def test_frequencies_are_those_of_the_cut_distribution(
    options: dict[str, float], allowed: list[int], temperature: float
) -> None:
    wanted = torch.zeros(5)
    wanted[allowed] = (LOGITS[allowed] / temperature).softmax(0)
    # Six standard deviations of a share.
    assert torch.allclose(shares(**options), wanted, atol=6 * (0.25 / N) ** 0.5)


def test_temperature_zero_is_the_likeliest() -> None:
    x = torch.randn((20, 7), generator=seeds.generator(1))
    assert torch.equal(Sampler(seeds.generator(0), temperature=0)(x), likeliest(x))


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="wanted temperature >= 0"):
        Sampler(seeds.generator(0), **options)  # type: ignore[arg-type]
