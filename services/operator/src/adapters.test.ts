import type { Bus } from "@loraline/bus";
import type { AdapterState, AdapterVersion } from "@loraline/contracts";
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
function reconciler(kube: Partial<Kube>) {
  const asked: number[] = [];
  const bus = {
    newest: async () => [],
    last: async () => undefined,
    deadLetters: { of: async () => undefined },
    publish: async (_event: unknown, _at: unknown, data: { version: number }) => ({ seq: asked.push(data.version) }),
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
  });
  return { reconciling, asked };
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
