"""Samplers to name as ``data.sampler``: (training set, ...) -> one weight per sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

LABEL_ATTRIBUTES = ("targets", "labels")


def class_balanced(dataset: Any, *, power: float = 1.0) -> npt.NDArray[np.float64]:
    """Weights by which every class is drawn equally often.

    Args:
        dataset: A data set with the labels of all samples in an attribute ``targets`` or ``labels``, a
            ``TensorDataset`` whose last tensor holds them, or a ``Subset`` of one of these.
        power: 1 balances the classes, 0 leaves their frequencies as they are, 0.5 is halfway between.

    Returns:
        Class frequency to the power of ``-power`` for each sample, shape (samples,).

    Raises:
        ValueError: the data set does not say its labels.
    """
    _, classes, counts = np.unique(_labels(dataset), return_inverse=True, return_counts=True)
    return np.asarray((counts.astype(np.float64) ** -power)[classes])


def _labels(dataset: Any) -> npt.NDArray[Any]:
    if isinstance(dataset, torch.utils.data.Subset):
        chosen: npt.NDArray[Any] = _labels(dataset.dataset)[np.asarray(dataset.indices)]
        return chosen
    found = next((getattr(dataset, name) for name in LABEL_ATTRIBUTES if hasattr(dataset, name)), None)
    if found is None and isinstance(dataset, torch.utils.data.TensorDataset):
        found = dataset.tensors[-1]
    labels: npt.NDArray[Any] = np.asarray(found)
    if labels.shape != (len(dataset),):
        raise ValueError(
            f"{type(dataset).__name__} must say one label per sample in an attribute targets or labels, got "
            f"{'none' if found is None else f'values of shape {labels.shape}'}; name a function of your own, "
            "dataset -> one weight per sample"
        )
    return labels
