"""The door for files: text becomes a path, JSON is read with expected types, what is written is whole or not there."""

from animatediff.files.hashing import content_hash
from animatediff.files.parts import final_path, remove_stale_parts
from animatediff.files.paths import check_readable, check_writable, is_file, is_folder, is_there, to_path, to_text
from animatediff.files.reading import (
    Keys,
    check_object,
    check_value,
    keys_of,
    load_json,
    parse_json,
    parse_object,
    read_json,
    read_jsonl,
    read_lines,
    wrong_keys,
)
from animatediff.files.writing import (
    atomic_folder,
    atomic_group,
    atomic_path,
    to_json,
    write_json,
    write_jsonl,
    write_text,
)

__all__ = [
    "Keys",
    "atomic_folder",
    "atomic_group",
    "atomic_path",
    "check_object",
    "check_readable",
    "check_value",
    "check_writable",
    "content_hash",
    "final_path",
    "is_file",
    "is_folder",
    "is_there",
    "keys_of",
    "load_json",
    "parse_json",
    "parse_object",
    "read_json",
    "read_jsonl",
    "read_lines",
    "remove_stale_parts",
    "to_json",
    "to_path",
    "to_text",
    "write_json",
    "write_jsonl",
    "write_text",
    "wrong_keys",
]
