"""`python -m preread` is the command line."""

from __future__ import annotations

from preread.cli.main import main

if __name__ == "__main__":
    main()
