"""Pieces of other tools' vocabularies."""

from gemscope.atlas.exchange.pieces import bytes_of


def test_trap_4_pieces_become_bytes() -> None:
    assert bytes_of("▁cat") == b" cat"
    assert bytes_of("↵↵") == b"\n\n"
    assert bytes_of("<0xE2>") == b"\xe2"
    assert bytes_of("\\xe2\\x82") == b"\xe2\x82"
    assert bytes_of("\\x41") == b"\\x41"  # a text that reads so: no half character
    assert bytes_of("Ã©") == "Ã©".encode()
    assert bytes_of("Ã©", byte_level=True) == "é".encode()
    assert bytes_of("âĢ", byte_level=True) == b"\xe2\x80"
    assert bytes_of("Ġcat", byte_level=True) == b" cat"
    assert bytes_of("日本", byte_level=True) == "日本".encode()
    assert bytes_of("\ud800") == b"?"
