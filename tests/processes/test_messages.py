"""Messages arrive as they were sent, however reads cut them; arrays and tensors keep type, shape and values."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch

from ufork.processes.messages import MessageReader, MessageWriter, wait_for_messages

MESSAGES = {
    "text": {"a": [1, None, "b"]},
    "array": np.arange(12, dtype=np.uint16).reshape(3, 4).T,
    "empty array": np.zeros((0, 3)),
    "fp32": torch.arange(6.0).view(2, 3).T,
    "bf16": torch.arange(6.0).to(torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty tensor": torch.zeros(0, 2),
    "larger than a pipe": torch.arange(1 << 20),
}


def send_and_read(message):
    reading, writing = multiprocessing.Pipe(duplex=False)
    reader, writer = MessageReader(reading), MessageWriter(writing)
    thread = threading.Thread(target=writer.send, args=({"message": message},))
    thread.start()
    received = None
    while received is None:
        assert wait_for_messages([reader], 10)
        received = reader.read()
    thread.join()
    assert not reader.is_inside_message
    return received["message"]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_arrives_as_it_was_sent(name):
    sent, received = MESSAGES[name], send_and_read(MESSAGES[name])
    if isinstance(sent, torch.Tensor):
        assert received.dtype == sent.dtype and torch.equal(received, sent)
        received.zero_()  # the receiver owns it
    elif isinstance(sent, np.ndarray):
        assert received.dtype == sent.dtype and np.array_equal(received, sent)
    else:
        assert received == sent


def test_reading_half_a_message_does_not_block():
    complete, sending = multiprocessing.Pipe(duplex=False)
    MessageWriter(sending).send(np.arange(100))
    contents = os.read(complete.fileno(), 1 << 20)
    reading, writing = multiprocessing.Pipe(duplex=False)
    reader = MessageReader(reading)
    for start in range(0, len(contents) - 1, 7):
        os.write(writing.fileno(), contents[start : min(start + 7, len(contents) - 1)])
        assert reader.read() is None and reader.is_inside_message
    os.write(writing.fileno(), contents[-1:])
    assert np.array_equal(reader.read(), np.arange(100))
