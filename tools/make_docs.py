"""Write docs/reference/config.md, docs/reference/renamed.md and configs/schema.json from the options of a run."""

import argparse

import _clone

# isort: split
from data.files import write_text
from engine.config import reference_page, renamed_page, schema_text


def main() -> None:
    """Write all three."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for file, text in (
        ("docs/reference/config.md", reference_page()),
        ("docs/reference/renamed.md", renamed_page()),
        ("configs/schema.json", schema_text()),
    ):
        write_text(_clone.ROOT / file, text)
        print(f"{file} is up to date")


if __name__ == "__main__":
    _clone.run(main)
