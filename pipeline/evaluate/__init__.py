"""Is a model good: reconstruction, probes, classification, retrieval and segmentation, with intervals and pictures."""
