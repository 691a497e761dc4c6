"""Data sets: the published order, readers that refuse what is damaged or hostile, folders that stay untouched, a user's own tensors."""

from __future__ import annotations

import collections
import contextlib
import functools
import gzip
import hashlib
import http.server
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rbench.data import Dataset, default_n, from_loader, from_tensors, listing, load, names, readers, sources, torchvision_shim
from rbench_core.errors import DataError, RbenchError, UnknownName, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the real cache, and no network is used unless a test says so."""
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(torchvision_shim, "_reachable", lambda addresses: False)
    return tmp_path / "cache" / "data"


def one_line(error: pytest.ExceptionInfo[RbenchError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(
    folder: Path, n: int = 5, part: str = "t10k", packed: bool = True, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    draw = np.random.default_rng(seed)
    images, labels = draw.integers(0, 256, (n, 28, 28)), draw.integers(0, 10, n)
    folder.mkdir(parents=True, exist_ok=True)
    for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
        path = folder / f"{part}-{kind}-ubyte"
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            path.write_bytes(idx(array))
    return images, labels


# --- digits -------------------------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_in_the_order_that_the_rule_gives() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    order = sorted(range(1797), key=lambda i: hashlib.sha256(b"rbench digits %d" % i).hexdigest())
    for split, part in (("test", order[:500]), ("train", order[500:])):
        ours = load("digits", split)
        assert np.array_equal(ours.x.numpy()[:, 0], (theirs.images[part] / 16).astype(np.float32))
        assert np.array_equal(ours.y.numpy(), theirs.target[part])


def test_the_split_of_digits_never_moves() -> None:
    """Golden: python -c "from rbench.data import load; print(load('digits').digest, load('digits', 'train').digest)"."""
    assert load("digits").digest == DIGITS_TEST_DIGEST
    assert load("digits", "train").digest == DIGITS_TRAIN_DIGEST
    assert min(collections.Counter(load("digits").y.tolist()).values()) >= 35  # no digit is rare in the test set


DIGITS_TEST_DIGEST = "c541adc6bde9a62471d281badc6f2ba78ef69ead9b764a78d580b558d2ee158f"
DIGITS_TRAIN_DIGEST = "e0343267369f4da998d2cd9fd9cb1c7e21352d59a3cf5ccb29bef40bcd148658"


def test_digits_are_found_where_scikit_learn_keeps_the_file_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = load("digits").digest
    monkeypatch.setattr(readers, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    assert load("digits").digest == usual
    monkeypatch.setattr(readers, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="scikit-learn"):
        load("digits")


# --- every data set -----------------------------------------------------------------------------------------------------------------


def test_the_listing_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "sklearn", "pandas", "torchvision"}
    code = f"import sys, rbench.data; rbench.data.listing(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_listing_describes_what_load_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RBENCH_DATA", raising=False)
    rows = {row["name"]: row for row in listing()}
    assert list(rows) == names() == ["digits", "mnist", "fashion-mnist", "cifar10"]
    assert {name: default_n(name) for name in names()} == {"digits": 500, "mnist": 1000, "fashion-mnist": 1000, "cifar10": 1000}
    digits = load("digits")
    assert rows["digits"]["shape"] == list(digits.shape)
    assert (rows["digits"]["test"], rows["digits"]["train"]) == (digits.size, load("digits", "train").size)
    assert rows["digits"]["found"] == "scikit-learn"
    assert rows["mnist"]["found"] is None


@pytest.mark.parametrize("n", [1, 7, None])
def test_a_slice_begins_at_the_first_image_and_keeps_the_digest_of_the_whole(n: int | None) -> None:
    whole, part = load("digits"), load("digits", n=n)
    assert len(part) == (n or 500)
    assert torch.equal(part.x, whole.x[:n])
    assert torch.equal(part.y, whole.y[:n])
    assert (part.digest, part.size) == (whole.digest, 500)


def test_more_images_than_there_are_is_said_not_refused() -> None:
    data = load("digits", n=501)
    assert len(data) == 500
    assert data.note == "501 were asked for, 500 are here"


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        ({"name": "mnst"}, UnknownName, "mnist"),
        ({"name": "digits", "split": "validation"}, UnknownName, "train"),
        ({"name": "digits", "n": 0}, UsageError, "n=0"),
        ({"name": "digits", "n": -3}, UsageError, "n=-3"),
    ],
)
def test_wrong_requests_give_one_line(request_: dict[str, Any], kind: type[RbenchError], words: str) -> None:
    with pytest.raises(kind) as error:
        load(**request_)
    assert words in one_line(error)
    assert error.value.exit_code == 2


# --- published files ----------------------------------------------------------------------------------------------------------------

FIRST_LABELS = {
    ("mnist", "test"): [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
    ("mnist", "train"): [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
    ("fashion-mnist", "test"): [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
    ("fashion-mnist", "train"): [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
    ("cifar10", "test"): [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
    ("cifar10", "train"): [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
}
COUNTS = {
    ("mnist", "test"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ("fashion-mnist", "test"): [1000] * 10,
    ("cifar10", "test"): [1000] * 10,
}


@pytest.mark.parametrize(("name", "split"), FIRST_LABELS)
def test_published_files_are_read_in_their_order(name: str, split: str, data_folder: Path) -> None:
    data = load(name, split, data_folder, n=None if (name, split) in COUNTS else 10)
    assert data.y[:10].tolist() == FIRST_LABELS[name, split]
    assert data.x.min() >= 0
    assert data.x.max() <= 1
    if (name, split) in COUNTS:
        assert torch.bincount(data.y).tolist() == COUNTS[name, split]
        assert data.x.max() == 1
        assert data.note is None


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_pixels_are_grey_levels_over_255(name: str, mean: float, std: float, data_folder: Path) -> None:
    """The means and deviations that everybody normalises these training sets by; an off-by-one header or 256 would miss them."""
    x = load(name, "train", data_folder).x
    assert x.mean().item() == pytest.approx(mean, abs=6e-5)
    assert x.std().item() == pytest.approx(std, abs=6e-5)


def test_planes_of_cifar_are_channels(data_folder: Path) -> None:
    """In photographs neighbours agree, along rows and along columns; pixels read as height × width × channel would not."""
    x = load("cifar10", "test", data_folder, n=500).x
    mixed = x.flatten(1).view(-1, 32, 32, 3).permute(0, 3, 1, 2)
    assert max(roughness(x)) < 0.065 < min(roughness(mixed))
    sky = x[load("cifar10", "test", data_folder, n=500).y == 0].mean((0, 2, 3))  # aeroplanes
    assert sky[2] > sky[1] > sky[0]


def roughness(x: torch.Tensor) -> tuple[float, float]:
    return float((x[..., 1:] - x[..., :-1]).abs().mean()), float((x[..., 1:, :] - x[..., :-1, :]).abs().mean())


def test_a_part_of_cifar_serves_what_it_can_and_says_so(data_folder: Path) -> None:
    if (data_folder / "cifar-10-batches-bin" / "data_batch_2.bin").exists():
        pytest.skip("all batches are here")
    assert load("cifar10", "train", data_folder, n=5).note == "10,000 of 50,000 training images"


# --- folders ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "mnist"])
def test_idx_files_are_found_packed_or_not(tmp_path: Path, place: str, packed: bool) -> None:
    images, labels = write_mnist(tmp_path / place, packed=packed)
    for root in (tmp_path, tmp_path / place):
        data = load("mnist", root=root)
        assert np.array_equal(data.x.numpy()[:, 0], (images / 255).astype(np.float32))
        assert data.y.tolist() == labels.tolist()
        assert data.note == "5 of 10,000 test images"


def test_fashion_is_never_mistaken_for_digits(tmp_path: Path) -> None:
    """Both have the same file names: only the folder's name tells them apart."""
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError):
        load("mnist", root=tmp_path)
    with pytest.raises(DataError):
        load("mnist", root=tmp_path / "FashionMNIST" / "raw")


def test_the_root_is_the_argument_then_the_variable_then_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    digests = {}
    for seed, root in enumerate((tmp_path / "argument", tmp_path / "variable", cache)):
        write_mnist(root / "MNIST", seed=seed)
        digests[root.name] = load("mnist", root=root).digest
    monkeypatch.setenv("RBENCH_DATA", str(tmp_path / "variable"))
    assert load("mnist", root=tmp_path / "argument").digest == digests["argument"]
    assert load("mnist").digest == digests["variable"]
    monkeypatch.delenv("RBENCH_DATA")
    assert load("mnist").digest == digests["data"]
    assert len(set(digests.values())) == 3


def test_a_download_fills_the_cache_and_leaves_the_users_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    monkeypatch.setattr(torchvision_shim, "download", lambda name, folder: write_mnist(folder / "MNIST" / "raw"))
    assert len(load("mnist", root=root)) == 5
    assert list(root.iterdir()) == []
    assert (cache / "MNIST" / "raw").is_dir()


def test_offline_one_line_names_the_folder_the_variable_and_the_way_out(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    with pytest.raises(DataError) as error:
        load("cifar10", root=root)
    line = one_line(error)
    assert all(word in line for word in ("cifar10", str(root), "RBENCH_DATA", "online", "no network"))
    with pytest.raises(DataError, match="no such folder"):
        load("cifar10", root=tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def deaf(*args: object, **options: object) -> None:
    """A name server that is silent heeds no time limit."""
    time.sleep(2.5)
    raise OSError


def test_a_server_that_is_silent_counts_as_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torchvision_shim, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        begun = time.monotonic()
        assert not torchvision_shim._reachable([address, address])
        assert time.monotonic() - begun < 2
    assert not torchvision_shim._reachable(["http://127.0.0.1:1/", "nonsense"])
    monkeypatch.setattr(urllib.request, "urlopen", deaf)
    begun = time.monotonic()
    assert not torchvision_shim._reachable(["http://example.org/"])
    assert time.monotonic() - begun < 2


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_torchvision_downloads_from_a_server_even_beside_a_cpu_torch(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """The real path: torchvision (repaired where its build does not fit), its MD5 sums, our reader, the same digest."""
    monkeypatch.delenv("RBENCH_DATA")
    monkeypatch.setattr(torchvision_shim, "_reachable", lambda addresses: True)
    torchvision_shim.load_torchvision()
    from torchvision.datasets import MNIST

    with served(data_folder / "MNIST" / "raw") as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        assert load("mnist", n=10).digest == load("mnist", root=data_folder, n=10).digest
    assert [path.name for path in cache.iterdir()] == ["MNIST"]  # no scratch is left
    junk = tmp_path / "junk"
    junk.mkdir()
    for path in (data_folder / "MNIST" / "raw").iterdir():
        (junk / path.name).write_bytes(b"another file")
    with served(junk) as address:  # content with another MD5 sum: one line, nothing half-made
        monkeypatch.setattr(MNIST, "mirrors", [address])
        with pytest.raises(DataError) as error:
            torchvision_shim.download("mnist", cache / "other")
        one_line(error)
    assert list((cache / "other").iterdir()) == []


# --- damaged and hostile files ------------------------------------------------------------------------------------------------------


def damaged_idx() -> dict[str, tuple[bytes, bytes]]:
    images, labels = np.zeros((4, 28, 28)), np.zeros(4)
    packed = gzip.compress(idx(images))
    return {
        "gzip cut short": (packed[:-12], gzip.compress(idx(labels))),
        "gzip with a flipped byte": (packed[:20] + bytes([packed[20] ^ 255]) + packed[21:], gzip.compress(idx(labels))),
        "not gzip": (b"<html>404</html>", gzip.compress(idx(labels))),
        "content cut short": (gzip.compress(idx(images)[:-1]), gzip.compress(idx(labels))),
        "content too long": (gzip.compress(idx(images) + b"0"), gzip.compress(idx(labels))),
        "another type": (gzip.compress(b"\0\0\x0d" + idx(images)[3:]), gzip.compress(idx(labels))),
        "empty": (gzip.compress(b""), gzip.compress(idx(labels))),
        "one label too few": (packed, gzip.compress(idx(labels[:3]))),
        "images in place of labels": (packed, packed),
        "label 10": (packed, gzip.compress(idx(labels + 10))),
        "other size": (gzip.compress(idx(np.zeros((4, 27, 28)))), gzip.compress(idx(labels))),
        "no images": (gzip.compress(idx(images[:0])), gzip.compress(idx(labels[:0]))),
        "a size that no memory holds": (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3)), gzip.compress(idx(labels))),
    }


@pytest.mark.parametrize("case", damaged_idx())
def test_damaged_idx_files_give_one_line(case: str, tmp_path: Path) -> None:
    images, labels = damaged_idx()[case]
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "t10k-images-idx3-ubyte.gz").write_bytes(images)
    (tmp_path / "MNIST" / "t10k-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(DataError) as error:
        load("mnist", root=tmp_path)
    one_line(error)


def test_images_without_labels_give_one_line(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST")
    (tmp_path / "MNIST" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load("mnist", root=tmp_path)


def cifar_arrays(n: int = 6) -> tuple[np.ndarray[Any, Any], list[int]]:
    draw = np.random.default_rng(1)
    return draw.integers(0, 256, (n, 3072), dtype=np.uint8), [int(label) for label in draw.integers(0, 10, n)]


def cifar_bin(images: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    return np.column_stack([np.array(labels, np.uint8), images]).tobytes()


def cifar_python2(images: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    """A batch as Python 2 pickled the published ones: protocol 2, byte strings (opcode T), numpy's old module name."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = b"M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
        + text(b"b")
        + b"\x87R(K\1"
        + shape
        + kind
        + b"\x89"
        + text(images.tobytes())
        + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + text(b"batch_label") + text(b"testing batch 1 of 1") + b"u."


def test_binary_and_pickled_batches_are_the_same_data(tmp_path: Path) -> None:
    images, labels = cifar_arrays()
    files = {
        "cifar-10-batches-bin/test_batch.bin": cifar_bin(images, labels),
        "cifar-10-batches-py/test_batch": cifar_python2(images, labels),
        "cifar10/test_batch": pickle.dumps({"data": images, "labels": labels, "batch_label": "x"}, protocol=2),
    }
    assert pickle.loads(files["cifar-10-batches-py/test_batch"], encoding="bytes")[b"labels"] == labels  # the hand-made pickle is one
    digests = []
    for i, (name, data) in enumerate(files.items()):
        path = tmp_path / str(i) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        loaded = load("cifar10", root=tmp_path / str(i))
        assert np.array_equal(loaded.x.numpy().reshape(6, -1), (images / 255).astype(np.float32))
        assert loaded.y.tolist() == labels
        assert loaded.note == "6 of 10,000 test images"
        digests.append(loaded.digest)
    assert len(set(digests)) == 1


def test_training_batches_come_in_their_order_whichever_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images, labels = cifar_arrays()
    for number, rows in ((3, slice(2, 4)), (1, slice(0, 2))):
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_bin(images[rows], labels[rows]))
    data = load("cifar10", "train", tmp_path)
    assert data.y.tolist() == labels[:4]
    assert data.note == "4 of 50,000 training images"


class Hostile:
    """Runs when a pickle is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def damaged_cifar(trace: Path) -> dict[str, tuple[str, bytes]]:
    images, labels = cifar_arrays()
    good = cifar_bin(images, labels)
    table = {"data": images, "labels": labels}
    return {
        "cut short": ("test_batch.bin", good[:-1]),
        "empty": ("test_batch.bin", b""),
        "label 10": ("test_batch.bin", b"\x0a" + good[1:]),
        "code in a pickle": ("test_batch", pickle.dumps({**table, "labels": Hostile(trace)}, protocol=2)),
        "code in an array": ("test_batch", pickle.dumps({**table, "data": np.array([Hostile(trace)], dtype=object)}, protocol=2)),
        "no pickle": ("test_batch", b"not a pickle"),
        "pickle cut short": ("test_batch", pickle.dumps(table, protocol=2)[:-40]),
        "a list": ("test_batch", pickle.dumps([1, 2], protocol=2)),
        "no labels": ("test_batch", pickle.dumps({"data": images}, protocol=2)),
        "labels too few": ("test_batch", pickle.dumps({**table, "labels": labels[1:]}, protocol=2)),
        "label -247, a 9 in one byte": ("test_batch", pickle.dumps({**table, "labels": [-247, *labels[1:]]}, protocol=2)),
        "fractional labels": ("test_batch", pickle.dumps({**table, "labels": [float(label) for label in labels]}, protocol=2)),
        "floats": ("test_batch", pickle.dumps({**table, "data": images.astype(np.float32)}, protocol=2)),
        "column order": ("test_batch", pickle.dumps({**table, "data": np.asfortranarray(images)}, protocol=2)),
        "wrong width": ("test_batch", pickle.dumps({**table, "data": images[:, :-1]}, protocol=2)),
    }


@pytest.mark.parametrize("case", damaged_cifar(Path("trace")))
def test_damaged_and_hostile_batches_give_one_line_and_run_nothing(case: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    name, data = damaged_cifar(trace)[case]
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / name).write_bytes(data)
    with pytest.raises(DataError) as error:
        load("cifar10", root=tmp_path)
    assert name in one_line(error) or "test files" in one_line(error)
    assert not trace.exists()


# --- a user's own -------------------------------------------------------------------------------------------------------------------

X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0])


def test_own_tensors_are_copied_and_digested_by_content() -> None:
    x, y = X.clone().requires_grad_(), Y.clone()
    data = from_tensors(x, y, name="mine")
    assert (data.name, data.classes, data.open_classes, data.size) == ("mine", ("0", "1", "2"), True, 6)
    same = [
        from_tensors(X, Y, name="other"),
        from_tensors(X.double(), Y.int()),
        from_tensors(X.numpy(), Y.numpy()),
        from_tensors(X, Y.tolist()),
    ]
    assert {other.digest for other in same} == {data.digest}
    with torch.no_grad():
        x.zero_()
    assert torch.equal(data.x, X)
    assert not data.x.requires_grad


def test_every_byte_enters_the_digest() -> None:
    pixel, label = X.clone(), Y.clone()
    pixel[3, 0, 7, 7] += 2**-24
    label[5] = 1
    others = [
        from_tensors(pixel, Y),
        from_tensors(X, label),
        from_tensors(X.reshape(6, 1, 4, 16), Y),
        from_tensors(X[:5], Y[:5]),
        from_tensors(X.flip(0), Y.flip(0)),
    ]
    assert len({from_tensors(X, Y).digest, *(other.digest for other in others)}) == 6


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X * 255, Y, "/ 255"),
        ((X * 255).byte(), Y, "/ 255"),
        (X * 2 - 1, Y, "Normalisation"),
        (X[:, 0], Y, "(n, C, H, W)"),
        (X[:0], Y[:0], "(n, C, H, W)"),
        (X.masked_fill(X > 0.9, float("nan")), Y, "NaN"),
        (X, Y.float(), ".long()"),
        (X, torch.full((6,), float("nan")), "integers"),
        (X, Y > 0, "integers"),
        (X, Y[:5], "(6,)"),
        (X, torch.nn.functional.one_hot(Y), "(6,)"),
        (X, Y - 1, "-1"),
        ("images", Y, "tensor"),
        (X, None, "tensor"),
    ],
)
def test_unfit_tensors_give_one_line(x: Any, y: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        from_tensors(x, y)
    assert words in one_line(error)


def test_class_names_close_the_number_of_classes() -> None:
    assert not from_tensors(X, Y, classes=["a", "b", "c", "d"]).open_classes
    with pytest.raises(UsageError, match="label 2"):
        from_tensors(X, Y, classes=["a", "b"])


def test_loaders_are_read_in_order_up_to_n() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    assert from_loader(loader).digest == from_tensors(X, Y).digest
    assert from_loader(loader, n=5).digest == from_tensors(X[:5], Y[:5]).digest
    assert from_loader(loader).note is None
    assert "shuffles" in str(from_loader(DataLoader(TensorDataset(X, Y), shuffle=True)).note)
    assert isinstance(from_loader([(X, Y)]), Dataset)


@pytest.mark.parametrize("loader", [[], [X], [{"x": X}], [(X, Y, Y)]])
def test_loaders_without_pairs_give_one_line(loader: list[Any]) -> None:
    with pytest.raises(UsageError) as error:
        from_loader(loader)
    one_line(error)
