/** What is told after a crash between a write and its events, from a real stream. */
import { createBus, ensureStreams } from "@loraline/bus";
import { runServed } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test as it } from "@loraline/testkit";
import { ulid } from "ulid";
import { expect } from "vitest";
import { publishWhatWasLost } from "./adapter-events.ts";
import { addVersion, applyServed } from "./decide-versions.ts";
import { added, served, withVersions } from "./versions-under-test.ts";

it("tells of a version that was let go of with the very write that said it is served", async ({ nc, tenant }) => {
  await ensureStreams(nc);
  const log = createLog({ service: "test", level: "silent" });
  const telemetry = createTelemetry({ service: "test" });
  const bus = createBus({ nc, log, telemetry, source: "test" });
  const at = new Date().toISOString();
  // Four newer ones were served while one replica was still at it.
  const runs = Array.from({ length: 5 }, () => ulid());
  let state = { ...withVersions(1, { tenant, runId: runs[0] ?? "" }), tenant };
  for (const [index, runId] of runs.entries()) if (index > 0) state = addVersion(state, added(index + 1, { tenant, runId }));
  for (const version of [2, 3, 4, 5, 1]) state = applyServed(state, served(version, at), at);
  expect(state.versions[0]).toMatchObject({ status: "retired", servedAt: at });

  await publishWhatWasLost(state, { bus, log, telemetry, objects: { get: () => Promise.reject(new Error("not asked")) }, engines: [] });
  for (const id of runs) expect(await bus.last(runServed, { tenant, id })).toBeDefined();
});
