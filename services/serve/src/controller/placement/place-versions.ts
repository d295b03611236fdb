/** Keeps in KV `adapters` which replicas should hold which versions, as decide-placement.ts decides. */
import type { KvBucket, ReplicaTable } from "@loraline/bus";
import { adapterKey, type AdapterState, type EngineRecord, type Placement, replicaKey } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { rankOf } from "../../version-rank.ts";
import type { WatchedTable } from "../watched-table.ts";
import { decideHandover, decidePlacement, fitsEverywhere, type Placed } from "./decide-placement.ts";

/** Changes within this time are decided together. */
const collectMs = 100;
/** Places written at once. */
const writesAtOnce = 16;

export interface Placer {
  /** To be called with every change of an adapter. */
  onAdapter(state: AdapterState): void;
  /** Replicas of the engine came or went, hold something else than before, or its limits changed. */
  wake(engine: string, because: "replicas" | "holdings" | "limits"): void;
  /** Where a new version of this adapter is before it is placed: everywhere (null) or not yet anywhere. */
  initial(engine: string, known: AdapterState | undefined, placement: Placement | undefined): string[] | null;
  /** Whether every replica of the engine has room for so many versions beside all that are wanted. */
  hasRoom(engine: string, more: number): boolean;
}

const placementOf = ({ placement }: AdapterState): Placement => placement ?? { mode: "all" };
const isPlaced = (state: AdapterState): boolean =>
  placementOf(state).mode !== "all" ||
  state.versions.some(({ status, replicas, unplaced }) => status === "desired" && (replicas ?? unplaced));

/** Ends with the signal. */
export function createPlacer({
  adapters,
  states,
  table,
  engineOf,
  awayMs,
  log,
  signal,
  now = () => performance.now(),
}: {
  adapters: KvBucket<AdapterState>;
  /** Every adapter as it is known now, by key. */
  states: Pick<WatchedTable<AdapterState>, "entries">;
  table: ReplicaTable;
  engineOf(name: string): EngineRecord | undefined;
  /** A replica that is silent this long is not coming back soon: what it held is placed elsewhere. */
  awayMs: number;
  log: Log;
  signal: AbortSignal;
  now?: () => number;
}): Placer {
  /** Desired versions by adapter, and adapters that are not simply everywhere: while there are none, a change costs nothing here. */
  const engines = new Map<string, { counts: Map<string, number>; wanted: number; placed: Set<string>; moving: boolean }>();
  const engine = (name: string) => {
    let found = engines.get(name);
    if (found === undefined) {
      found = { counts: new Map(), wanted: 0, placed: new Set(), moving: false };
      engines.set(name, found);
    }
    return found;
  };
  const due = new Set<string>();
  let timer: NodeJS.Timeout | undefined;
  let working: Promise<void> | undefined;

  const replicasOf = (name: string): string[] => {
    const time = now();
    const alive = [...table.entries()].filter(({ report, heardAt }) => report.engine === name && time - heardAt < awayMs);
    const silent = table.orphans().filter(({ key, since }) => key.startsWith(`${name}.`) && time - since < awayMs);
    return [...new Set([...alive.map(({ report }) => report.replica), ...silent.map(({ key }) => key.slice(name.length + 1))])].toSorted();
  };

  const place = async (name: string): Promise<void> => {
    const record = engineOf(name);
    const known = engine(name);
    if (record === undefined || (fitsEverywhere(known.wanted, record.maxCpuLoras) && known.placed.size === 0)) {
      known.moving = false;
      return;
    }
    const replicas = replicasOf(name);
    const here = [...states.entries()].filter(([, state]) => state.engine === name);
    const versions = here.flatMap(([key, state]) =>
      state.versions
        .filter(({ status }) => status === "desired")
        .map((version) => ({
          key,
          loraName: version.engineName,
          placement: placementOf(state),
          rank: rankOf(state, version),
          current: version.replicas ?? null,
          unplaced: version.unplaced ?? null,
        })),
    );
    const placed = decidePlacement({ engine: name, versions, replicas, capacity: record.maxCpuLoras });
    const changes = new Map<string, Map<string, Placed>>();
    known.moving = false;
    for (const { key, loraName, current, unplaced } of versions) {
      const target = placed.get(loraName);
      if (target === undefined) continue;
      const next = decideHandover(target.replicas, current, replicas, (replica) => {
        const entry = table.get(replicaKey({ engine: name, replica }));
        if (entry === undefined || !entry.report.ready) return "away";
        const state = entry.held(loraName)?.state;
        if (state === "proven") return "proven";
        return state === "refused" || state === "quarantined" ? "failed" : "pending";
      });
      if (!sameList(next, target.replicas)) known.moving = true;
      if (sameList(next, current) && (unplaced?.message ?? null) === (target.problem?.message ?? null)) continue;
      if (!changes.has(key)) changes.set(key, new Map());
      changes.get(key)?.set(loraName, { replicas: next, problem: target.problem });
      if (target.problem !== null && target.problem.code !== unplaced?.code)
        log.warn({ loraName, ...target.problem }, "not placed as asked");
    }
    const keys = [...changes.keys()];
    const write = async (): Promise<void> => {
      for (let key = keys.pop(); key !== undefined; key = keys.pop()) await writePlaces(adapters, key, changes.get(key) ?? new Map());
    };
    await Promise.all(Array.from({ length: Math.min(writesAtOnce, keys.length) }, write));
    if (changes.size > 0)
      log.info({ engine: name, adapters: changes.size, replicas: replicas.length, wanted: known.wanted }, "versions placed");
  };

  const run = (): void => {
    timer = undefined;
    if (signal.aborted || working !== undefined) return;
    const names = [...due];
    due.clear();
    working = (async () => {
      for (const name of names) {
        await place(name).catch((error: unknown) => {
          if (signal.aborted) return;
          log.warn({ err: error, engine: name }, "placing failed; it will be tried again");
          due.add(name);
        });
      }
    })().finally(() => {
      working = undefined;
      if (due.size > 0) schedule();
    });
  };
  const schedule = (): void => {
    timer ??= setTimeout(run, collectMs);
  };
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  const wake = (name: string): void => {
    due.add(name);
    schedule();
  };
  // Replicas that vanish send nothing.
  const resync = setInterval(() => {
    for (const [name, { placed, moving }] of engines) if (placed.size > 0 || moving) wake(name);
  }, awayMs / 2);
  signal.addEventListener("abort", () => clearInterval(resync), { once: true });

  return {
    onAdapter(state) {
      const known = engine(state.engine);
      const key = adapterKey(state);
      const before = known.counts.get(key) ?? 0;
      const count = state.versions.filter(({ status }) => status === "desired").length;
      known.counts.set(key, count);
      known.wanted += count - before;
      const wasPlaced = known.placed.has(key);
      if (isPlaced(state)) known.placed.add(key);
      else known.placed.delete(key);
      const record = engineOf(state.engine);
      if (wasPlaced || known.placed.size > 0 || record === undefined || !fitsEverywhere(known.wanted, record.maxCpuLoras))
        wake(state.engine);
    },
    wake(name, because) {
      const known = engine(name);
      if (because === "limits" || (known.placed.size > 0 && (because === "replicas" || known.moving))) wake(name);
    },
    hasRoom(name, more) {
      const record = engineOf(name);
      return record !== undefined && fitsEverywhere(engine(name).wanted + more, record.maxCpuLoras);
    },
    initial(name, state, placement) {
      const record = engineOf(name);
      const known = engine(name);
      const mode = (placement ?? (state && placementOf(state)))?.mode ?? "all";
      return mode === "all" && (record === undefined || fitsEverywhere(known.wanted + 1, record.maxCpuLoras)) ? null : [];
    },
  };
}

/** Only of versions that are still desired; what is so already is not written. */
async function writePlaces(adapters: KvBucket<AdapterState>, key: string, places: ReadonlyMap<string, Placed>): Promise<void> {
  await adapters.change(key, (current) => {
    if (current === undefined) return undefined;
    let changed = false;
    const versions = current.versions.map((version) => {
      const place = version.status === "desired" ? places.get(version.engineName) : undefined;
      if (place === undefined) return version;
      const same = sameList(place.replicas, version.replicas ?? null) && place.problem?.message === version.unplaced?.message;
      if (same) return version;
      changed = true;
      return { ...version, replicas: place.replicas === null ? null : [...place.replicas], unplaced: place.problem };
    });
    return changed ? { ...current, versions } : undefined;
  });
}

const sameList = (a: readonly string[] | null, b: readonly string[] | null): boolean =>
  a === b || (a !== null && b !== null && a.length === b.length && a.every((each, i) => each === b[i]));
