"""The web page; see animatediff/apps/page/command.py."""

from animatediff.apps.page.command import main
from animatediff.console import run_command

if __name__ == "__main__":
    run_command(main)
