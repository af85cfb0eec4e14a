"""Doors for people who open no terminal: the web page and the ComfyUI nodes, both forms over the methods."""
