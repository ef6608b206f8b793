"""Values as the formats of launch files can hold them: a hostile name stays one value, wherever it is written.

A path may hold quotes, line ends, ``$(...)`` or ``${{ ... }}``. Each format reads some of these: YAML its escapes, a
shell its expansions, GitHub its expressions, Kubernetes ``$(NAME)``.
"""

import re
import shlex

from epbench.errors import ScenarioError
from epbench.wording import shown

__all__ = ["for_github", "for_kubernetes", "for_shell", "for_yaml", "indented", "label", "slug"]

_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - {'"', "\\"}
_LONGEST_SLUG = 30  # a pod's name, with what is put around it, has 63 characters at most
_LABEL = re.compile(r"[A-Za-z0-9][\w.:/@-]{0,200}", re.ASCII)


def slug(name: str) -> str:
    """A name that is one for files, jobs and Kubernetes: lower-case letters, digits and single hyphens (RFC 1123)."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return words[:_LONGEST_SLUG].strip("-") or "scenario"


def label(value: str, option: str) -> str:
    """A value that a format cannot quote, such as an image or a runner's label; raises ScenarioError for others."""
    if not _LABEL.fullmatch(value):
        raise ScenarioError(f"{option} holds letters, digits and . : / @ _ - only, got {shown(value)}")
    return value


def for_shell(value: str) -> str:
    """One word of bash; what is not printable ASCII as escaped bytes, so that no reader is misled by it."""
    if value.isascii() and value.isprintable():
        return shlex.quote(value)
    plain = _PLAIN - {"'"}
    return "$'" + "".join(chr(b) if chr(b) in plain else f"\\x{b:02x}" for b in value.encode()) + "'"


def for_yaml(value: str) -> str:
    """A double-quoted scalar (YAML 1.2, section 7.3.1), all but printable ASCII escaped."""
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in _PLAIN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def for_github(value: str) -> str:
    """A scalar in which GitHub evaluates nothing: it reads ``${{`` in every value of a workflow."""
    return for_yaml(value.replace("${{", "${{ '${{' }}"))


def for_kubernetes(value: str) -> str:
    """A scalar in which Kubernetes expands nothing: ``$$`` is its ``$`` before a parenthesis."""
    return for_yaml(value.replace("$(", "$$("))


def indented(text: str, width: int) -> str:
    """Lines of a script as the block scalar of a YAML document has them, the first one without its indent."""
    return "\n".join(f"{' ' * width}{line}".rstrip() for line in text.rstrip().splitlines()).lstrip()
