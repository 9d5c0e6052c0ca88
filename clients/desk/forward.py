"""Bytes between a port of this machine's loopback and the desk's socket. It knows no HTTP, and opens no file."""

import asyncio
import contextlib
import sys
from collections.abc import Coroutine
from pathlib import Path

from common.errors import RunError

#: Connections at one time, and bytes passed on at once.
MOST_CONNECTIONS, CHUNK = 32, 64 * 1024
#: After which a connection that nothing goes through is closed, in seconds; a page of many studies takes a while.
IDLE_S = 300.0


async def forward(socket: Path, host: str, port: int, started: asyncio.Event | None = None) -> None:
    """Forward until cancelled.

    Args:
        host: to listen at; another than the loopback only where a container keeps others away.
        started: set once connections are taken.

    Raises:
        RunError: if the port cannot be had.
    """
    free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def connected(browser_in: asyncio.StreamReader, browser_out: asyncio.StreamWriter) -> None:
        async with free:
            try:
                desk_in, desk_out = await asyncio.open_unix_connection(str(socket))
            except OSError:  # the desk is not there, or not yet
                browser_out.close()
                return
            await _both(_pass_on(browser_in, desk_out), _pass_on(desk_in, browser_out))
            for writer in (desk_out, browser_out):
                writer.close()

    try:
        server = await asyncio.start_server(connected, host, port)
    except OSError as error:
        raise RunError(f"cannot listen at {host}:{port}: {error.strerror}. Choose another --port.") from None
    if started is not None:
        started.set()
    async with server:
        await server.serve_forever()


async def forward_for_desk(socket: Path, host: str, port: int) -> None:
    """Forward, say so in a line on standard output, and end once standard input does: with the desk that holds it.

    Raises:
        RunError: if the port cannot be had.
    """
    started, held = asyncio.Event(), asyncio.StreamReader()

    async def serve_desk() -> None:
        await started.wait()
        print("listening", flush=True)
        await held.read()

    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(held), sys.stdin)
    tasks = [asyncio.create_task(forward(socket, host, port, started)), asyncio.create_task(serve_desk())]
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


async def _both(*ways: Coroutine[None, None, None]) -> None:
    """Run both ways until the desk or the browser has ended; the other then has nothing to say any more."""
    tasks = [asyncio.create_task(way) for way in ways]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        while chunk := await asyncio.wait_for(source.read(CHUNK), IDLE_S):
            sink.write(chunk)
            await asyncio.wait_for(sink.drain(), IDLE_S)
