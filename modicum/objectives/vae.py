"""`vae`: a code with a known distribution, from which new rows are drawn (Kingma and Welling 2014)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor

from modicum.core.errors import UserError
from modicum.core.types import Batch, Choose, Corrupted, Objective
from modicum.maths.losses import kl_normal, spread, widened
from modicum.maths.sampling import Sampler
from modicum.nn.encoder import Encoder
from modicum.nn.mirror import Mirror, real_tokens, rebuilt


@final
class VAE(Objective):
    """Error of the row rebuilt from a code drawn from N(mean, variance), and β times that Gaussian's KL to N(0, I).

    The error is summed over tokens (for pixels the square in standard deviations, a Gaussian of
    variance 1/2, averaged over channels), the loss
    divided by their number. `beta` weighs the KL (β-VAE, Higgins et al. 2017); each dimension's KL, on average over the
    batch, costs nothing below `free_bits` (in nats; Kingma et al. 2016), which keeps codes in use. The decoder is
    the trunk's mirror.
    """

    def __init__(self, encoder: Encoder, code: int = 32, beta: float = 1.0, free_bits: float = 0.0) -> None:
        super().__init__()
        if beta < 0 or free_bits < 0:
            raise UserError(f"vae wants beta and free_bits of at least 0; got {beta=}, {free_bits=}")
        self.encoder, self.code, self.beta, self.free_bits = encoder, code, beta, free_bits
        self.unembed = encoder.input.unembed()
        self.mirror = Mirror(encoder, code, 2 * code, self.unembed.dim)

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        first = next(iter(batch.values()))
        return {"batch": batch, "drawn": torch.randn((len(first), self.code), generator=rng, device=first.device)}

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        batch = corrupted["batch"]
        seen = self.encoder(batch)
        mean, log_variance = self._posterior(seen)
        code = mean + (log_variance / 2).exp() * corrupted["drawn"]
        real = real_tokens(self.encoder, batch)
        error = self.unembed.loss(self.mirror.grow(code), batch, real).mean()
        kl = kl_normal(mean, log_variance).mean(0)
        tokens = math.prod(self.encoder.embed.grid) if real is None else real.sum() / len(real)
        loss = error + self.beta * kl.clamp(min=self.free_bits).sum() / tokens
        return loss, {"error": error.detach(), "kl": kl.detach().sum(), **spread(seen.pooled[:128])}

    def _posterior(self, seen: object) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the code, (b, code) each."""
        mean, log_variance = widened(self.mirror.squeeze(seen)).chunk(2, 1)  # type: ignore[arg-type]
        return mean, log_variance.clamp(-12, 12)

    def reconstruct(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch rebuilt from its mean codes in raw units, and the mean error of every row (b,)."""
        return rebuilt(self.unembed, self.mirror.grow(self._posterior(self.encoder(batch))[0]), batch, self.encoder)

    def sample(self, n: int, choose: Choose, prompt: Batch | None = None, length: int | None = None) -> Batch:
        """`n` new rows in raw units: the decoder's means of codes drawn from N(0, I)."""
        if not self.unembed.whole:
            kind = self.encoder.input.modality
            raise UserError(f"vae draws rows of one size, and {kind} have different ones: generate with next_token")
        if prompt is not None or length is not None:
            raise UserError("vae draws whole rows: leave out --prompt and --length")
        assert isinstance(choose, Sampler)
        if choose.top_k or choose.top_p < 1:
            raise UserError(
                "vae draws codes and not tokens: leave out --top-k and --top-p; --temperature scales the codes"
            )
        code = torch.randn((n, self.code), generator=choose.rng, device=choose.rng.device)
        return self.unembed.decode(self.mirror.grow(choose.temperature * code))

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
