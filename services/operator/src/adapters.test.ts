import type { Bus } from "@loraline/bus";
import { adapterDeleteRequested, type AdapterState, type AdapterVersion, type EventDef } from "@loraline/contracts";
import { type Kube, KubeError } from "@loraline/kube";
import { createLog, createTelemetry } from "@loraline/runtime";
import { afterAll, expect, it } from "vitest";
import { createAdapters } from "./adapters.ts";
import type { LineView } from "./line-view.ts";
import type { Adapter } from "./resources.ts";

const log = createLog({ service: "test", level: "silent" });
const telemetry = createTelemetry({ service: "test" });
afterAll(() => telemetry[Symbol.asyncDispose]());

const version = (n: number) => ({ version: n, status: "desired", engineName: `e${n}`, evaluation: null }) as AdapterVersion;
const state = {
  tenant: "acme",
  adapter: "pirate",
  engine: "local",
  base: "b",
  versions: [version(1), version(2)],
  alias: null,
  history: [],
};
const adapter = (generation: number, spec: Adapter["spec"]): Adapter => ({
  metadata: { namespace: "team", name: "pirate", uid: "u", generation, resourceVersion: String(generation * 10) },
  ...(spec === undefined ? {} : { spec }),
});

/** Adapters of a namespace whose API server answers as `kube` does; `asked` are the versions that were asked for. */
function reconciler(kube: Partial<Kube>, { refusal }: { refusal?: { code: string; message: string } } = {}) {
  const asked: number[] = [];
  const deleted: unknown[] = [];
  const bus = {
    newest: async () => [],
    last: async () => undefined,
    deadLetters: { of: async () => refusal },
    publish: async (event: EventDef, at: object, data: { version: number; by: string }) =>
      event === adapterDeleteRequested ? { seq: deleted.push({ ...at, by: data.by }) } : { seq: asked.push(data.version) },
  } as unknown as Bus;
  const line = { engines: () => [], held: () => ({ proven: 1, of: 1, trouble: undefined }) } as unknown as LineView;
  const states = new Map([["pirate", state as unknown as AdapterState]]);
  const reconciling = createAdapters({
    kube: { create: async (_of: unknown, object: object) => object, ...kube } as Kube,
    bus,
    line,
    log,
    telemetry,
    tenant: "acme",
    namespace: "team",
    states,
    replacedMs: 20,
  });
  return { reconciling, asked, deleted, states };
}

it("follows an edit that came while the status before it was being written", async () => {
  let writes = 0;
  const { reconciling, asked } = reconciler({
    async apply(_of, object) {
      // The watch tells of the edit before the answer to this write is here.
      if (++writes === 1) reconciling.onResource("team/pirate", adapter(2, { version: 2 }));
      return { ...adapter(1, { version: 1 }), ...object, metadata: adapter(1, {}).metadata };
    },
  });
  await using _adapters = reconciling;
  reconciling.onResource("team/pirate", adapter(1, { version: 1 }));
  reconciling.start();
  await expect.poll(() => asked).toEqual([1, 2]);
});

it("writes the status also where Events are refused, as by a quota", async () => {
  const written: object[] = [];
  const { reconciling } = reconciler({
    async create() {
      throw new KubeError(403, "Forbidden", 'events "x" is forbidden: exceeded quota: count/events');
    },
    async apply(_of, object) {
      written.push(object);
      return object;
    },
  });
  await using _adapters = reconciling;
  reconciling.onResource("team/pirate", adapter(1, { version: 7 }));
  reconciling.start();
  await expect.poll(() => written).toMatchObject([{ status: { versionCount: 2 } }]);
});

/** An API server that keeps what is created, and says what was created for real. */
function remembering(answer: (object: Adapter, options?: { dryRun?: boolean }) => Promise<Adapter> = async (object) => object) {
  const made: Adapter[] = [];
  const create = async (_of: unknown, object: Adapter, options?: { dryRun?: boolean }): Promise<Adapter> => {
    const answered = await answer(object, options);
    if (options?.dryRun !== true) made.push(object);
    return answered;
  };
  return { made, kube: { create: create as Kube["create"], apply: (async (_of: unknown, object: object) => object) as Kube["apply"] } };
}
const withMetadata = (more: object): Adapter => ({
  spec: {},
  metadata: { namespace: "team", name: "pirate", uid: "u", generation: 1, resourceVersion: "10", ...more },
});
const soon = (ms = 150) => new Promise((resolve) => setTimeout(resolve, ms));

it("deletes the adapter whose resource was deleted, and does not make the resource again", async () => {
  const { made, kube } = remembering();
  const { reconciling, deleted, states } = reconciler(kube);
  await using _adapters = reconciling;
  reconciling.onResource("team/pirate", adapter(1, {}));
  reconciling.start();
  reconciling.onResource("team/pirate", undefined);
  await expect.poll(() => deleted).toEqual([{ tenant: "acme", id: "pirate", by: "adapter/team/pirate" }]);
  // The collector marks the versions, then removes the entry.
  states.set("pirate", { ...states.get("pirate"), versions: [{ ...version(1), status: "deleted" }] } as AdapterState);
  reconciling.onAdapter("pirate");
  await soon(400);
  states.delete("pirate");
  reconciling.onAdapter("pirate");
  await soon(400);
  expect(made).toEqual([]);
});

it("makes the resource again where the adapter may not be deleted now, and says why", async () => {
  const { made, kube } = remembering();
  const { reconciling } = reconciler(kube, { refusal: { code: "ADAPTER_IN_TRAINING", message: "run R trains pirate" } });
  await using _adapters = reconciling;
  reconciling.onResource("team/pirate", adapter(1, {}));
  reconciling.start();
  reconciling.onResource("team/pirate", undefined);
  await expect
    .poll(() => made)
    .toMatchObject([
      { metadata: { name: "pirate" } },
      { reason: "ADAPTER_IN_TRAINING", message: expect.stringContaining("run R trains pirate") },
    ]);
});

it.each([
  ["its namespace", new KubeError(403, "Forbidden", "unable to create new content in namespace team because it is being terminated")],
  ["the CRD", new KubeError(405, "MethodNotAllowed", "create not allowed while custom resource definition is terminating")],
])("leaves the adapter alone when the resource went with %s", async (_, refused) => {
  const { kube } = remembering(async () => {
    throw refused;
  });
  const { reconciling, deleted } = reconciler(kube);
  await using _adapters = reconciling;
  reconciling.onResource("team/pirate", adapter(1, {}));
  reconciling.start();
  reconciling.onResource("team/pirate", undefined);
  await soon();
  expect(deleted).toEqual([]);
});

it("takes a resource that is made anew at once, as by kubectl replace --force, for no deletion", async () => {
  const { kube } = remembering();
  const { reconciling, deleted } = reconciler(kube);
  await using _adapters = reconciling;
  reconciling.onResource("team/pirate", adapter(1, {}));
  reconciling.start();
  reconciling.onResource("team/pirate", undefined);
  reconciling.onResource("team/pirate", withMetadata({ uid: "other" }));
  await soon();
  expect(deleted).toEqual([]);
});

it("removes its own resource when the adapter was deleted through another API, and leaves one that somebody wrote", async () => {
  const gone: unknown[] = [];
  const { kube } = remembering();
  const { reconciling, states } = reconciler({ ...kube, delete: async (_of, { name }) => gone.push(name) > 0 });
  states.delete("pirate");
  await using _adapters = reconciling;
  const labels = { "app.kubernetes.io/managed-by": "loraline-operator" };
  const known = { status: { model: "acme/pirate" } };
  reconciling.onResource("team/pirate", { ...withMetadata({ labels }), ...known });
  reconciling.onResource("team/own", {
    ...adapter(1, { version: 2 }),
    ...known,
    metadata: { namespace: "team", name: "own", uid: "o" },
  });
  reconciling.start();
  await expect.poll(() => gone).toEqual(["pirate"]);
  await soon();
  expect(gone).toEqual(["pirate"]);
});
