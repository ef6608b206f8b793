"""What goes into the page unescaped: its own style and script, plotly, and data encoded so that it is inert.

The files of ``script/`` are one script in one closure: first what the others use, last the start.
"""

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Assets", "packed"]

_HERE = Path(__file__).parent
_FIRST = ("page.js", "state.js", "theme.js", "charts.js", "tables.js")  # what the others use
_LAST = "start.js"


@dataclass(frozen=True)
class Assets:
    """Style and script as markup, the policy that lets no other script run, and plotly's library packed."""

    style: Any
    script: Any
    policy: str
    plotly: str

    @classmethod
    def of(cls) -> "Assets":
        """Read from the package; plotly's from the installed wheel."""
        from markupsafe import Markup

        script = page_script()
        style = (_HERE / "page.css").read_text(encoding="utf-8")
        library = _plotly()
        return cls(Markup(style), Markup(script), _policy(_digest(script), library.digest), library.packed)


@dataclass(frozen=True)
class _Library:
    digest: str
    packed: str


@cache
def _plotly() -> _Library:
    """Packing 5 MB takes longer than most pages do."""
    from plotly.offline import get_plotlyjs

    text = called_at_once(get_plotlyjs())
    return _Library(_digest(text), packed(text))


def called_at_once(library: str) -> str:
    """The function that makes plotly in parentheses of its own, the sign by which V8 compiles it on its first reading.

    Without them all 5 MB are skimmed and then read again: 0.3 of the 1.6 s that such a page takes on two slow cores. A
    library that begins or ends otherwise stays as it is.
    """
    parts = re.fullmatch(r"(.{,2000}?\bthis, )(\(\) => \{\n.*\n\})(\)\);\s*)", library, re.DOTALL)
    return library if parts is None else f"{parts[1]}({parts[2]}){parts[3]}"


def page_script() -> str:
    """All files of ``script/`` as one strict closure."""
    names = sorted({path.name for path in (_HERE / "script").glob("*.js")} - {*_FIRST, _LAST})
    texts = [(_HERE / "script" / name).read_text(encoding="utf-8") for name in (*_FIRST, *names, _LAST)]
    return "\n".join(['"use strict";', "(() => {", *texts, "})();"])


def packed(text: str) -> str:
    """Gzip + base64; the page unpacks it with DecompressionStream. The same text gives the same bytes."""
    return _base64(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def _policy(*digests: str) -> str:
    """Refuse every request, form, base address and script but these; styles are let in, and pictures without a request.

    A policy in the page itself cannot refuse that the page is left: a link, or a refresh. What keeps a name from
    being either is the escaping alone.
    """
    sources = " ".join(f"'{digest}'" for digest in digests)
    allowed = f"script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; {allowed}"


def _digest(text: str) -> str:
    return f"sha256-{_base64(hashlib.sha256(text.encode()).digest())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
