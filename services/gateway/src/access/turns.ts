/** Turns: while a gateway has no time left, requests of a tenant that has many under way wait for one another, and those of others go on. */
import { type EventLoopUtilization, performance } from "node:perf_hooks";
import { always, decideTurns } from "./decide-turns.ts";

interface Turns extends Disposable {
  /** Waits for the tenant's turn. Whoever disposes what it returns is done. */
  begin(tenant: string): Promise<Disposable>;
  /** Requests that wait for a turn. */
  waiting(): number;
}

const everyMs = 50;
/** Share of those who wait that is let in each time although there is no time left: after three seconds it is nearly everybody. */
const anyway = 1 / 20;
/** A tenant counts for so long after its last request. */
const rememberedMs = 5000;

interface Tenant {
  running: number;
  waiting: (() => void)[];
  /** When it asked for something last, by `performance.now`. */
  at: number;
}

/** @param utilization - since `before`, or since the start. For tests. */
export function createTurns(
  utilization: (before?: EventLoopUtilization) => EventLoopUtilization = (before) =>
    before === undefined ? performance.eventLoopUtilization() : performance.eventLoopUtilization(before),
): Turns {
  const tenants = new Map<string, Tenant>();
  let limit = Number.POSITIVE_INFINITY;
  let before = utilization();

  const mayRun = ({ running }: Tenant): boolean => running < Math.max(always, limit);
  const letOneIn = (tenant: Tenant): void => {
    tenant.running += 1;
    tenant.waiting.shift()?.();
  };
  const letIn = (tenant: Tenant): void => {
    while (tenant.waiting.length > 0 && mayRun(tenant)) letOneIn(tenant);
  };
  const look = (): void => {
    const { utilization: share } = utilization(before);
    before = utilization();
    const since = performance.now() - rememberedMs;
    let highest = 0;
    for (const [name, { running, waiting, at }] of tenants) {
      highest = Math.max(highest, running);
      if (running === 0 && waiting.length === 0 && at < since) tenants.delete(name);
    }
    limit = decideTurns({ limit, utilization: share, tenants: tenants.size, highest });
    for (const tenant of tenants.values()) {
      letIn(tenant);
      // What takes the thread's time may be something else, which does not end when these wait. So none of them waits long.
      for (let more = Math.ceil(tenant.waiting.length * anyway); more > 0; more--) letOneIn(tenant);
    }
  };
  const timer = setInterval(look, everyMs);
  timer.unref();

  return {
    async begin(name) {
      let tenant = tenants.get(name);
      if (tenant === undefined) tenants.set(name, (tenant = { running: 0, waiting: [], at: 0 }));
      const own = tenant;
      own.at = performance.now();
      if (own.waiting.length === 0 && mayRun(own)) own.running += 1;
      else await new Promise<void>((resolve) => own.waiting.push(resolve));
      let isDone = false;
      return {
        [Symbol.dispose]() {
          if (isDone) return;
          isDone = true;
          own.running -= 1;
          own.at = performance.now();
          letIn(own);
        },
      };
    },
    waiting: () => tenants.values().reduce((sum, { waiting }) => sum + waiting.length, 0),
    [Symbol.dispose]() {
      clearInterval(timer);
      limit = Number.POSITIVE_INFINITY;
      for (const tenant of tenants.values()) letIn(tenant);
    },
  };
}
