"""Features of instances: RoIAlign over the feature maps of a backbone. Heads that take boxes use the same function."""

from actionfuse._roi import roi_features as roi_features

__all__ = ["roi_features"]
