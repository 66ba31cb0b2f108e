"""What TensorBoard reads out of event files."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c


def events(directory: Path):
    """All events of a directory in the order of its files; one that is cut short ends a file."""
    for path in sorted(directory.iterdir()):
        content, start = path.read_bytes(), 0
        while len(content) >= start + 12:
            (length,) = struct.unpack_from("<Q", content, start)
            data = content[start + 12 : start + 12 + length]
            if len(content) < start + length + 16:
                break
            assert struct.unpack_from("<I", content, start + 8) == (masked_crc32c(content[start : start + 8]),)
            assert struct.unpack_from("<I", content, start + 12 + length) == (masked_crc32c(data),)
            yield Event.FromString(data)
            start += length + 16


def shown(directory: Path):
    """What is shown, {tag: [(step, value)]}; the start of a session hides all that is there from its step on."""
    found = {}
    for event in events(directory):
        if event.session_log.status == SessionLog.START:
            found = {tag: [point for point in points if point[0] < event.step] for tag, points in found.items()}
        for value in event.summary.value:
            kinds = {"simple_value": value.simple_value, "image": value.image, "tensor": value.tensor.string_val}
            found.setdefault(value.tag, []).append((event.step, kinds[value.WhichOneof("value")]))
    return found
