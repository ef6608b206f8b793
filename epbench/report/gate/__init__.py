"""The answer of ``epbench gate`` and ``epbench ab``: made, written, and said in a terminal, to a CI and to a forge."""
