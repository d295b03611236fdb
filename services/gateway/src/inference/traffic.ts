/**
 * What this gateway tells of its requests in KV `traffic`: for draining before an unload, for judging a canary, for sizing the working set. Of a
 * thousand names that are busy nobody needs most, so each reader has an entry with what it needs, at the rate that it needs.
 */
import type { Bus } from "@loraline/bus";
import { buckets, trafficKeys, type TrafficState } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { ulid } from "ulid";
import type { RoutingTable } from "./routing-table.ts";

const windowMs = 60_000;
/** Newest first-byte times that are kept of each name; of a busier one the percentiles are about these. */
const samplesKept = 1024;
/** While a replica drains, agents hear this often that nothing has changed. */
const drainingEveryMs = 2000;
/** Names that were asked for are told after so long, and less often where they are many: so many names take so long. */
const askedEvery = { ms: 5000, names: 100, atMostMs: 60_000 };
/** Names in one such entry, which has to fit into a message of NATS. */
const mostAsked = 5000;
/** Totals of a name without requests for this long are dropped, because every version has a name of its own. */
const forgottenAfterMs = 60 * 60_000;

interface TrafficRequest {
  /** The engine's answer begins: its status and headers are here. Later calls do nothing. */
  firstByte(): void;
  /**
   * The request is over; later calls do nothing. `served` and `failed` count, `ignored` does not: what the client did wrong,
   * and a client that left before the first byte, say nothing about the version.
   */
  end(outcome: "served" | "failed" | "ignored", tokens?: { prompt: number; completion: number }): void;
}

export interface Traffic extends AsyncDisposable {
  /** The key under which this gateway reports: new with each start. */
  readonly gateway: string;
  /** Counts a request as in flight on a replica until it ends. */
  begin(at: { engineModel: string; engine: string; replica: string }): TrafficRequest;
  /** Counts a request that waits for an engine without a replica, until it is disposed. */
  wait(engine: string): Disposable;
  /** Engines for which requests wait, with their number. */
  readonly waiting: ReadonlyMap<string, number>;
}

/** Of requests in flight nobody reads the counts. */
const notCounted = {
  total: { requests: 0, errors: 0, firstByteMs: 0, promptTokens: 0, completionTokens: 0 },
  window: { requests: 0, firstByteP50Ms: null, firstByteP95Ms: null },
};

interface Counted {
  engine: string;
  inFlight: Map<string, number>;
  total: TrafficState["engines"][number]["total"];
  /** Ring. */
  samples: { at: number; ms: number }[];
  next: number;
  usedAt: number;
}

/**
 * Tells after `everyMs` while anything changes that somebody needs, and at least after `atLeastEveryMs`. What the bus does not take is
 * only logged: the next entry holds the same and more. Disposing removes the entries.
 */
export async function createTraffic({
  bus,
  log,
  table,
  everyMs = 1000,
  atLeastEveryMs = 5000,
  now = () => performance.now(),
}: {
  bus: Pick<Bus, "bucket">;
  log: Log;
  /** Where requests go, who waits for their end, and which names are compared. */
  table: Pick<RoutingTable, "isRouted" | "isAnyDraining" | "comparedNames" | "engine">;
  everyMs?: number;
  atLeastEveryMs?: number;
  now?: () => number;
}): Promise<Traffic> {
  const bucket = await bus.bucket(buckets.traffic);
  const gateway = ulid();
  const names = new Map<string, Counted>();
  const keys = trafficKeys(gateway);
  /** Of each entry, what it told last and when. */
  const told = { inFlight: { text: "", at: Number.NEGATIVE_INFINITY }, canary: { text: "", at: Number.NEGATIVE_INFINITY } };
  /** Engine to names that were asked for since they were told. */
  let asked = new Map<string, Set<string>>();
  /** Engines that may be scaled to zero, and were asked since that was told. */
  let needed = new Set<string>();
  const waiting = new Map<string, number>();
  const demandTold = { waiting: "{}", at: Number.NEGATIVE_INFINITY };
  let askedToldAt = Number.NEGATIVE_INFINITY;
  let reporting: Promise<unknown> = Promise.resolve();
  let ended = false;

  const countedOf = (engineModel: string, engine: string): Counted => {
    let counted = names.get(engineModel);
    if (counted === undefined) {
      const total = { requests: 0, errors: 0, firstByteMs: 0, promptTokens: 0, completionTokens: 0, since: new Date().toISOString() };
      counted = { engine, inFlight: new Map(), total, samples: [], next: 0, usedAt: now() };
      names.set(engineModel, counted);
    }
    return counted;
  };

  type Listed = TrafficState["engines"][number];
  const listed = (engineName: string, { engine, total, samples }: Counted, inFlight: Listed["inFlight"], time: number): Listed => {
    const recent = samples.filter(({ at }) => time - at <= windowMs).map(({ ms }) => ms);
    recent.sort((a, b) => a - b);
    const window = { requests: recent.length, firstByteP50Ms: percentile(recent, 0.5), firstByteP95Ms: percentile(recent, 0.95) };
    return { engineName, engine, inFlight, total: { ...total }, window };
  };
  const write = (key: string, rest: Pick<TrafficState, "engines" | "asked" | "demand">): Promise<number> =>
    bucket.put(key, { gateway, at: new Date().toISOString(), windowMs, ...rest });
  const isDue = (of: { text: string; at: number }, text: string, time: number): boolean =>
    of.text !== text || time - of.at >= atLeastEveryMs;

  /** Requests in flight where no more of their kind are sent. Agents read it, each of them every entry. */
  const tellInFlight = async (time: number): Promise<void> => {
    const engines: Listed[] = [];
    for (const [engineModel, counted] of names) {
      const { engine } = counted;
      const left = [...counted.inFlight].filter(([replica]) => !table.isRouted({ engineModel, engine, replica }));
      if (left.length > 0) engines.push({ engineName: engineModel, engine, inFlight: Object.fromEntries(left), ...notCounted });
      else if (counted.inFlight.size === 0 && time - counted.usedAt > forgottenAfterMs) names.delete(engineModel);
    }
    const text = JSON.stringify(engines);
    const isAwaited = time - told.inFlight.at >= drainingEveryMs && table.isAnyDraining();
    if (!isDue(told.inFlight, text, time) && !isAwaited) return;
    await write(keys.inFlight, { engines });
    told.inFlight = { text, at: time };
  };
  const tellCanaries = async (time: number): Promise<void> => {
    const compared = [...table.comparedNames()].flatMap((name) => {
      const counted = names.get(name);
      return counted === undefined ? [] : [listed(name, counted, {}, time)];
    });
    const text = JSON.stringify(compared);
    if ((compared.length === 0 && told.canary.text === "") || !isDue(told.canary, text, time)) return;
    await write(keys.canary, { engines: compared });
    told.canary = { text: compared.length === 0 ? "" : text, at: time };
  };
  const tellAsked = async (time: number): Promise<void> => {
    const count = asked.values().reduce((sum, of) => sum + of.size, 0);
    const pause = Math.min(askedEvery.atMostMs, askedEvery.ms * Math.max(1, count / askedEvery.names));
    if (count === 0 || time - askedToldAt < pause) return;
    const now = asked;
    asked = new Map();
    askedToldAt = time;
    const most = Math.ceil(mostAsked / now.size);
    await write(keys.asked, {
      engines: [],
      asked: Object.fromEntries([...now].map(([engine, of]) => [engine, [...of].slice(0, most)])),
    });
  };
  /** What an engine that may be scaled to zero is needed for: at once when a request begins to wait, and again and again while it is needed. */
  const tellDemand = async (time: number): Promise<void> => {
    for (const { engine, inFlight } of names.values()) if (inFlight.size > 0 && table.engine(engine)?.wake) needed.add(engine);
    const text = JSON.stringify(Object.fromEntries(waiting));
    if (text === demandTold.waiting && (needed.size + waiting.size === 0 || time - demandTold.at < atLeastEveryMs)) return;
    const told = needed;
    needed = new Set();
    demandTold.at = time;
    const demand = Object.fromEntries([...told, ...waiting.keys()].map((engine) => [engine, waiting.get(engine) ?? 0]));
    await write(keys.demand, { engines: [], demand }).catch((error: unknown) => {
      for (const engine of told) needed.add(engine);
      throw error;
    });
    demandTold.waiting = text;
  };
  const report = async (): Promise<void> => {
    const time = now();
    await Promise.all([tellInFlight(time), tellCanaries(time), tellAsked(time), tellDemand(time)]);
  };
  const tick = (): void => {
    reporting = report().catch((error: unknown) => log.warn({ err: error }, "traffic was not told"));
  };
  let busy = false;
  const timer = setInterval(() => {
    if (busy) return;
    busy = true;
    tick();
    void reporting.finally(() => {
      busy = false;
    });
  }, everyMs);
  timer.unref();
  await report();

  return {
    gateway,
    begin({ engineModel, engine, replica }) {
      const counted = countedOf(engineModel, engine);
      counted.inFlight.set(replica, (counted.inFlight.get(replica) ?? 0) + 1);
      let ofEngine = asked.get(engine);
      if (ofEngine === undefined) {
        ofEngine = new Set();
        asked.set(engine, ofEngine);
      }
      ofEngine.add(engineModel);
      if (table.engine(engine)?.wake) needed.add(engine);
      const began = now();
      let firstByteMs: number | undefined;
      let over = false;
      return {
        firstByte() {
          firstByteMs ??= now() - began;
        },
        end(outcome, tokens) {
          if (over) return;
          over = true;
          const time = now();
          counted.usedAt = time;
          const left = (counted.inFlight.get(replica) ?? 1) - 1;
          if (left > 0) counted.inFlight.set(replica, left);
          else counted.inFlight.delete(replica);
          if (outcome === "ignored") return;
          const ms = firstByteMs ?? time - began;
          counted.samples[counted.next] = { at: time, ms };
          counted.next = (counted.next + 1) % samplesKept;
          const { total } = counted;
          total.requests += 1;
          total.firstByteMs += ms;
          if (outcome === "failed") total.errors += 1;
          total.promptTokens += tokens?.prompt ?? 0;
          total.completionTokens += tokens?.completion ?? 0;
        },
      };
    },
    waiting,
    wait(engine) {
      waiting.set(engine, (waiting.get(engine) ?? 0) + 1);
      let over = false;
      return {
        [Symbol.dispose]() {
          if (over) return;
          over = true;
          const left = (waiting.get(engine) ?? 1) - 1;
          if (left > 0) waiting.set(engine, left);
          else waiting.delete(engine);
        },
      };
    },
    async [Symbol.asyncDispose]() {
      if (ended) return;
      ended = true;
      clearInterval(timer);
      await reporting;
      // The bucket's TTL does it when the bus is away.
      for (const key of Object.values(keys))
        await bucket.delete(key).catch((error: unknown) => log.debug({ err: error }, "traffic entry left to its TTL"));
    },
  };
}

/** Percentile of sorted numbers by nearest rank, rounded to one decimal. */
function percentile(sorted: readonly number[], share: number): number | null {
  const value = sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)];
  return value === undefined ? null : Math.round(value * 10) / 10;
}
