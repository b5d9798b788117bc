"""Parser of responses, compared with h11."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.http.transport import ProtocolError, ResponseParser

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1a;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n2\r\n\r\n\r\n0\r\n\r\n"
)
TRAILER = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\nC: d\r\n\r\n"
)
LENGTH = b"HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\nConnection: close\r\n\r\nhello world"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nall of it"
RESPONSES = [CHUNKED, TRAILER, LENGTH, EMPTY, CONTINUE, NO_CONTENT, UNTIL_CLOSE]


def ours(pieces: list[bytes]) -> tuple[int, bytes, bool, bool]:
    parser = ResponseParser()
    body = b"".join(part for piece in pieces for part in parser.feed(piece))
    complete = parser.complete
    parser.end()
    return parser.status, body, complete, parser.keep_alive


def parsed_by_h11(data: bytes) -> tuple[int, bytes, bool, bool]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body, ended = 0, b"", False
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif event is h11.NEED_DATA:
            connection.receive_data(b"")
        elif isinstance(event, h11.EndOfMessage):
            ended = connection.their_state is not h11.CLOSED
            break
    return status, body, ended, connection.their_state is h11.DONE


@pytest.mark.parametrize("response", RESPONSES)
def test_parser_agrees_with_h11(response: bytes) -> None:
    status, body, _, keep_alive = parsed_by_h11(response)
    got = ours([response])
    assert (got[0], got[1], got[3]) == (status, body, keep_alive)


def test_parser_takes_keep_alive_from_version_and_header() -> None:
    length = b"Content-Length: 1\r\n\r\na"
    assert ours([b"HTTP/1.1 200 OK\r\n" + length])[3]
    assert not ours([b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + length])[3]
    assert not ours([b"HTTP/1.0 200 OK\r\n" + length])[3]
    assert ours([b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + length])[3]


def test_parser_keeps_headers_of_final_head_only() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + TRAILER)
    assert parser.headers == [(b"Transfer-Encoding", b"chunked")]


@given(st.sampled_from(RESPONSES), st.lists(st.integers(0, 10_000), max_size=20))
def test_parser_takes_pieces_of_any_size(response: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(response) + 1) for cut in cuts), len(response)]
    pieces = [response[a:b] for a, b in itertools.pairwise(edges) if a < b]
    assert ours(pieces) == ours([response])


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.integers(1, 40))
def test_parser_takes_chunks_of_any_size(chunks: list[bytes], step: int) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    assert ours(pieces)[:2] == (200, b"".join(chunks))


@pytest.mark.parametrize("cut", range(1, len(CHUNKED)))
def test_parser_refuses_response_that_breaks_off(cut: int) -> None:
    parser = ResponseParser()
    parser.feed(CHUNKED[:cut])
    with pytest.raises(ProtocolError, match="in the middle"):
        parser.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
        EMPTY + b"x",
        EMPTY + EMPTY,
        CONTINUE + b"x",
        CHUNKED + b"x",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
        CHUNKED[:-5] + b"3;" + b"x" * 200_000,
        TRAILER[:-2] + b"A: b\r\n" * 40_000,
    ],
)
def test_parser_refuses_malformed_response(data: bytes) -> None:
    parser = ResponseParser()
    with pytest.raises(ProtocolError):
        for start in range(0, len(data), 1 << 16):  # as a connection reads them
            parser.feed(data[start : start + (1 << 16)])
