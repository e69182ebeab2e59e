"""`python -m maskprune`."""

from maskprune.app.commands import console


if __name__ == "__main__":
    console()
