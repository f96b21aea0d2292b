"""scikit-learn, as its user guide streams data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def incremental_pca(batches: Sequence[Tensor], rank: int) -> Tensor:
    """``partial_fit`` a batch at a time; components as columns."""
    from sklearn.decomposition import IncrementalPCA

    fitter = IncrementalPCA(n_components=rank)
    for rows in batches:
        fitter.partial_fit(rows.numpy())
    return torch.from_numpy(fitter.components_.T.copy())
