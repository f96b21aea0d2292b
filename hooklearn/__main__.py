"""``python -m hooklearn`` is ``hooklearn``."""

from hooklearn.cli import main

if __name__ == "__main__":  # a process beside this one imports it too
    main()
