"""From files to batches: images, sources, manifests, splits, packs, the loader and its augmentations."""
