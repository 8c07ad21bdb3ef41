"""The sources are notebooks, not modules: pytest must not import them."""

collect_ignore_glob = ["[0-9]*.py"]
