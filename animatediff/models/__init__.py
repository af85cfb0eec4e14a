"""Backbone and method: build_unet (SD1.5 + motion modules) and EfficientMT (frozen backbone + adapter)."""

from animatediff.models.adapter import Adapter, EfficientMT, Reference
from animatediff.models.unet import VideoUNet, build_unet

__all__ = ["Adapter", "EfficientMT", "Reference", "VideoUNet", "build_unet"]
