/**
 * Beside each engine: makes it hold what KV `adapters` wants of this replica, proves it, and tells in KV `replicas` and `holdings`.
 *
 *   KV adapters ─► wanted ─┐
 *   engine ──────► observed ├─► decide-adapters.ts, name by name ─► adapter-steps.ts ─► replica-report.ts
 *   KV traffic ──► requests ┘
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Bus } from "@loraline/bus";
import {
  adapterLoaded,
  type AdapterState,
  adapterUnloaded,
  buckets,
  type Digest,
  type EngineRecord,
  type Problem,
  type Proof,
  type ReplicaAdapter,
} from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import { type Log, RetryLaterError, type Telemetry } from "@loraline/runtime";
import { ulid } from "ulid";
import { type AdapterFiles, createAdapterFiles } from "./adapter-files.ts";
import { checkTemplate } from "./check-template.ts";
import { createAdapterSteps, faultOf } from "./adapter-steps.ts";
import {
  type AgentAction,
  decideAdapter,
  decideFault,
  type DrainLimits,
  drainLimits,
  type Fault,
  type HeldAdapter,
  type Leaving,
  type WantedAdapter,
} from "./decide-adapters.ts";
import { createEngineObserver } from "./engine-observer.ts";
import { hexOf, isEngineName } from "../lora-names.ts";
import { createReplicaReporter } from "./replica-report.ts";
import { createTrafficView } from "./traffic-view.ts";
import { createVllmClient } from "../engines/vllm-client.ts";

export interface AgentServiceDeps {
  bus: Pick<Bus, "bucket" | "publish">;
  objects: Pick<Objects, "get">;
  log: Log;
  telemetry: Telemetry;
  /** Name of the engine this replica belongs to. */
  engine: string;
  /** Name of the base, as the engine serves it. */
  base: string;
  /** Identity of the replica: pod UID, or the local process's slot. */
  replica: string;
  /** Where the agent reaches the engine: loopback. */
  engineUrl: string;
  /** What the engine was started with as VLLM_API_KEY. */
  engineKey?: string | undefined;
  /** Where the gateway reaches it. */
  publicUrl: string;
  /** Belongs to this agent alone; the engine must see it under the same path. */
  adaptersDir: string;
  /** For agents of one process that share a folder; default: `adaptersDir`. */
  files?: AdapterFiles;
  /** Ranks the engine was started for. Default: what KV `engines` says. */
  maxLoraRank?: number;
  /** Changes with each start of the engine process. Default: its start time from /metrics. */
  incarnation?: () => Promise<string>;
  drain?: Partial<DrainLimits>;
  leave?: Partial<typeof leaveLimits>;
  healthMs?: number;
  heartbeatMs?: number;
  loadTimeoutMs?: number;
}

export interface ServeAgent extends AsyncDisposable {
  /**
   * What keeps the replica from counting as ready, in words: its engine is away, or not everything that was wanted when this engine
   * process began has been proven (or refused, or given up) yet. What is wanted later does not count: a new version would take
   * all replicas out at once.
   */
  unready(): string | undefined;
  /**
   * The engine is about to be ended: gateways are told to send nothing more, and what they still have in flight here is waited for.
   * Resolves with what came of it, in words. Another engine process that comes up afterwards is served from again.
   */
  drain(): Promise<string>;
}

/** How long a replica that is about to end waits for its last requests, and for gateways that say nothing. */
export const leaveLimits = { mostMs: 75_000, unknownMs: 20_000, pollMs: 200 };

/** Adapters worked on at once; the engine itself takes one step at a time. */
const concurrency = 4;
/** Of these, so many may be ones that had a fault before: those that had none are never kept waiting by them. */
const retriesAtOnce = 2;
/** Work that takes longer does not keep others waiting any more… */
const slowMs = 5000;
/** …but so much at most is under way. */
const mostAtOnce = 16;
/** Files stay this long after their adapter is not listed any more: a request in flight may still make the engine read them. */
const fileGraceMs = 60_000;
/** Adapters whose files are looked at per heartbeat. */
const filesPerHeartbeat = 256;

interface Held extends HeldAdapter {
  attempts: number;
  blame: ReplicaAdapter["blame"];
  proof: Proof | null;
  error: Problem | null;
  at: string;
}

export async function createAgentService(deps: AgentServiceDeps): Promise<ServeAgent> {
  const { bus, objects, telemetry, engine: engineName, base, replica, publicUrl, healthMs = 500, heartbeatMs = 3000 } = deps;
  const log = deps.log.child({ engine: engineName, replica });
  const [adapterBucket, replicas, holdings, engines] = await Promise.all([
    bus.bucket(buckets.adapters),
    bus.bucket(buckets.replicas),
    bus.bucket(buckets.holdings),
    bus.bucket(buckets.engines),
  ]);
  const stopping = new AbortController();
  const client = createVllmClient({
    url: deps.engineUrl,
    apiKey: deps.engineKey,
    ...(deps.loadTimeoutMs === undefined ? {} : { loadTimeoutMs: deps.loadTimeoutMs }),
  });
  const files = deps.files ?? createAdapterFiles({ dir: deps.adaptersDir, objects });
  const traffic = await createTrafficView({ bus, replica, signal: stopping.signal });
  const limits: DrainLimits = { ...drainLimits, ...deps.drain };
  const check = () => checkTemplate({ client, base, log, engine: async () => (await engines.get(engineName))?.value });
  const engine = createEngineObserver({ client, base, log, incarnation: deps.incarnation, check, onChange: engineChanged });
  const steps = createAdapterSteps({ client, engine, files, objects, telemetry, base, limits: engineLimits });

  /* ---- what is wanted, and what is known ---- */

  /** Engine names of each adapter, `<tenant>.<adapter>`. */
  const namesOf = new Map<string, string[]>();
  const wanted = new Map<string, WantedAdapter>();
  let wantedIsRead = false;
  const held = new Map<string, Held>();
  const leaving = new Map<string, Leaving & { attempts: number; error: Problem | null }>();
  const spoiled = new Map<string, number>();
  /** Loaded by this agent and never proven: nobody was ever sent to them. Of others, an agent before this one may have said it. */
  const unused = new Set<string>();
  const inWork = new Map<string, { since: number; retry: boolean; done: Promise<void> }>();

  function currentOf(name: string): Held | undefined {
    const known = held.get(name);
    return known?.incarnation === engine.incarnation ? known : undefined;
  }

  function takeAdapter(key: string, state: AdapterState | undefined): void {
    const now = state === undefined || state.engine !== engineName ? [] : wantedOf(state, replica);
    const before = namesOf.get(key) ?? [];
    if (now.length === 0 && before.length === 0) return;
    const names = new Set(now.map(({ engineName: name }) => name));
    for (const name of before) {
      if (names.has(name)) continue;
      wanted.delete(name);
      if (engine.observed?.listed.has(name)) leave(name);
      held.delete(name);
      spoiled.delete(name);
    }
    for (const adapter of now) {
      wanted.set(adapter.engineName, adapter);
      leaving.delete(adapter.engineName);
    }
    if (now.length === 0) namesOf.delete(key);
    else namesOf.set(key, [...names]);
    if (!wantedIsRead) return;
    void reporter.changed(key);
    consider([...before, ...names]);
  }

  function leave(name: string): void {
    if (!leaving.has(name)) leaving.set(name, { since: unused.has(name) ? 0 : Date.now(), retryAt: 0, attempts: 0, error: null });
  }

  function engineChanged(what: "ready" | "away" | "listed"): void {
    if (what !== "listed") {
      if (what === "ready") {
        if (awaited.incarnation !== engine.incarnation) awaited = { incarnation: engine.incarnation, names: new Set(wanted.keys()) };
        spoiled.clear();
        unused.clear();
      }
      void reporter.heartbeat();
      return;
    }
    const listed = engine.observed?.listed ?? new Map<string, string | null>();
    if (wantedIsRead) for (const name of listed.keys()) if (!wanted.has(name) && isEngineName(name)) leave(name);
    // Somebody else unloaded it.
    for (const [name, { state }] of held) {
      if (state !== "proven" || listed.has(name)) continue;
      held.delete(name);
      tellHolding(name);
    }
    for (const name of leaving.keys()) {
      if (listed.has(name)) continue;
      leaving.delete(name);
      tellHolding(name);
    }
    consider(wanted.keys());
    consider(leaving.keys());
  }

  /* ---- deciding and doing ---- */

  /** Names to decide about, by rank. */
  const due = [new Set<string>(), new Set<string>(), new Set<string>()] as const;
  let deciding = false;
  function consider(names: Iterable<string>): void {
    for (const name of names) due[wanted.get(name)?.rank ?? 2].add(name);
    if (deciding || stopping.signal.aborted) return;
    deciding = true;
    // What changes together is decided once.
    queueMicrotask(() => {
      deciding = false;
      decide();
    });
  }

  function decide(): void {
    if (stopping.signal.aborted || isLeaving()) return;
    const now = Date.now();
    let free = concurrency;
    let retries = 0;
    for (const { since, retry } of inWork.values()) {
      if (now - since < slowMs) free -= 1;
      if (retry) retries += 1;
    }
    if (inWork.size > 0 && free <= 0) wake("", now + slowMs);
    const view = {
      wanted: wantedIsRead ? wanted : undefined,
      engine: engine.observed,
      held,
      inWork,
      leaving,
      spoiled,
      pathOf: files.pathOf,
      requests: traffic.requests,
    };
    for (const names of due) {
      for (const name of names) {
        const action = decideAdapter(view, name, now, limits);
        if (action === undefined || action.kind === "wake") {
          names.delete(name);
          if (action !== undefined) wake(name, action.at);
          continue;
        }
        const retry = (currentOf(name)?.attempts ?? 0) > 0;
        if (free <= 0 || inWork.size >= mostAtOnce) return;
        if (retry && retries >= retriesAtOnce) continue;
        names.delete(name);
        free -= 1;
        retries += retry ? 1 : 0;
        start(name, action, retry);
      }
    }
  }

  const alarms = new Map<string, number>();
  let alarm: NodeJS.Timeout | undefined;
  let alarmAt = Number.POSITIVE_INFINITY;
  /** Decides about a name then; the name "" only looks for room. */
  function wake(name: string, at: number): void {
    alarms.set(name, Math.min(at, alarms.get(name) ?? Number.POSITIVE_INFINITY));
    if (at >= alarmAt) return;
    clearTimeout(alarm);
    alarmAt = at;
    alarm = setTimeout(
      () => {
        alarmAt = Number.POSITIVE_INFINITY;
        const now = Date.now();
        const rung: string[] = [];
        let next = Number.POSITIVE_INFINITY;
        for (const [each, when] of alarms) {
          if (when <= now) {
            alarms.delete(each);
            if (each !== "") rung.push(each);
          } else next = Math.min(next, when);
        }
        if (next < Number.POSITIVE_INFINITY) wake("", next);
        consider(rung);
      },
      Math.max(1, at - Date.now()),
    );
  }

  function start(name: string, action: Exclude<AgentAction, { kind: "wake" }>, retry: boolean): void {
    const work = async (): Promise<void> => {
      try {
        if (action.kind === "unload") await unload(name, action.reason);
        else if (action.kind === "load") {
          // An earlier load that gave no answer may have gone through meanwhile.
          if (retry) await engine.look();
          if (retry && engine.observed?.listed.has(name) !== false) return;
          spoiled.delete(name);
          await steps.load(action.wanted);
          unused.add(name);
        } else await prove(action.wanted);
      } catch (error) {
        if (stopping.signal.aborted) return;
        if (action.kind === "unload") unloadFailed(name, { code: "UNLOAD_FAILED", message: String(error) });
        else fault(action.wanted, faultOf(error, name), error);
        // What the engine holds is seen anew before it is decided anew.
        await engine.look();
      }
    };
    const done = work().finally(() => {
      inWork.delete(name);
      // Not wanted any more since it was begun.
      if (engine.observed?.listed.has(name) && !wanted.has(name)) leave(name);
      tellHolding(name);
      consider([name]);
    });
    inWork.set(name, { since: Date.now(), retry, done });
  }

  async function prove(adapter: WantedAdapter): Promise<void> {
    const { engineName: name } = adapter;
    const result = await steps.prove(adapter);
    if (result.kind === "spoiled") {
      spoiled.set(name, 0);
      throw new RetryLaterError(
        "ADAPTER_FILES_SPOILED",
        0,
        `the files of ${name} on disk are not what was published; they are fetched again`,
      );
    }
    if (!wanted.has(name)) return;
    const { proof, problem, incarnation } = result;
    if (result.kind === "proven") unused.delete(name);
    remember(adapter, { state: result.kind, proof, error: problem, blame: null, attempts: 0, retryAt: 0 }, incarnation);
    if (problem !== null) log.error({ engineName: name, ...problem, proof }, "adapter refused");
    else log.info({ engineName: name, proof }, "adapter proven");
    // Neither waits for the other: one packet says both.
    const told = reporter.changed(adapterKeyOf(adapter));
    if (problem === null) {
      const { tenant, adapter: id, version, digest } = adapter;
      const traceparent = telemetry.traceparent() ?? adapter.trace;
      await tell(`${name}/${engineName}/${replica}/${incarnation}`, (key) =>
        bus.publish(
          adapterLoaded,
          { tenant, id },
          { version, digest, engine: engineName, replica, incarnation, engineName: name, proof },
          { key, traceparent },
        ),
      );
    }
    await told;
  }

  async function unload(name: string, reason: string): Promise<void> {
    const digest = digestOfPath(engine.observed?.listed.get(name));
    const outcome = await steps.unload(name);
    log.info({ engineName: name, reason, outcome }, "adapter unloaded");
    if (outcome.kind !== "done") {
      await engine.look();
      // 404: it was not listed; 500 with some versions: it was evicted. Only what is listed still counts.
      if (engine.observed === undefined || engine.observed.listed.has(name)) {
        unloadFailed(name, {
          code: "UNLOAD_FAILED",
          message: `the engine did not unload ${name}: ${"message" in outcome ? outcome.message : outcome.kind}`,
        });
        return;
      }
    }
    leaving.delete(name);
    spoiled.delete(name);
    unused.delete(name);
    const [tenant = "", id = "", version = ""] = name.split(".");
    if (digest === undefined) return;
    const { incarnation } = engine;
    await tell(`${name}/${engineName}/${replica}/${incarnation}/${Date.now()}`, (key) =>
      bus.publish(
        adapterUnloaded,
        { tenant, id },
        { version: Number(version.slice(1)), digest, engine: engineName, replica, incarnation, engineName: name, reason },
        { key },
      ),
    );
  }

  /** Never wedges anything: it is tried again, and told meanwhile. */
  function unloadFailed(name: string, error: Problem): void {
    const known = leaving.get(name);
    const attempts = (known?.attempts ?? 0) + 1;
    const { afterMs } = decideFault({ of: "replica", problem: error }, attempts);
    leaving.set(name, { since: known?.since ?? 0, retryAt: Date.now() + afterMs, attempts, error });
    log.warn({ engineName: name, ...error, attempts, afterMs }, "not unloaded; it will be tried again");
  }

  function fault(adapter: WantedAdapter, found: Fault, error: unknown): void {
    const { engineName: name } = adapter;
    if (!wanted.has(name)) return;
    const attempts = (currentOf(name)?.attempts ?? 0) + 1;
    const { state, blame, afterMs } = decideFault(found, attempts);
    const { problem } = found;
    remember(adapter, { state, proof: null, error: problem, blame, attempts, retryAt: Date.now() + afterMs }, engine.incarnation);
    if (state === "retrying")
      log.warn({ err: error, engineName: name, attempts, afterMs }, "adapter not proven yet; it will be tried again");
    else log.error({ engineName: name, ...problem, blame, afterMs }, `adapter ${state}`);
  }

  function remember({ engineName: name }: WantedAdapter, what: Omit<Held, "incarnation" | "at">, incarnation: string): void {
    held.set(name, { ...what, incarnation, at: new Date().toISOString() });
  }

  /** Events that could not be published yet; what they say is true already. The heartbeat tries again. */
  const untold = new Map<string, (key: string) => Promise<unknown>>();
  async function tell(key: string, publish: (key: string) => Promise<unknown>): Promise<void> {
    untold.set(key, publish);
    try {
      await publish(key);
      untold.delete(key);
    } catch (error) {
      log.warn({ err: error, key }, "event not published yet");
    }
  }

  let record: Pick<EngineRecord, "maxLoraRank"> | undefined =
    deps.maxLoraRank === undefined ? undefined : { maxLoraRank: deps.maxLoraRank };
  async function engineLimits(): Promise<Pick<EngineRecord, "maxLoraRank">> {
    record ??= (await engines.get(engineName))?.value;
    if (record === undefined)
      throw new RetryLaterError(
        "ENGINE_UNREGISTERED",
        1000,
        `KV engines has no "${engineName}" yet; the serve controller writes it when it starts`,
      );
    return record;
  }

  /* ---- ready, and leaving ---- */

  /** Names that were wanted when this engine process began and are not settled yet. */
  let awaited: { incarnation: string; names: Set<string> } = { incarnation: "", names: new Set() };
  function unready(): string | undefined {
    if (isLeaving()) return "it is about to end";
    if (!engine.ready) return engine.problem?.message ?? "vLLM does not answer yet";
    for (const name of awaited.names) {
      const state = currentOf(name)?.state;
      if (!wanted.has(name) || (state !== undefined && state !== "retrying")) awaited.names.delete(name);
    }
    if (awaited.names.size === 0) return undefined;
    const first = [...awaited.names].slice(0, 3);
    const why = first.map((name) => `${name}${currentOf(name)?.error ? ` (${currentOf(name)?.error?.message})` : ""}`);
    return `${awaited.names.size} of ${wanted.size} adapters are not proven yet: ${why.join(", ")}${awaited.names.size > first.length ? ", …" : ""}`;
  }

  /** Of the engine process that is about to end. */
  let leavingIncarnation: string | undefined;
  const isLeaving = (): boolean => leavingIncarnation !== undefined && leavingIncarnation === engine.incarnation;
  const patience = { ...leaveLimits, ...deps.leave };
  let draining: Promise<string> | undefined;
  async function drainReplica(): Promise<string> {
    // Nobody is answered by it any more; its restart must not wait.
    if (!engine.ready) return "the engine does not answer";
    leavingIncarnation = engine.incarnation;
    const asked = Date.now();
    log.info("about to end: gateways are told");
    /** What a gateway said before counts for nothing: it may have sent something since. */
    let toldAt: number | undefined;
    for (;;) {
      if (toldAt === undefined && (await reporter.heartbeat())) toldAt = Date.now();
      const took = Date.now() - asked;
      const requests = toldAt === undefined ? "unknown" : traffic.anyRequests(toldAt);
      if (requests === "none") return `no request is in flight after ${took} ms`;
      if (!isLeaving()) return "the engine has ended";
      if (requests === "unknown" && took > patience.unknownMs)
        return `a gateway says nothing since ${took} ms; it is not waited for any more`;
      if (took > patience.mostMs) return `requests are still in flight after ${took} ms; they are not waited for any more`;
      await sleep(patience.pollMs, undefined, { signal: stopping.signal });
    }
  }

  /* ---- files ---- */

  let filesFrom = 0;
  /** A slice of them per heartbeat: a look costs two system calls an adapter. */
  async function checkFiles(): Promise<void> {
    const names = [...wanted.keys()];
    const slice = names.slice(filesFrom, filesFrom + filesPerHeartbeat);
    filesFrom = filesFrom + filesPerHeartbeat >= names.length ? 0 : filesFrom + filesPerHeartbeat;
    for (const name of slice) {
      const adapter = wanted.get(name);
      if (adapter === undefined || !engine.observed?.listed.has(name) || inWork.has(name) || spoiled.has(name)) continue;
      if (!files.touched(adapter)) continue;
      log.error({ engineName: name, path: files.pathOf(adapter) }, "files of a loaded adapter changed on disk; loading it anew");
      spoiled.set(name, Date.now());
      held.delete(name);
      tellHolding(name);
      consider([name]);
    }
    if (engine.observed === undefined || filesFrom !== 0) return;
    const listed = [...engine.observed.listed.values()].map((root) => root?.split("/").at(-1) ?? "");
    await files.collect(new Set([...[...wanted.values()].map(({ digest }) => hexOf(digest)), ...listed]), Date.now(), fileGraceMs);
  }

  /* ---- telling ---- */

  const key = `${engineName}.${replica}`;
  const agent = ulid();

  function tellHolding(name: string): void {
    const [tenant = "", adapter = ""] = name.split(".");
    if (!stopping.signal.aborted) void reporter.changed(`${tenant}.${adapter}`);
  }

  /** What has not been begun is not told: it would be a message that says nothing. */
  function holdingOf(adapterKey: string): ReplicaAdapter[] {
    const told: ReplicaAdapter[] = [];
    for (const name of namesOf.get(adapterKey) ?? []) {
      const adapter = wanted.get(name);
      if (adapter === undefined) continue;
      const { tenant, adapter: id, version, digest } = adapter;
      const work = inWork.get(name);
      const known = currentOf(name);
      const common = { tenant, adapter: id, version, digest, engineName: name };
      if (known !== undefined) {
        const { state, proof, error, blame, at } = known;
        told.push({ ...common, state, blame, proof, error, at });
      } else if (work !== undefined && Date.now() - work.since >= heartbeatMs) {
        told.push({ ...common, state: "loading", proof: null, error: null, at: new Date(work.since).toISOString() });
      }
    }
    for (const [name, { since, error }] of leaving) {
      const [tenant = "", id = "", version = ""] = name.split(".");
      const digest = digestOfPath(engine.observed?.listed.get(name));
      if (`${tenant}.${id}` !== adapterKey || wanted.has(name) || digest === undefined) continue;
      const at = new Date(since === 0 ? Date.now() : since).toISOString();
      told.push({
        tenant,
        adapter: id,
        version: Number(version.slice(1)),
        digest,
        engineName: name,
        state: "draining",
        proof: null,
        error,
        at,
      });
    }
    return told;
  }

  function counts() {
    const found = { wanted: wanted.size, proven: 0, retrying: 0, quarantined: 0, refused: 0, draining: leaving.size };
    for (const name of wanted.keys()) {
      const known = currentOf(name);
      if (known !== undefined) found[known.state] += 1;
    }
    return found;
  }

  const reporter = await createReplicaReporter({
    replicas,
    holdings,
    log,
    key,
    held: holdingOf,
    holder: () => ({ incarnation: engine.incarnation, agent }),
    report: () => ({
      engine: engineName,
      base,
      replica,
      incarnation: engine.incarnation,
      agent,
      url: publicUrl,
      ready: engine.ready && !isLeaving(),
      problem: isLeaving() ? { code: "LEAVING", message: "this replica is about to end; it finishes what it has begun" } : engine.problem,
      counts: counts(),
      at: new Date().toISOString(),
    }),
  });

  /* ---- starting ---- */

  const watching = Promise.withResolvers<void>();
  await adapterBucket.watch({ signal: stopping.signal, onChange: takeAdapter, onReady: watching.resolve });
  await watching.promise;
  wantedIsRead = true;
  await reporter.heartbeat();

  const every = async (ms: number, work: () => Promise<void>): Promise<void> => {
    while (!stopping.signal.aborted) {
      await work().catch((error: unknown) => {
        if (!stopping.signal.aborted) log.error({ err: error }, "agent loop");
      });
      await sleep(ms, undefined, { signal: stopping.signal }).catch(() => {});
    }
  };
  const loops = [
    every(healthMs, () => engine.checkHealth()),
    every(heartbeatMs, async () => {
      if (engine.ready) {
        await engine.look();
        await checkFiles();
        for (const name of inWork.keys()) tellHolding(name);
      }
      await reporter.heartbeat();
      for (const [eventKey, publish] of untold) await tell(eventKey, publish);
    }),
  ];

  return {
    unready,
    drain() {
      draining ??= drainReplica()
        .then((what) => {
          log.info({ what }, "drained");
          return what;
        })
        .finally(() => {
          draining = undefined;
        });
      return draining;
    },
    async [Symbol.asyncDispose]() {
      stopping.abort();
      clearTimeout(alarm);
      client[Symbol.dispose]();
      await Promise.all([...loops, ...[...inWork.values()].map(({ done }) => done)]);
      await reporter.close();
    },
  };
}

const adapterKeyOf = ({ tenant, adapter }: WantedAdapter): string => `${tenant}.${adapter}`;

/** What a state wants of one replica. */
const wantedOf = ({ tenant, adapter, versions, alias, canary }: AdapterState, replica: string): WantedAdapter[] =>
  versions
    .filter(({ status, replicas }) => status === "desired" && (replicas?.includes(replica) ?? true))
    .map(({ version, digest, engineName, manifest, evidence, trace, servedAt }) => ({
      tenant,
      adapter,
      version,
      digest,
      engineName,
      manifest,
      evidence,
      trace,
      rank: version === alias || version === canary?.version ? 0 : servedAt === null ? 1 : 2,
    }));

/** Adapters are loaded from `<dir>/<hex of the digest>`. */
const digestOfPath = (path: string | null | undefined): Digest | undefined => {
  const hex = path?.split("/").at(-1) ?? "";
  return /^[0-9a-f]{64}$/.test(hex) ? `sha256:${hex}` : undefined;
};
