"""What many tests share: small models, and the modules of the installer."""

import importlib
import logging
import os
from pathlib import Path
from types import SimpleNamespace

# Before odam_d2 is imported: generated data never goes where real data is read from.
os.environ.setdefault("ODAM_DATASETS", str(Path(__file__).parents[1] / "output" / "datasets"))
# Before torch is: one thread a worker, also in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from detectron2.utils.logger import setup_logger
from oracle import FASTER_RCNN, RETINANET, SLIM, zoo_model

from odam_d2.core import windows


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_worker():
    """Tests are many small operations: threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def logging_of_its_own():
    """A tool run in a test logs to that test's output, which is closed when the next one logs."""
    yield
    for name in ("detectron2", "fvcore", "odam_d2"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    setup_logger.cache_clear()


@pytest.fixture(scope="session", params=[FASTER_RCNN, RETINANET], ids=["faster_rcnn", "retinanet"])
def slim_model(request):
    """A plain Detectron2 model of each family; tests must leave it as they found it."""
    return zoo_model(request.param, opts=SLIM)


@pytest.fixture
def faster_rcnn():
    return zoo_model(FASTER_RCNN, opts=SLIM)


@pytest.fixture
def retinanet():
    return zoo_model(RETINANET, opts=SLIM)


@pytest.fixture(params=[False, True], ids=["one_by_one", "together"])
def together(request, monkeypatch):
    """The way that windows are computed in on the CPU, and that of accelerators."""
    monkeypatch.setattr(windows, "computes_together", lambda _device: request.param)


@pytest.fixture
def installer(monkeypatch):
    """The modules of ``tools/install``: no package, so put on the path as when it runs."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools" / "install"))
    names = ("checks", "detectron2_wheel", "existing", "managed", "pip_runner")
    modules = {name: importlib.import_module(name) for name in (*names, "select_environment")}
    return SimpleNamespace(**modules)
