"""``python -m verifier`` is the command ``verifier``."""

from verifier.cli import command

if __name__ == "__main__":
    command()
