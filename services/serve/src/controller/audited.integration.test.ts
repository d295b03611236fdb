/** Commands that serve carries out are in the audit log with what came of them, and with who gave them as far as that is proven. */
import { createBus, ensureStreams } from "@loraline/bus";
import {
  adapterCommandRefused,
  adapterKeepRequested,
  adapterKey,
  adapterPromoteRequested,
  buckets,
  runCancelRequested,
  subjectFor,
} from "@loraline/contracts";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test } from "@loraline/testkit";
import { ulid } from "ulid";
import { expect } from "vitest";
import { createServeService } from "./service.ts";
import { withVersions } from "./versions/versions-under-test.ts";

test("who promoted, kept and cancelled is told by proof, also what was refused, and once each", async ({ nc, tenant }) => {
  await ensureStreams(nc);
  const log = createLog({ service: "test", level: "silent" });
  const telemetry = createTelemetry({ service: "test" });
  const lineSecret = "the secret of this installation";
  const bus = createBus({ nc, log, telemetry, source: "gateway", lineSecret, longestWaitMs: 100 });
  let failures = 1;
  // NATS is away at the moment of the first entry.
  const audit: typeof bus.audit = {
    ...bus.audit,
    record: (entry) => (entry.tenant === tenant && failures-- > 0 ? Promise.reject(new Error("503")) : bus.audit.record(entry)),
  };
  const adapters = await bus.bucket(buckets.adapters);
  await adapters.put(adapterKey({ tenant, adapter: "pirate" }), { ...withVersions(1, { tenant, runId: ulid() }), tenant });
  await using _serve = await createServeService({
    bus: { ...bus, audit },
    objects: await createJetStreamObjects(nc),
    log,
    telemetry,
    engines: [],
  });
  const pirate = { tenant, id: "pirate" };
  const run = { tenant, id: ulid() };
  const actor = { kind: "key", id: "0123456789abcdef", name: "ci" } as const;
  await bus.publish(adapterKeepRequested, pirate, { keep: 2, by: "ci" }, { key: "1", actor });
  await bus.publish(adapterPromoteRequested, { tenant, id: "nobody" }, { version: 1, by: "ci" }, { key: "2", actor });
  // A tenant's NATS user says that it is the boss.
  await nc.request(subjectFor(adapterKeepRequested, pirate), JSON.stringify({ keep: 3, by: "boss" }));
  await nc.request(subjectFor(runCancelRequested, run), JSON.stringify({ by: "boss" }));

  const entries = async () => (await bus.audit.page({ tenant, limit: 100 })).entries;
  await expect.poll(async () => (await entries()).length).toBe(4);
  // Whoever gave it over NATS waits for an event.
  const told = async () => (await bus.history([adapterCommandRefused], { tenant, id: "nobody" })).map(({ data }) => data);
  await expect.poll(told).toEqual([
    {
      command: adapterPromoteRequested.type,
      code: "ADAPTER_UNKNOWN",
      message: expect.stringContaining("there is no adapter") as string,
      param: null,
    },
  ]);
  const user = { kind: "nats", id: `tenant.${tenant}` };
  const found = (await entries()).map(({ action, target, by, outcome, code, details }) => ({ action, target, by, outcome, code, details }));
  expect(found).toHaveLength(4);
  expect(found).toEqual(
    expect.arrayContaining([
      { action: "adapter.keep", target: "pirate", by: actor, outcome: "done", code: undefined, details: { keep: 2 } },
      { action: "adapter.promote", target: "nobody", by: actor, outcome: "refused", code: "ADAPTER_UNKNOWN", details: { version: 1 } },
      { action: "adapter.keep", target: "pirate", by: user, outcome: "done", code: undefined, details: { keep: 3 } },
      { action: "run.cancel", target: run.id, by: user, outcome: "done", code: undefined, details: {} },
    ]),
  );
});
