"""The released sets: found under a root, or fetched from a server of this test's own, checked, converted and kept."""

from __future__ import annotations

import gzip
import http.server
import io
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rbench_core import download
from rbench_core.errors import DataError, FileError
from rbench_core.files import sha256_bytes
from rbench_core.roots import data_roots, data_under
from rbench_threats import released
from rbench_threats.candidates import pack, unpack

Files = dict[str, bytes]
N = 100


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def source() -> Files:
    """Made-up files under the names of the source; classes as there: the nine that an image is not."""
    random = np.random.default_rng(1)
    label = random.integers(0, 10, N)
    others = np.array([[c for c in range(10) if c != own] for own in label], dtype=np.uint8)
    index = np.arange(300, 300 + N)

    def images(n: int, kind: type) -> np.ndarray:
        return random.integers(0, 256, (n, 28, 28)).astype(kind)

    def labels(n: int) -> np.ndarray:
        return random.integers(0, 10, n).astype(np.int64)

    made = {
        "LICENSE": b"MIT License, of a test",
        "linf/X_test_100.npy": npy(images(N, np.uint8)),
        "linf/all_y_nns.npy": npy(others),
        "invariance_examples/indexs.npy": npy(index),
        "invariance_examples/linf/manual_indexs.npy": npy(np.concatenate([index[:25], np.arange(25)])),
    }
    for stem, n, kind in (
        ("l0/automated", N, np.uint8),
        ("linf/automated_eps03", N, np.float32),
        ("linf/automated_eps04", N, np.uint8),
        ("linf/manual_eps04", 50, np.uint8),
    ):
        made[f"invariance_examples/{stem}.npy"] = npy(images(n, kind))
        made[f"invariance_examples/{stem}_labels.npy"] = npy(labels(n))
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty, and no data root; returns its folder of the sets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RBENCH_DATA", raising=False)
    return data_roots()[-1] / "invariance"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Files, list[str]]]:
    """A local server of `source`, whose digests are the known ones; the files it serves and the paths that were asked for."""
    files, asked = source(), list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path[1:])
            found = files.get(self.path[1:])
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"")

        def do_HEAD(self) -> None:
            self.send_response(400)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(released, "ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(released, "SHA256", {name: sha256_bytes(data) for name, data in files.items()})
    yield files, asked
    server.shutdown()
    thread.join()
    server.server_close()


def expected(files: Files, name: str) -> bytes:
    """What the source's files are converted to, written down again here."""
    stem = released.RELEASED[name].stem

    def of(path: str) -> np.ndarray:
        array: np.ndarray = np.load(io.BytesIO(files[path]))
        return array

    label = np.array([next(c for c in range(10) if c not in row) for row in of("linf/all_y_nns.npy")])
    arrays = {
        "adv": of(f"invariance_examples/{stem}.npy"),
        "human": of(f"invariance_examples/{stem}_labels.npy"),
        "clean": of("linf/X_test_100.npy"),
        "index": of("invariance_examples/indexs.npy"),
        "label": label,
    }
    if name.startswith("linf"):
        arrays["target"] = np.array([int(digit) for digit in released.TARGETS])
    return pack(arrays)


def know(monkeypatch: pytest.MonkeyPatch, name: str, built: bytes) -> None:
    entry = replace(released.RELEASED[name], built=sha256_bytes(built))
    monkeypatch.setitem(released.RELEASED, name, entry)


@pytest.mark.parametrize("name", ["l0", "linf-0.3", "linf-0.4"])
def test_a_set_is_fetched_once_checked_and_kept_with_its_licence(
    name: str, cache: Path, served: tuple[Files, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, asked = served
    know(monkeypatch, name, expected(files, name))
    data, path = released.read(name)
    assert data == expected(files, name)
    assert path == cache / f"{name}.npz"
    assert path.read_bytes() == data
    assert (cache / "LICENSE.txt").read_bytes() == files["LICENSE"]
    assert unpack(data, path).adv.shape == (N, 1, 28, 28)
    before = len(asked)
    assert released.read(name) == (data, path)
    assert len(asked) == before


def test_the_manual_set_takes_half_its_sources_from_mnist(
    cache: Path, served: tuple[Files, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files, _ = served
    with pytest.raises(DataError, match="half of its clean images are MNIST test images"):
        released.read("manual")
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = np.random.default_rng(2).integers(0, 256, (30, 28, 28)).astype(np.uint8), np.arange(30, dtype=np.uint8) % 10
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4I", 2051, 30, 28, 28) + images.tobytes()))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 30) + labels.tobytes())
    whole = unpack(expected(files, "l0"), "l0")
    arrays = {
        "adv": np.load(io.BytesIO(files["invariance_examples/linf/manual_eps04.npy"])),
        "human": np.load(io.BytesIO(files["invariance_examples/linf/manual_eps04_labels.npy"])),
        "clean": np.concatenate([whole.clean[:25, 0].astype(np.uint8), images[:25]]),
        "index": np.concatenate([np.arange(300, 325), np.arange(25)]),
        "label": np.concatenate([whole.label[:25], labels[:25].astype(np.int64)]),
    }
    know(monkeypatch, "manual", pack(arrays))
    with data_under(tmp_path / "data"):
        data, path = released.read("manual")
    assert data == pack(arrays)
    assert path == cache / "manual.npz"  # a folder that the user named is not written to


def test_what_the_source_changed_is_refused(cache: Path, served: tuple[Files, list[str]]) -> None:
    files, _ = served
    files["invariance_examples/l0/automated.npy"] += b"!"
    with pytest.raises(DataError, match=r"invariance\(l0\): .*automated\.npy: SHA-256 is"):
        released.read("l0")
    assert not (cache / "l0.npz").exists()
    del files["LICENSE"]
    with pytest.raises(DataError, match="LICENSE: Not Found"):
        released.read("l0")


def test_what_we_built_otherwise_is_refused(cache: Path, served: tuple[Files, list[str]]) -> None:
    with pytest.raises(DataError, match="built from"):  # the made-up files are not the released ones
        released.read("l0")
    assert not (cache / "l0.npz").exists()


def test_offline_it_is_one_line_within_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "ADDRESS", "http://127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(DataError) as error:
        released.read("linf-0.3")
    assert time.monotonic() - started < download.SILENCE + 2
    assert f"linf-0.3.npz is not in {cache}" in str(error.value)
    assert "put linf-0.3.npz into the folder invariance under RBENCH_DATA" in str(error.value)
    assert "\n" not in str(error.value)


def test_roots_are_asked_in_order_and_a_wrong_file_is_named(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"not the released file"
    for folder in (tmp_path / "given" / "invariance", tmp_path / "env" / "invariance"):
        folder.mkdir(parents=True)
        (folder / "l0.npz").write_bytes(data)
    know(monkeypatch, "l0", data)
    monkeypatch.setenv("RBENCH_DATA", str(tmp_path / "env"))
    assert released.read("l0")[1] == tmp_path / "env" / "invariance" / "l0.npz"
    with data_under(tmp_path / "given"):
        assert released.read("l0")[1] == tmp_path / "given" / "invariance" / "l0.npz"
    with data_under(tmp_path / "given" / "invariance"):  # the folder itself
        assert released.read("l0")[1] == tmp_path / "given" / "invariance" / "l0.npz"
    know(monkeypatch, "l0", b"another")
    with pytest.raises(FileError, match=r"env/invariance/l0\.npz: SHA-256 is"):
        released.read("l0")


@pytest.mark.parametrize("name", sorted(released.RELEASED))
def test_the_released_files_convert_to_the_digests_that_are_known(name: str, data_folder: Path) -> None:
    path = data_folder / "invariance" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} under RBENCH_DATA")
    assert sha256_bytes(path.read_bytes()) == released.RELEASED[name].sha256
    with np.load(path) as found:
        assert sha256_bytes(pack({key: found[key] for key in found.files})) == released.RELEASED[name].built
