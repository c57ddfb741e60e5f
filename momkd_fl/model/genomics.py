"""The genomic branch: a small encoder, its projection and a symmetric decoder (METHOD section 3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class GenomicBranch(nn.Module):
    """e = Lin Drop(.25) ReLU LN Lin (r);  g = l2norm(W_g e);  r^ = Lin Drop(.25) ReLU LN Lin (e).

    Parameters
    ----------
    genes, hidden, memory_dim : G, D and S
    """

    def __init__(self, genes: int, hidden: int, memory_dim: int, dropout: float = 0.25) -> None:
        super().__init__()
        self.encoder = _two_layers(genes, hidden, hidden, dropout)
        self.projection = nn.Linear(hidden, memory_dim)
        self.decoder = _two_layers(hidden, hidden, genes, dropout)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Z-scores (M, G) of the patients who have them, to g (M, S) and the reconstruction (M, G)."""
        encoded = self.encoder(z)
        return F.normalize(self.projection(encoded), dim=-1), self.decoder(encoded)


def _two_layers(dim_in: int, hidden: int, dim_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim_in, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim_out)
    )
