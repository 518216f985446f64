"""The two files of a simple vector store, decoded so that they can be rewritten with other documents in them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amprenta_vectors.backends.simple.decrypt import Decryptor, is_token, open_fernet, wrapped_token
from amprenta_vectors.backends.simple.edit import Entry, ShapeUnchangeable, edit_documents, edit_vectors
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

    ``stored`` is ``metadata.json`` with its values still encrypted, and ``documents`` the same decrypted; ``seal``
    makes a file's content of it, encrypted as a whole if the file was; ``encrypt`` makes a token of one value, and is
    None if there is no key or the file is encrypted as a whole.
    """

    vectors: Any
    protocol: int
    stored: Any
    documents: Any
    seal: Seal
    encrypt: Callable[[Any], Any] | None

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
    stored, documents, seal, whole = _unsealed((folder / METADATA_FILE).read_bytes(), decryptor, token)
    encrypt = None if whole or key is None else _encrypted_with(token)
    return Contents(vectors, protocol, stored, documents, seal, encrypt)


def _unsealed(content: bytes, decryptor: Decryptor, token: Callable[[bytes], str]) -> tuple[Any, Any, Seal, bool]:
    """Return the content decoded, the same decrypted, a `Seal` for changes, and whether it is encrypted whole."""
    if is_token(text := content.strip().decode()):
        plain = decryptor.decrypt(text)
        value, to_json = json.loads(plain), _json_like(plain)
        return value, value, lambda changed: token(to_json(changed)).encode(), True
    decoded = json.loads(content)
    outer = _json_like(text)
    whole = decoded if is_token(decoded) else wrapped_token(decoded)
    if whole is None:
        return decoded, decryptor.decrypt_within(decoded), outer, False
    plain = decryptor.decrypt(whole)
    value, to_json = json.loads(plain), _json_like(plain)

    def seal(changed: Any) -> bytes:
        made = token(to_json(changed))
        if decoded == whole:
            return outer(made)
        return outer({name: made if held == whole else held for name, held in decoded.items()})

    return value, value, seal, True


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


def _encrypted_with(token: Callable[[bytes], str]) -> Callable[[Any], Any]:
    def encrypt(value: Any) -> Any:
        if isinstance(value, dict | list):
            return token(json.dumps(value, ensure_ascii=False).encode())
        # A number would come back as a string.
        return token(value.encode()) if isinstance(value, str) else value

    return encrypt


def _to_numpy(value: Any) -> Any:
    """Return ``value`` with numpy arrays in place of every `PickledArray`."""
    if isinstance(value, PickledArray):
        return value.values
    if isinstance(value, dict):
        return {name: _to_numpy(held) for name, held in value.items()}
    if isinstance(value, list | tuple) and not all(isinstance(held, float) for held in value):
        return type(value)(_to_numpy(held) for held in value)
    return value
