"""Training, evaluation and prediction: where pipeline, backbones and fusion meet."""
