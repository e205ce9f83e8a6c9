"""Pastes what the lab showed, read from standard input, into the README's block; `make readme`.

Colours and what a terminal redraws are left out, so that the block is the plain text of a log.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- lab:[^\n]*-->\n```\n).*?(```\n<!-- /lab -->)", re.DOTALL)


def paste(document: str, shown: str) -> str:
    """The document with its one block replaced."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in plain.rstrip("\r\n").split("\n")]
    text, found = BLOCK.subn(lambda m: m[1] + "\n".join(lines) + "\n" + m[2], document)
    if found != 1:
        raise ValueError("the document has no block between <!-- lab: ... --> and <!-- /lab -->")
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    shown = sys.stdin.buffer.read().decode()  # as it is: a text stream would turn \r into \n
    sys.stdout.write(shown)
    path.write_text(paste(path.read_text(), shown))
