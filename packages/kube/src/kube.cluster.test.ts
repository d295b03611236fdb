/** Against a real API server, which is also killed and started again. */
import type { V1ConfigMap } from "@kubernetes/client-node";
import { createLog } from "@loraline/runtime";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type ApiServer, startApiServer } from "@loraline/testkit/api-server";
import { createKube, type Kube, KubeError, resource } from "./kube.ts";
import { withLease } from "./lease.ts";
import { watch } from "./watch.ts";

const configMaps = resource<V1ConfigMap>("v1", "ConfigMap", "configmaps");
const namespace = "default";
const log = createLog({ service: "test", level: "silent" });
let api: ApiServer;
let kube: Kube;
beforeAll(async () => {
  api = await startApiServer();
  kube = createKube({ kubeconfig: api.kubeconfig });
}, 90_000);
afterAll(() => api[Symbol.asyncDispose]());

const map = (name: string, data: Record<string, string>): V1ConfigMap => ({ metadata: { name, namespace }, data });

describe("objects", () => {
  it("are created, read, applied and deleted", async () => {
    expect(await kube.get(configMaps, { namespace, name: "none" })).toBeUndefined();
    const made = await kube.create(configMaps, map("a", { one: "1" }));
    await expect(kube.create(configMaps, map("a", {}))).rejects.toMatchObject({ status: 409, reason: "AlreadyExists" });

    await kube.apply(configMaps, map("a", { two: "2", three: "3" }), { manager: "m" });
    await kube.apply(configMaps, map("a", { two: "22" }), { manager: "m" });
    // What somebody else wrote stays; what this manager no longer applies goes.
    expect((await kube.get(configMaps, { namespace, name: "a" }))?.data).toEqual({ one: "1", two: "22" });
    await kube.apply(configMaps, map("a", { four: "4" }), { manager: "m", dryRun: true });
    expect((await kube.get(configMaps, { namespace, name: "a" }))?.data).not.toHaveProperty("four");

    expect(await kube.delete(configMaps, { namespace, name: "a" }, { uid: "another" })).toBe(false);
    expect(await kube.delete(configMaps, { namespace, name: "a" }, { uid: made.metadata?.uid })).toBe(true);
    expect(await kube.delete(configMaps, { namespace, name: "a" })).toBe(false);
  });

  it("are listed over several pages", async () => {
    const labels = { set: "many" };
    for (let n = 0; n < 520; n += 40) {
      await Promise.all(
        Array.from({ length: Math.min(40, 520 - n) }, (_, i) =>
          kube.create(configMaps, { metadata: { name: `many-${n + i}`, namespace, labels } }),
        ),
      );
    }
    const { items } = await kube.list(configMaps, { namespace, labelSelector: "set=many" });
    expect(new Set(items.map(({ metadata }) => metadata?.name)).size).toBe(520);
  });

  it("are refused in the server's own words", async () => {
    const error = await kube.create(configMaps, map("Not_A_Name", {})).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(KubeError);
    expect(error).toMatchObject({ status: 422, reason: "Invalid", message: expect.stringContaining("Not_A_Name") });
  });
});

describe("watch", () => {
  const follow = (name: string) => {
    const stop = new AbortController();
    const seen: string[] = [];
    const labelSelector = `watch=${name}`;
    const done = watch(kube, configMaps, {
      namespace,
      labelSelector,
      signal: stop.signal,
      log,
      timeoutSeconds: 2,
      onChange: (key, object) => void seen.push(`${key.replace(`${namespace}/`, "")} ${object === undefined ? "gone" : object.data?.n}`),
      onReady: () => void seen.push("ready"),
    });
    return {
      seen,
      put: (n: number, of = name) =>
        kube.apply(configMaps, { metadata: { name: of, namespace, labels: { watch: name } }, data: { n: String(n) } }, { manager: "m" }),
      [Symbol.asyncDispose]: async () => {
        stop.abort();
        await done;
      },
    };
  };

  it("tells what there is, then each change, also after the server has ended it", async () => {
    await using followed = follow("plain");
    await expect.poll(() => followed.seen).toEqual(["ready"]);
    await followed.put(1);
    await expect.poll(() => followed.seen).toEqual(["ready", "plain 1"]);
    await new Promise((resolve) => setTimeout(resolve, 3000));
    await followed.put(2);
    await kube.delete(configMaps, { namespace, name: "plain" });
    await expect.poll(() => followed.seen).toEqual(["ready", "plain 1", "plain 2", "plain gone"]);
  });

  it("survives a killed API server, and tells what changed and what went meanwhile", async () => {
    await using followed = follow("killed");
    await followed.put(1);
    await followed.put(1, "doomed");
    await expect.poll(() => followed.seen.toSorted()).toEqual(["doomed 1", "killed 1", "ready"]);
    await api.kill();
    api.start();
    await api.ready();
    await followed.put(2);
    await kube.delete(configMaps, { namespace, name: "doomed" });
    await expect.poll(() => followed.seen.slice(3).toSorted(), { timeout: 30_000 }).toEqual(["doomed gone", "killed 2"]);
  }, 60_000);

  it("lists again when the server no longer remembers its version", async () => {
    // A server that answers 410 once, as one does whose history was compacted; the rest is the real one's.
    let expired = 0;
    const forgetful: Kube = {
      ...kube,
      async *events(of, options) {
        if (expired++ === 0) throw new KubeError(410, "Expired", "too old resource version");
        yield* kube.events(of, options);
      },
    };
    const stop = new AbortController();
    const seen: string[] = [];
    await kube.apply(configMaps, { metadata: { name: "old", namespace, labels: { watch: "old" } }, data: { n: "1" } }, { manager: "m" });
    const done = watch(forgetful, configMaps, {
      namespace,
      labelSelector: "watch=old",
      signal: stop.signal,
      log,
      onChange: (_key, object) => void seen.push(object?.data?.n ?? "gone"),
    });
    await expect.poll(() => expired).toBe(2);
    await kube.apply(configMaps, { metadata: { name: "old", namespace, labels: { watch: "old" } }, data: { n: "2" } }, { manager: "m" });
    await expect.poll(() => seen).toEqual(["1", "2"]);
    stop.abort();
    await done;
  });

  it("gets the server's real 410 for a version that was compacted away", async () => {
    const { resourceVersion } = await kube.list(configMaps, { namespace });
    const outcome = async (): Promise<number> => {
      await kube.apply(configMaps, map("churn", { at: String(performance.now()) }), { manager: "m" });
      try {
        const events = kube.events(configMaps, { namespace, resourceVersion: "1", timeoutSeconds: 1, signal: AbortSignal.timeout(5000) });
        for await (const _event of events) break;
        return 200;
      } catch (error) {
        return error instanceof KubeError ? error.status : 0;
      }
    };
    expect(Number(resourceVersion)).toBeGreaterThan(1);
    await expect.poll(outcome, { timeout: 60_000 }).toBe(410);
  }, 30_000);
});

describe("lease", () => {
  it("lets one of two work, the other after it has ended, and never both", async () => {
    const working = new Set<string>();
    const order: string[] = [];
    let together = 0;
    const hold = (identity: string, stop: AbortController) =>
      withLease(kube, {
        namespace,
        name: "one",
        identity,
        log,
        signal: stop.signal,
        durationMs: 2000,
        async work(lost) {
          working.add(identity);
          order.push(identity);
          together = Math.max(together, working.size);
          await new Promise<void>((resolve) => lost.addEventListener("abort", () => resolve(), { once: true }));
          working.delete(identity);
        },
      });
    const [first, second] = [new AbortController(), new AbortController()];
    const a = hold("a", first);
    await expect.poll(() => order).toEqual(["a"]);
    const b = hold("b", second);
    await new Promise((resolve) => setTimeout(resolve, 3000));
    expect(order).toEqual(["a"]);
    first.abort();
    await a;
    await expect.poll(() => order, { timeout: 60_000 }).toEqual(["a", "b"]);
    second.abort();
    await b;
    expect(together).toBe(1);
  }, 30_000);

  it("stops working before others may begin when the API server is away", async () => {
    const stop = new AbortController();
    let state = "waiting";
    const done = withLease(kube, {
      namespace,
      name: "away",
      identity: "a",
      log,
      signal: stop.signal,
      durationMs: 6000,
      async work(lost) {
        state = "working";
        await new Promise<void>((resolve) => lost.addEventListener("abort", () => resolve(), { once: true }));
        state = "stopped";
      },
    });
    await expect.poll(() => state).toBe("working");
    await api.kill();
    const killedAt = performance.now();
    await expect.poll(() => state, { timeout: 60_000 }).toBe("stopped");
    expect(performance.now() - killedAt).toBeLessThan(6000);
    api.start();
    await api.ready();
    await expect.poll(() => state, { timeout: 60_000 }).toBe("working");
    stop.abort();
    await done;
  }, 60_000);
});
