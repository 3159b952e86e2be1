"""Write docs/reference/config.md and configs/schema.json anew from the options in engine/config/options.py."""

import argparse

import _clone

# isort: split
from data.files import write_text
from engine.config import reference_page, schema_text


def main() -> None:
    """Write both."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for file, text in (("docs/reference/config.md", reference_page()), ("configs/schema.json", schema_text())):
        write_text(_clone.ROOT / file, text)
        print(f"{file} is up to date")


if __name__ == "__main__":
    _clone.run(main)
