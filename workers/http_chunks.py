"""A body in chunks (RFC 9112, section 7.1), followed to its end as its bytes go by. Pure.

Whoever takes the end of one for another's lets a client choose what the next request is, or leaves it waiting. What is
no chunk has no end. Runs where a handler does.
"""

_DIGITS = b"0123456789abcdefABCDEF"
LINE_MAX = 64 * 1024  # bytes, before a body is taken for none in chunks


class Chunks:
    """One body. Give `follow()` all its bytes, in any parts; what comes after its end is not counted."""

    def __init__(self) -> None:
        self.size = 0  # bytes so far
        self.ended = False
        self._left = 0  # of the present chunk, and the end of its line
        self._line = b""  # the beginning of one that has not ended
        self._is_trailer = False  # the last chunk is over
        self._is_none = False

    def follow(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not (self.ended or self._is_none):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                end = data.find(b"\n", at)
                step = (end + 1 if end != -1 else len(data)) - at
                self._line += data[at : at + step]
                if len(self._line) > LINE_MAX:
                    self._is_none = True
                elif end != -1:
                    self._read_line()
            at += step
        self.size += at

    def _read_line(self) -> None:
        line, self._line = self._line.rstrip(b"\r\n"), b""
        if self._is_trailer:
            self.ended = not line
            return
        size = line.partition(b";")[0].strip()
        if not size or size.strip(_DIGITS):
            self._is_none = True
        elif int(size, 16):
            self._left = int(size, 16) + 2
        else:
            self._is_trailer = True
