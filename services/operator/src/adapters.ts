/** Reconciles the Adapters of one namespace: creates and removes them, gives the commands that their specs require, and writes their statuses. */
import { type Bus, messageId } from "@loraline/bus";
import {
  type AdapterState,
  adapterKeepRequested,
  adapterPlaceRequested,
  adapterPromoteRequested,
  adapterRollbackRequested,
  type AdapterStatus,
  consumers,
  defaultKeep,
  type Problem,
} from "@loraline/contracts";
import { type Kube, KubeError } from "@loraline/kube";
import { createKeyedQueue, type KeyedQueue, type Log, type Telemetry } from "@loraline/runtime";
import { type Command, decideAdapter, madeBy, tenantLabel } from "./decide-adapter.ts";
import { tell } from "./kube-events.ts";
import type { LineView } from "./line-view.ts";
import { createRemoval, isAlive } from "./remove-adapter.ts";
import { type Adapter, adapters } from "./resources.ts";
import { createStatusWriter, isOlder } from "./write-status.ts";

interface AdaptersDeps {
  kube: Kube;
  bus: Bus;
  line: LineView;
  log: Log;
  telemetry: Telemetry;
  tenant: string;
  namespace: string;
  /** The adapters' states, by name. */
  states: ReadonlyMap<string, AdapterState>;
  /** See remove-adapter.ts. */
  replacedMs?: number | undefined;
}

interface Adapters extends AsyncDisposable {
  onResource(key: string, object: Adapter | undefined): void;
  /** To be called when an adapter's versions, its alias or its replicas have changed. */
  onAdapter(adapter: string): void;
  start(): void;
}

/** How long changes are collected before an Adapter is reconciled. Many replicas change at once, and each may concern all adapters. */
const gatherMs = (count: number): number => 200 + count;
/** After which time a command that is not answered yet is checked again. */
const lookAgainMs = 1500;

/** Whether the operator made the resource, and nobody has written into its spec. */
const isOwnWork = ({ metadata, spec }: Adapter): boolean =>
  metadata?.labels?.["app.kubernetes.io/managed-by"] === madeBy["app.kubernetes.io/managed-by"] && Object.keys(spec ?? {}).length === 0;

export function createAdapters({ kube, bus, line, log, telemetry, tenant, namespace, states, replacedMs }: AdaptersDeps): Adapters {
  const objects = new Map<string, Adapter>();
  const writer = createStatusWriter(kube, adapters);
  let started = false;
  const keyFor = (adapter: string): string => `${namespace}/${adapter}`;

  const reconcile = async (key: string): Promise<void> => {
    const name = key.slice(namespace.length + 1);
    const state = states.get(name);
    const object = objects.get(key);
    if (object === undefined) {
      const afterDeletion = await removal.goOn(name, state);
      if (afterDeletion === undefined) {
        if (isAlive(state)) await make(name);
      } else if (afterDeletion !== null) queue.addAfter(key, afterDeletion);
      return;
    }
    if (object.metadata?.deletionTimestamp !== undefined) return;
    // Deleted through another API. What somebody wrote into a spec is left to its author.
    if (state === undefined && object.status?.model !== undefined && isOwnWork(object)) {
      await kube.delete(adapters, { namespace, name }, { uid: object.metadata?.uid });
      return;
    }
    const at = { tenant, id: name };
    const { generation = 1, uid = "" } = object.metadata ?? {};
    const { asked } = object.status ?? {};
    const refusalOf = async (seq: number | undefined): Promise<Problem | undefined> => {
      const letter = seq === undefined ? undefined : await bus.deadLetters.of(consumers.serveAdapterCommands, tenant, seq);
      return letter && { code: letter.code, message: letter.message };
    };
    const isAsked = {
      version: state?.alias !== asked?.version,
      placement: JSON.stringify(state?.placement ?? { mode: "all" }) !== asked?.placement,
    };
    const isKeepAsked = asked?.keep !== undefined && String(state?.keep ?? defaultKeep) !== asked.keep;
    const [version, placement, last, keep, lastKept] = await Promise.all([
      isAsked.version ? refusalOf(asked?.versionSeq) : undefined,
      isAsked.placement ? refusalOf(asked?.placementSeq) : undefined,
      isAsked.placement && asked?.placementSeq !== undefined ? bus.last(adapterPlaceRequested, at) : undefined,
      isKeepAsked ? refusalOf(asked.keepSeq) : undefined,
      isKeepAsked && asked.keepSeq !== undefined ? bus.last(adapterKeepRequested, at) : undefined,
    ]);
    const { status, commands, milestones, unanswered } = decideAdapter({
      tenant,
      generation,
      spec: object.spec ?? {},
      before: object.status,
      state,
      held: (of) => line.held(state?.engine ?? "", of),
      engineProblem: line.engines(tenant).find(({ engine }) => engine === state?.engine)?.problem ?? undefined,
      refusals: { version, placement, keep },
      lastPlaced: last?.seq,
      lastKept: lastKept?.seq,
      now: new Date().toISOString(),
    });
    for (const command of commands) {
      const seq = await ask(at, command, `${uid}-${generation}`);
      status.asked = { ...status.asked, [`${command.part}Seq`]: seq };
      log.info({ adapter: key, ...command, seq }, "asked for what the Adapter says");
    }
    await tell(kube, adapters, object, milestones, log);
    const { written, afterMs } = await writer.write(object, status satisfies AdapterStatus);
    const known = objects.get(key);
    if (written !== undefined && known !== undefined && !isOlder(written, known)) objects.set(key, written);
    if (afterMs !== undefined) queue.addAfter(key, afterMs);
    if (unanswered) queue.addAfter(key, lookAgainMs);
  };

  /** Gives a command once for each edit, also if the process died before it stored that in the status. @returns the command's sequence */
  const ask = async (at: { tenant: string; id: string }, command: Command, key: string): Promise<number> => {
    const by = `adapter/${namespace}/${at.id}`;
    const actor = { kind: "kubernetes", id: by } as const;
    return telemetry.span(
      `adapter ${at.id}`,
      { parent: null, attributes: { "loraline.tenant": at.tenant, "loraline.adapter": at.id } },
      async () => {
        const event =
          command.part === "placement"
            ? adapterPlaceRequested
            : command.part === "keep"
              ? adapterKeepRequested
              : command.kind === "promote"
                ? adapterPromoteRequested
                : adapterRollbackRequested;
        const published = (await bus.newest([event], at, { limit: 20 })).find(({ id }) => id === messageId(event, at, key));
        if (published !== undefined) return published.seq;
        if (command.part === "placement")
          return (await bus.publish(adapterPlaceRequested, at, { placement: command.placement, by }, { key, actor })).seq;
        if (command.part === "keep") return (await bus.publish(adapterKeepRequested, at, { keep: command.keep, by }, { key, actor })).seq;
        const { version, canary } = command;
        if (command.kind === "promote")
          return (await bus.publish(adapterPromoteRequested, at, { version, canary, by }, { key, actor })).seq;
        return (await bus.publish(adapterRollbackRequested, at, { version, by }, { key, actor })).seq;
      },
    );
  };

  const make = async (name: string): Promise<Adapter | undefined> => {
    try {
      return await kube.create(adapters, { metadata: { namespace, name, labels: { ...madeBy, [tenantLabel]: tenant } }, spec: {} });
    } catch (error) {
      if (!(error instanceof KubeError)) throw error;
      // In a namespace that is being deleted nothing can be created; that is no error.
      const isOver = error.status === 404 || (error.status === 403 && /being terminated/.test(error.message));
      if (error.reason !== "AlreadyExists" && !isOver) throw error;
      return undefined;
    }
  };
  const removal = createRemoval({ kube, bus, log, tenant, namespace, make, replacedMs });

  const queue: KeyedQueue = createKeyedQueue({
    concurrency: 8,
    log,
    work: reconcile,
    measured: { metrics: telemetry.metrics, name: `adapters of ${namespace}` },
  });
  return {
    onResource(key, object) {
      const before = objects.get(key);
      const name = key.slice(namespace.length + 1);
      if (object === undefined) {
        objects.delete(key);
        if (before !== undefined && started) removal.note(name, before);
      } else {
        objects.set(key, object);
        removal.forget(name);
      }
      if (before !== undefined && before.metadata?.uid !== object?.metadata?.uid) writer.forget(before.metadata?.uid ?? "");
      if (started) queue.add(key);
    },
    onAdapter(adapter) {
      if (started) queue.addAfter(keyFor(adapter), gatherMs(objects.size));
    },
    start() {
      started = true;
      for (const key of new Set([...objects.keys(), ...[...states.keys()].map(keyFor)])) queue.add(key);
    },
    [Symbol.asyncDispose]: () => queue[Symbol.asyncDispose](),
  };
}
