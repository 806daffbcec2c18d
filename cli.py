"""Launcher for a checkout: ``python cli.py …`` is ``carcodec …``."""

from carcodec.app import main

if __name__ == "__main__":
    main()
