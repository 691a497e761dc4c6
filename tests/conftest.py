"""Before anything of ours is imported: shapes and types are checked in every call. Then: one thread, and nobody's data is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook(["rbench_core", "rbench", "rbench_threats", "rbench_zoo", "rbench_results"], "beartype.beartype")

import pytest  # noqa: E402  the hook must stand before every import that could reach the packages
import torch  # noqa: E402

torch.set_num_threads(1)  # float32 sums depend on the number of threads; two torch processes also fight for two cores


@pytest.fixture(scope="session", autouse=True)
def _nobodys_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Results go to a folder of this session; cards and settings of whoever runs the tests play no part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBENCH_RESULTS", str(tmp_path_factory.mktemp("results")))
        for name in ("RBENCH_REGISTRY", "RBENCH_DEBUG"):
            patch.delenv(name, raising=False)
        yield


def _folder(variable: str) -> Path:
    named = os.environ.get(variable, "")
    if not named or not Path(named).is_dir():
        pytest.skip(f"{variable} names no folder")
    return Path(named)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder RBENCH_DATA with the published data sets; the test skips without it."""
    return _folder("RBENCH_DATA")


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """The folder RBENCH_WEIGHTS with published weights; the test skips without it."""
    return _folder("RBENCH_WEIGHTS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
