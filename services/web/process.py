"""The process of a service: uvloop, one listener, and an end that finishes what was begun.

On SIGTERM or Ctrl-C: /healthz says 503 for `notice_s`, so that balancers look elsewhere; then nobody new is
let in, and what is in progress has `drain_deadline_s` to finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import uvloop
from aiohttp import web

from runtime.garbage import settle
from runtime.settings_file import split_bind
from services.settings import Settings
from services.web.passport import PassportError, PassportVerifier

PASSPORT_POLL_S: Final = 1.0
KEEP_ALIVE_S: Final = 75.0
LINE_BYTES_MAX: Final = 16_384

Made = Callable[
    [Settings, PassportVerifier, asyncio.Event, Any], AbstractAsyncContextManager[web.Application]
]
"""A service's composition root: (settings, passports, draining, log) to an application that is open."""


class StartError(Exception):
    """A service cannot start; the text says why."""


def run(name: str, made: Made, settings: Settings, *, bind: str, log: Any) -> None:
    """Serve until a signal; raises `StartError`."""
    uvloop.run(_serve(name, made, settings, bind, log))


async def _serve(name: str, made: Made, settings: Settings, bind: str, log: Any) -> None:
    ending, draining = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    passports = PassportVerifier(settings.service.passport_path, audience=name)
    host, port = split_bind(bind)
    failure: OSError | None = None
    async with contextlib.AsyncExitStack() as open_:
        app = await open_.enter_async_context(made(settings, passports, draining, log))
        runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            shutdown_timeout=settings.service.drain_deadline_s,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
        )
        await runner.setup()
        settle()
        try:
            await web.TCPSite(runner, host, port, reuse_address=True).start()
            log.info("service_started", service=name, bind=bind)
            async with asyncio.TaskGroup() as tasks:
                polls = tasks.create_task(_poll(passports, log))
                await ending.wait()
                draining.set()
                log.info("service_draining", service=name)
                await asyncio.sleep(settings.service.notice_s)
                polls.cancel()
        except OSError as error:
            failure = error
        finally:
            await runner.cleanup()
    if failure is not None:
        raise StartError(f"cannot listen on {bind}: {failure.strerror or failure}") from failure
    log.info("service_stopped", service=name)


async def _poll(passports: PassportVerifier, log: Any) -> None:
    """Keep the key of passports fresh; say once what is wrong with it."""
    said = ""
    while True:
        try:
            passports.poll()
        except PassportError as error:
            if str(error) != said:
                log.warning("passport_key_unavailable", why=str(error))
            said = str(error)
        else:
            said = ""
        await asyncio.sleep(PASSPORT_POLL_S)
