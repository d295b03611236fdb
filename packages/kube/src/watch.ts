/** A watch that goes on: over ended connections, a restarted API server, and versions that are too old to go on from. */
import { setTimeout as sleep } from "node:timers/promises";
import type { KubernetesObject } from "@kubernetes/client-node";
import { backoffMs, type Log } from "@loraline/runtime";
import { type Kube, KubeError, type ListOptions, type Resource } from "./kube.ts";

export interface WatchOptions<T> extends ListOptions {
  signal: AbortSignal;
  log: Log;
  /** `<namespace>/<name>`, or the name alone; object undefined: it is gone. */
  onChange(key: string, object: T | undefined): void;
  /** Everything there is has been told once. */
  onReady?(): void;
  /** The server ends a watch after this time, and it is taken up again. Default 300 s. */
  timeoutSeconds?: number;
}

export const keyOf = ({ metadata }: KubernetesObject): string =>
  metadata?.namespace === undefined ? (metadata?.name ?? "") : `${metadata.namespace}/${metadata.name}`;

/**
 * Tells what there is, then every change, until the signal is aborted. After a gap it lists again and tells the differences:
 * what changed, and what is gone. Several changes of one object may be told as one.
 */
export async function watch<T extends KubernetesObject>(kube: Kube, of: Resource<T>, options: WatchOptions<T>): Promise<void> {
  const { signal, log, onChange, onReady, timeoutSeconds = 300, ...which } = options;
  const known = new Map<string, string>();
  let resourceVersion: string | undefined;
  let failures = 0;
  let ready = false;

  const tell = (object: T, deleted: boolean): void => {
    const key = keyOf(object);
    const version = object.metadata?.resourceVersion ?? "";
    if (deleted ? !known.has(key) : known.get(key) === version) return;
    if (deleted) known.delete(key);
    else known.set(key, version);
    onChange(key, deleted ? undefined : object);
  };
  const list = async (): Promise<void> => {
    const { items, resourceVersion: version } = await kube.list(of, which);
    const there = new Set(items.map((item) => keyOf(item)));
    for (const item of items) tell(item, false);
    for (const key of known.keys()) {
      if (there.has(key)) continue;
      known.delete(key);
      onChange(key, undefined);
    }
    resourceVersion = version;
    if (!ready) onReady?.();
    ready = true;
  };

  while (!signal.aborted) {
    try {
      if (resourceVersion === undefined) await list();
      const began = performance.now();
      let heard = false;
      for await (const { type, object } of kube.events(of, { ...which, resourceVersion: resourceVersion ?? "", timeoutSeconds, signal })) {
        if (type !== "BOOKMARK") tell(object, type === "DELETED");
        resourceVersion = object.metadata?.resourceVersion ?? resourceVersion;
        heard = true;
        failures = 0;
      }
      // Asking again at once would be hundreds of requests a second.
      if (!heard && performance.now() - began < 1000) throw new Error("the watch was ended at once, and told nothing");
      failures = 0;
    } catch (error) {
      if (signal.aborted) return;
      failures++;
      // 410: the server does not remember that far back. When it has forgotten even what it just listed, it is given time.
      if (error instanceof KubeError && error.status === 410) {
        resourceVersion = undefined;
        if (failures === 1) continue;
      }
      const afterMs = Math.min(10_000, backoffMs(failures));
      log[failures % 10 === 0 ? "error" : "debug"]({ err: error, kind: of.kind, failures, afterMs }, "watch ended; it is taken up again");
      await sleep(afterMs, undefined, { signal }).catch(() => {});
    }
  }
}
