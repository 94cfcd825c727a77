"""The command line of a script that takes no options."""

import argparse


def no_options(description: str | None) -> None:
    """Shows `--help`, and refuses all else, before anything is measured or written.

    Args:
        description: The script's docstring.
    """
    argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
