"""Reading XML files of any source: elements with their lines, without entities."""

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from ..json_file import JsonError, read_bytes

# Labels have five levels; a deeper file is damaged, or meant to exhaust the stack.
_MAX_DEPTH = 50


class XmlError(ValueError):
    """A file is not readable as XML; the message contains the reason and the line."""


class Element(ElementTree.Element):
    """An element that knows its line in the file."""

    line = 0

    def value(self, path: str) -> str:
        """Return the text of a child without surrounding spaces, "" if there is none."""
        return (self.findtext(path) or "").strip()


def read_xml(path: Path) -> Element:
    """Read an XML file.

    A file that defines entities is an error: their expansion can fill the memory, and they can contain other files.
    The parser of the standard library limits the first only in newer versions. defusedxml forbids both too, but its
    elements do not know their lines.

    Raises:
        XmlError: If the file is not readable or not XML.
    """
    parser = expat.ParserCreate()
    builder = ElementTree.TreeBuilder(element_factory=Element)
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise XmlError(f"line {parser.CurrentLineNumber}: more than {_MAX_DEPTH} elements within each other")
        builder.start(tag, attributes).line = parser.CurrentLineNumber

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise XmlError(f"line {parser.CurrentLineNumber}: defines an entity, which labels do not need")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(read_bytes(path), True)
        return builder.close()
    except JsonError as error:
        raise XmlError(str(error)) from None
    except expat.ExpatError as error:
        raise XmlError(f"line {error.lineno}: {expat.ErrorString(error.code)}") from None
    except (LookupError, ValueError) as error:  # an encoding that expat or Python does not know
        if isinstance(error, XmlError):
            raise
        raise XmlError(f"line {parser.CurrentLineNumber}: {error}") from None
