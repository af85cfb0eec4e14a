"""Weight files are told by their content, never executed, and right or one line; what is written reads back."""

import os
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from animatediff.errors import UserError
from animatediff.models.weight_files import PREFIXES, read_checkpoint, read_state_dict, unwrap, write_checkpoint
from tests.disk import small_disk  # noqa: F401
from tests.generated import right_or_one_line

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3, dtype=torch.float16)}


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS = {"safetensors": save_file, "zip": torch.save, "legacy": save_legacy}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert all(found[key].dtype == wanted[key].dtype for key in wanted)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


class TestContent:
    @pytest.mark.parametrize("name", ["x.safetensors", "x.SafeTensors", "x.ckpt", "x.pt", "x.BIN", "x"])
    @pytest.mark.parametrize("form", WRITERS)
    def test_the_name_does_not_matter(self, tmp_path, form, name):
        WRITERS[form](STATE, tmp_path / name)
        same(read_state_dict(tmp_path / name), STATE)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"is empty \(0 bytes\); download it again"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1672\n", "is a Git LFS pointer.*git lfs pull"),
            (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "is a web page"),
            (b"\xef\xbb\xbf\r\n <html>", "is a web page"),
            (b'{"error": "Entry not found"}', "is JSON text"),
            (b'[{"a": 1}]', "is JSON text"),
            (b"Not Found", "is text, not weights"),
            ("Größe".encode(), "is text, not weights"),
            (b"\0" * 5000, "begins with nothing but zeros"),
            (b"GGUF\x03\0\0\0", "is a GGUF file"),
            (b"\x1f\x8b\x08\0\0\0\0\0", "is a gzip archive; unpack it"),
            (b"\0" * 257 + b"ustar\x0000", "is a tar archive"),
            (b"\x07\x01\x02\x03\x04\x05\x06\x07\x08", "is no weight file .it begins with 07 01 02 03"),
            (b"\x40\0\0\0\0\0\0\0{}", "is truncated: its header alone has 64 bytes, the file 10"),
            (b"\x80\x02\x8a\n", "is truncated or corrupt"),
            (b"PK\x03\x04", "is truncated or corrupt"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
    def test_what_is_no_weight_file_is_named(self, tmp_path, content, message, suffix):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"model{suffix} {message}") as error:
            read_state_dict(path)
        assert len(str(error.value).splitlines()) == 1

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            (["hello.txt"], "is a zip archive, no torch checkpoint .it holds hello.txt.; unpack it"),
            (["model/model.safetensors"], "is a zip archive, no torch checkpoint .it holds model/model.safetensors"),
            ([], "is a zip archive, no torch checkpoint .it holds nothing"),
            (["m/data.pkl", "m/code/x.py"], "is a TorchScript program, which is not executed"),
        ],
    )
    def test_a_zip_that_is_no_checkpoint(self, tmp_path, members, message):
        with zipfile.ZipFile(tmp_path / "z.ckpt", "w") as archive:
            for member in members:
                archive.writestr(member, "hello")
        with pytest.raises(UserError, match=f"z.ckpt {message}"):
            read_state_dict(tmp_path / "z.ckpt")

    @pytest.mark.parametrize("form", WRITERS)
    def test_truncated(self, tmp_path, form):
        path = tmp_path / "cut.ckpt"
        WRITERS[form]({"a": torch.randn(1000)}, path)
        whole = path.read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 40):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match="cut.ckpt is truncated"):
                read_state_dict(path)

    def test_missing_and_folder_and_unreadable(self, tmp_path, monkeypatch):
        with pytest.raises(UserError, match="no weights at .*nowhere.ckpt"):
            read_state_dict(tmp_path / "nowhere.ckpt")
        with pytest.raises(UserError, match="is a folder, expected a weight file"):
            read_state_dict(tmp_path)
        save_file(STATE, tmp_path / "x.ckpt")
        monkeypatch.setattr("builtins.open", lambda *_: os.open("/", os.O_WRONLY))
        with pytest.raises(UserError, match="reading .*x.ckpt failed: Is a directory"):
            read_state_dict(tmp_path / "x.ckpt")

    @pytest.mark.parametrize("save", [torch.save, save_legacy])
    @pytest.mark.parametrize("content", [{"state_dict": Malicious()}, {"a": torch.zeros(1), "hook": Malicious()}])
    def test_code_in_a_pickle_is_not_executed(self, tmp_path, capsys, save, content):
        save(content, tmp_path / "evil.ckpt")
        with pytest.raises(UserError, match=r"evil.ckpt holds pickled code \((builtins\.)?print\), which was not executed"):
            read_state_dict(tmp_path / "evil.ckpt")
        assert capsys.readouterr().out == ""

    def test_nan(self, tmp_path):
        save_file({"fine": torch.zeros(2), "w": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.safetensors")
        with pytest.raises(UserError, match="NaN or infinite values .first in w"):
            read_state_dict(tmp_path / "nan.safetensors")


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_float8_is_widened_exactly(self, tmp_path, dtype):
        every = torch.arange(256, dtype=torch.uint8).view(dtype)
        finite = every[torch.isfinite(every.float())]
        save_file({"w": finite}, tmp_path / "small.safetensors")
        found = read_state_dict(tmp_path / "small.safetensors")["w"]
        assert found.dtype == torch.float16
        assert torch.equal(found.float(), finite.float())

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
    @pytest.mark.parametrize("form", WRITERS)
    def test_integer_weights_are_refused(self, tmp_path, form, dtype):
        WRITERS[form](STATE | {"b.weight": torch.ones(2, 2).to(dtype)}, tmp_path / "q.ckpt")
        with pytest.raises(UserError, match=r"q.ckpt holds u?(int|bool)\d* values \(first in b.weight\), expected floating"):
            read_state_dict(tmp_path / "q.ckpt")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.zeros(2, dtype=torch.complex64), "holds complex64 values"),
            (torch.zeros(4).to(torch.float8_e8m0fnu), "holds float8_e8m0fnu values"),
            (torch.eye(2).to_sparse(), "is not stored in full .w"),
            (torch.zeros(1).expand(10**9, 10**9), "is not stored in full .w"),
        ],
    )
    def test_tensors_that_are_not_plain_are_refused(self, value, message):
        with pytest.raises(UserError, match=f"x.ckpt .*{message}"):
            unwrap({"w": value}, "x.ckpt")

    def test_counters_and_positions_are_left_out_and_alphas_kept(self):
        counts = {"epoch": torch.tensor(3), "done": torch.tensor(True), "m.position_ids": torch.arange(77)[None]}
        state = unwrap({**STATE, **counts, "l.alpha": torch.tensor(4)})
        same(state, {**STATE, "l.alpha": torch.tensor(4.0)})


class TestNames:
    @pytest.mark.parametrize("prefix", [*PREFIXES, "module.module.", "module._orig_mod.", "_orig_mod.module.", "ema.module."])
    def test_prefixes_that_all_keys_have_are_taken_off(self, prefix):
        same(unwrap({prefix + key: value for key, value in STATE.items()}), STATE)

    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_a_prefix_that_some_keys_have_stays(self, prefix):
        mixed = {f"{prefix}a.weight": STATE["a.weight"], "a.bias": STATE["a.bias"]}
        same(unwrap(mixed), mixed)

    @pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module", "ema", "controlnet"])
    def test_wrappers(self, wrapper):
        same(unwrap({wrapper: STATE, "optimizer": {"lr": 1}, "epoch": 3}), STATE)
        same(unwrap({"model": {wrapper: STATE}}), STATE)
        same(unwrap({wrapper: OrderedDict((f"module.{key}", value) for key, value in STATE.items())}), STATE)

    def test_a_dictionary_that_holds_itself_ends(self):
        loop: dict = {}
        loop["state_dict"] = loop
        with pytest.raises(UserError, match="holds no tensors"):
            unwrap(loop)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"global_step": 1}, "holds no tensors, expected a state dictionary; it holds global_step"),
            ({"string_to_param": {"*": torch.zeros(2, 768)}}, "holds no tensors.*looks like a textual inversion"),
            ({}, "holds no tensors"),
            ([torch.zeros(1)], "holds list, expected a dictionary"),
            (torch.zeros(1), "holds Tensor, expected a dictionary"),
        ],
    )
    def test_no_state_dictionary(self, tmp_path, content, message):
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(UserError, match=f"x.ckpt {message}"):
            read_state_dict(tmp_path / "x.ckpt")


class TestWriting:
    @pytest.mark.parametrize("name", ["x.safetensors", "x.SAFETENSORS", "x.ckpt", "x.bin"])
    def test_the_suffix_says_the_form_and_everything_reads_back(self, tmp_path, name):
        write_checkpoint(tmp_path / name, STATE, {"global_step": 7})
        found = read_checkpoint(tmp_path / name)
        same(found.tensors, STATE)
        assert int(found.facts["global_step"]) == 7
        assert zipfile.is_zipfile(tmp_path / name) == (not name.lower().endswith(".safetensors"))

    @pytest.mark.parametrize("name", ["x", "x.onnx"])
    def test_a_name_that_says_no_form(self, tmp_path, name):
        with pytest.raises(UserError, match=f"{name} does not say its form; expected a name in .safetensors or .ckpt"):
            write_checkpoint(tmp_path / name, STATE, {})
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
    def test_a_full_disk_is_named_and_the_old_file_stays(self, tmp_path, name, request):
        write_checkpoint(tmp_path / name, STATE, {})
        request.getfixturevalue("small_disk")
        with pytest.raises(UserError, match=f"writing .*{name} failed: File too large"):
            write_checkpoint(tmp_path / name, {"a": torch.zeros(10_000)}, {})
        assert [path.name for path in tmp_path.iterdir()] == [name]
        same(read_state_dict(tmp_path / name), STATE)


# Generated files: a state dictionary of plain tensors, or a UserError of one line; nothing else.

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.int64]


def check_state(read):
    state = right_or_one_line(read)
    assert state is None or state
    for key, value in (state or {}).items():
        assert isinstance(key, str)
        assert value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        assert torch.isfinite(value).all()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of one small checkpoint in each form."""
    folder = tmp_path_factory.mktemp("forms")
    wrapped = {"global_step": 3, "state_dict": STATE | {"half": torch.ones(2).to(torch.float8_e5m2)}}
    save_file(wrapped["state_dict"], folder / "safetensors", metadata={"global_step": "3"})
    torch.save(wrapped, folder / "zip")
    save_legacy(wrapped, folder / "legacy")
    return {form: (folder / form).read_bytes() for form in WRITERS}


@pytest.mark.parametrize("form", WRITERS)
def test_mutated_files(originals, tmp_path_factory, form):
    path, whole = tmp_path_factory.mktemp("mutated") / "x.ckpt", originals[form]
    at = st.integers(0, len(whole) - 1)
    change = st.tuples(st.sampled_from(["set", "cut", "drop", "insert", "repeat"]), at, st.binary(min_size=1, max_size=9))

    @given(st.lists(change, min_size=1, max_size=4))
    def check(changes):
        content = whole
        for kind, place, piece in changes:
            place = min(place, len(content))
            end = place + len(piece)
            content = {
                "set": content[:place] + piece + content[end:],
                "cut": content[:place],
                "drop": content[:place] + content[end:],
                "insert": content[:place] + piece + content[place:],
                "repeat": content[:end] + content[place:],
            }[kind]
        path.write_bytes(content)
        check_state(lambda: read_state_dict(path))

    check()


tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1.0, float("nan"), float("inf")]),
)
names = st.text(max_size=12) | st.sampled_from(["module.", "_orig_mod.w", "ema.module.w", "x.alpha", "a\nb", "position_ids"])
trees = st.recursive(
    tensors | st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(names | st.sampled_from(["state_dict", "model", "ema"]) | st.integers(), inner, max_size=4),
    max_leaves=8,
)


@given(trees)
def test_any_tree_of_values(loaded):
    check_state(lambda: {k: torch.nan_to_num(v) for k, v in unwrap(loaded).items()})


@pytest.mark.parametrize("form", WRITERS)
def test_any_state_dictionary(tmp_path_factory, form):
    path = tmp_path_factory.mktemp("any") / "x"

    @given(st.dictionaries(names, tensors, max_size=4))
    def check(state):
        try:
            WRITERS[form](state, path)
        except UnicodeEncodeError:
            return  # safetensors' names are UTF-8
        check_state(lambda: read_state_dict(path))

    check()
