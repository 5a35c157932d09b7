"""One thread: held inside, put back outside; the kernels' name and fingerprint."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import threadpoolctl

from rnnstream.model import blas
from rnnstream.model.blas import fingerprint, kernels, one_thread

from .nets import VARIANTS, network, tokens


def threads():
    """The thread numbers of all BLAS libraries."""
    return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}


@pytest.fixture
def two():
    """BLAS on two threads, as a user may have it."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("this BLAS cannot be set to two threads")
        yield


@pytest.mark.usefixtures("two")
def test_nested_and_put_back():
    with one_thread():
        assert threads() == {1}
        with one_thread():
            assert threads() == {1}
        assert threads() == {1}
    assert threads() == {2}


@pytest.mark.usefixtures("two")
def test_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert threads() == {2}


def test_what_has_one_thread_anyway_is_not_set(monkeypatch):
    """Asking costs 0.3 us, setting five times as much."""

    def never(library, number):
        raise AssertionError(number)

    monkeypatch.setattr(blas, "_set_threads", never)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        with one_thread():
            assert threads() == {1}
        assert threads() == {1}


@pytest.mark.usefixtures("two")
def test_the_last_of_several_threads_puts_it_back():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with one_thread():
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        assert entered.wait(20)
    assert threads() == {1}  # the other one is still inside
    leave.set()
    thread.join(20)
    assert threads() == {2}


@pytest.mark.usefixtures("two")
def test_held_in_a_thread_that_was_not_the_first():
    """A model is loaded in one thread and served in another: threadpoolctl lets only the first one set the number."""
    with one_thread():
        pass
    seen = []

    def other():
        with one_thread():
            seen.append(threads())
        seen.append(threads())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(20)
    assert seen == [{1}, {2}]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("call", ["step", "forward", "run"])
def test_held_inside(monkeypatch, call):
    model = network(VARIANTS["lstm"])
    seen = set()
    for part in ("advance", "head"):
        original = getattr(model, part)

        def watched(*args, original=original):
            seen.update(threads())
            return original(*args)

        monkeypatch.setattr(model, part, watched)
    given = tokens(model, 3)
    model.step(model.initial_state(), given[0]) if call == "step" else getattr(model, call)(given)
    assert seen == {1}
    assert threads() == {2}


def test_numpy_s_warnings_are_put_back():
    before = np.geterr()
    with one_thread():
        assert set(np.geterr().values()) == {"ignore"}
        np.float32(1e38) * np.float32(1e38)
    assert np.geterr() == before


def test_the_fingerprint_is_the_same_in_another_process():
    command = "from rnnstream.model.blas import fingerprint; print(fingerprint())"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == fingerprint()
    assert fingerprint().startswith(kernels())
    assert len(fingerprint().split()[-1]) == 16


def test_the_fingerprint_is_of_numpy_s_own_library(tmp_path):
    """Another package's BLAS that happened to be loaded first changes no bits, so it must not change the name either."""
    command = """
import ctypes, shutil, sys
import numpy, threadpoolctl
for info in threadpoolctl.threadpool_info():
    if info["user_api"] == "blas":
        ctypes.CDLL(shutil.copy(info["filepath"], sys.argv[1] + "/libopenblas_other.so"))
        break
from rnnstream.model import blas
from rnnstream.model.blas import fingerprint
print(fingerprint())
"""
    run = subprocess.run([sys.executable, "-c", command, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == fingerprint()
