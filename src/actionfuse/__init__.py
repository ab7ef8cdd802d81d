"""actionfuse: raw video folders in; features, trained action models and predictions out."""

__version__ = "0.1.0"
