"""The HTTP parser, held to h11."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.http.http1 import ProtocolError, ResponseParser

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


def theirs(data: bytes) -> tuple[int, bytes, bool, bool]:
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
def test_agrees_with_h11(response: bytes) -> None:
    status, body, _, keep_alive = theirs(response)
    got = ours([response])
    assert (got[0], got[1], got[3]) == (status, body, keep_alive)


@given(st.sampled_from(RESPONSES), st.lists(st.integers(0, 10_000), max_size=20))
def test_any_split(response: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(response) + 1) for cut in cuts), len(response)]
    pieces = [response[a:b] for a, b in itertools.pairwise(edges) if a < b]
    assert ours(pieces) == ours([response])


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.integers(1, 40))
def test_any_chunks(chunks: list[bytes], step: int) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    assert ours(pieces)[:2] == (200, b"".join(chunks))


@pytest.mark.parametrize("cut", range(1, len(CHUNKED)))
def test_a_response_that_breaks_off_is_an_error(cut: int) -> None:
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
        CHUNKED + b"x",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    ],
)
def test_nonsense_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseParser().feed(data)
