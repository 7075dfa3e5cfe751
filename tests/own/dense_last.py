"""A head in one file outside the package: the last real token's state, of length 1."""

import torch

from raylab.experiment.heads import Head

DENSE_LAST = Head(
    "dense-last", "tests.own.dense_last:last_token", "dense", label="Dense, last token"
)


def last_token(
    hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, mask_BL: torch.Tensor, scale: float
) -> torch.Tensor:
    """[B, D]."""
    places_BL = mask_BL.long() * torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device)
    last_B = places_BL.argmax(1)
    states_BD = hidden_BLD[torch.arange(len(hidden_BLD), device=last_B.device), last_B]
    return torch.nn.functional.normalize(states_BD, dim=-1)
