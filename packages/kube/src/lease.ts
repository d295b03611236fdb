/**
 * One of several processes holds a Lease and acts; the others wait. As client-go's leader election: times are measured by one's own
 * clock from when a change was seen, so that clocks need not agree, and a holder that could not renew stops before others may begin.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { KubernetesObject } from "@kubernetes/client-node";
import type { Log } from "@loraline/runtime";
import { type Kube, KubeError, resource } from "./kube.ts";

/** The part of a Lease that matters here; times are Kubernetes' MicroTime. */
interface Lease extends KubernetesObject {
  spec?: {
    holderIdentity?: string;
    leaseDurationSeconds?: number;
    acquireTime?: string;
    renewTime?: string;
    leaseTransitions?: number;
  };
}
const leases = resource<Lease>("coordination.k8s.io/v1", "Lease", "leases");

export interface LeaseOptions {
  namespace: string;
  name: string;
  /** Of this process, unique. */
  identity: string;
  log: Log;
  signal: AbortSignal;
  /** Another one holds it; told once for each holder. */
  onHeldBy?(holder: string, lease: KubernetesObject): void;
  /** Time after the last renewal at which others take over. Default 15 s. */
  durationMs?: number;
  /** Runs while the lease is held; `lost` is aborted when it no longer is, and `work` must then end soon. */
  work(lost: AbortSignal): Promise<void>;
}

/** Until the signal is aborted: waits for the lease, works while it is held, waits again. Gives it back at the end. */
export async function withLease(kube: Kube, options: LeaseOptions): Promise<void> {
  const { namespace, name, identity, log, signal, durationMs = 15_000, work, onHeldBy } = options;
  const renewEveryMs = durationMs / 5;
  /** Work must have stopped this long after the last renewal that succeeded was asked for: two renewals before others may begin. */
  const heldForMs = durationMs - 2 * renewEveryMs;
  const at = { namespace, name };
  /** The state in which the lease was last seen, and when by this clock. */
  let seen = { version: "", at: 0 };
  let toldOf: string | undefined;
  let saidWhy: string | undefined;

  /** True: it is held from now on. */
  const take = async (): Promise<boolean> => {
    const now = microTime();
    const spec = { holderIdentity: identity, leaseDurationSeconds: Math.ceil(durationMs / 1000), renewTime: now };
    const lease = await kube.get(leases, at);
    if (lease === undefined) {
      await kube.create(leases, { metadata: at, spec: { ...spec, acquireTime: now, leaseTransitions: 0 } });
      return true;
    }
    const { holderIdentity = "", acquireTime, leaseTransitions = 0, leaseDurationSeconds = 0 } = lease.spec ?? {};
    const version = lease.metadata?.resourceVersion ?? "";
    if (version !== seen.version) seen = { version, at: performance.now() };
    const mine = holderIdentity === identity;
    const free = holderIdentity === "" || performance.now() - seen.at > Math.max(durationMs, leaseDurationSeconds * 1000);
    if (!mine && !free) {
      if (toldOf !== holderIdentity) {
        log.info({ lease: name, holder: holderIdentity }, "lease held by another; waiting");
        onHeldBy?.(holderIdentity, lease);
      }
      toldOf = holderIdentity;
      return false;
    }
    toldOf = undefined;
    await kube.replace(leases, {
      ...lease,
      spec: {
        ...spec,
        acquireTime: mine ? (acquireTime ?? now) : now,
        leaseTransitions: mine ? leaseTransitions : leaseTransitions + 1,
      },
    });
    return true;
  };
  /** A conflict means that another process was quicker. After any other error it is not known who holds the lease. */
  const tryToTake = async (): Promise<boolean | undefined> => {
    try {
      return await take();
    } catch (error) {
      if (error instanceof KubeError && error.status === 409) return false;
      // Each reason is logged once: otherwise a missing right to the lease would be waited for in silence.
      const why = error instanceof Error ? error.message : String(error);
      log[why === saidWhy ? "debug" : "warn"]({ err: error, namespace, lease: name }, "lease: not answered");
      saidWhy = why;
      return undefined;
    }
  };
  const giveBack = async (): Promise<void> => {
    const lease = await kube.get(leases, at);
    if (lease?.spec?.holderIdentity === identity) await kube.replace(leases, { ...lease, spec: { ...lease.spec, holderIdentity: "" } });
  };

  while (!signal.aborted) {
    // The time is taken before the request: the server counts from its write, which may be long before its answer arrives.
    let renewedAt = performance.now();
    if ((await tryToTake()) !== true) {
      await sleep(renewEveryMs, undefined, { signal }).catch(() => {});
      continue;
    }
    if (performance.now() - renewedAt >= heldForMs) continue;
    log.info({ lease: name, identity }, "lease held");
    const lost = new AbortController();
    const working = work(AbortSignal.any([lost.signal, signal]));
    let workEnded = false;
    void working.then(
      () => (workEnded = true),
      () => (workEnded = true),
    );
    const leftMs = (): number => Math.max(0, renewedAt + heldForMs - performance.now());
    while (!signal.aborted && !workEnded) {
      await sleep(Math.min(renewEveryMs, leftMs()), undefined, { signal }).catch(() => {});
      if (signal.aborted) break;
      const asked = performance.now();
      const held = await Promise.race([tryToTake(), sleep(Math.min(renewEveryMs * 2, leftMs())).then(() => undefined)]);
      if (held === true) renewedAt = asked;
      if (held === false || leftMs() <= 1) break;
    }
    if (!signal.aborted && !workEnded) log.warn({ lease: name, identity }, "lease lost");
    lost.abort();
    await working.catch((error: unknown) => log.error({ err: error, lease: name }, "work under the lease failed"));
    await giveBack().catch((error: unknown) => log.debug({ err: error, lease: name }, "lease not given back; it expires"));
  }
}

/** Kubernetes' MicroTime. */
const microTime = (): string => new Date().toISOString().replace("Z", "000Z");
