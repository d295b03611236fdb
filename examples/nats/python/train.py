"""From rows to an adapter that answers, by messages alone.

    python train.py https://data.example.org/pirate.jsonl.gz pirate [BASE]

NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS say where and as whom. Every message and its fields: docs/asyncapi.json.
"""

import asyncio
import json
import os
import sys

from nats.aio.client import Client
from nats.errors import NoRespondersError, NoServersError
from nats.errors import TimeoutError as NatsTimeout
from ulid import ULID

USAGE = "usage: python train.py URL-OF-ROWS ADAPTER [BASE]; NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS in the environment"


async def command(nc, subject, body):
    """Says what is wanted. It is a request, so that a stream answers when it has stored the message: from then on it is not lost."""
    once = {"Nats-Msg-Id": str(ULID())}  # the stream drops a repetition, so that asking again is harmless
    for _ in range(3):
        try:
            answer = json.loads((await nc.request(subject, json.dumps(body).encode(), timeout=10, headers=once)).data)
        except NatsTimeout:
            continue
        except NoRespondersError:
            sys.exit(f"no stream takes {subject}: has the line a door for this tenant (nats.tenants in the chart's values)?")
        if "error" not in answer:
            return
        sys.exit(f"{subject} was not stored: {answer['error']['description']}. Nothing has begun; try again later.")
    sys.exit(f"{subject} was not acknowledged: may this user publish it (NATS writes why above), and does NATS have a leader?")


async def events(sub, quiet_s=None):
    """Yields (kind, data) of what happens, such as ("ingested", {…}). Silence for longer than `quiet_s` ends the program."""
    wait = quiet_s or 30  # until the gateway has taken the command; afterwards work may take its time
    while True:
        try:
            message = await sub.next_msg(timeout=wait)
        except NatsTimeout:
            sys.exit(f"nothing came on {sub.subject} for {wait} s. A command that cannot be followed is a failed message: `loraline dlq ls`.")
        wait = quiet_s
        kind, data = message.subject.split(".")[4], json.loads(message.data)
        print(f"{sub.subject.removesuffix('.>')} {kind}", *(f"{key}={data[key]}" for key in ("code", "step", "loss", "version") if data.get(key) is not None))
        yield kind, data


def fail(what, data):
    field = f" (field {data['param']})" if data.get("param") else ""
    sys.exit(f"{what}: {data['message']}{field}\n`loraline explain {data['code']}` says more.")


async def ingest(nc, of, url):
    """Has the line fetch the rows. Bytes do not travel through NATS: https from a public address, or what LORALINE_IMPORT_ALLOW names."""
    dataset = str(ULID())
    sub = await nc.subscribe(f"{of}.dataset.{dataset}.>")  # first listen, then speak
    await command(nc, f"{of}.dataset.{dataset}.import-requested.v1", {"source": {"url": url}})
    async for kind, data in events(sub):
        if kind == "ingested":
            print(f"{data['records']} records, {data['rejections']} rows that cannot be used")
            return dataset
        if kind == "rejected":
            fail("nothing in the dataset can be trained on", data)


async def train(nc, of, spec):
    """Trains, and waits until the version is proven on its replicas. `spec` is the run spec: docs/run-spec.md."""
    run = str(ULID())
    sub = await nc.subscribe(f"{of}.run.{run}.>")
    await command(nc, f"{of}.run.{run}.requested.v1", {"spec": spec})
    async for kind, data in events(sub):
        if kind == "served":
            return data["version"]
        if kind in ("rejected", "failed"):
            fail(f"run {run} ended without a version", data)
        if kind == "cancelled":
            sys.exit(f"run {run} was cancelled")


async def promote(nc, of, adapter, version):
    """Moves the alias to the version, so that whoever asks for the adapter gets it."""
    sub = await nc.subscribe(f"{of}.adapter.{adapter}.>")
    await command(nc, f"{of}.adapter.{adapter}.promote-requested.v1", {"version": version})
    async for kind, data in events(sub, quiet_s=60):
        if kind == "promoted" and data["to"] == version:
            return


async def main(url, adapter, base="smollm2-135m-instruct"):
    user = os.environ.get("NATS_USER", "")
    tenant = user.removeprefix("tenant.")

    async def told(error):
        print(f"NATS: {error}", file=sys.stderr)

    nc = Client()
    try:
        await nc.connect(
            os.environ.get("NATS_URL", "nats://127.0.0.1:4222"),
            user=user,
            password=os.environ.get("NATS_PASS", ""),
            inbox_prefix=f"_INBOX_tenant_{tenant}".encode(),  # the only inbox where this user may hear answers
            no_echo=True,  # what is heard is what the line took, not what this program said
            max_reconnect_attempts=5,
            reconnect_time_wait=1,
            error_cb=told,
        )
    except NoServersError:
        sys.exit("cannot connect: see above. Check NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS; `loraline nats-context` prints them.")
    async with nc:
        of = f"loraline.{tenant}"
        dataset = await ingest(nc, of, url)
        version = await train(nc, of, {"base": base, "adapter": adapter, "dataset": dataset, "promote": "manual"})
        await promote(nc, of, adapter, version)
        print(f"{tenant}/{adapter} is version {version} now")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(USAGE)
    asyncio.run(main(*sys.argv[1:]))
