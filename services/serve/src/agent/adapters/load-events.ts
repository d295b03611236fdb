/** Events about what an engine holds: `adapter.loaded` and `adapter.unloaded`. One that cannot be published is tried again later. */
import type { Bus } from "@loraline/bus";
import { adapterLoaded, adapterUnloaded, type Digest, type Proof } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { partsOfLoraName } from "../../lora-names.ts";
import type { WantedAdapter } from "./decide-adapters.ts";

export interface LoadEvents {
  loaded(adapter: WantedAdapter, incarnation: string, proof: Proof, traceparent: string | null): Promise<void>;
  unloaded(loraName: string, digest: Digest, incarnation: string, reason: string): Promise<void>;
  /** Publishes again what could not be published. */
  retry(): Promise<void>;
}

export function createLoadEvents({
  bus,
  engine,
  replica,
  now,
  log,
}: {
  bus: Pick<Bus, "publish">;
  engine: string;
  replica: string;
  now(): number;
  log: Log;
}): LoadEvents {
  /** Events that are not published yet, by key. What they say stays true, so they are never dropped. */
  const unpublished = new Map<string, (key: string) => Promise<unknown>>();
  const publish = async (key: string, event: (key: string) => Promise<unknown>): Promise<void> => {
    unpublished.set(key, event);
    try {
      await event(key);
      unpublished.delete(key);
    } catch (error) {
      log.warn({ err: error, key }, "event not published yet");
    }
  };
  return {
    loaded: ({ tenant, adapter, version, digest, loraName }, incarnation, proof, traceparent) =>
      publish(`${loraName}/${engine}/${replica}/${incarnation}`, (key) =>
        bus.publish(
          adapterLoaded,
          { tenant, id: adapter },
          { version, digest, engine, replica, incarnation, engineName: loraName, proof },
          { key, traceparent },
        ),
      ),
    unloaded(loraName, digest, incarnation, reason) {
      const { tenant, adapter, version } = partsOfLoraName(loraName);
      return publish(`${loraName}/${engine}/${replica}/${incarnation}/${now()}`, (key) =>
        bus.publish(
          adapterUnloaded,
          { tenant, id: adapter },
          { version, digest, engine, replica, incarnation, engineName: loraName, reason },
          { key },
        ),
      );
    },
    async retry() {
      for (const [key, event] of unpublished) await publish(key, event);
    },
  };
}
