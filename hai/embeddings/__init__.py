"""Features of images under a frozen backbone: computed once by all workers, kept by content, shared by all runs."""

from hai.embeddings.compute import compute_embeddings, encoding_batch_size
from hai.embeddings.dataset import EmbeddedDataset
from hai.embeddings.store import EmbeddingKey, EmbeddingStore

__all__ = ["EmbeddedDataset", "EmbeddingKey", "EmbeddingStore", "compute_embeddings", "encoding_batch_size"]
