"""``python -m hooklearn`` is ``hooklearn``."""

from hooklearn.cli import main

main()
