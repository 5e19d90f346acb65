"""A gRPC service out of plain async methods: which RPC a method serves, faults, repeated calls.

A method takes a request and returns a reply (or yields several, or takes a stream of requests); it
knows neither grpclib nor faults. RPCs that nobody serves are answered with UNIMPLEMENTED by name:
grpclib's own answer for an unknown path is one that the SDK takes for a hiccup and tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import StatusDetailsCodecBase
from modal_proto import api_pb2 as api

from agent_runtime_modal_local.background import Background
from agent_runtime_modal_local.faults import Do, Fault, Faults

REPLIES_KEPT: Final = 1000

Metadata = Mapping[str, str | bytes]
Method = Callable[..., Any]
M = TypeVar("M", bound=Method)


def serves(*rpcs: str) -> Callable[[M], M]:
    """Mark a method with the names of the RPCs that it answers (the V1 and V2 names of one thing)."""

    def mark(method: M) -> M:
        method.__dict__["serves"] = rpcs
        return method

    return mark


class Replies:
    """Work that is done once, however often it is asked for under the same key.

    It goes on in the background of the server: a client that hangs up in the middle and comes back
    finds the same work, going on or done. Work that failed is forgotten and may be tried again.
    """

    def __init__(self, background: Background) -> None:
        self._background = background
        self._known: dict[str, asyncio.Task[Message | Exception]] = {}

    async def once(self, key: str | None, work: Callable[[], Coroutine[Any, Any, Message]]) -> Message:
        """The reply of the one time that this was done. Raises what the work raised."""
        if key is None:
            return await work()
        if key not in self._known:
            while len(self._known) >= REPLIES_KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = self._background.outcome(work())
        outcome = await asyncio.shield(self._known[key])
        if isinstance(outcome, Exception):
            self._known.pop(key, None)
            raise outcome
        return outcome


class Service:
    """One gRPC service. Subclasses say which, and mark their methods with `serves`."""

    descriptor: ServiceDescriptor

    def __init__(self, faults: Faults, replies: Replies) -> None:
        self._faults = faults
        self._replies = replies

    def authorise(self, metadata: Metadata) -> None:
        """Raise `GRPCError` (UNAUTHENTICATED) for a call that is not allowed."""
        raise NotImplementedError

    def key(self, request: Message, metadata: Metadata) -> str | None:
        """What two calls have in common that are one, or None. The SDK sends a key with each call."""
        del request
        key = metadata.get("x-idempotency-key")
        return str(key) if key else None

    def served(self) -> dict[str, Method]:
        """RPC name to method."""
        methods = (getattr(self, name) for name in dir(type(self)))
        return {rpc: method for method in methods for rpc in getattr(method, "serves", ())}

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib asks a service for."""
        served = self.served()
        return {
            f"/{self.descriptor.full_name}/{rpc.name}": self._handler(rpc, served.get(rpc.name))
            for rpc in self.descriptor.methods
        }

    def _handler(self, rpc: MethodDescriptor, method: Method | None) -> Handler:
        cardinality = next(
            each for each in Cardinality if each.value == (rpc.client_streaming, rpc.server_streaming)
        )
        message = message_factory.GetMessageClass
        call = self._call(rpc, method)
        return Handler(call, cardinality, message(rpc.input_type), message(rpc.output_type))

    def _call(self, rpc: MethodDescriptor, method: Method | None) -> Callable[[Any], Awaitable[None]]:
        async def call(stream: Any) -> None:
            fault = self._faults.take(rpc.name)
            early = fault is not None and not fault.after_messages and fault.do != Do.LOSE_REPLY
            if fault is not None and early:
                await strike(fault, stream)
            metadata: Metadata = stream.metadata or {}
            self.authorise(metadata)
            if method is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"the local Modal does not know {rpc.name}")
            await self._serve(rpc, method, stream, metadata, None if early else fault)

        return call

    async def _serve(
        self, rpc: MethodDescriptor, method: Method, stream: Any, metadata: Metadata, fault: Fault | None
    ) -> None:
        if rpc.client_streaming:
            reply = await method(_incoming(stream, fault))
        else:
            request = await stream.recv_message()
            if request is None:
                return
            if rpc.server_streaming:
                await _send_all(method(request), stream, fault)
                return
            reply = await self._replies.once(self.key(request, metadata), lambda: method(request))
        if fault is not None and fault.do == Do.LOSE_REPLY:
            raise failure(fault)
        await stream.send_message(reply)


async def _send_all(messages: AsyncIterator[Message], stream: Any, fault: Fault | None) -> None:
    sent = 0
    async for message in messages:
        if fault is not None and sent == fault.after_messages:
            await strike(fault, stream)
        await stream.send_message(message)
        sent += 1


async def _incoming(stream: Any, fault: Fault | None) -> AsyncIterator[Message]:
    received = 0
    while (message := await stream.recv_message()) is not None:
        yield message
        received += 1
        if fault is not None and fault.after_messages and received == fault.after_messages:
            await strike(fault, stream)


async def strike(fault: Fault, stream: Any) -> None:
    """Let a fault happen to a call. Returns only from `slow`; raises `GRPCError`."""
    match fault.do:
        case Do.SLOW:
            await asyncio.sleep(fault.delay_s)
            return
        case Do.HANG:
            await asyncio.get_running_loop().create_future()
        case Do.RESET:
            # grpclib has no public way to drop a connection as a broken network does.
            stream._stream._transport.abort()  # noqa: SLF001
    raise failure(fault)


def failure(fault: Fault) -> GRPCError:
    """The error that a fault answers with."""
    details = None
    if fault.retry_after_s is not None:
        details = [api.RPCRetryPolicy(retry_after_secs=fault.retry_after_s)]
    return GRPCError(Status[fault.status], fault.message, details)


class StatusDetails(StatusDetailsCodecBase):
    """How Modal packs the details of an error: its own `RPCStatus` with its own type prefix."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """The bytes of the `grpc-status-details-bin` header."""
        packed = api.RPCStatus(code=status.value, message=message or "")
        for detail in details or ():
            packed.details.add().Pack(detail, type_url_prefix="type.modal.com/")
        return bytes(packed.SerializeToString())

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        """Only clients decode."""
        raise NotImplementedError
