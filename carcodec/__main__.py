"""``python -m carcodec``."""

from carcodec.app import main

main()
