"""The papers behind attacks and evaluations, in `references.bib`."""

import importlib.resources
import re


def bibtex(keys: tuple[str, ...]) -> str:
    """Return BibTeX entries.

    Args:
      keys: Keys of `references.bib`; whole entries are returned as they are.

    Example:
      >>> print(bibtex(("madry2018",)).splitlines()[0])
      @inproceedings{madry2018,
    """
    known = _entries()
    return "\n\n".join(
        key.strip() if key.startswith("@") else known[key] for key in keys
    )


def arxiv(key: str) -> str:
    """Return the number of a paper on arXiv, or its key where it has none.

    Example:
      >>> arxiv("madry2018")
      'arXiv:1706.06083'
    """
    found = re.search(r"arXiv:\d{4}\.\d{4,5}", bibtex((key,)))
    return found[0] if found else key


def _entries() -> dict[str, str]:
    text = importlib.resources.files("jaxrobust._core").joinpath("references.bib")
    entries = map(str.strip, text.read_text().split("\n\n"))
    return {re.split(r"[{,]", entry, maxsplit=2)[1]: entry for entry in entries}
