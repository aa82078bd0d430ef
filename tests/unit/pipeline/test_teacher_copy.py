"""The teacher's copy in another encoding is made once, however many want it at once."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline import teacher as module
from pipeline.recipe import TeacherOptions


def test_actors_of_one_machine_make_one_copy(tmp_path, monkeypatch):
    made, started = [], threading.Barrier(4)

    def quantize(source, target, encoding, threads, requantize):
        made.append(encoding.file_type)
        time.sleep(0.2)
        target.write_bytes(b"copy of " + source.read_bytes())

    monkeypatch.setattr(module, "quantize", quantize)
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    model = tmp_path / "teacher.gguf"
    model.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    options = TeacherOptions(
        engine="llama.cpp", model=f"path:{model}", sha256=sha256, encoding="F16", system=""
    )

    def wanted(_):
        started.wait()
        return module.teacher_file(options)

    with ThreadPoolExecutor(4) as actors:
        paths = set(actors.map(wanted, range(4)))
    assert made == ["F16"]
    assert [path.read_bytes() for path in paths] == [b"copy of weights"]
