/**
 * Every replica with what it holds, kept in memory from KV `replicas` (heartbeats) and `holdings` (one entry per replica and
 * adapter). A holding counts while its incarnation and agent are those of the heartbeat: after a restart of either nothing is
 * proven before it was proven anew, in whichever order the two entries arrive.
 */
import {
  type BucketDef,
  buckets,
  parseHoldingKey,
  type ReplicaAdapter,
  type ReplicaHolding,
  type ReplicaReport,
  type ReplicaState,
} from "@loraline/contracts";
import type { z } from "zod";
import type { Bus } from "./bus.ts";

/** What the table needs of each adapter in an entry of KV `holdings`. */
type Held = Pick<ReplicaAdapter, "engineName" | "state"> & Partial<ReplicaAdapter>;
type HoldingOf<H extends Held> = Pick<ReplicaHolding, "incarnation" | "agent"> & { adapters: H[] };

/** What there is to ask of a set of LoRA names. */
export interface LoraNames extends Iterable<string> {
  has(loraName: string): boolean;
  readonly size: number;
}

/** The same object as long as the replica is known; what it shows changes. */
export interface ReplicaEntry<H extends Held = ReplicaAdapter> {
  /** Its key in KV `replicas`. */
  readonly key: string;
  /** The newest. */
  readonly report: ReplicaReport;
  /** The heartbeat and what is held; made when it is read, which is not for every request. */
  readonly state: Omit<ReplicaState, "adapters"> & { adapters: H[] };
  /** When its last heartbeat came, by `now`: clocks of other machines may differ. */
  readonly heardAt: number;
  /** LoRA names that are proven in the present incarnation. */
  readonly proven: LoraNames;
  held(loraName: string): H | undefined;
}

export interface ReplicaTable<H extends Held = ReplicaAdapter> {
  entries(): IterableIterator<ReplicaEntry<H>>;
  get(key: string): ReplicaEntry<H> | undefined;
  /** Drops the heartbeat of a replica that was silent for too long: its bucket's TTL removes them without telling. */
  forget(key: string): void;
  /** Drops all that is known of a replica. */
  drop(key: string): void;
  /** Replicas that left holdings but have no heartbeat, with the time since when, by `now`. */
  orphans(): { key: string; since: number }[];
}

/** What is told of changes. */
interface ReplicaTableFollower<H extends Held = ReplicaAdapter> {
  /** It came, went, or became another: readiness, incarnation, agent or address. Not at each heartbeat. */
  onReplica?(key: string, entry: ReplicaEntry<H> | undefined): void;
  /** What a replica holds of one adapter changed. */
  onHolding?(key: string, adapterKey: string): void;
  /** A LoRA name is proven on a replica that is there, or is not any more. Before `onReplica` where both are told. */
  onProven?(loraName: string, entry: ReplicaEntry<H>, isProven: boolean): void;
}

interface ReplicaTableOptions<H extends Held> extends ReplicaTableFollower<H> {
  bus: Pick<Bus, "bucket">;
  signal: AbortSignal;
  now?: () => number;
}

/** A replica with what it wrote; the entry that others see while it has a heartbeat. */
class Kept<H extends Held> implements ReplicaEntry<H> {
  readonly key: string;
  /** Of a replica without a heartbeat: the last one. */
  report!: ReplicaReport;
  heardAt = 0;
  isHere = false;
  silentSince: number;
  /** By the adapter's key. */
  readonly holdings = new Map<string, HoldingOf<H>>();
  /** Of the present incarnation, by LoRA name. Empty without a heartbeat. */
  readonly all = new Map<string, H>();
  /** A look at `all`: a set of its own would take as much room again, and nearly everything that is held is proven. */
  readonly proven: LoraNames & { size: number };

  constructor(key: string, silentSince: number) {
    this.key = key;
    this.silentSince = silentSince;
    const { all } = this;
    this.proven = {
      size: 0,
      has: (loraName) => all.get(loraName)?.state === "proven",
      *[Symbol.iterator]() {
        for (const { engineName, state } of all.values()) if (state === "proven") yield engineName;
      },
    };
  }
  get state(): Omit<ReplicaState, "adapters"> & { adapters: H[] } {
    return { ...this.report, adapters: [...this.all.values()] };
  }
  /** Bound, because callers take it out of the entry. */
  readonly held = (loraName: string): H | undefined => this.all.get(loraName);
  counts({ incarnation, agent }: HoldingOf<H>): boolean {
    return this.isHere && incarnation === this.report.incarnation && (agent ?? null) === (this.report.agent ?? null);
  }
}

/** Resolves when it holds everything that was in the buckets. Ends with the signal. */
export const createReplicaTable = (options: ReplicaTableOptions<ReplicaAdapter>): Promise<ReplicaTable> =>
  createLeanReplicaTable({ ...options, holdings: buckets.holdings });

/** The same table, with as much of each holding as `holdings` parses. */
export async function createLeanReplicaTable<H extends Held>({
  bus,
  holdings: holdingsDef,
  signal,
  now = () => performance.now(),
  onReplica = () => {},
  onHolding = () => {},
  onProven = () => {},
}: ReplicaTableOptions<H> & { holdings: BucketDef<z.ZodType<HoldingOf<H>>> }): Promise<ReplicaTable<H>> {
  const replicas = new Map<string, Kept<H>>();
  const share = createInterner();
  /** Lists of one adapter, by its LoRA name, where they say nothing of their replica: all that hold it may have the same one. */
  let alike = new Map<string, [H]>();
  const shareHeld = (adapters: H[]): H[] => {
    const [only] = adapters;
    // A proof, or an error, is a replica's own.
    const isPlain =
      adapters.length === 1 && only !== undefined && Object.values(only).every((value) => typeof value !== "object" || !value);
    if (isPlain) {
      const known = alike.get(only.engineName);
      if (known !== undefined && saysTheSame(known[0], only)) return known;
      if (alike.size >= 500_000) alike = new Map();
      const list: [H] = [known === undefined ? only : { ...only, engineName: known[0].engineName }];
      alike.set(only.engineName, list);
      return list;
    }
    // A hundred replicas name the same thousand adapters.
    for (const each of adapters) {
      if (each.tenant !== undefined) each.tenant = share(each.tenant);
      if (each.adapter !== undefined) each.adapter = share(each.adapter);
      if (each.digest !== undefined) each.digest = share(each.digest);
      each.engineName = share(each.engineName);
    }
    return adapters;
  };

  const keptOf = (key: string): Kept<H> => {
    let kept = replicas.get(key);
    if (kept === undefined) {
      kept = new Kept(key, now());
      replicas.set(key, kept);
    }
    return kept;
  };
  const told = (kept: Kept<H>, loraName: string, wasProven: boolean, isProven: boolean): void => {
    if (wasProven === isProven) return;
    kept.proven.size += isProven ? 1 : -1;
    onProven(loraName, kept, isProven);
  };
  const hold = (kept: Kept<H>, held: H): void => {
    const wasProven = kept.proven.has(held.engineName);
    kept.all.set(held.engineName, held);
    told(kept, held.engineName, wasProven, held.state === "proven");
  };
  const letGo = (kept: Kept<H>, loraName: string): void => {
    const wasProven = kept.proven.has(loraName);
    kept.all.delete(loraName);
    told(kept, loraName, wasProven, false);
  };

  const onReport = (key: string, report: ReplicaReport | undefined): void => {
    const kept = keptOf(key);
    if (report === undefined) {
      const wasHere = kept.isHere;
      for (const loraName of kept.all.keys()) letGo(kept, loraName);
      kept.isHere = false;
      kept.silentSince = now();
      if (kept.holdings.size === 0) replicas.delete(key);
      if (wasHere) onReplica(key, undefined);
      return;
    }
    const before = kept.isHere ? kept.report : undefined;
    const sameProcess = before?.incarnation === report.incarnation && (before.agent ?? null) === (report.agent ?? null);
    if (!sameProcess) for (const loraName of kept.all.keys()) letGo(kept, loraName);
    kept.report = report;
    kept.heardAt = now();
    kept.isHere = true;
    if (!sameProcess) {
      for (const holding of kept.holdings.values()) {
        if (kept.counts(holding)) for (const held of holding.adapters) hold(kept, held);
      }
    }
    if (!sameProcess || before.ready !== report.ready || before.url !== report.url) onReplica(key, kept);
  };

  const onHeld = (full: string, holding: HoldingOf<H> | undefined): void => {
    const parsed = parseHoldingKey(full);
    const key = share(parsed.replicaKey);
    const adapterKey = share(parsed.adapterKey);
    const kept = keptOf(key);
    const before = kept.holdings.get(adapterKey);
    const gone = new Set(before !== undefined && kept.counts(before) ? before.adapters.map(({ engineName }) => engineName) : []);
    if (holding === undefined) kept.holdings.delete(adapterKey);
    else {
      const { incarnation, agent } = holding;
      const adapters = shareHeld(holding.adapters);
      const shared = { incarnation: share(incarnation), agent: share(agent ?? "") || null, adapters };
      kept.holdings.set(adapterKey, shared);
      if (kept.counts(shared)) {
        for (const held of adapters) {
          gone.delete(held.engineName);
          hold(kept, held);
        }
      }
    }
    for (const loraName of gone) letGo(kept, loraName);
    if (holding === undefined && kept.holdings.size === 0 && !kept.isHere) replicas.delete(key);
    onHolding(key, adapterKey);
  };

  const [reports, holdings] = await Promise.all([bus.bucket(buckets.replicas), bus.bucket(holdingsDef)]);
  const ready = [Promise.withResolvers<void>(), Promise.withResolvers<void>()] as const;
  await Promise.all([
    reports.watch({ signal, onChange: onReport, onReady: ready[0].resolve }),
    holdings.watch({ signal, onChange: onHeld, onReady: ready[1].resolve }),
  ]);
  await Promise.all(ready.map(({ promise }) => promise));

  return {
    *entries() {
      for (const kept of replicas.values()) if (kept.isHere) yield kept;
    },
    get(key) {
      const kept = replicas.get(key);
      return kept?.isHere === true ? kept : undefined;
    },
    forget: (key) => onReport(key, undefined),
    drop(key) {
      onReport(key, undefined);
      replicas.delete(key);
    },
    orphans: () =>
      [...replicas.values()]
        .filter(({ isHere, holdings: left }) => !isHere && left.size > 0)
        .map(({ key, silentSince }) => ({ key, since: silentSince })),
  };
}

function saysTheSame<H extends object>(one: H, other: H): boolean {
  const keys = Object.keys(one) as (keyof H)[];
  return keys.length === Object.keys(other).length && keys.every((key) => one[key] === other[key]);
}

/** One string object for equal strings. */
export function createInterner(): <T extends string>(text: T) => T {
  let known = new Map<string, string>();
  return <T extends string>(text: T): T => {
    if (known.size > 500_000) known = new Map();
    const found = known.get(text);
    if (found !== undefined) return found as T;
    known.set(text, text);
    return text;
  };
}
