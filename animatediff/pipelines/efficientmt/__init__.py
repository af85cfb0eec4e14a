"""EfficientMT (Cai et al., ICCV 2025, arXiv 2503.19369)."""

from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline

__all__ = ["EfficientMTPipeline"]
