"""Files that carry their own hash: one flipped bit anywhere in them is an error when they are read.

An archive ends with the SHA-256 of everything before it, as the comment of the zip format; NumPy and
every unpacker read it as before. A JSON text has the SHA-256 of the rest as its last member.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["CHANGED", "packed", "sealed_text", "unpacked", "unsealed_text"]

CHANGED = "its content has changed since it was written (its SHA-256 differs)"
_MARK = b"curvature sha256 "
_HEX = 64  # digits of a SHA-256
_END = b"PK\x05\x06"  # begins the last 22 bytes of a zip archive without a comment
_BEFORE, _AFTER = ',\n "sha256": "', '"\n}\n'


def packed(about: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Write arrays and a JSON text as an npz archive that ends with its hash.

    Parameters
    ----------
    about
        The text, stored under the name ``"about"``.
    arrays
        Arrays by name.

    Returns
    -------
    bytes
        The archive.
    """
    stream = io.BytesIO()
    members: dict[str, Any] = {"about": np.array(about), **arrays}
    np.savez(stream, **members)
    content = stream.getvalue()
    assert content[-22:-18] == _END
    assert content[-2:] == b"\0\0"
    content = content[:-2] + (len(_MARK) + _HEX).to_bytes(2, "little") + _MARK
    return content + _digest(content)


def unpacked(content: bytes, *, max_bytes: int) -> tuple[str, dict[str, np.ndarray], bool]:
    """Read what :func:`packed` wrote, or an archive of the same form without a hash.

    Parameters
    ----------
    content
        The archive.
    max_bytes
        Limit for the unpacked size.

    Returns
    -------
    tuple
        The text, the arrays by name, and whether the archive has a hash, which was verified.

    Raises
    ------
    ValueError
        If the hash differs, the archive declares too many bytes, or it has no text.
    Exception
        As the readers of zip archives and arrays raise it for damaged ones.
    """
    sealed = content[-_HEX - len(_MARK) : -_HEX] == _MARK
    if sealed and _digest(content[:-_HEX]) != content[-_HEX:]:
        raise ValueError(CHANGED)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(item.file_size for item in archive.infolist()) > max_bytes:
            raise ValueError(f"it declares more than {max_bytes / 2**30:g} GB")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if "about" not in arrays:
        raise ValueError(f"it holds {', '.join(map(repr, arrays)) or 'nothing'}, but no 'about'")
    return str(arrays.pop("about")), arrays, sealed


def sealed_text(text: str) -> str:
    """Add the hash to a JSON object that is indented by one space.

    Parameters
    ----------
    text
        The object, with a line break after the closing brace.

    Returns
    -------
    str
        The same object with a last member ``"sha256"``: the hash of the text without this member.
    """
    body = text.removesuffix("\n}\n")
    return body + _BEFORE + hashlib.sha256(text.encode()).hexdigest() + _AFTER


def unsealed_text(text: str) -> tuple[dict[str, Any], bool]:
    """Parse a JSON object, and verify its hash.

    Parameters
    ----------
    text
        What :func:`sealed_text` returned, or another JSON object.

    Returns
    -------
    tuple of dict and bool
        The object without its hash, and whether it had one.

    Raises
    ------
    ValueError
        If the text is not a JSON object, or its hash differs.
    """
    body, found, rest = text.rpartition(_BEFORE)
    sealed = bool(found)
    if sealed and rest != hashlib.sha256(f"{body}\n}}\n".encode()).hexdigest() + _AFTER:
        raise ValueError(CHANGED)
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004
    if sealed:
        del document["sha256"]
    return document, sealed


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
