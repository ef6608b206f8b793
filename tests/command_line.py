"""The command line, called within the process of a test."""

from typer.testing import CliRunner, Result

from epbench.cli import app

__all__ = ["epbench"]


def epbench(*arguments: object) -> Result:
    """What a person who types ``epbench`` and these arguments gets."""
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="epbench")
