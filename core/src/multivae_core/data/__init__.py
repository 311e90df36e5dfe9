"""Modalities with holes: the data set, its batches, and holes made for experiments."""

from __future__ import annotations

from multivae_core.data.batch import Batch
from multivae_core.data.dataset import IncompleteDataset

__all__ = ["Batch", "IncompleteDataset"]
