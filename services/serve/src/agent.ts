/**
 * Beside each engine: makes it hold what KV `adapters` wants, proves it, and reports in KV `replicas`. Engine name by engine name, so that
 * one bad or slow adapter delays no other; decided in decide-adapters.ts, done here.
 */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Bus } from "@loraline/bus";
import {
  adapterLoaded,
  type AdapterState,
  adapterUnloaded,
  buckets,
  type Evidence,
  evidence as evidenceShape,
  type Problem,
  type Proof,
  type ReplicaState,
} from "@loraline/contracts";
import { getJson, type Objects } from "@loraline/objects";
import { backoffMs, type Log, PermanentError, problemOf, RetryLaterError, type Telemetry } from "@loraline/runtime";
import { ulid } from "ulid";
import { createAdapterFiles } from "./adapter-files.ts";
import { type AgentAction, decideAdapters, type HeldAdapter, type ObservedEngine, type WantedAdapter } from "./decide-adapters.ts";
import { hexOf } from "./engine-names.ts";
import { judgeAdapter } from "./judge-adapter.ts";
import { chooseProbes, decideProof, measureProbes, type ProofDecision } from "./proof.ts";
import { readTensors, type Tensor } from "./safetensors.ts";
import { createVllmClient, EngineRefusedError, EngineUnknownError, type LoadOutcome } from "./vllm-client.ts";

export interface ServeAgentDeps {
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
  /** Where the gateway reaches it. */
  publicUrl: string;
  /** Belongs to this agent alone; the engine must see it under the same path. */
  adaptersDir: string;
  /** Ranks the engine was started for. Default: what KV `engines` says. */
  maxLoraRank?: number;
  /** Changes with each start of the engine process. Default: its start time from /metrics. */
  incarnation?: () => Promise<string>;
  healthMs?: number;
  heartbeatMs?: number;
}

/** Adapters worked on at once; the engine itself takes one step at a time. */
const concurrency = 4;
/** A load that the engine refuses this often, between growing pauses, will not work with this engine. */
const engineRefusals = 5;
/** A busy engine may leave a health check unanswered; a dead one does not come back. */
const silentMs = 10_000;
/** Files stay this long after their adapter is not listed any more: a request in flight may still make the engine read them. */
const fileGraceMs = 60_000;

interface Held extends HeldAdapter {
  attempts: number;
  proof: Proof | null;
  error: Problem | null;
  at: string;
}

export async function createServeAgent(deps: ServeAgentDeps): Promise<AsyncDisposable> {
  const { bus, objects, telemetry, engine, base, replica, engineUrl, publicUrl, healthMs = 500, heartbeatMs = 3000 } = deps;
  const log = deps.log.child({ engine, replica });
  const [adapters, replicas, holdings, engines] = await Promise.all([
    bus.bucket(buckets.adapters),
    bus.bucket(buckets.replicas),
    bus.bucket(buckets.holdings),
    bus.bucket(buckets.engines),
  ]);
  const client = createVllmClient({ url: engineUrl });
  const files = createAdapterFiles({ dir: deps.adaptersDir, objects });
  const stopping = new AbortController();

  /* what is wanted */
  const wantedByKey = new Map<string, WantedAdapter[]>();
  let wanted: ReadonlyMap<string, WantedAdapter> | undefined;

  /* what is there */
  let ready = false;
  let incarnation = "";
  let observed: ObservedEngine | undefined;
  let baseTensors: Tensor[] | undefined;
  let silentSince: number | undefined;
  const held = new Map<string, Held>();
  const unwantedSince = new Map<string, number>();
  const spoiled = new Set<string>();
  const inWork = new Map<string, Promise<void>>();

  /* ---- observing ---- */

  const engineAway = (why: string): void => {
    observed = undefined;
    if (!ready) return;
    ready = false;
    log.warn({ why }, "engine away");
    report();
  };

  /** One at a time, so that an older look never overwrites a newer one. */
  let lastLook: Promise<void> = Promise.resolve();
  const look = (): Promise<void> => {
    lastLook = lastLook.then(lookNow);
    return lastLook;
  };
  const lookNow = async (): Promise<void> => {
    if (stopping.signal.aborted) return;
    try {
      const now = await (deps.incarnation ?? client.startTime)();
      const models = await client.models();
      if (now !== incarnation || !ready) await greet(now, models.find(({ id }) => id === base)?.root ?? null);
      observed = { incarnation: now, listed: new Map(models.filter(({ parent }) => parent !== null).map(({ id, root }) => [id, root])) };
      for (const name of observed.listed.keys()) {
        if (wanted === undefined || wanted.has(name)) unwantedSince.delete(name);
        else if (!unwantedSince.has(name)) unwantedSince.set(name, Date.now());
      }
      for (const name of unwantedSince.keys()) if (!observed.listed.has(name)) unwantedSince.delete(name);
    } catch (error) {
      observed = undefined;
      if (error instanceof EngineUnknownError && error.gone) engineAway(error.message);
      else log.warn({ err: error }, "engine could not be read; nothing is concluded from that");
    }
  };

  /** A process that is new to us: nothing is proven in it, and its first step is slow. */
  const greet = async (now: string, modelPath: string | null): Promise<void> => {
    if (now !== incarnation) {
      log.info({ before: incarnation, now }, "engine process started; everything is proven again");
      baseTensors = modelPath === null ? undefined : await readBaseTensors(modelPath);
    }
    try {
      await client.nextTokenLogprobs(base, [[1]], [1]);
    } catch (error) {
      if (!(error instanceof EngineRefusedError)) throw error;
      log.error({ err: error }, "the engine cannot answer probes: no adapter can be proven on it");
    }
    incarnation = now;
    ready = true;
    report();
  };

  const checkHealth = async (): Promise<void> => {
    const health = await client.health();
    if (health === "silent") {
      silentSince ??= Date.now();
      if (Date.now() - silentSince > silentMs) engineAway("no answer to health checks");
      return;
    }
    silentSince = undefined;
    if (health === "away") engineAway("its health check fails");
    else if (observed === undefined) {
      await look();
      reconcile();
    }
  };

  const checkFiles = async (): Promise<void> => {
    for (const [name, adapter] of wanted ?? []) {
      if (observed?.listed.has(name) && !inWork.has(name) && (await files.touched(adapter))) {
        log.error({ engineName: name, path: files.pathOf(adapter) }, "files of a loaded adapter changed on disk; loading it anew");
        spoiled.add(name);
        held.delete(name);
        report();
      }
    }
    if (wanted === undefined || observed === undefined) return;
    const listedHex = [...observed.listed.values()].map((root) => root?.split("/").at(-1) ?? "");
    await files.collect(new Set([...[...wanted.values()].map(({ digest }) => hexOf(digest)), ...listedHex]), Date.now(), fileGraceMs);
  };

  /* ---- deciding and doing ---- */

  let wakeAt = Number.POSITIVE_INFINITY;
  let wakeTimer: NodeJS.Timeout | undefined;
  const wake = (at: number): void => {
    if (at >= wakeAt) return;
    clearTimeout(wakeTimer);
    wakeAt = at;
    wakeTimer = setTimeout(
      () => {
        wakeAt = Number.POSITIVE_INFINITY;
        reconcile();
      },
      Math.max(0, at - Date.now()),
    );
  };

  const reconcile = (): void => {
    if (stopping.signal.aborted) return;
    const view = { wanted, engine: observed, held, inWork: new Set(inWork.keys()), unwantedSince, spoiled, pathOf: files.pathOf };
    for (const action of decideAdapters(view, Date.now())) {
      if (action.kind === "wake") wake(action.at);
      else if (inWork.size < concurrency) start(action);
    }
  };

  const start = (action: Exclude<AgentAction, { kind: "wake" }>): void => {
    const name = action.kind === "unload" ? action.engineName : action.wanted.engineName;
    const work = async (): Promise<void> => {
      try {
        if (action.kind === "unload") await unload(name, action.reason);
        else await (action.kind === "load" ? load : prove)(action.wanted);
      } catch (error) {
        if (stopping.signal.aborted) return;
        if (action.kind === "unload") log.warn({ err: error, engineName: name }, "unload failed; it will be tried again");
        else fault(action.wanted, error);
      }
      // Seen anew before it is decided anew.
      await look();
    };
    inWork.set(
      name,
      work().finally(() => {
        inWork.delete(name);
        report();
        reconcile();
      }),
    );
  };

  const load = (adapter: WantedAdapter): Promise<void> =>
    telemetry.span("load", { parent: adapter.trace ?? undefined, attributes: attributesOf(adapter) }, async () => {
      spoiled.delete(adapter.engineName);
      const path = await files.ensure(adapter);
      const [problem] = judgeAdapter(await files.read(adapter), { name: base, maxLoraRank: await rankLimit(), tensors: baseTensors });
      if (problem !== undefined) throw new PermanentError(problem.code, problem.message, { param: problem.param });
      refuseUnlessDone(await client.load(adapter.engineName, path), adapter);
    });

  /** A refusal is only that: what is loaded is read from the engine afterwards. */
  const refuseUnlessDone = (outcome: LoadOutcome, { engineName }: WantedAdapter): void => {
    switch (outcome.kind) {
      case "done":
        return;
      case "feature-off":
        throw new RetryLaterError(
          "ENGINE_WITHOUT_RUNTIME_LORA",
          30_000,
          `the engine at ${engineUrl} has no route to load adapters. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora.`,
        );
      case "unknown":
        throw new RetryLaterError("ENGINE_UNKNOWN", 1000, `whether ${engineName} is loaded is not known: ${outcome.message}`);
      case "refused":
        if (/already been loaded/i.test(outcome.message)) return;
        throw new EngineRefusedError(outcome.status, outcome.message);
    }
  };

  const prove = (adapter: WantedAdapter): Promise<void> =>
    telemetry.span("proof", { parent: adapter.trace ?? undefined, attributes: attributesOf(adapter) }, async (span) => {
      const { engineName } = adapter;
      const before = incarnation;
      if (!(await files.verify(adapter))) {
        spoiled.add(engineName);
        throw new RetryLaterError(
          "ADAPTER_FILES_SPOILED",
          0,
          `the files of ${engineName} on disk are not what was published; they are fetched again`,
        );
      }
      const { probes } = await evidenceOf(adapter);
      const measure = async (): Promise<ProofDecision> =>
        decideProof(await measureProbes(client, { base, engineName, probes: chooseProbes(probes) }), new Date().toISOString());
      let decision = await measure();
      // A refusal is for good, so it is not said after one look: what else the engine computes must not decide it.
      if (decision.kind === "refused") decision = await measure();
      span.setAttributes({
        "loraline.proof.probes": decision.proof.probes,
        "loraline.proof.agreement": decision.proof.agreement,
        "loraline.proof.agreement_limit": decision.proof.agreementLimit,
        "loraline.proof.effect": decision.proof.effect,
        "loraline.proof.effect_expected": decision.proof.effectExpected,
      });
      const now = await (deps.incarnation ?? client.startTime)();
      if (now !== before) throw new RetryLaterError("ENGINE_RESTARTED", 0, `the engine restarted while ${engineName} was being proven`);
      if (decision.kind === "refused") {
        remember(adapter, { state: "refused", proof: decision.proof, error: decision.problem });
        log.error({ engineName, ...decision.problem, proof: decision.proof }, "adapter refused");
        span.setAttribute("loraline.refused", decision.problem.code);
        await writeReport();
        return;
      }
      remember(adapter, { state: "proven", proof: decision.proof, error: null });
      log.info({ engineName, proof: decision.proof }, "adapter proven");
      await writeReport();
      const { proof } = decision;
      const traceparent = telemetry.traceparent();
      await tell(`${engineName}/${engine}/${replica}/${now}`, (key) =>
        bus.publish(
          adapterLoaded,
          { tenant: adapter.tenant, id: adapter.adapter },
          { version: adapter.version, digest: adapter.digest, engine, replica, incarnation: now, engineName, proof },
          { key, traceparent },
        ),
      );
    });

  /** Events that could not be published yet; what they say is true already. The heartbeat tries again. */
  const untold = new Map<string, (key: string) => Promise<unknown>>();
  const tell = async (key: string, publish: (key: string) => Promise<unknown>): Promise<void> => {
    untold.set(key, publish);
    try {
      await publish(key);
      untold.delete(key);
    } catch (error) {
      log.warn({ err: error, key }, "event not published yet");
    }
  };

  const unload = async (engineName: string, reason: string): Promise<void> => {
    const [tenant = "", id = "", version = ""] = engineName.split(".");
    const outcome = await client.unload(engineName);
    log.info({ engineName, reason, outcome }, "adapter unloaded");
    // 404: it was not listed; 500 with some versions: it was evicted. The next look decides.
    if (outcome.kind === "unknown" || outcome.kind === "feature-off") return;
    spoiled.delete(engineName);
    const digest = rootDigest(engineName);
    if (digest === undefined) return;
    await tell(`${engineName}/${engine}/${replica}/${incarnation}/${Date.now()}`, (key) =>
      bus.publish(
        adapterUnloaded,
        { tenant, id },
        { version: Number(version.slice(1)), digest, engine, replica, incarnation, engineName, reason },
        { key },
      ),
    );
  };

  const rootDigest = (engineName: string): `sha256:${string}` | undefined => {
    const hex = observed?.listed.get(engineName)?.split("/").at(-1) ?? "";
    return /^[0-9a-f]{64}$/.test(hex) ? `sha256:${hex}` : undefined;
  };

  const fault = (adapter: WantedAdapter, error: unknown): void => {
    const attempts = (held.get(adapter.engineName)?.attempts ?? 0) + 1;
    const problem =
      error instanceof EngineRefusedError
        ? { code: "ENGINE_REFUSED", message: `the engine refused ${adapter.engineName} (HTTP ${error.status}): ${error.message}` }
        : error instanceof EngineUnknownError
          ? { code: "ENGINE_UNKNOWN", message: error.message }
          : problemOf(error);
    const passes = ["DISK_FULL", "STORE_FULL"].includes(problem.code);
    const permanent = (error instanceof PermanentError && !passes) || (error instanceof EngineRefusedError && attempts >= engineRefusals);
    const afterMs =
      error instanceof RetryLaterError ? Math.max(error.afterMs, attempts > 3 ? backoffMs(attempts) : 0) : backoffMs(attempts);
    remember(adapter, { state: permanent ? "refused" : "retrying", proof: null, error: problem }, attempts, Date.now() + afterMs);
    if (permanent) log.error({ engineName: adapter.engineName, ...problem }, "adapter refused");
    else log.warn({ err: error, engineName: adapter.engineName, attempts, afterMs }, "adapter not proven yet; it will be tried again");
  };

  const remember = (adapter: WantedAdapter, what: Pick<Held, "state" | "proof" | "error">, attempts = 0, retryAt = 0): void => {
    held.set(adapter.engineName, { ...what, attempts, retryAt, incarnation, at: new Date().toISOString() });
  };

  let knownLimit = deps.maxLoraRank;
  const rankLimit = async (): Promise<number> => {
    knownLimit ??= (await engines.get(engine))?.value.maxLoraRank;
    if (knownLimit === undefined)
      throw new RetryLaterError(
        "ENGINE_UNREGISTERED",
        1000,
        `KV engines has no "${engine}" yet; the serve controller writes it when it starts`,
      );
    return knownLimit;
  };

  const evidenceCache = new Map<string, Evidence>();
  const evidenceOf = async ({ tenant, evidence }: WantedAdapter): Promise<Evidence> => {
    const known = evidenceCache.get(evidence.digest);
    if (known !== undefined) return known;
    const read = await getJson(objects, tenant, evidence, evidenceShape);
    if (evidenceCache.size >= 256) evidenceCache.clear();
    evidenceCache.set(evidence.digest, read);
    return read;
  };

  /* ---- reporting ---- */

  const reportNow = (): ReplicaState => ({
    engine,
    base,
    replica,
    incarnation,
    url: publicUrl,
    ready,
    at: new Date().toISOString(),
    adapters: [...(wanted?.values() ?? [])].map((adapter) => {
      const { tenant, version, digest, engineName } = adapter;
      const known = held.get(engineName);
      const current = known?.incarnation === incarnation ? known : undefined;
      return {
        tenant,
        adapter: adapter.adapter,
        version,
        digest,
        engineName,
        state: current?.state ?? "loading",
        proof: current?.proof ?? null,
        error: current?.error ?? null,
        at: current?.at ?? new Date().toISOString(),
      };
    }),
  });

  const key = `${engine}.${replica}`;
  const agent = ulid();
  const written = new Map<string, string>();
  let writing: Promise<void> = Promise.resolve();
  let writesWaiting = 0;
  /** Writes what is true when its turn comes; those that wait for the same turn are one write. */
  const writeReport = (): Promise<void> => {
    if (writesWaiting > 0) return writing;
    writesWaiting += 1;
    writing = writing.then(async () => {
      writesWaiting -= 1;
      try {
        const { adapters: heldNow, ...heartbeat } = reportNow();
        const byAdapter = Map.groupBy(heldNow, (each) => `${each.tenant}.${each.adapter}`);
        for (const [adapterKey, versions] of byAdapter) {
          const holding = { incarnation, agent, adapters: versions };
          const text = JSON.stringify(versions.map(({ at: _at, ...rest }) => rest)) + incarnation;
          if (written.get(adapterKey) === text) continue;
          await holdings.put(`${key}.${adapterKey}`, holding);
          written.set(adapterKey, text);
        }
        await replicas.put(key, { ...heartbeat, agent });
      } catch (error) {
        if (!stopping.signal.aborted) log.warn({ err: error }, "report not written; the next heartbeat tries again");
      }
    });
    return writing;
  };
  const report = (): void => {
    if (!stopping.signal.aborted) void writeReport();
  };

  /* ---- starting ---- */

  const rebuildWanted = (): void => {
    wanted = new Map([...wantedByKey.values()].flat().map((adapter) => [adapter.engineName, adapter]));
    for (const [name, { state }] of held) {
      if (wanted.has(name)) continue;
      // Nobody was ever sent to it.
      if (state === "refused") unwantedSince.set(name, 0);
      held.delete(name);
    }
  };
  const watching = Promise.withResolvers<void>();
  await adapters.watch({
    signal: stopping.signal,
    onChange(changedKey, state) {
      const now = state === undefined || state.engine !== engine ? [] : wantedOf(state);
      if (now.length === 0 && !wantedByKey.has(changedKey)) return;
      wantedByKey.set(changedKey, now);
      if (wanted === undefined) return;
      rebuildWanted();
      report();
      reconcile();
    },
    onReady() {
      rebuildWanted();
      watching.resolve();
    },
  });
  await watching.promise;
  await writeReport();

  const every = (ms: number, work: () => Promise<void>): Promise<void> =>
    (async () => {
      while (!stopping.signal.aborted) {
        await work().catch((error: unknown) => {
          if (!stopping.signal.aborted) log.error({ err: error }, "agent loop");
        });
        await sleep(ms, undefined, { signal: stopping.signal }).catch(() => {});
      }
    })();
  const loops = [
    every(healthMs, checkHealth),
    every(heartbeatMs, async () => {
      if (ready) {
        await look();
        await checkFiles();
        reconcile();
      }
      await writeReport();
      for (const [key, publish] of untold) await tell(key, publish);
    }),
  ];

  return {
    async [Symbol.asyncDispose]() {
      stopping.abort();
      clearTimeout(wakeTimer);
      client[Symbol.dispose]();
      await Promise.all([...loops, ...inWork.values(), lastLook]);
      await writing;
      // Gone in order: nobody needs to wait until its last report has aged.
      await replicas.delete(key).catch((error: unknown) => log.warn({ err: error }, "report not removed; it ages away"));
    },
  };
}

const wantedOf = ({ tenant, adapter, versions }: AdapterState): WantedAdapter[] =>
  versions
    .filter(({ status }) => status === "desired")
    .map(({ version, digest, engineName, manifest, evidence, trace }) => ({
      tenant,
      adapter,
      version,
      digest,
      engineName,
      manifest,
      evidence,
      trace,
    }));

const attributesOf = ({ tenant, adapter, version, digest, engineName }: WantedAdapter): Record<string, string | number> => ({
  "loraline.tenant": tenant,
  "loraline.adapter": adapter,
  "loraline.version": version,
  "loraline.digest": digest,
  "loraline.engine_name": engineName,
});

/** Undefined when the model's files are not to be seen from here: then the adapter's shapes are not compared with them. */
async function readBaseTensors(dir: string): Promise<Tensor[] | undefined> {
  try {
    const shards = (await readdir(dir)).filter((name) => name.endsWith(".safetensors"));
    if (shards.length === 0) return undefined;
    return (await Promise.all(shards.map((name) => readTensors(join(dir, name))))).flat();
  } catch {
    return undefined;
  }
}
