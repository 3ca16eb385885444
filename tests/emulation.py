"""Devices that are not here: tensors that say they are on one, computed on the CPU, and refused what the device would refuse.

    with device("mps"):
        model.to("mps")  # its parameters now say `mps:0`

Two tensors of different devices do not go together, as on a real one, and what a device lacks raises what torch raises there.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from nyx import fastpath

MATH, FLASH, EFFICIENT = 0, 1, 2  # torch.nn.attention.SDPBackend
STAND_IN = torch.device("meta")  # what torch's own code takes such a tensor for: a device that every build has
MIXING = ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_", "set_data")  # take tensors of two devices


@dataclass
class Kind:
    """What a kind of device has: its operations, its dtypes, and which of torch's fused attention kernels."""

    name: str
    lacks: tuple[str, ...] = ()  # operations, by the beginning of their names
    no_dtypes: tuple[torch.dtype, ...] = ()
    flash: bool = False  # on CUDA, from compute capability 8.0 on
    efficient: bool = False  # on every CUDA device
    chosen: list[int] = field(default_factory=list)  # the kernel of each attention so far
    meta: int = 0  # whether a program asked for torch's meta device itself

    def kernel(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **_) -> int:
        """The kernel that torch takes on CUDA: `sdp_utils.cpp`, as far as NYX can meet its rules."""
        square = q.shape[-2] == k.shape[-2] or not is_causal
        if self.flash and attn_mask is None and square and q.dtype in (torch.float16, torch.bfloat16):
            return FLASH
        return EFFICIENT if self.efficient and q.shape[1] == k.shape[1] == v.shape[1] else MATH


MKLDNN = ("mkldnn", "_reorder_linear_weight", "_linear_pointwise", "_weight_int8pack_mm", "linear_pointwise")
KINDS = {
    "mps": ("mps", ("hash_tensor", *MKLDNN), (torch.float64,), False, False),
    "cuda": ("cuda", MKLDNN, (), True, True),  # H100, A100, RTX 30
    "turing": ("cuda", MKLDNN, (torch.bfloat16,), False, True),  # T4, RTX 20: bf16 is emulated there
}


class OnDevice(Tensor):
    """A tensor that says it is on another device; `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner: Tensor, where: str):
        about = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.size(), device=STAND_IN, **about)

    def __init__(self, inner: Tensor, where: str):
        self.inner, self.where = inner, where

    @property
    def device(self) -> torch.device:
        return torch.device(self.where, 0)

    def __repr__(self, **_) -> str:
        return f"{self.inner!r} on {self.device}"

    @property
    def is_meta(self) -> bool:
        return False

    @property
    def is_cuda(self) -> bool:
        return self.where == "cuda"

    def __tensor_flatten__(self) -> tuple[list[str], str]:
        return ["inner"], self.where

    @staticmethod
    def __tensor_unflatten__(inner: dict, where: str, size: object, stride: object) -> "OnDevice":
        return OnDevice(inner["inner"], where)

    def tolist(self) -> list:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was called outside of the emulation")


class Emulation(TorchDispatchMode):
    """Runs what happens on the device on the CPU, or refuses it as the device would."""

    def __init__(self, kind: Kind):
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function.overloadpacket.__name__
        flat, _ = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        here = any(isinstance(x, OnDevice) for x in tensors)
        target = kwargs.get("device")
        wrap = here if target is None else (torch.device(target) == STAND_IN and not self.kind.meta)
        if not here and not wrap:
            return function(*args, **kwargs)
        if wrap and target is not None:
            kwargs["device"] = torch.device("cpu")
        self.refuse(name, tensors, here)
        inner_args, inner_kwargs = tree_map_only(OnDevice, lambda x: x.inner, (args, kwargs))
        with torch.inference_mode(False), torch.no_grad():  # whose tensors no view can be made of later
            out = function(*inner_args, **inner_kwargs)
            return tree_map_only(Tensor, lambda x: self.outer(x, args), out) if wrap else out

    def refuse(self, name: str, tensors: list[Tensor], here: bool) -> None:
        """Raise what torch raises for operations that are lacking, and for tensors of two devices."""
        if any(name.startswith(lack) for lack in self.kind.lacks):
            raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the {self.kind.name} device")
        strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.dim()]
        if here and strangers and name not in MIXING:
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {self.kind.name}:0 and cpu")

    def outer(self, inner: Tensor, args: tuple) -> Tensor:
        """The tensor of the device that stands for `inner`: the one that was changed in place, or a new one."""
        for x in args:
            if isinstance(x, OnDevice) and x.inner is inner:
                return x
        self.check_dtype(self.kind, inner.dtype)
        return OnDevice(inner, self.kind.name)

    @staticmethod
    def check_dtype(kind: Kind, dtype: torch.dtype) -> None:
        """Raise what torch raises for a dtype that a device lacks."""
        if dtype in kind.no_dtypes:
            raise TypeError(f"Cannot convert a {kind.name} Tensor to {dtype}: the device does not support it")


class Placing(TorchFunctionMode):
    """What asks for the device by name is made on the CPU and put there: this torch has no allocator for it."""

    def __init__(self, kind: Kind):
        super().__init__()
        self.kind = kind

    def named(self, value: object) -> bool:
        return isinstance(value, torch.device | str) and str(value).split(":")[0] == self.kind.name

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is Tensor.to and len(args) > 1 and isinstance(args[1], OnDevice):  # x.to(y)
            args = (args[0], args[1].device, args[1].dtype, *args[2:])
        if function is F.scaled_dot_product_attention and isinstance(args[0], OnDevice):
            self.kind.chosen.append(self.kind.kernel(*args, **kwargs))
        if torch.device(kwargs.get("device") or "cpu") == STAND_IN:  # a program's own
            self.kind.meta += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.kind.meta -= 1
        if not any(map(self.named, (kwargs.get("device"), *(args[1:] if function is Tensor.to else ())))):
            return function(*args, **kwargs)
        if function is Tensor.to:
            dtypes = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.dtype)]
            made = args[0].to(dtypes[0]) if dtypes else args[0]
        else:
            made = function(*args, **kwargs | {"device": "cpu"})
        if isinstance(made, OnDevice):
            return made
        with torch.inference_mode(False), torch.no_grad():
            Emulation.check_dtype(self.kind, made.dtype)
            return OnDevice(made.detach().clone(), self.kind.name).requires_grad_(made.requires_grad and made.is_leaf)


@contextmanager
def device(name: str) -> Iterator[Kind]:
    """A machine with such a device, for the time being: "mps", "cuda" (compute capability 8 and above) or "turing" (7.5)."""
    kind, generator = Kind(*KINDS[name]), torch.Generator
    bf16 = torch.bfloat16 not in kind.no_dtypes

    class Generator(generator):
        """A device's random numbers come from the CPU's generator here."""

        def __new__(cls, device="cpu"):
            return generator.__new__(generator, "cpu")

    says = {
        "torch.Generator": Generator,
        "torch.cuda.is_bf16_supported": lambda including_emulation=True: bf16 or including_emulation,
        "torch.cuda.mem_get_info": lambda device=None: (2**34, 2**34),
        "torch.cuda.memory_reserved": lambda device=None: 0,
        "torch.cuda.memory_allocated": lambda device=None: 0,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0) if kind.flash else (7, 5),
        "torch.cuda.device": mock.MagicMock(),
        "nyx.fastpath.PLAIN": (*fastpath.PLAIN, OnDevice),
    }
    with ExitStack() as stack:
        for name, value in says.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(Placing(kind))
        stack.enter_context(Emulation(kind))
        yield kind
