"""Pascal VOC's XML: what is none, or hostile, is named and goes no further."""

import pytest
from annotated_folders import voc, xml

from tinygmf.data.dataset import DataError
from tinygmf.data.dense_folders import open_dense
from tinygmf.data.voc import parse


def test_xml_with_entities_or_a_document_type_is_refused():
    bomb = b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    outside = b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>'
    for content in (bomb, outside, bomb.decode().encode("utf-16")):
        with pytest.raises(DataError, match="document type or entities"):
            parse(content)


@pytest.mark.parametrize(
    "encoding", ["ANSI", "gbk", "shift_jis", "utf-7", "UTF-32", "rot13", "idna"]
)
def test_xml_in_an_encoding_that_cannot_be_read_is_skipped_and_named(tmp_path, encoding):
    root = voc(tmp_path)
    file = root / "Annotations" / "train_0.xml"
    file.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{xml("train_0.jpg")}')
    data = open_dense(root, "detect")
    assert len(data.train) == 3 and list(data.broken) == [str(file)]
    assert "expected XML in UTF-8" in data.broken[str(file)]


def test_xml_of_something_else_is_skipped_and_named(tmp_path):
    root = voc(tmp_path)
    file = root / "Annotations" / "train_0.xml"
    file.write_text("<html><body/></html>")
    data = open_dense(root, "detect")
    assert data.broken == {str(file): "expected <annotation> around all, found <html>"}


@pytest.mark.parametrize("content", [b"", b"\0" * 10, b"<a>" * 100_000, b"<a></b>", b"<a>&x;</a>"])
def test_what_is_no_xml_is_refused(content):
    with pytest.raises(DataError, match="expected XML"):
        parse(content)
