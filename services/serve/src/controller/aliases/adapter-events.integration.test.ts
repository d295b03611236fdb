/** What is told of an adapter, also after a crash between a write and its events, from a real stream. */
import { createBus, ensureStreams } from "@loraline/bus";
import { adapterCanaryStarted, canarySettings, runServed } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test as it } from "@loraline/testkit";
import { ulid } from "ulid";
import { expect } from "vitest";
import { type AdapterEventDeps, publishLinesAfter, publishWhatWasLost } from "./adapter-events.ts";
import { startCanary } from "./alias-moves.ts";
import { lastLine } from "./history-lines.ts";
import { addVersion, applyServed } from "../versions/decide-versions.ts";
import { added, served, withVersions } from "../versions/versions-under-test.ts";

const connected = async (nc: Parameters<typeof createBus>[0]["nc"]): Promise<AdapterEventDeps> => {
  await ensureStreams(nc);
  const log = createLog({ service: "test", level: "silent" });
  const telemetry = createTelemetry({ service: "test" });
  return { bus: createBus({ nc, log, telemetry, source: "test" }), log, telemetry };
};

it("says with which settings a canary began", async ({ nc, tenant }) => {
  const deps = await connected(nc);
  const settings = canarySettings.parse({ steps: [10, 30] });
  const promoted = { ...applyServed(withVersions(2), served(1), new Date().toISOString()), tenant };
  const state = startCanary(promoted, 2, settings, { by: "ann", reason: "asked", at: new Date().toISOString() });
  await publishLinesAfter(state, lastLine(promoted), deps);
  expect((await deps.bus.last(adapterCanaryStarted, { tenant, id: "pirate" }))?.data).toMatchObject({ version: 2, share: 10, settings });
});

it("tells of a version that was let go of with the very write that said it is served", async ({ nc, tenant }) => {
  const deps = await connected(nc);
  const at = new Date().toISOString();
  // Four newer ones were served while one replica was still at it.
  const runs = Array.from({ length: 5 }, () => ulid());
  let state = { ...withVersions(1, { tenant, runId: runs[0] ?? "" }), tenant };
  for (const [index, runId] of runs.entries()) if (index > 0) state = addVersion(state, added(index + 1, { tenant, runId }));
  for (const version of [2, 3, 4, 5, 1]) state = applyServed(state, served(version, at), at);
  expect(state.versions[0]).toMatchObject({ status: "retired", servedAt: at });

  await publishWhatWasLost(state, deps);
  for (const id of runs) expect(await deps.bus.last(runServed, { tenant, id })).toBeDefined();
});
