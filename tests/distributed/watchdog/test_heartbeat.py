"""What is sent to the other ranks is what they read."""

import pytest

from pararealize.distributed.watchdog.heartbeat import Failure, Farewell, Heartbeat, Message, decode, encode


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(),
        Heartbeat(doing="z_1", seconds=0.25, waits=True, peer=3, step=7, sent={0: 2, 11: 5}, took={3: 1}),
        Failure(rank=2, message="rank 2 died\nat «g^3»"),
        Farewell(),
    ],
)
def test_a_message_is_one_line_and_comes_back_as_it_was(message: Message) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line.rstrip()) == message
