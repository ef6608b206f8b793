"""``python -m epbench`` is the console script ``epbench``."""

from epbench.cli import main

if __name__ == "__main__":
    main()
