"""Plain data and numpy arrays are read; whatever else a pickle tries is refused by name, and nothing of it runs."""

from __future__ import annotations

import copyreg
import pickle
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amprenta_vectors.backends.simple.pickle_reader import PickledArray, PickleRefused, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def to_short(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def to_stack_global(module: str, name: str) -> bytes:
    return to_short(module) + to_short(name) + pickle.STACK_GLOBAL


def calls(module: str, name: str, *arguments: str) -> bytes:
    """Protocol 0 to 3's way of calling something."""
    text = b"".join(pickle.BINUNICODE + struct.pack("<I", len(item)) + item.encode() for item in arguments)
    called = f"c{module}\n{name}\n".encode()
    return b"\x80\x02" + called + pickle.MARK + text + pickle.TUPLE + pickle.REDUCE + pickle.STOP


def new_calls(module: str, name: str, *arguments: str) -> bytes:
    """Protocol 4's way."""
    text = b"".join(map(to_short, arguments))
    called = to_stack_global(module, name) + pickle.MARK + text + pickle.TUPLE
    return b"\x80\x04" + called + pickle.REDUCE + pickle.STOP


NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"

ARRAY_OF = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


FLOATS = b"cnumpy\ndtype\n(X\x02\0\0\0f4tR"


def wide_tuples(levels: int, width: int) -> bytes:
    """Tuples in one another, each with the one below so many times: width to the power of levels in all."""
    made = b")q\x00"
    for level in range(levels):
        made += b"(" + (b"h" + bytes([level])) * width + b"tq" + bytes([level + 1])
    return made


def wide_lists(levels: int) -> bytes:
    """Lists in one another, each with the one below twice: as text 2 to the power of levels."""
    made = b"]q\x00"
    for level in range(levels):
        made += b"](" + (b"h" + bytes([level])) * 2 + b"eq" + bytes([level + 1])
    return made


def colliding_one(number: int) -> bytes:
    value = ((number + 1) * (2**61 - 1) << 61).to_bytes(20, "little")
    return pickle.LONG1 + bytes([len(value)]) + value


def colliding(count: int) -> bytes:
    return b"".join(colliding_one(number) + b"N" for number in range(count))


def empty_array(rows: int) -> bytes:
    shape = pickle.BININT + struct.pack("<i", rows) + b"K\x00\x86"
    return ARRAY_OF + b"(K\x01" + shape + FLOATS + b"I00\nC\0tb."


# What each tries, and the name that it must be refused by; SPY is a shell command that leaves the canary.
MALICIOUS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "os.system": (lambda spy: calls("os", "system", spy), "os.system"),
    "posix.system": (lambda spy: calls("posix", "system", spy), "posix.system"),
    "os.system of protocol 4": (lambda spy: new_calls("os", "system", spy), "os.system"),
    "subprocess": (lambda spy: calls("subprocess", "getoutput", spy), "subprocess.getoutput"),
    "Popen": (lambda spy: new_calls("subprocess", "Popen", spy), "subprocess.Popen"),
    "eval": (lambda spy: calls("builtins", "eval", f"__import__('os').system({spy!r})"), "builtins.eval"),
    "exec": (lambda spy: calls("__builtin__", "exec", f"import os; os.system({spy!r})"), "__builtin__.exec"),
    "getattr": (lambda spy: calls("builtins", "getattr", "os", "system"), "builtins.getattr"),
    "import": (lambda spy: new_calls("builtins", "__import__", "os"), "builtins.__import__"),
    "open": (lambda spy: calls("io", "open", "/etc/passwd"), "io.open"),
    "a dotted name": (lambda spy: b"\x80\x04" + to_stack_global("os", "path.os.system") + b".", "os.path.os.system"),
    "numpy's dotted way out": (lambda spy: new_calls("numpy", "f2py.os.system", spy), "numpy.f2py.os.system"),
    "INST": (lambda spy: b"(S'x'\nios\nsystem\n.", "STRING"),
    "INST of a class": (lambda spy: b"(ios\nsystem\n.", "INST of os.system"),
    "OBJ": (lambda spy: b"(cos\nsystem\nV" + spy.encode() + b"\no.", "os.system"),
    "OBJ of nothing": (lambda spy: b"(K\x01o.", "opcode OBJ"),
    "NEWOBJ": (lambda spy: b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
    "NEWOBJ_EX": (lambda spy: b"\x80\x04" + to_stack_global("types", "CodeType") + b")}\x92.", "types.CodeType"),
    "NEWOBJ of an array": (lambda spy: b"\x80\x02cnumpy\nndarray\n)\x81.", "opcode NEWOBJ"),
    "EXT1": (lambda spy: b"\x80\x02\x82\x05.", "opcode EXT1"),
    "EXT2": (lambda spy: b"\x80\x02\x83\x05\x00.", "opcode EXT2"),
    "EXT4": (lambda spy: b"\x80\x02\x84\x05\x00\x00\x00.", "opcode EXT4"),
    "a persistent id": (lambda spy: b"Pthing\n.", "opcode PERSID"),
    "a persistent id of the stack": (lambda spy: b"K\x05Q.", "opcode BINPERSID"),
    "copyreg": (lambda spy: calls("copyreg", "_reconstructor"), "copyreg._reconstructor"),
    "copyreg's registry": (lambda spy: calls("copy_reg", "add_extension", "os", "system"), "copy_reg.add_extension"),
    "codecs": (lambda spy: calls("codecs", "open", "/etc/passwd"), "codecs.open"),
    "a codec that runs": (lambda spy: calls("_codecs", "encode", spy, "rot13"), "a call of _codecs.encode"),
    "numpy.load": (lambda spy: calls("numpy", "load", "evil.npy"), "numpy.load"),
    "numpy.memmap": (lambda spy: calls("numpy", "memmap", "/etc/passwd"), "numpy.memmap"),
    "numpy's runstring": (
        lambda spy: calls("numpy.testing._private.utils", "runstring", spy, ""),
        "numpy.testing._private.utils.runstring",
    ),
    "f2py": (lambda spy: calls("numpy.f2py.crackfortran", "myeval", spy), "numpy.f2py.crackfortran.myeval"),
    "numpy's exec_command": (
        lambda spy: calls("numpy.distutils.exec_command", "exec_command", spy),
        "numpy.distutils.exec_command.exec_command",
    ),
    "numpy.fromfile": (lambda spy: new_calls("numpy", "fromfile", "/etc/passwd"), "numpy.fromfile"),
    "an object array": (lambda spy: calls("numpy", "dtype", "O8"), "numpy dtype 'O8'"),
    "a huge array": (
        lambda spy: b"cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftR.",
        "a call of numpy.ndarray with int, int",
    ),
    "another array class": (
        lambda spy: b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nmatrix\n(K\x00tC\x01btR.",
        "numpy.matrix",
    ),
    "an array that is larger than its bytes": (
        lambda spy: NDARRAY + b"(K\x01(J\xff\xff\xff\x7ftcnumpy\ndtype\n(X\x02\x00\x00\x00f4tR\x89C\x04abcdtb.",
        "a numpy array of shape (2147483647,) with 4 bytes",
    ),
    "a state set upon a function": (lambda spy: b"cnumpy\ndtype\n}(X\x01\x00\x00\x00aK\x01ub.", "a state set upon"),
    "runpy": (lambda spy: calls("runpy", "run_path", "evil.py"), "runpy.run_path"),
    "webbrowser": (lambda spy: calls("webbrowser", "open", "http://127.0.0.1"), "webbrowser.open"),
    "pickle in a pickle": (lambda spy: calls("pickle", "loads", "x"), "pickle.loads"),
    "partial": (lambda spy: new_calls("functools", "partial", "x"), "functools.partial"),
    "operator": (lambda spy: new_calls("operator", "attrgetter", "system"), "operator.attrgetter"),
    "a class of our own": (
        lambda spy: calls("amprenta_vectors.config", "Settings"),
        "amprenta_vectors.config.Settings",
    ),
    "a set": (lambda spy: pickle.dumps({1}, 4), "opcode EMPTY_SET"),
    "a buffer from elsewhere": (lambda spy: b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    "huge bytes": (lambda spy: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.", "1,125,899,906,842,624 bytes"),
    "a huge string": (lambda spy: b"X\xff\xff\xff\xff.", "4,294,967,295 bytes"),
    "a huge bytearray": (
        lambda spy: b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".",
        "declares more than there is",
    ),
    "a huge frame": (lambda spy: b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"N.", "declares more than there is"),
    "a huge memo": (lambda spy: b"Nr\xff\xff\xff\xff.", "place 4,294,967,295 of a memo"),
    "a huge memo of protocol 0": (lambda spy: b"Np4294967295\n.", "place 4294967295 of a memo"),
    "a huge number": (lambda spy: b"\x8b\x00\x00\x00\x40" + b"\x01" * 100 + b".", "a number of 1,073,741,824 bytes"),
    "a long number": (lambda spy: b"I" + b"9" * 100_000 + b"\n.", "a number of more than 64 bytes"),
    "no opcode": (lambda spy: b"\xff.", "byte 255, which is no opcode"),
    "no pickle": (lambda spy: b"\x7fELF\x02\x01\x01", "byte 127, which is no opcode"),
    "nothing on the stack": (lambda spy: b"R.", "no sound pickle"),
    "no number of a place": (lambda spy: b"gx\n.", "no sound pickle"),
    "no place in the memo": (lambda spy: b"h\x09.", "no sound pickle"),
    "tuples in one another": (lambda spy: b"})" + b"\x85" * 1_000_000 + b"Ns.", "more than 16 tuples in one another"),
    "tuples of three in one another": (
        lambda spy: b"})" + b"K\x01(t\x87" * 200_000 + b"Ns.",
        "more than 16 tuples in one another",
    ),
    "tuples in one another by the memo": (
        lambda spy: b"})" + b"q\x010h\x01\x85".replace(b"0", b"") * 200_000 + b"Ns.",
        "more than 16 tuples in one another",
    ),
    "tuples in one another by MEMOIZE": (
        lambda spy: b"})" + b"".join(b"\x94j" + struct.pack("<I", n) + b"\x85" for n in range(50_000)) + b"Ns.",
        "more than 16 tuples in one another",
    ),
    "tuples in one another up to a mark": (
        lambda spy: b"}" + b"(" * 200_000 + b"t" * 200_000 + b"Ns.",
        "more than 16 tuples in one another",
    ),
    "tuples in one another by places with zeros before them": (
        lambda spy: b"()" + (b"p" + b"0" * 30 + b"1\ng1\n\x85") * 199_999 + b"d.",
        "no sound pickle: place 000",
    ),
    "tuples in one another by taking places with zeros before them": (
        lambda spy: b"()" + (b"p1\ng" + b"0" * 30 + b"1\n\x85") * 199_999 + b"d.",
        "no sound pickle: place 000",
    ),
    "bytes added to an array's own": (
        lambda spy: (
            b"\x80\x05cnumpy._core.numeric\n_frombuffer\n(\x96"
            + struct.pack("<Q", 4)
            + b"\0" * 4
            + b"q\x01cnumpy\ndtype\n(X\x02\0\0\0f4tRK\x01\x85X\x01\0\0\0CtRh\x01(K\x01e."
        ),
        "no sound pickle",
    ),
    "a key that hashes for ever": (lambda spy: wide_tuples(15, 10) + b"}h\x0fNs.", "a tuple as a key"),
    "such keys by SETITEMS": (lambda spy: wide_tuples(15, 10) + b"}(h\x0fNu.", "a tuple as a key"),
    "such keys by DICT": (lambda spy: wide_tuples(15, 10) + b"(h\x0fNd.", "a tuple as a key"),
    "keys of one hash": (lambda spy: b"}(" + colliding(1000) + b"u.", "a number of more than 8 bytes as a key"),
    "keys of one hash by the memo": (
        lambda spy: b"](" + colliding_one(1) + b"q\x01e}h\x01Ns.",
        "a number of more than 8 bytes as a key",
    ),
    "keys of one hash in digits": (
        lambda spy: b"}(" + b"".join(b"I%d\nN" % (n * (2**61 - 1)) for n in range(1, 1000)) + b"u.",
        "a number of more than 8 bytes as a key",
    ),
    "a billion rows of nothing": (lambda spy: empty_array(10**9), "numpy array of 1,000,000,000 rows without a value"),
    "a shape that is larger as text than any file": (
        lambda spy: wide_lists(60) + ARRAY_OF + b"(K\x01h\x3c\x85" + FLOATS + b"I00\nC\0tb.",
        "a numpy array of shape (list,)",
    ),
    "a dtype that is larger as text than any file": (
        lambda spy: wide_lists(60) + b"cnumpy\ndtype\nh\x3c\x85R.",
        "a numpy dtype of list",
    ),
    "frames in one another": (
        lambda spy: b"\x80\x04" + b"\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 2) + b"N.",
        "a frame within a frame",
    ),
    "a memo numbered in two ways": (lambda spy: b")q\x01\x94.", "numbers its memo in two ways"),
    "an empty file": (lambda spy: b"", "truncated"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_pickle_is_refused_by_what_it_tries_and_nothing_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build, tried = MALICIOUS[name]
    with pytest.raises(PickleRefused) as refused:
        read_pickle(build(f"touch {tmp_path}/canary"), "vectors.pkl")
    assert tried in refused.value.message
    assert "vectors.pkl is refused" in refused.value.message
    assert not list(tmp_path.iterdir())


def test_the_canary_is_left_where_python_reads_such_a_pickle(tmp_path: Path) -> None:
    build, _ = MALICIOUS["os.system"]
    pickle.loads(build(f"touch {tmp_path}/canary"))
    assert (tmp_path / "canary").exists()


class Spy:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_reduce_deep_within_good_data_is_refused(protocol: int, tmp_path: Path) -> None:
    value = {"good": [np.ones(4, np.float32)], "bad": [[{"deep": Spy(tmp_path / "canary")}]]}
    with pytest.raises(PickleRefused, match=r"getattr|Path"):
        read_pickle(pickle.dumps(value, protocol), "vectors.pkl")
    assert not (tmp_path / "canary").exists()


def test_an_extension_that_the_process_has_registered_and_used_is_refused(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 77)
    try:
        pickle.loads(b"\x80\x02\x82\x4d.")  # From now on Python looks it up without asking anybody.
        with pytest.raises(PickleRefused, match="opcode EXT1"):
            read_pickle(b"\x80\x02\x82\x4d(X\x04\x00\x00\x00truetR.", "vectors.pkl")
    finally:
        copyreg.remove_extension("os", "system", 77)
        copyreg.clear_extension_cache()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_uuids_come_back_as_their_texts(protocol: int) -> None:
    value = {uuid.UUID(int=5): [uuid.UUID(int=2**128 - 1)]}
    ((key, (other,)),) = read_pickle(pickle.dumps(value, protocol), "vectors.pkl").items()
    assert (str(key), str(other)) == (str(uuid.UUID(int=5)), str(uuid.UUID(int=2**128 - 1)))


@pytest.mark.parametrize(
    "arguments",
    [
        b"c__builtin__\nobject\nc__builtin__\nobject\nN",
        b"cuuid\nUUID\ncuuid\nUUID\nN",
        b"cuuid\nUUID\nc__builtin__\nobject\nI1\n",
        b"cuuid\nUUID\nc__builtin__\nbytes\nN",
    ],
)
def test_nothing_but_a_uuid_is_made_by_the_way_of_the_oldest_protocols(arguments: bytes) -> None:
    with pytest.raises(PickleRefused, match=r"it tries a call of copy_reg\._reconstructor"):
        read_pickle(b"ccopy_reg\n_reconstructor\n(" + arguments + b"tR.", "vectors.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_of_a_store_is_refused(protocol: int) -> None:
    whole = pickle.dumps({"a": np.ones(3, np.float32), "b": [0.5, 1, -(2**40)], "c": b"", "d": "ü"}, protocol)
    for length in range(len(whole)):
        with pytest.raises(PickleRefused):
            read_pickle(whole[:length], "vectors.pkl")


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_come_back_bit_for_bit_by_either_name_of_numpys_modules(protocol: int, core: str) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 7))
    arrays = [
        rows, rows.astype(np.float32), rows.astype(np.float16), np.asfortranarray(rows), rows.astype(">f4"), rows[::2],
        rows[:0], np.arange(4), rows[0],
    ]  # fmt: skip
    raw = pickle.dumps(arrays, protocol, fix_imports=False)
    if protocol < 4:
        raw = raw.replace(b"cnumpy._core.", f"c{core}.".encode())
    found = read_pickle(raw, "vectors.pkl")
    assert all(isinstance(array, PickledArray) for array in found)
    for array, given in zip(found, arrays, strict=True):
        assert array.values.dtype == given.dtype
        assert array.values.shape == given.shape
        assert array.values.tobytes() == given.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_back_as_it_was(protocol: int) -> None:
    shared = [1.5, -2, 2**70, float("inf")]
    value = {"a": shared, "b": (shared, None, True, False, "text\nß", b"\x00\xff", b""), 3: {"x": [[], {}, ()]}}
    assert read_pickle(pickle.dumps(value, protocol), "vectors.pkl") == value
    assert read_pickle(pickle.dumps(np.float32(1.5), protocol), "vectors.pkl") == 1.5


def test_a_text_that_is_referred_to_very_often_is_encoded_once() -> None:
    text = pickle.BINUNICODE + struct.pack("<I", 1_000_000) + b"x" * 1_000_000
    named = b"c_codecs\nencode\nq\x01" + text + b"q\x02X\x06\0\0\0latin1q\x03"
    found = read_pickle(named + b"](" + b"h\x01h\x02h\x03\x86R" * 200_000 + b"e.", "vectors.pkl")
    assert len(found) == 200_000
    assert len(set(map(id, found))) == 1


def test_a_message_is_no_longer_than_it_need_be() -> None:
    with pytest.raises(PickleRefused) as refused:
        read_pickle(b"cos\n" + b"x" * 1_000_000 + b"\n.", "vectors.pkl")
    assert len(str(refused.value)) < 1000
