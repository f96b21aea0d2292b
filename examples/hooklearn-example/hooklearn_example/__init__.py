"""What this package adds to hooklearn; see its pyproject.toml."""
