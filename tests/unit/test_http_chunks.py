"""The end of a body in chunks is found where it is, in whatever parts it comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.http_chunks import LINE_MAX, Chunks


def followed(data: bytes, cut: int) -> Chunks:
    chunks = Chunks()
    for at in range(0, len(data), cut):
        chunks.follow(data[at : at + cut])
    return chunks


@given(
    st.lists(st.sampled_from([b"0\r\n\r\n", b"\r\n", b"a", b"x" * 300])), st.sampled_from([b"", b";a=b", b" "]),
    st.lists(st.sampled_from([b"Sum: 0", b"0"])), st.integers(1, 20), st.binary(max_size=9),
)  # fmt: skip
def test_the_end(parts: list[bytes], extension: bytes, trailer: list[bytes], cut: int, after: bytes) -> None:
    """Whatever stands in the chunks, and after the last one."""
    lines = [b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts]
    body = b"".join(lines) + b"000\r\n" + b"".join(line + b"\r\n" for line in trailer) + b"\r\n"
    chunks = followed(body + after, cut)
    assert (chunks.ended, chunks.size) == (True, len(body))
    assert not followed(body[:-1], cut).ended


@pytest.mark.parametrize("cut", [1, 3, 1 << 20])
@pytest.mark.parametrize("data", [b"\r\n", b"x\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"1 2\r\n"])
def test_no_chunks(data: bytes, cut: int) -> None:
    """Have no end."""
    assert not followed(data + b"\r\n0\r\n\r\n", cut).ended


@pytest.mark.parametrize("cut", [1000, 1 << 20])
@pytest.mark.parametrize(("size", "ended"), [(LINE_MAX, True), (LINE_MAX + 1, False)])
def test_a_long_line(size: int, ended: bool, cut: int) -> None:
    """Is none of chunks, however it comes, or all of it would have to be kept."""
    line = b"0;".ljust(size - 1, b"x") + b"\n"
    assert followed(line + b"\r\n", cut).ended == ended
