"""Video motion transfer: the motion of a clip, the content of a sentence."""

__version__ = "0.2.0"
