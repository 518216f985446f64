"""The two files of a simple vector store, decoded so that they can be rewritten with other documents in them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amprenta_vectors.backends.simple.decrypt import Decryptor, is_token, open_fernet, whole_token
from amprenta_vectors.backends.simple.decrypt_fields import decrypt_file
from amprenta_vectors.backends.simple.edit import Encrypt, Entry, ShapeUnchangeable, edit_documents, edit_vectors
from amprenta_vectors.backends.simple.folder import METADATA_FILE, VECTORS_FILE
from amprenta_vectors.backends.simple.pickle_reader import PickledArray, read_pickle
from amprenta_vectors.backends.simple.shapes import to_document_columns, to_vector_columns
from amprenta_vectors.errors import SourceError

_PROTOCOL = 4
"""The protocol of a new pickle: every Python that is still maintained reads it."""

Seal = Callable[[Any], bytes]


@dataclass(frozen=True, eq=False)
class Contents:
    """The content of both files, decoded.

    ``stored`` is ``metadata.json`` with what is encrypted in it, value by value, and ``documents`` the same decrypted;
    ``seal`` makes a file's content of it, encrypted as a whole where the file was; ``encrypt`` makes a token of one
    text, and is None where there is no key or the file is encrypted only as a whole.
    """

    vectors: Any
    protocol: int
    stored: Any
    documents: Any
    seal: Seal
    encrypt: Encrypt | None

    def changed(self, gone: Collection[str], added: Sequence[Entry]) -> tuple[bytes, bytes]:
        """Return the contents of both files without ``gone``, with ``added``. Raises `ShapeUnchangeable`."""
        vector_ids, document_ids = self._ids()
        vectors = edit_vectors(self.vectors, vector_ids, gone, added)
        documents = edit_documents(self.documents, self.stored, document_ids, gone, added, self.encrypt)
        return pickle.dumps(_to_numpy(vectors), protocol=self.protocol), self.seal(documents)

    def _ids(self) -> tuple[Sequence[str], Sequence[str]]:
        """Return the ids of the rows of each file."""
        vectors, documents = to_vector_columns(self.vectors), to_document_columns(self.documents)
        if vectors.ids is not None and documents.ids is not None:
            return vectors.ids, documents.ids
        if len(vectors.rows) != len(documents.rows):
            raise ShapeUnchangeable("its vectors and documents do not pair up")
        ids = vectors.ids or documents.ids
        if ids is None and len(vectors.rows):
            raise ShapeUnchangeable("it keeps no ids, so that one taken out would rename those after it")
        return ids or (), ids or ()


def read_contents(folder: Path, key: str | None) -> Contents:
    """Read the files of ``folder``, which `read_store` has accepted, or empty contents if neither file exists."""
    decryptor = Decryptor(key, folder / METADATA_FILE)
    token = _token_maker(key)
    if not (folder / METADATA_FILE).exists():
        to_json = _json_like("{\n}")
        seal = to_json if key is None else lambda value: token(to_json(value)).encode()
        return Contents({}, _PROTOCOL, {}, {}, seal, None)
    pickled = (folder / VECTORS_FILE).read_bytes()
    vectors = read_pickle(pickled, str(folder / VECTORS_FILE))
    protocol = pickled[1] if pickled[:1] == pickle.PROTO else 0
    stored, seal, whole = _unsealed((folder / METADATA_FILE).read_bytes(), decryptor, token)
    decryptor.used = 0
    documents = decrypt_file(stored, decryptor.open)
    encrypt = None if key is None or (whole and not decryptor.used) else lambda text: token(text.encode())
    return Contents(vectors, protocol, stored, documents, seal, encrypt)


def _unsealed(content: bytes, decryptor: Decryptor, token: Callable[[bytes], str]) -> tuple[Any, Seal, bool]:
    """Return the value, an encoder that makes a like content, and whether it is encrypted as a whole."""
    text = content.strip().decode()
    outer: Any = text if is_token(text) else json.loads(text)
    found, to_json = outer, _json_like(text)
    whole = first = whole_token(outer)
    while whole is not None:
        plain = decryptor.open(whole) or ""
        found, to_json = json.loads(plain), _json_like(plain)
        whole = whole_token(found)
    if first is None:
        return found, to_json, False

    def seal(changed: Any) -> bytes:
        made = token(to_json(changed))
        if outer == text:
            return made.encode()
        if outer == first:
            return _json_like(text)(made)
        return _json_like(text)({name: made if held == first else held for name, held in outer.items()})

    return found, seal, True


def _json_like(content: str) -> Seal:
    """Return an encoder to JSON that indents if ``content`` is indented."""
    indent = 2 if "\n" in content.strip() else None
    return lambda value: json.dumps(value, ensure_ascii=False, indent=indent).encode()


def _token_maker(key: str | None) -> Callable[[bytes], str]:
    def token(content: bytes) -> str:
        if key is None:
            raise SourceError("metadata is encrypted, and there is no key to encrypt with")
        made: bytes = open_fernet(key).encrypt(content)
        return made.decode()

    return token


def _to_numpy(value: Any) -> Any:
    """Return ``value`` with numpy arrays in place of every `PickledArray`."""
    if isinstance(value, PickledArray):
        return value.values
    if isinstance(value, dict):
        return {name: _to_numpy(held) for name, held in value.items()}
    if isinstance(value, list | tuple) and not all(isinstance(held, float) for held in value):
        return type(value)(_to_numpy(held) for held in value)
    return value
