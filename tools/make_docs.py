"""Write docs/reference/config.md, docs/reference/renamed.md and configs/schema.json."""

import _clone

# isort: split
from _arguments import make_parser

from data.files import write_text
from engine.config import reference_page, renamed_page, schema_text

EPILOG = """examples:
  python tools/make_docs.py
  make docs                   # the same
Run it after a change of the config options. The tests fail if a file is out of date."""


def main() -> None:
    """Write all three files."""
    make_parser(__doc__, EPILOG).parse_args()
    for file, text in (
        ("docs/reference/config.md", reference_page()),
        ("docs/reference/renamed.md", renamed_page()),
        ("configs/schema.json", schema_text()),
    ):
        write_text(_clone.ROOT / file, text)
        print(f"{file} is up to date")


if __name__ == "__main__":
    _clone.run(main)
