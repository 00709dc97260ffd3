"""The memory of a census: nameless, shared by descriptor, gone with the last process that has it.

The supervisor makes it, workers inherit the descriptor. It is sparse: what nobody wrote or looked at
takes no memory, and what a worker leaves behind is given back to the kernel.
"""

from __future__ import annotations

import mmap
import os
import secrets

from sse_gateway.census import SECRET_BYTES, Census, Register, Shape, lay_out
from sse_gateway.errors import ConfigError


class CensusMemory:
    """A census, mapped into this process.

    Attributes:
        descriptor: For `pass_fds`; -1 once it is closed.
        census: What is in it.
    """

    def __init__(self, descriptor: int) -> None:
        """Map what `create` of another process made; takes the descriptor over.

        Raises:
            OSError: It is none.
        """
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        self.census = Census(memoryview(self._map))

    @classmethod
    def create(cls, sections: int, streams: int, secret: bytes = b"") -> CensusMemory:
        """Make a new one.

        Args:
            sections: Processes.
            streams: That each of them may have.
            secret: Of the census beside it, so that both know a key by the same hash; a new one if empty.

        Raises:
            ConfigError: There is no memory to be had.
        """
        shape = Shape.of(sections, streams)
        try:
            descriptor = os.memfd_create("sse-gateway-census")
            os.ftruncate(descriptor, shape.size)
            with mmap.mmap(descriptor, shape.size) as memory, memoryview(memory) as view:
                lay_out(view[: Shape(0, 0).size], shape, secret or secrets.token_bytes(SECRET_BYTES))
            return cls(descriptor)
        except OSError as error:
            raise ConfigError([f"cannot make memory for the workers to count in: {error.strerror}"]) from error

    def clear(self, slot: int) -> None:
        """Forget what a process counted that has gone."""
        shape = self.census.shape
        self._map.madvise(mmap.MADV_REMOVE, shape.begin(slot), shape.section_bytes)

    def close(self) -> None:
        """Close the descriptor; the mapping stays as long as somebody reads it. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def join(slot: int, own: int, beside: int | None) -> Register:
    """The register of one worker.

    Args:
        slot: Its section.
        own: Descriptor of the census of its generation.
        beside: Descriptor of that of the generation that it takes over from, which still has streams.

    Raises:
        OSError: A descriptor is no census.
    """
    census = CensusMemory(own).census
    sections = census.sections()
    others = [section for at, section in enumerate(sections) if at != slot]
    former = [] if beside is None else CensusMemory(beside).census.sections()
    return Register(sections[slot], others, census.secret, former)
