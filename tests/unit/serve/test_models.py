import hashlib
import sys

import pytest

from serve.errors import DataError, UntrustedFile, UsageError
from serve.models import check_reference, resolve_model

CONTENT = b"one" + b"two" + b"three"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Three installed packages that hold one model in parts, and an empty cache."""
    for number, piece in enumerate((b"one", b"two", b"three"), start=8):
        folder = tmp_path / "site" / f"parts_test_{number}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        (folder / f"part{number:02}.bin").write_bytes(piece)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("parts_test_")]:
        del sys.modules[name]


REFERENCE = "wheel:parts_test_{8..10}/data/part{08..10}.bin"


def test_numbered_parts_are_joined_in_order_and_hashed(parts):
    path = resolve_model(REFERENCE, SHA256)
    assert path.read_bytes() == CONTENT
    assert path.name == f"{SHA256}.gguf"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_another_hash_is_refused_and_leaves_nothing(parts):
    with pytest.raises(UntrustedFile, match=f"is {SHA256}, expected {'0' * 64}") as caught:
        resolve_model(REFERENCE, "0" * 64)
    assert caught.value.exit_code == 8
    assert list((parts / "cache" / "models").iterdir()) == []


def test_a_file_changed_after_it_was_joined_is_refused(parts):
    path = resolve_model(REFERENCE, SHA256)
    path.write_bytes(b"onetwothreE")
    with pytest.raises(UntrustedFile):
        resolve_model(REFERENCE, SHA256)


def test_parts_without_a_hash_are_refused(parts):
    with pytest.raises(UsageError, match="joins 3 parts and needs a sha256"):
        resolve_model(REFERENCE)


def test_a_missing_part_is_named_before_anything_runs(parts):
    (parts / "site" / "parts_test_9" / "data" / "part09.bin").unlink()
    with pytest.raises(DataError, match=r"part09\.bin does not exist"):
        check_reference(REFERENCE)


@pytest.mark.parametrize("reference", ["", "x", "wheel:noslash", "ftp:a/b", "path:"])
def test_a_reference_of_no_kind_is_a_usage_error(reference):
    with pytest.raises(UsageError, match="is none of path:"):
        check_reference(reference)


def test_what_a_killed_joining_left_does_not_stay(parts):
    left = parts / "cache" / "models" / f"{SHA256}.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"onetw")
    path = resolve_model(REFERENCE, SHA256)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [path.name]
