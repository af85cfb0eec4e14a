"""The web page behind `efficientmt demo`: motion transfer without a terminal, on gradio's server."""
