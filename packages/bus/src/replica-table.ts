/**
 * Every replica with what it holds, kept in memory from KV `replicas` (heartbeats) and `holdings` (one entry per replica and
 * adapter). A holding counts while its incarnation and agent are those of the heartbeat: after a restart of either nothing is
 * proven before it was proven anew, in whichever order the two entries arrive.
 */
import {
  buckets,
  parseHoldingKey,
  type ReplicaAdapter,
  type ReplicaHolding,
  type ReplicaReport,
  type ReplicaState,
} from "@loraline/contracts";
import type { Bus } from "./bus.ts";

export interface ReplicaEntry {
  /** Its key in KV `replicas`. */
  readonly key: string;
  readonly report: ReplicaReport;
  /** The heartbeat and what is held; `adapters` is made when it is read, which is not for every request. */
  readonly state: ReplicaState;
  /** When its last heartbeat came, by `now`: clocks of other machines may differ. */
  readonly heardAt: number;
  /** LoRA names that are proven in the present incarnation. */
  readonly proven: ReadonlySet<string>;
  held(loraName: string): ReplicaAdapter | undefined;
}

export interface ReplicaTable {
  entries(): IterableIterator<ReplicaEntry>;
  get(key: string): ReplicaEntry | undefined;
  /** Drops the heartbeat of a replica that was silent for too long: its bucket's TTL removes them without telling. */
  forget(key: string): void;
  /** Drops all that is known of a replica. */
  drop(key: string): void;
  /** Replicas that left holdings but have no heartbeat, with the time since when, by `now`. */
  orphans(): { key: string; since: number }[];
}

interface Kept {
  report: ReplicaReport | undefined;
  entry: ReplicaEntry | undefined;
  /** By the adapter's key. */
  holdings: Map<string, ReplicaHolding>;
  /** Of the present incarnation, by LoRA name. */
  held: Map<string, ReplicaAdapter>;
  proven: Set<string>;
  silentSince: number;
}

/** Resolves when it holds everything that was in the buckets. Ends with the signal. */
export async function createReplicaTable({
  bus,
  signal,
  now = () => performance.now(),
  onReplica = () => {},
  onHolding = () => {},
}: {
  bus: Pick<Bus, "bucket">;
  signal: AbortSignal;
  now?: () => number;
  /** It came, went, or became another: readiness, incarnation, agent or address. Not at each heartbeat. */
  onReplica?(key: string, entry: ReplicaEntry | undefined): void;
  /** What a replica holds of one adapter changed. */
  onHolding?(key: string, adapterKey: string): void;
}): Promise<ReplicaTable> {
  const replicas = new Map<string, Kept>();
  const share = createInterner();

  const keptOf = (key: string): Kept => {
    let kept = replicas.get(key);
    if (kept === undefined) {
      kept = { report: undefined, entry: undefined, holdings: new Map(), held: new Map(), proven: new Set(), silentSince: now() };
      replicas.set(key, kept);
    }
    return kept;
  };
  const counts = ({ report }: Kept, { incarnation, agent }: ReplicaHolding): boolean =>
    report !== undefined && incarnation === report.incarnation && (agent ?? null) === (report.agent ?? null);
  const take = ({ held, proven }: Kept, { adapters }: ReplicaHolding): void => {
    for (const adapter of adapters) {
      held.set(adapter.engineName, adapter);
      if (adapter.state === "proven") proven.add(adapter.engineName);
      else proven.delete(adapter.engineName);
    }
  };
  const drop = ({ held, proven }: Kept, { adapters }: ReplicaHolding): void => {
    for (const { engineName: loraName } of adapters) {
      held.delete(loraName);
      proven.delete(loraName);
    }
  };

  const onReport = (key: string, report: ReplicaReport | undefined): void => {
    const kept = keptOf(key);
    const before = kept.report;
    kept.report = report;
    if (report === undefined) {
      kept.entry = undefined;
      kept.silentSince = now();
      if (kept.holdings.size === 0) replicas.delete(key);
      if (before !== undefined) onReplica(key, undefined);
      return;
    }
    const sameProcess = before?.incarnation === report.incarnation && (before.agent ?? null) === (report.agent ?? null);
    if (!sameProcess) {
      kept.held = new Map();
      kept.proven = new Set();
      for (const holding of kept.holdings.values()) if (counts(kept, holding)) take(kept, holding);
    }
    const { held, proven } = kept;
    const state = Object.defineProperty({ ...report } as ReplicaState, "adapters", {
      enumerable: true,
      get: () => [...held.values()],
    });
    kept.entry = { key, report, state, heardAt: now(), proven, held: (loraName) => held.get(loraName) };
    if (!sameProcess || before.ready !== report.ready || before.url !== report.url) onReplica(key, kept.entry);
  };

  const onHeld = (full: string, holding: ReplicaHolding | undefined): void => {
    const parsed = parseHoldingKey(full);
    const key = share(parsed.replicaKey);
    const adapterKey = share(parsed.adapterKey);
    const kept = keptOf(key);
    const before = kept.holdings.get(adapterKey);
    if (before !== undefined && counts(kept, before)) drop(kept, before);
    if (holding === undefined) {
      kept.holdings.delete(adapterKey);
      if (kept.holdings.size === 0 && kept.report === undefined) replicas.delete(key);
    } else {
      // A hundred replicas name the same thousand adapters.
      for (const each of holding.adapters) {
        each.tenant = share(each.tenant);
        each.adapter = share(each.adapter);
        each.engineName = share(each.engineName);
        each.digest = share(each.digest);
      }
      const shared = { ...holding, incarnation: share(holding.incarnation), agent: share(holding.agent ?? "") || null };
      kept.holdings.set(adapterKey, shared);
      if (counts(kept, shared)) take(kept, shared);
    }
    onHolding(key, adapterKey);
  };

  const [reports, holdings] = await Promise.all([bus.bucket(buckets.replicas), bus.bucket(buckets.holdings)]);
  const ready = [Promise.withResolvers<void>(), Promise.withResolvers<void>()] as const;
  await Promise.all([
    reports.watch({ signal, onChange: onReport, onReady: ready[0].resolve }),
    holdings.watch({ signal, onChange: onHeld, onReady: ready[1].resolve }),
  ]);
  await Promise.all(ready.map(({ promise }) => promise));

  return {
    *entries() {
      for (const { entry } of replicas.values()) if (entry !== undefined) yield entry;
    },
    get: (key) => replicas.get(key)?.entry,
    forget: (key) => onReport(key, undefined),
    drop(key) {
      onReport(key, undefined);
      replicas.delete(key);
    },
    orphans: () =>
      [...replicas]
        .filter(([, { entry, holdings: left }]) => entry === undefined && left.size > 0)
        .map(([key, { silentSince }]) => ({ key, since: silentSince })),
  };
}

/** One string object for equal strings. */
function createInterner(): <T extends string>(text: T) => T {
  let known = new Map<string, string>();
  return <T extends string>(text: T): T => {
    if (known.size > 500_000) known = new Map();
    const found = known.get(text);
    if (found !== undefined) return found as T;
    known.set(text, text);
    return text;
  };
}
