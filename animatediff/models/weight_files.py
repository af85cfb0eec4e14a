"""The one door for weight files: told by their content whatever their name, and never executed.

What comes through is plain floating-point tensors on the CPU; anything else is a UserError of one line.
"""

from __future__ import annotations

import errno
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from animatediff.errors import UserError, describe_os_error, one_line
from animatediff.files import atomic_path
from animatediff.models.key_names import describe_contents, is_position_table, shown
from animatediff.project import weights_guide

StateDict = dict[str, torch.Tensor]

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")  # of the files that `write_checkpoint` writes with torch
WRAPPERS = ("state_dict", "model_state_dict", "controlnet", "module", "model", "ema_state_dict", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.diffusion_model.", "ema.", "ema_model.", "model_ema.")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)

# How files that are no weights begin -> what they are and what to do.
_OTHER_FILES = {
    b"version https://git-lfs": "is a Git LFS pointer, which stands for the file; run git lfs pull where it was cloned",
    b"GGUF": "is a GGUF file, which is quantised for other programs; take the safetensors of this model",
    b"\x89HDF": "is an HDF5 file (Keras); take the safetensors of this model",
    b"\x1f\x8b": "is a gzip archive; unpack it and name the file inside",
    b"7z\xbc\xaf": "is a 7z archive; unpack it and name the file inside",
    b"Rar!": "is a RAR archive; unpack it and name the file inside",
    b"\x93NUMPY": "is a NumPy array; expected safetensors or a torch checkpoint",
}
_HEAD = 4096  # bytes that are looked at


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weight file, and the numbers and texts beside them (global_step, a LoRA's metadata)."""

    tensors: StateDict
    facts: dict[str, Any] = field(default_factory=dict)


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a weight file: see `read_checkpoint`."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A safetensors or torch file (zip or legacy), whatever its name: floating-point tensors on the CPU, and facts.

    Wrappers and prefixes are taken off and float8 is widened, see `unwrap`. No pickled code is executed. UserError
    names the file when it is missing, empty, truncated, corrupt or something else (an LFS pointer, a web page), or
    holds code, integer weights, NaN or infinite values.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a weight file")
    if not path.is_file():
        raise UserError(f"no weights at {path}; {weights_guide()}")
    try:
        loaded, facts = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    except UserError:
        raise
    except Exception as error:  # of damaged bytes torch, pickle, zipfile and safetensors raise unrelated classes
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a place before the start
            raise describe_os_error(error, f"reading {path}") from error
        raise UserError(f"{path} is truncated or corrupt ({one_line(error)[:120]}); download it again") from error
    tensors = unwrap(loaded, str(path))
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise UserError(
                f"{path} holds NaN or infinite values (first in {shown([key])}); download or export it again"
            )
    return Checkpoint(tensors, facts)


def unwrap(loaded: Mapping[str, object], source: str = "the checkpoint") -> StateDict:
    """The floating-point tensors of a loaded checkpoint under their plain names.

    Taken off: wrappers (one of WRAPPERS holds the dictionary), prefixes that all keys have (PREFIXES, also nested).
    float8 is widened to float16, which holds each of its values. Left out: counters (integers without dimensions)
    and position ids. UserError for integer weights and for tensors that are not plain (sparse, quantised, complex).
    """
    inner: object = loaded
    for _ in WRAPPERS:  # a bound: a pickled dictionary can hold itself
        if isinstance(inner, Mapping):
            inner = next((inner[key] for key in WRAPPERS if isinstance(inner.get(key), Mapping)), inner)
    if not isinstance(inner, Mapping):
        raise UserError(f"{source} holds {type(inner).__name__}, expected a dictionary of tensors")
    state = {key: value.detach() for key, value in inner.items() if torch.is_tensor(value) and isinstance(key, str)}
    state = {key: value for key, value in state.items() if not _is_count(key, value)}
    if not state:
        names = [str(key) for key in inner]
        held = f"; it holds {shown(names)} and looks like {describe_contents(names)}" if names else ""
        raise UserError(f"{source} holds no tensors, expected a state dictionary{held}")
    return {key: _plain(value, key, source) for key, value in _without_prefixes(state).items()}


def write_checkpoint(path: str | Path, tensors: StateDict, facts: Mapping[str, int | str]) -> None:
    """Write `tensors` and `facts`, the whole file or nothing: safetensors where the suffix says so, else torch's form.

    In safetensors the facts are texts; in torch's form they stand beside a "state_dict", as in the published files.
    UserError for a full disk, and for a suffix that is neither.
    """
    path = Path(path)
    suffix = check_suffix(path)
    with atomic_path(path) as part:
        if suffix == ".safetensors":
            plain = {key: value.contiguous() for key, value in tensors.items()}
            save_file(plain, part, metadata={key: str(value) for key, value in facts.items()})
        else:
            with open(part, "wb") as file:  # by its path, torch refuses hidden names without a suffix
                torch.save({**facts, "state_dict": tensors}, file)


def check_suffix(path: Path) -> str:
    """The suffix of a weight file to write, in small letters; UserError where it says nothing of its form."""
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise UserError(f"{path} does not say its form; expected a name in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    return suffix


def _is_safetensors(path: Path) -> bool:
    """Whether the file is safetensors, else torch's; UserError where it begins like neither."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    size = path.stat().st_size
    if not head:
        raise UserError(f"{path} is empty (0 bytes); download it again")
    for start, what in _OTHER_FILES.items():
        if head.startswith(start):
            raise UserError(f"{path} {what}")
    if head[8:9] == b"{" and head[7] == 0:  # the header's length in eight bytes, then JSON
        length = int.from_bytes(head[:8], "little")
        if length > size - 8:
            raise UserError(f"{path} is truncated: its header alone has {length} bytes, the file {size}; download it again")
        return True
    if head.startswith(b"PK") or (head[0] == 0x80 and len(head) > 1 and head[1] in range(2, 6)):
        return False
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive; unpack it and name the file inside")
    if not any(head):
        raise UserError(f"{path} begins with nothing but zeros, as an interrupted download does; download it again")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        raise UserError(f"{path} is a web page, not weights: the link led to a page; download the file itself")
    if text[:1] in (b"{", b"["):
        raise UserError(f"{path} is JSON text, not weights: an index, or a server's answer; download the file itself")
    if all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head):
        raise UserError(f"{path} is text, not weights; expected safetensors or a torch checkpoint")
    raise UserError(f"{path} is no weight file (it begins with {head[:8].hex(' ')}); expected safetensors or torch's form")


def _read_safetensors(path: Path) -> tuple[Mapping[str, object], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_torch(path: Path) -> tuple[Mapping[str, object], dict[str, Any]]:
    _check_archive(path)
    try:
        with open(path, "rb") as file:  # of a path, torch would believe the name
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if code is None:
            raise
        raise UserError(
            f"{path} holds pickled code ({shown([code[1]])}), which was not executed; expected plain tensors: convert it "
            "to safetensors where it comes from"
        ) from error
    entries = loaded.items() if isinstance(loaded, Mapping) else ()
    return loaded, {k: v for k, v in entries if isinstance(k, str) and isinstance(v, int | float | str)}


def _check_archive(path: Path) -> None:
    """UserError for a zip archive that holds no torch checkpoint."""
    if not zipfile.is_zipfile(path):
        return  # legacy, or truncated
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        raise UserError(f"{path} is a TorchScript program, which is not executed; expected plain tensors")
    if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        raise UserError(f"{path} is a zip archive, no torch checkpoint (it holds {shown(names) or 'nothing'}); unpack it")


def _without_prefixes(state: StateDict) -> StateDict:
    """`state` without any of PREFIXES that all keys but position tables begin with, one after the other."""
    while True:
        telling = [key for key in state if not is_position_table(key)]
        prefix = next((p for p in PREFIXES if all(key.startswith(p) and key != p for key in telling)), None)
        if prefix is None or not telling:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _is_count(key: str, value: torch.Tensor) -> bool:
    """Whether it is no weight by its nature: a counter or flag, or the numbers of positions."""
    counts = (value.ndim == 0 and not key.endswith(".alpha")) or key.endswith("position_ids")
    return counts and not value.is_floating_point() and not value.is_complex()


def _plain(value: torch.Tensor, key: str, source: str) -> torch.Tensor:
    """`value` in a floating-point dtype that networks compute in."""
    place = f"{source} holds {str(value.dtype).removeprefix('torch.')} values (first in {shown([key])})"
    if value.dtype in _FLOAT8:
        value = value.half()
    elif key.endswith(".alpha") and value.numel() == 1 and not value.is_complex():
        value = value.float()
    elif not value.is_floating_point() and not value.is_complex() and not value.is_quantized:
        raise UserError(f"{place}, expected floating point: it was quantised for another program; take the original")
    elif value.dtype not in _FLOATS:
        raise UserError(f"{place}, expected float32, float16, bfloat16 or float8")
    in_full = value.layout == torch.strided and value.untyped_storage().nbytes() >= value.numel() * value.itemsize
    if not in_full:
        raise UserError(f"{source} holds a tensor that is not stored in full ({shown([key])}), expected plain tensors")
    return value
