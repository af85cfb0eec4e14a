"""Write the folder for ComfyUI or for a hub Space; see animatediff/apps/export.py."""

from animatediff.apps.export import main
from animatediff.console import run_command

if __name__ == "__main__":
    run_command(main)
