"""Command line of the exporters; see `python -m exporters --help`."""

from exporters.cli import main

if __name__ == "__main__":
    main()
