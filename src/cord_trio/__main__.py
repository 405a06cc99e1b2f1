"""`python -m cord_trio`."""

from cord_trio.cli import script

if __name__ == "__main__":
    script()
