"""Writing loses nothing; people's text files are read as they were meant."""

import os
import stat
import subprocess
from pathlib import Path

import process
import pytest

from tinygmf.files import (
    counted,
    lines_of,
    one_line,
    printable,
    read_text,
    remove_leftovers,
    replacing,
    require_writable,
)

UNIX = pytest.mark.skipif(os.name == "nt", reason="needs links, pipes and devices as of Unix")


def write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


@UNIX
def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    real, link = tmp_path / "folder" / "real.json", tmp_path / "link.json"
    real.parent.mkdir()
    link.symlink_to(Path("folder", "real.json"))
    for content in (b"first", b"second"):  # a dangling link, then one to a file
        write(link, content)
        assert link.is_symlink() and real.read_bytes() == content
    assert os.listdir(real.parent) == ["real.json"]


@UNIX
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write(pipe, b"figures")
    assert reader.communicate()[0] == b"figures"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@UNIX
def test_a_device_is_written_to_and_stays_a_device():
    before = os.stat("/dev/null")
    write(Path("/dev/null"), b"figures")
    assert os.stat("/dev/null").st_rdev == before.st_rdev
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def print_around(name: str) -> None:
    print("before")
    write(Path(name), b"between\n")
    print("after")


@UNIX
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "out.txt"])
def test_the_programs_own_output_keeps_what_was_printed_before_and_after(tmp_path, name):
    """Also where the output is a file that is named twice: `tinygmf … --json out > out`."""
    out, line = tmp_path / "out.txt", process.command(print_around, name)
    with out.open("wb") as file:
        subprocess.run(line, stdout=file, cwd=tmp_path, env=process.environment(), check=True)
    assert out.read_text() == "before\nbetween\nafter\n"


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("a" * 255)
    write(path, b"content")
    assert path.read_bytes() == b"content" and len(os.listdir(tmp_path)) == 1


@UNIX
def test_a_file_that_is_replaced_passes_its_mode_on(tmp_path):
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    write(path, b"content")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@UNIX
@pytest.mark.skipif(os.name != "nt" and os.geteuid() == 0, reason="root may write anything")
def test_a_file_that_may_not_be_written_stays(tmp_path):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        write(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/x.json", "x.json: cannot be written: No such file"),
        ("file/x.json", "cannot be written: Not a directory"),
        (".", "cannot be written: Is a directory"),
    ],
)
def test_a_place_that_takes_no_result_is_told_before_any_work(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        require_writable(tmp_path / name)
    require_writable(tmp_path / "x.json")
    require_writable(os.devnull)
    assert os.listdir(tmp_path) == ["file"]


def test_only_our_own_leftovers_are_removed(tmp_path):
    ours, theirs = tmp_path / f".{'0a' * 8}.tmp", tmp_path / ".x.tmp"
    ours.touch()
    theirs.touch()
    remove_leftovers(tmp_path)
    assert not ours.exists() and theirs.exists()


TEXT = "eins\nzwei\nfünf\nei\u2028ns\nzw\x85ei\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_text_is_read_by_any_editors_encoding_and_line_ends(tmp_path, encoding, end):
    path = tmp_path / "x.txt"
    path.write_bytes((TEXT.replace("\n", end) + end + " " + end).encode(encoding))
    assert lines_of(read_text(path)) == ["eins", "zwei", "fünf", "ei\u2028ns", "zw\x85ei"]


def test_a_byte_that_is_no_text_is_told_with_its_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"eins\r\nzwei\rdrei\nf\xfcnf\n")
    with pytest.raises(ValueError, match=r"x\.txt, line 4: .* found the byte 0xfc"):
        read_text(path)
    assert lines_of(read_text(path, strict=False))[3] == os.fsdecode(b"f\xfcnf")


def test_a_name_is_shown_whole_and_a_message_in_one_line():
    name = "two  spaces, 日本 \x1b[31m\n\udcff"
    assert printable(name) == "two  spaces, 日本 \\x1b[31m\\n\\udcff"
    assert one_line("a\n  b") == "a b"


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        *((0, "picture", "0 pictures"), (1, "picture", "1 picture"), (2, "picture", "2 pictures")),
        *((1, "class", "1 class"), (10, "class", "10 classes")),
    ],
)
def test_a_count_agrees_with_its_word(number, noun, said):
    assert counted(number, noun) == said
