/**
 * An Adapter that somebody deleted: its adapter is deleted, too, or the Adapter is made again and says why not. Without a finalizer (ADR 10),
 * so this is for deletions that this process sees.
 */
import { type Bus, messageId } from "@loraline/bus";
import { adapterDeleteRequested, type AdapterState, consumers } from "@loraline/contracts";
import { type Kube, KubeError } from "@loraline/kube";
import type { Log } from "@loraline/runtime";
import { tell } from "./kube-events.ts";
import { type Adapter, adapters } from "./resources.ts";

/** A resource that is deleted and made anew within this time, as by `kubectl replace --force`, was not meant to be deleted. */
const replacedWithinMs = 5000;
/** After which time a command that is not answered yet is checked again. */
const lookAgainMs = 1500;

interface RemovalDeps {
  kube: Kube;
  bus: Pick<Bus, "publish" | "newest" | "deadLetters">;
  log: Log;
  tenant: string;
  namespace: string;
  /** @returns the resource of this name, which is made if there is none; undefined: none can be made. */
  make(name: string): Promise<Adapter | undefined>;
  replacedMs?: number | undefined;
}

interface Deleted {
  uid: string;
  since: number;
}

interface Removal {
  /** Notes that the resource was deleted. */
  note(name: string, object: Adapter): void;
  /** The name has a resource again, or never lost it. */
  forget(name: string): void;
  /**
   * Goes on with the deletion, if there is one.
   * @returns undefined: nobody deleted it. Otherwise after which time to call again, in ms; null: never.
   */
  goOn(name: string, state: AdapterState | undefined): Promise<number | null | undefined>;
}

/** Whether the adapter answers, or could: not when it was deleted and its records are about to go. */
export const isAlive = (state: AdapterState | undefined): boolean =>
  state !== undefined && state.versions.some(({ status }) => status !== "deleted");

export function createRemoval({ kube, bus, log, tenant, namespace, make, replacedMs = replacedWithinMs }: RemovalDeps): Removal {
  const deleted = new Map<string, Deleted>();

  /** In a namespace that is being deleted, or with the CRD, resources go by themselves: nobody decided about the adapters. */
  const isMeant = async (name: string): Promise<boolean> => {
    try {
      await kube.create(adapters, { metadata: { namespace, name }, spec: {} }, { dryRun: true });
      return true;
    } catch (error) {
      if (error instanceof KubeError && error.status < 500 && error.status !== 429 && error.status !== 401) return false;
      throw error;
    }
  };

  /** Asks once for each resource, also if this process died meanwhile. @returns the command's sequence */
  const ask = async (name: string, uid: string): Promise<number> => {
    const at = { tenant, id: name };
    const key = `${uid}-deleted`;
    const asked = (await bus.newest([adapterDeleteRequested], at, { limit: 20 })).find(
      ({ id }) => id === messageId(adapterDeleteRequested, at, key),
    );
    if (asked !== undefined) return asked.seq;
    const by = `adapter/${namespace}/${name}`;
    const { seq } = await bus.publish(adapterDeleteRequested, at, { by }, { key, actor: { kind: "kubernetes", id: by } });
    log.info({ adapter: `${namespace}/${name}`, seq }, "the Adapter was deleted; so is the adapter");
    return seq;
  };

  return {
    note: (name, object) => void deleted.set(name, { uid: object.metadata?.uid ?? "", since: performance.now() }),
    forget: (name) => void deleted.delete(name),
    async goOn(name, state) {
      const found = deleted.get(name);
      if (found === undefined) return undefined;
      const done = (): null => {
        deleted.delete(name);
        return null;
      };
      if (!isAlive(state)) return done();
      const early = found.since + replacedMs - performance.now();
      if (early > 0) return early;
      if (!(await isMeant(name))) return done();
      const letter = await bus.deadLetters.of(consumers.serveAdapterCommands, tenant, await ask(name, found.uid));
      if (letter === undefined) return lookAgainMs;
      const object = await make(name);
      if (object !== undefined) {
        const message = `the adapter is not deleted: ${letter.message}`;
        await tell(kube, adapters, object, [{ type: "Warning", reason: letter.code, message, key: `not-deleted-${found.uid}` }], log);
      }
      return done();
    },
  };
}
