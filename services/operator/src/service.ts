/**
 * The operator: lets users give Loraline's commands as Kubernetes resources. In each namespace that it serves, the operator process that
 * holds the namespace's Lease watches FineTunes and Adapters, and writes their state from NATS into their statuses. In the release's namespace it
 * makes engines out of Engines and fetches Bases, under a Lease of its own.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { type Bus, createHistoryQuota, judgeWaitingRuns, watchQuotas } from "@loraline/bus";
import { type AdapterState, buckets, everyKeyOf, type QuotaSettings, runRequested } from "@loraline/contracts";
import { type Kube, KubeError, resource, watch, withLease } from "@loraline/kube";
import type { Objects } from "@loraline/objects";
import { type Log, PermanentError, type Telemetry } from "@loraline/runtime";
import { createAdapters } from "./adapters.ts";
import { serveBases } from "./engines/bases.ts";
import { serveEngines } from "./engines/engines.ts";
import { createFineTunes } from "./fine-tunes.ts";
import { serveWake } from "./engines/wake.ts";
import { tell } from "./kube-events.ts";
import { createLineView } from "./line-view.ts";
import type { RequestRunDeps } from "./request-run.ts";
import { adapters, fineTunes, namespaces } from "./resources.ts";

export interface OperatorServiceDeps {
  kube: Kube;
  bus: Bus;
  objects: Objects;
  log: Log;
  telemetry: Telemetry;
  /** Unique name of this process, for the Leases that it holds. */
  identity: string;
  /** Namespace to the tenant to which its resources belong. */
  tenants: ReadonlyMap<string, string>;
  /** What the operator of the line grants tenants. Default: every quota's own default. */
  quotas?: QuotaSettings;
  /** Default: loraline-operator */
  leaseName?: string;
  leaseMs?: number;
  /** Where Engines are made, and the ConfigMap with the chart's template for them; absent: Engines do nothing. */
  engines?: { namespace: string; templateName: string } | undefined;
  /** The clock by which engines are idle. */
  now?: () => number;
  /** Why a namespace cannot be served, in words; undefined: it can be served now. */
  onProblem?(namespace: string, problem: string | undefined): void;
}

const leases = resource("coordination.k8s.io/v1", "Lease", "leases");

/** Starts the operator. Disposing it stops the work and waits until the leases are released. */
export async function createOperatorService(deps: OperatorServiceDeps): Promise<AsyncDisposable> {
  const { kube, bus, log, identity, tenants, leaseName = "loraline-operator", leaseMs } = deps;
  const line = await createLineView({ bus });
  const ending = new AbortController();
  const { signal } = ending;
  const quotas = await watchQuotas({ bus, settings: deps.quotas ?? {}, signal });
  const history = createHistoryQuota(bus);
  const training = await bus.bucket(buckets.training);
  const admitRun = async (tenant: string): Promise<void> => {
    const { historyBytes, runsWaiting: most } = quotas.of(tenant);
    const problem = (await history.judge(tenant, historyBytes, runRequested)) ?? (await judgeWaitingRuns(training, { tenant, most }));
    if (problem !== undefined) throw new PermanentError(problem.code, problem.message);
  };
  const holding = [...tenants].map(async ([namespace, tenant]) => {
    // This is checked before the Lease is asked for, so that a process that waits for the Lease also reports what is missing.
    if ((await uidWhenReadable(namespace, signal, deps)) === undefined) return;
    await withLease(kube, {
      namespace,
      name: leaseName,
      identity,
      log,
      signal,
      ...(leaseMs === undefined ? {} : { durationMs: leaseMs }),
      onHeldBy(holder, lease) {
        const message = `operator ${holder} serves this namespace; ${identity} waits. One of them at a time acts.`;
        const milestone = { type: "Normal", reason: "HeldByAnother", message, key: `${holder} ${identity}` } as const;
        tell(kube, leases, lease, [milestone], log).catch((error: unknown) =>
          log.warn({ err: error }, "the event about the lease was not written"),
        );
      },
      work: (lost) => serveNamespace(namespace, tenant, { ...deps, line, admitRun }, lost),
    });
  });
  if (deps.engines !== undefined) {
    const { namespace, templateName } = deps.engines;
    const own = { kube, bus, line, log: log.child({ namespace }), telemetry: deps.telemetry, namespace, templateName };
    const work = async (lost: AbortSignal): Promise<void> => {
      await Promise.all([
        serveEngines({ ...own, signal: lost }),
        serveBases({ ...own, signal: lost }),
        serveWake({ ...own, now: deps.now, signal: lost }),
      ]);
    };
    const duration = leaseMs === undefined ? {} : { durationMs: leaseMs };
    holding.push(withLease(kube, { namespace, name: "loraline-engines", identity, log, signal, ...duration, work }));
  }
  return {
    async [Symbol.asyncDispose]() {
      ending.abort();
      await Promise.all(holding);
      await line[Symbol.asyncDispose]();
    },
  };
}

async function serveNamespace(
  namespace: string,
  tenant: string,
  deps: OperatorServiceDeps & Pick<RequestRunDeps, "line" | "admitRun">,
  lost: AbortSignal,
): Promise<void> {
  const { kube, bus, line, log: allLog } = deps;
  const log = allLog.child({ namespace, tenant });
  const ending = new AbortController();
  const signal = AbortSignal.any([lost, ending.signal]);
  const namespaceUid = await uidWhenReadable(namespace, signal, deps);
  if (namespaceUid === undefined) return;

  const states = new Map<string, AdapterState>();
  const all = { ...deps, log, namespace, tenant, namespaceUid, states };
  await using tunes = createFineTunes(all);
  await using loras = createAdapters(all);
  const onAdapter = (adapter: string): void => {
    tunes.onAdapter(adapter);
    loras.onAdapter(adapter);
  };
  using _listening = line.subscribe({
    onEngines() {
      tunes.onEngines();
      for (const adapter of states.keys()) onAdapter(adapter);
    },
    onReplica(engine) {
      for (const [adapter, state] of states) if (state.engine === engine) onAdapter(adapter);
    },
    onHolding(adapterKey) {
      if (adapterKey.startsWith(`${tenant}.`)) onAdapter(adapterKey.slice(tenant.length + 1));
    },
  });
  const known = Array.from({ length: 4 }, () => Promise.withResolvers<void>());
  const [runs, adapterStates] = await Promise.all([bus.bucket(buckets.runs), bus.bucket(buckets.adapters)]);
  const filter = everyKeyOf(tenant);
  const nameOf = (key: string): string => key.slice(tenant.length + 1);
  await Promise.all([
    runs.watch({ filter, signal, onReady: () => known[0]?.resolve(), onChange: (key, run) => tunes.onRun(nameOf(key), run) }),
    adapterStates.watch({
      filter,
      signal,
      onReady: () => known[1]?.resolve(),
      onChange(key, state) {
        if (state === undefined) states.delete(nameOf(key));
        else states.set(nameOf(key), state);
        onAdapter(nameOf(key));
      },
    }),
  ]);
  const watching = [
    watch(kube, fineTunes, {
      namespace,
      signal,
      log,
      onReady: () => known[2]?.resolve(),
      onChange: (key, object) => tunes.onResource(key, object),
    }),
    watch(kube, adapters, {
      namespace,
      signal,
      log,
      onReady: () => known[3]?.resolve(),
      onChange: (key, object) => loras.onResource(key, object),
    }),
  ];
  const ended = new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
  await Promise.race([ended, Promise.all(known.map(({ promise }) => promise))]);
  if (!signal.aborted) {
    tunes.start();
    loras.start();
    log.info("serving FineTunes and Adapters");
  }
  await ended;
  ending.abort();
  await Promise.all(watching);
}

/** Waits until the resources can be read, and reports what is missing: the CRDs, the permission to read them, or the namespace. */
async function uidWhenReadable(
  namespace: string,
  signal: AbortSignal,
  { kube, log, onProblem }: OperatorServiceDeps,
): Promise<string | undefined> {
  for (let said: string | undefined; !signal.aborted;) {
    try {
      const found = await kube.get(namespaces, { name: namespace });
      if (found?.metadata?.uid === undefined) throw new KubeError(404, "NotFound", `there is no namespace ${namespace}`);
      await kube.list(fineTunes, { namespace });
      await kube.list(adapters, { namespace });
      onProblem?.(namespace, undefined);
      return found.metadata.uid;
    } catch (error) {
      const why =
        error instanceof KubeError && error.status === 404
          ? `${error.message}. Are the CRDs of helm/loraline/crds installed?`
          : (error as Error).message;
      const problem = `FineTunes and Adapters of namespace ${namespace} cannot be read: ${why}`;
      onProblem?.(namespace, problem);
      if (problem !== said) log.warn(problem);
      said = problem;
      await sleep(1000, undefined, { signal }).catch(() => {});
    }
  }
  return undefined;
}
