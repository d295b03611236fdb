/**
 * What the gateway knows about engines, adapters and replicas, kept in memory by watching their KV buckets, and found by name: a request
 * costs the same however many there are. Of each entry only what the gateway needs is kept.
 */
import { type Bus, createInterner, createLeanReplicaTable, type LoraNames, type ReplicaEntry } from "@loraline/bus";
import {
  type BucketDef,
  buckets,
  type EngineRecord,
  parseAdapterKey,
  replicaKey,
  type ReplicaReport,
  routedAdapter,
  type RoutedAdapter,
  routedHolding,
} from "@loraline/contracts";
import type { z } from "zod";
import { type Candidates, type EngineLoad, fewReplicas, type HeldOnReplica, preferenceOf, type ReplicaView } from "./decide-replicas.ts";
import type { RoutingView, VersionCounts } from "./decide-route.ts";
import { createReplicaUrlJudge, defaultReplicaHosts } from "./engines/judge-replica-url.ts";

/** Agents write every 3 s. */
const silentAfterMs = 15_000;
/** A replica that was silent for this long is not asked any more; another pod may have its address by now. */
const forgottenAfterMs = 10 * 60_000;
/** Replicas that are silent are looked for this often. */
const sweepEveryMs = 1000;

export interface RoutingTable {
  view(): RoutingView;
  engine(name: string): EngineRecord | undefined;
  /** What there is of each engine, for metrics. */
  engines(): { record: EngineRecord; replicas: { ready: number; unready: number; silent: number }; asleep: boolean }[];
  /** Somebody waits for this engine, which may be scaled to zero. */
  wanted(engine: string): void;
  /** A request has waited for this engine in vain. */
  waitedInVain(engine: string): void;
  /** Counts a request as in flight on a replica until the returned function is called; calling it again does nothing. */
  begin(replica: ReplicaView): () => void;
  /** It could not be reached: it is asked last until it is heard of again. */
  unreachable(replica: ReplicaView): void;
  /** Whether requests for this name, a LoRA name or the base's, go to this replica now. */
  isRouted(at: { engineModel: string; engine: string; replica: string }): boolean;
  /** Whether a replica is about to unload an adapter, or to end, and waits for requests. */
  isAnyDraining(): boolean;
  /** LoRA names of the versions that canaries are of, and of those that they are compared with. */
  comparedNames(): ReadonlySet<string>;
}

/** Resolves when the table holds everything that was in the buckets. Ends with the signal. */
export async function createRoutingTable({
  bus,
  signal,
  now = () => performance.now(),
  random,
  replicaHosts = defaultReplicaHosts,
}: {
  bus: Pick<Bus, "bucket">;
  signal: AbortSignal;
  now?: () => number;
  /** For benchmarks: replicas are chosen by these numbers from 0 to 1 instead of by affinity and load. */
  random?: (() => number) | undefined;
  /** Which addresses agents may say of their replicas. */
  replicaHosts?: readonly string[] | undefined;
}): Promise<RoutingTable> {
  const urlProblem = createReplicaUrlJudge(replicaHosts);
  /** A replica whose address is refused is never asked, and `engines` says why. */
  const judged = (state: ReplicaReport): ReplicaReport => {
    const why = urlProblem(state.url);
    if (why === undefined) return state;
    const message = `the replica's address is refused: ${why}. If it is right, the operator allows it with REPLICA_HOSTS of the gateway.`;
    return { ...state, ready: false, problem: { code: "REPLICA_URL_REFUSED", message } };
  };
  const engines = createEngines();
  const adapters = createAdapters();

  /* replicas, by key, by engine, and by the LoRA names that are proven on them */

  const known = new Map<string, KnownReplica>();
  const byEngine = new Map<string, ReplicaGroup>();
  const byName = new Map<string, ReplicaGroup>();
  const loads = new Map<string, MeasuredLoad>();
  const loadOf = (engine: string): MeasuredLoad => entryOf(loads, engine, () => new MeasuredLoad(now));
  const leave = (groups: Map<string, ReplicaGroup>, name: string, replica: KnownReplica): void => {
    const group = groups.get(name);
    group?.remove(replica);
    if (group?.replicas.length === 0) groups.delete(name);
  };

  const replicas = await createLeanReplicaTable<HeldOnReplica>({
    bus,
    signal,
    now,
    holdings: { ...buckets.holdings, value: routedHolding },
    onProven(loraName, entry, isProven) {
      const replica = entryOf(known, entry.key, () => new KnownReplica(entry, now, judged));
      if (!isProven) leave(byName, loraName, replica);
      else entryOf(byName, loraName, () => new ReplicaGroup(loadOf(entry.report.engine))).add(replica);
    },
    onReplica(key, entry) {
      const replica = entry === undefined ? known.get(key) : entryOf(known, key, () => new KnownReplica(entry, now, judged));
      if (replica === undefined) return;
      const { engine } = replica.state;
      const load = loadOf(engine);
      const wasReady = replica.countsAsReady;
      replica.countsAsReady = entry !== undefined && replica.state.ready;
      load.ready(Number(replica.countsAsReady) - Number(wasReady));
      if (entry === undefined) {
        leave(byEngine, engine, replica);
        known.delete(key);
      } else if (!replica.isInGroup) {
        replica.isInGroup = true;
        entryOf(byEngine, engine, () => new ReplicaGroup(load)).add(replica);
      }
    },
  });
  await Promise.all([follow(bus, buckets.engines, signal, engines.take), follow(bus, routed, signal, adapters.take)]);

  let sweptAt = now();
  /** Removes what is known of replicas that are gone, because no watch event says that they went: the bucket's TTL removes entries silently. */
  const sweep = (): void => {
    const time = now();
    if (time - sweptAt < sweepEveryMs) return;
    sweptAt = time;
    for (const { key, heardAt } of replicas.entries()) if (time - heardAt > forgottenAfterMs) replicas.forget(key);
    for (const { key, since } of replicas.orphans()) if (time - since > forgottenAfterMs) replicas.drop(key);
  };

  const view: RoutingView = {
    get engines() {
      return engines.all();
    },
    engine: engines.get,
    enginesOf: engines.ofBase,
    adapter: adapters.get,
    adaptersOf: adapters.of,
    versionsOn: adapters.on,
    replicasOf: (engine) => byEngine.get(engine) ?? { ...nobody, load: loadOf(engine) },
    provenOn: (loraName) => byName.get(loraName) ?? nobody,
    random,
  };

  return {
    view() {
      sweep();
      return view;
    },
    engine: engines.get,
    engines() {
      sweep();
      return engines.all().map((record) => {
        const replicas = { ready: 0, unready: 0, silent: 0 };
        for (const { fresh, state } of byEngine.get(record.engine)?.replicas ?? [])
          replicas[!fresh ? "silent" : state.ready ? "ready" : "unready"] += 1;
        return { record, replicas, asleep: Boolean(record.wake) && loadOf(record.engine).sleeps };
      });
    },
    isRouted({ engineModel, engine, replica }) {
      const found = known.get(replicaKey({ engine, replica }));
      return found !== undefined && found.state.ready && (engineModel === found.state.base || found.proven.has(engineModel));
    },
    isAnyDraining: () =>
      known.values().some(({ state: { counts, problem } }) => (counts?.draining ?? 0) > 0 || problem?.code === "LEAVING"),
    comparedNames: adapters.comparedNames,
    wanted: (engine) => loadOf(engine).want(),
    waitedInVain: (engine) => loadOf(engine).giveUp(),
    unreachable({ state }) {
      const replica = known.get(replicaKey(state));
      if (replica !== undefined) replica.unreachableAt = now();
    },
    begin(replica) {
      const load = loadOf(replica.state.engine);
      replica.inFlight += 1;
      load.requests += 1;
      let ended = false;
      return () => {
        if (ended) return;
        ended = true;
        replica.inFlight -= 1;
        load.requests -= 1;
      };
    },
  };
}

const routed = { ...buckets.adapters, value: routedAdapter };
const nobody: Candidates = { replicas: [], favourites: () => [], others: () => [], load: { requests: 0, replicas: 0 } };

class MeasuredLoad implements EngineLoad {
  requests = 0;
  replicas = 0;
  lastAwayMs: number | undefined;
  #wasReady = false;
  #awaySince: number | undefined;
  /** Since when somebody has waited for one to be ready. */
  #wantedSince: number | undefined;
  #inVain = false;
  readonly #now: () => number;
  constructor(now: () => number) {
    this.#now = now;
    this.#awaySince = now();
  }
  get awayMs(): number | undefined {
    const since = this.#wantedSince ?? this.#awaySince;
    return since === undefined ? undefined : this.#now() - since;
  }
  /** None is ready, and nobody has missed one yet. */
  get sleeps(): boolean {
    return this.replicas === 0 && !this.#inVain;
  }
  want(): void {
    if (this.replicas === 0) this.#wantedSince ??= this.#now();
  }
  giveUp(): void {
    if (this.replicas === 0) this.#inVain = true;
  }
  /** So many more replicas are ready, or fewer. */
  ready(more: number): void {
    if (more === 0) return;
    this.replicas += more;
    if (this.replicas > 0 && this.#awaySince !== undefined) {
      // The first time, the gateway may have started long after the engine.
      if (this.#wasReady || this.#wantedSince !== undefined) this.lastAwayMs = this.awayMs;
      this.#wasReady = true;
      this.#awaySince = undefined;
      this.#wantedSince = undefined;
      this.#inVain = false;
    } else if (this.replicas === 0) this.#awaySince ??= this.#now();
  }
}

/** A replica while it has a heartbeat. What it shows is always the newest. */
class KnownReplica implements ReplicaView {
  inFlight = 0;
  unreachableAt = Number.NEGATIVE_INFINITY;
  /** Whether it is among its engine's ready ones. */
  countsAsReady = false;
  isInGroup = false;
  readonly held: ReplicaView["held"];
  readonly #entry: ReplicaEntry<HeldOnReplica>;
  readonly #now: () => number;
  readonly #judge: (report: ReplicaReport) => ReplicaReport;
  #judged: { report: ReplicaReport; state: ReplicaReport } | undefined;

  constructor(entry: ReplicaEntry<HeldOnReplica>, now: () => number, judge: (report: ReplicaReport) => ReplicaReport) {
    this.#entry = entry;
    this.#now = now;
    this.#judge = judge;
    this.held = (loraName) => entry.held(loraName);
  }
  get state(): ReplicaReport {
    const { report } = this.#entry;
    if (this.#judged?.report !== report) this.#judged = { report, state: this.#judge(report) };
    return this.#judged.state;
  }
  get proven(): LoraNames {
    return this.#entry.proven;
  }
  get fresh(): boolean {
    const { heardAt } = this.#entry;
    return heardAt > this.unreachableAt && this.#now() - heardAt <= silentAfterMs;
  }
}

/** Replicas that could answer for one name. */
class ReplicaGroup implements Candidates {
  readonly load: MeasuredLoad;
  #all: KnownReplica[] = [];
  /** Those that the name asked for last prefers, best first, with how much. */
  #favourites: { name: string; of: { replica: KnownReplica; preference: number }[] } | undefined;
  #next = 0;

  constructor(load: MeasuredLoad) {
    this.load = load;
  }
  get replicas(): readonly KnownReplica[] {
    return this.#all;
  }
  add(replica: KnownReplica): void {
    // A list that grows by itself takes room for seventeen, and most names are on few replicas.
    if (this.#all.length < fewReplicas) this.#all = [...this.#all, replica];
    else this.#all.push(replica);
    this.#favourites = undefined;
  }
  remove(replica: KnownReplica): void {
    const at = this.#all.indexOf(replica);
    if (at < 0) return;
    const last = this.#all.pop();
    if (last !== undefined && last !== replica) this.#all[at] = last;
    if (this.#favourites?.of.some((favourite) => favourite.replica === replica) === true) this.#favourites = undefined;
  }
  favourites(name: string): readonly KnownReplica[] {
    if (this.#favourites?.name !== name) {
      const preferred = this.#all.map((replica) => ({ replica, preference: preferenceOf(name, replica) }));
      this.#favourites = { name, of: preferred.sort((a, b) => b.preference - a.preference).slice(0, half) };
    }
    return this.#favourites.of.map(({ replica }) => replica);
  }
  others(): readonly KnownReplica[] {
    const from = this.#next % this.#all.length;
    this.#next = from + half;
    const some = this.#all.slice(from, from + half);
    return some.length === half ? some : [...some, ...this.#all.slice(0, half - some.length)];
  }
}
const half = fewReplicas / 2;

/** Engines by name and by base. */
function createEngines() {
  const byName = new Map<string, EngineRecord>();
  let all: readonly EngineRecord[] = [];
  let byBase: ReadonlyMap<string, readonly EngineRecord[]> = new Map();
  return {
    all: () => all,
    get: (name: string) => byName.get(name),
    ofBase: (base: string): readonly EngineRecord[] => byBase.get(base) ?? [],
    take(key: string, record: EngineRecord | undefined): void {
      if (record === undefined) byName.delete(key);
      else byName.set(key, record);
      all = [...byName.values()];
      byBase = Map.groupBy(all, ({ base }) => base.name);
    },
  };
}

/** Adapters by tenant and name, and what an engine has of them all together. */
function createAdapters() {
  const share = createInterner();
  const byTenant = new Map<string, Map<string, RoutedAdapter>>();
  const byEngine = new Map<string, { count: number; unplaced: number; ranks: Map<number, number> }>();
  /** By the adapter's key. */
  const compared = new Map<string, string[]>();
  const count = ({ engine, versions }: RoutedAdapter, by: 1 | -1): void => {
    const on = entryOf(byEngine, engine, () => ({ count: 0, unplaced: 0, ranks: new Map<number, number>() }));
    for (const { status, unplaced, rank } of versions) {
      if (status !== "desired") continue;
      on.count += by;
      if (unplaced) on.unplaced += by;
      const ofRank = (on.ranks.get(rank) ?? 0) + by;
      if (ofRank > 0) on.ranks.set(rank, ofRank);
      else on.ranks.delete(rank);
    }
  };
  return {
    get: ({ tenant, adapter }: { tenant: string; adapter: string }) => byTenant.get(tenant)?.get(adapter),
    of: (tenant: string): Iterable<RoutedAdapter> => byTenant.get(tenant)?.values() ?? [],
    on(engine: string): VersionCounts {
      const { count: all, unplaced, ranks } = byEngine.get(engine) ?? { count: 0, unplaced: 0, ranks: new Map<number, number>() };
      return { count: all, unplaced, highestRank: Math.max(0, ...ranks.keys()) };
    },
    comparedNames: (): ReadonlySet<string> => new Set([...compared.values()].flat()),
    take(key: string, state: RoutedAdapter | undefined): void {
      const { tenant, adapter } = parseAdapterKey(key);
      const ofTenant = entryOf(byTenant, tenant, () => new Map<string, RoutedAdapter>());
      const before = ofTenant.get(adapter);
      if (before !== undefined) count(before, -1);
      compared.delete(key);
      const { canary } = state ?? {};
      if (state !== undefined && canary) {
        const both = state.versions.filter(({ version }) => version === canary.version || version === canary.from);
        compared.set(
          key,
          both.map(({ engineName }) => engineName),
        );
      }
      if (state !== undefined) {
        count(state, 1);
        for (const version of state.versions) version.replicas &&= version.replicas.map(share);
        const { versions, alias, canary } = state;
        ofTenant.set(adapter, {
          tenant: share(tenant),
          adapter,
          engine: share(state.engine),
          base: share(state.base),
          alias,
          versions,
          canary,
        });
      } else {
        ofTenant.delete(adapter);
        if (ofTenant.size === 0) byTenant.delete(tenant);
      }
    },
  };
}

function entryOf<T>(map: Map<string, T>, key: string, make: () => T): T {
  let found = map.get(key);
  if (found === undefined) {
    found = make();
    map.set(key, found);
  }
  return found;
}

/** Gives `take` everything that is in the bucket, then each change; value undefined: it was removed. */
async function follow<T extends z.ZodType>(
  bus: Pick<Bus, "bucket">,
  def: BucketDef<T>,
  signal: AbortSignal,
  take: (key: string, value: z.output<T> | undefined) => void,
): Promise<void> {
  const bucket = await bus.bucket(def);
  await new Promise<void>((resolve, reject) => {
    bucket.watch({ signal, onChange: take, onReady: resolve }).catch(reject);
  });
}
