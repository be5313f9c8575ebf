import sys
from contextlib import contextmanager

import pytest
import torch

import lora_kernels


def _forget_kernels():
    for name in [name for name in sys.modules if name.startswith("lora_kernels.triton_")]:
        del sys.modules[name]
        vars(lora_kernels).pop(name.removeprefix("lora_kernels."), None)


@contextmanager
def _interpreting():
    """Kernels run in Triton's interpreter, in this process, however Triton was imported.

    Triton chooses between compiling and interpreting where a kernel is defined, so ours are
    imported anew before and after. Triton's own library (tl.zeros, tl.philox) was defined when
    Triton was imported; a call of it is interpreted as well.
    """
    pytest.importorskip("triton")
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def interpret(function, *args, **kwargs):
        return InterpretedFunction(function.fn)(*args, **kwargs)

    _forget_kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(JITFunction, "__call__", interpret)
        yield
    _forget_kernels()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def interpreter():
    with _interpreting():
        yield


@pytest.fixture(scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """Where Triton kernels run: in the interpreter, and on a GPU if there is one."""
    if request.param == "interpreter":
        with _interpreting():
            yield torch.device("cpu")
    elif torch.cuda.is_available():
        yield torch.device("cuda")
    else:
        pytest.skip("no GPU")
