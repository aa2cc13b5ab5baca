"""Live telemetry against a real stream of NDJSON and real dashboards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType, web

from routing.gateway import live
from routing.gateway.live import LiveSettings
from runtime import clock
from tests.support.socket_rig import SocketRig, open_rig, principal, transport_of, until


class Stream:
    """The /tail of the data service: gives what a test puts, to each who is connected."""

    def __init__(self) -> None:
        self.open: list[web.StreamResponse] = []
        self.status = 200
        self.ended = asyncio.Event()
        self.number = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        if self.status == 200:
            self.open.append(response)
            try:
                await self.ended.wait()
            finally:
                self.open.remove(response)
        return response

    async def put(self, device: str = "pump-1", ts: int = 1, tenant: str = "acme", **metrics: float) -> None:
        await self.give(device, ts, tenant, metrics)

    async def give(self, device: str, ts: int, tenant: str, metrics: dict[str, float]) -> None:
        self.number += 1
        payload = {"ts": ts, "metrics": metrics or {"temperature": 20.5}}
        await self.line(
            {
                "id": f"n-{self.number}",
                "tenant": tenant,
                "device": device,
                "stream": "main",
                "received_at": ts,
                "node": "n",
                "payload": payload,
            }
        )

    async def line(self, value: Any) -> None:
        for response in list(self.open):
            await response.write(msgspec.json.encode(value) + b"\n")

    async def cut(self) -> None:
        ended, self.ended = self.ended, asyncio.Event()
        ended.set()


@contextlib.asynccontextmanager
async def dashboards(**settings: Any) -> AsyncIterator[tuple[SocketRig, Stream]]:
    async with open_rig(live=LiveSettings(**settings)) as rig:
        stream = Stream()
        rig.service.tail = stream.serve
        try:
            yield rig, stream
        finally:
            await rig.live.drain(1.0)
            stream.ended.set()


async def listen(rig: SocketRig, name: str = "ana", **fields: Any) -> aiohttp.ClientWebSocketResponse:
    """Return a dashboard that has subscribed, and whose stream is live."""
    client: aiohttp.ClientWebSocketResponse = await rig.connect(name, "/v1/live")
    await client.send_json({"subscribe": {"every_ms": 50, **fields}})
    told = await client.receive_json(timeout=5)
    assert told["subscribed"]["every_ms"] == fields.get("every_ms", 50)
    if told["tail"] == "lost":
        assert await client.receive_json(timeout=5) == {"tail": "live"}
    return client


async def test_a_dashboard_sees_what_it_asked_for() -> None:
    async with dashboards() as (rig, stream):
        client = await listen(rig, devices=["pump-*"], metrics=["temperature"])
        await stream.put("fan-1", temperature=1.0)
        await stream.put("pump-1", ts=7, temperature=20.5, rpm=3.0)
        assert await client.receive_json(timeout=5) == {
            "values": [
                {"device": "pump-1", "stream": "main", "metric": "temperature", "ts": 7, "value": 20.5}
            ],
            "conflated": 0,
            "dropped": 0,
        }
        await client.close()


async def test_one_stream_serves_all_dashboards_of_a_tenant() -> None:
    async with dashboards() as (rig, stream):
        clients = [await listen(rig) for _ in range(5)]
        other = await listen(rig, "bob")
        assert len(rig.service.tails) == 2
        assert {tail.query["tenant"] for tail in rig.service.tails} == {"acme", "globex"}
        assert {tail.headers["X-Tenant"] for tail in rig.service.tails} == {"acme", "globex"}
        assert rig.live.status()["subscribers"] == 6
        assert rig.live.status()["tails"]["acme"] == {"listeners": 5, "live": True}
        await stream.put(tenant="acme")
        for client in clients:
            assert (await client.receive_json(timeout=5))["values"][0]["device"] == "pump-1"
            await client.close()
        # The rig gives each line to both streams: a record of another tenant is not believed.
        assert rig.counted("headworks_live_bad_records_total") == 1
        await stream.put(tenant="globex", device="g")
        assert (await other.receive_json(timeout=5))["values"][0]["device"] == "g"
        await other.close()


async def test_a_foreign_tenant_is_closed_to_all_but_operators() -> None:
    async with dashboards() as (rig, stream):
        client = await rig.connect("bob", "/v1/live")
        await client.send_json({"subscribe": {"tenant": "acme"}})
        message = await client.receive(timeout=5)
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 1008, "foreign tenant")
        await client.close()
        assert rig.service.tails == []
        operator = await listen(rig, "root", tenant="acme")
        await stream.put()
        assert (await operator.receive_json(timeout=5))["values"]
        await operator.close()


async def test_an_operator_has_to_name_a_tenant() -> None:
    async with dashboards() as (rig, _):
        client = await rig.connect("root", "/v1/live")
        await client.send_json({"subscribe": {}})
        assert (await client.receive(timeout=5)).extra == "an operator names a tenant"
        await client.close()


@pytest.mark.parametrize(
    "text", ["", "x", "[]", '{"subscribe":{"devices":["[a"]}}', '{"watch":{}}', "[" * 30_000]
)
async def test_what_is_no_subscription_closes(text: str) -> None:
    async with dashboards() as (rig, _):
        client = await rig.connect("ana", "/v1/live")
        await client.send_str(text)
        message = await client.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1008)
        await client.close()


async def test_a_command_has_a_limit() -> None:
    async with dashboards() as (rig, _):
        client = await rig.connect("ana", "/v1/live")
        await client.send_str(" " * (live.COMMAND_BYTES_MAX + 1))
        assert (await client.receive(timeout=5)).data == 1009
        await client.close()


async def test_who_subscribes_without_end_is_cut_off() -> None:
    async with dashboards() as (rig, _):
        client = await rig.connect("ana", "/v1/live")
        for _ in range(live.COMMANDS_PER_S + 2):
            await client.send_json({"subscribe": {}})
        async for _ in client:
            pass
        assert client.close_code == 1008


async def test_streams_have_a_cap() -> None:
    async with dashboards(tails_max=1) as (rig, _):
        ana = await listen(rig)
        bob = await rig.connect("bob", "/v1/live")
        await bob.send_json({"subscribe": {}})
        message = await bob.receive(timeout=5)
        assert (message.data, message.extra) == (1013, "too many streams")
        await bob.close()
        await ana.close()


async def test_values_are_conflated_to_the_rate_of_the_dashboard() -> None:
    async with dashboards() as (rig, stream):
        client = await listen(rig, every_ms=200)
        await stream.put(ts=0, t=0.0)
        assert (await client.receive_json(timeout=5))["values"][0]["ts"] == 0
        for ts in range(1, 101):
            await stream.put(ts=ts, t=float(ts))
        batches = [await client.receive_json(timeout=5)]
        while batches[-1]["values"][-1]["ts"] != 100:
            batches.append(await client.receive_json(timeout=5))
        values = sum(len(batch["values"]) for batch in batches)
        assert values + sum(batch["conflated"] for batch in batches) == 100
        assert values < 20
        await client.close()


async def test_a_new_subscription_replaces_the_one_before() -> None:
    async with dashboards() as (rig, stream):
        client = await listen(rig, devices=["a"])
        await client.send_json({"subscribe": {"devices": ["b"], "every_ms": 50}})
        assert (await client.receive_json(timeout=5))["subscribed"]["devices"] == ["b"]
        await stream.put("a")
        await stream.put("b")
        assert [each["device"] for each in (await client.receive_json(timeout=5))["values"]] == ["b"]
        await client.close()


async def test_a_stream_that_breaks_goes_on_after_what_came_last() -> None:
    async with dashboards() as (rig, stream):
        client = await listen(rig)
        await stream.put()
        assert (await client.receive_json(timeout=5))["values"]
        await stream.cut()
        assert await client.receive_json(timeout=5) == {"tail": "lost"}
        assert await client.receive_json(timeout=5) == {"tail": "live"}
        assert rig.service.tails[-1].query["after"] == "n-1"
        assert "after" not in rig.service.tails[0].query
        await stream.put(ts=2)
        assert (await client.receive_json(timeout=5))["values"][0]["ts"] == 2
        assert rig.counted("headworks_live_tail_failures_total") == 1
        await client.close()


async def test_a_service_that_refuses_is_asked_again() -> None:
    async with dashboards() as (rig, stream):
        stream.status = 503
        client = await rig.connect("ana", "/v1/live")
        await client.send_json({"subscribe": {"every_ms": 50}})
        assert (await client.receive_json(timeout=5))["tail"] == "lost"
        await until(lambda: len(rig.service.tails) >= 3)
        stream.status = 200
        assert await client.receive_json(timeout=5) == {"tail": "live"}
        await client.close()


async def test_lines_that_make_no_sense_are_passed_over() -> None:
    async with dashboards() as (rig, stream):
        client = await listen(rig)
        await stream.line({"id": 1})
        for payload in ("YWJj", {"ts": "x"}, {"ts": 1, "metrics": {"t": [1]}}):
            await stream.line({"id": "n", "tenant": "acme", "device": "d", "stream": "s", "payload": payload})
        for response in stream.open:
            await response.write(b"\n\n")
            await response.write(b'{"id":"cut","tenant":')
        await asyncio.sleep(0)
        for response in stream.open:
            await response.write(
                b'"acme","device":"d","stream":"s","payload":{"ts":1,"metrics":{"t":true}}}\n'
            )
        batch = await client.receive_json(timeout=5)
        assert [each["value"] for each in batch["values"]] == [True]
        assert rig.counted("headworks_live_bad_records_total") == 1
        await client.close()


async def test_a_dashboard_that_reads_nothing_holds_no_more_than_its_values() -> None:
    async with dashboards(unread_s=30.0) as (rig, stream):
        fast = await listen(rig)
        slow = await listen(rig)
        transport_of(slow).pause_reading()
        metrics = [f"metric-{number:04}-{'x' * 80}" for number in range(1000)]
        ts = 0
        while not any(
            each.open.waiting_bytes and len(each.conflation or ()) for each in rig.live._subscribers
        ):
            ts += 1
            await stream.give("pump-1", ts, "acme", dict.fromkeys(metrics, float(ts)))
            await asyncio.sleep(0.005)
        for _ in range(30):
            ts += 1
            await stream.give("pump-1", ts, "acme", dict.fromkeys(metrics, float(ts)))
        last = 0
        while last != ts:
            last = max(each["ts"] for each in (await fast.receive_json(timeout=5)).get("values", []))
        [waiting] = [each for each in rig.live._subscribers if each.open.waiting_bytes]
        assert waiting.conflation is not None
        assert len(waiting.conflation) <= 1000
        assert waiting.open.waiting_bytes < 512 * 1024
        transport_of(slow).resume_reading()
        conflated = values = 0
        last = 0
        while last != ts:
            batch = await slow.receive_json(timeout=5)
            last = max(each["ts"] for each in batch["values"])
            values += len(batch["values"])
            conflated += batch["conflated"]
        assert values + conflated == ts * 1000
        assert conflated > 0
        await fast.close()
        await slow.close()


async def test_a_dashboard_that_takes_nothing_for_too_long_is_cut_off() -> None:
    async with dashboards(unread_s=0.3) as (rig, stream):
        slow = await listen(rig)
        transport_of(slow).pause_reading()

        many = {f"m-{number}-{'x' * 100}": 1.0 for number in range(1000)}

        async def flood() -> None:
            ts = 0
            while not rig.counted("headworks_socket_ended_total", api="live", ending="unread"):
                ts += 1
                await stream.give("d", ts, "acme", many)
                await asyncio.sleep(0.01)

        await asyncio.wait_for(flood(), 60)
        assert rig.live.status()["subscribers"] == 0
        transport_of(slow).abort()


async def test_who_may_not_see_is_refused() -> None:
    async with dashboards(origins=["https://good.example"]) as (rig, _):
        for name, headers, status in (
            ("poor", {}, 403),
            ("stranger", {}, 401),
            ("ana", {"Origin": "https://bad.example"}, 403),
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await rig.connect(name, "/v1/live", headers=headers)
            assert refused.value.status == status
        async with rig.client.get(rig.url("/v1/live"), headers={"Authorization": "Bearer ana"}) as answer:
            assert answer.status == 426


async def test_dashboards_have_caps() -> None:
    async with dashboards(subscribers_max=2, subscribers_per_tenant_max=1) as (rig, _):
        ana, bob = await rig.connect("ana", "/v1/live"), await rig.connect("bob", "/v1/live")
        for name, status in (("ana", 503), ("root", 503)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await rig.connect(name, "/v1/live")
            assert refused.value.status == status
        await bob.close()
        await until(lambda: rig.live.status()["subscribers"] == 1)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await rig.connect("ana", "/v1/live")
        assert refused.value.status == 429
        await ana.close()


async def test_the_stream_ends_when_nobody_has_listened_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TAIL_LINGER_S", 0.1)
    async with dashboards() as (rig, stream):
        client = await listen(rig)
        await client.close()
        await until(lambda: rig.live.status()["tails"] == {})
        await until(lambda: not stream.open)
        assert rig.counted("headworks_live_tails") == 0
        again = await listen(rig)
        assert "after" not in rig.service.tails[-1].query
        await again.close()


async def test_drain_tells_dashboards_to_connect_again() -> None:
    async with dashboards() as (rig, _):
        clients = [await listen(rig) for _ in range(10)]
        draining = asyncio.ensure_future(rig.live.drain(2.0))
        codes = [(await client.receive(timeout=5)).data for client in clients]
        assert codes == [1012] * 10
        for client in clients:
            await client.close()
        await draining
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await rig.connect("ana", "/v1/live")
        assert refused.value.status == 503


async def test_the_end_of_a_credential_is_the_end_of_a_dashboard() -> None:
    async with dashboards() as (rig, _):
        rig.callers["ana"] = principal(expires_s=clock.unix_s() + 0.2)
        client = await rig.connect("ana", "/v1/live")
        message = await client.receive(timeout=5)
        assert (message.data, message.extra) == (1008, "the credential has expired")
        await client.close()
        refused = await rig.connect("bob", "/v1/live")
        assert rig.live.end_refused(lambda caller: caller.name == "bob") == 1
        assert (await refused.receive(timeout=5)).data == 1008
        await refused.close()
