/** A line under load, with a history for the checker: clients chat, upload, train and move aliases while something is done to the line. */
import { setTimeout as sleep } from "node:timers/promises";
import { base, eventually } from "../line-under-test.ts";
import { type Services, type ServiceUnderTest, tenant } from "../services-under-test.ts";
import { checkHistory } from "./check-history.ts";
import { createClient, processOf, type Tell } from "./client.ts";
import type { Entry, Finding, Stored } from "./history.ts";
import { numbersFrom } from "./numbers.ts";
import { readStored, readUsage } from "./read-stored.ts";

/** Time for the line to do by itself what was left, after everything is healed. A limit for hangs and no measure. */
const settleMs = 5 * 60_000;

type Connection = Parameters<typeof readStored>[0];

export interface Load {
  readonly client: ReturnType<typeof createClient>;
  /** Adapters that have answered, or could have: those that clients ask. A test adds what it trained itself. */
  readonly served: Set<string>;
  /** Runs that are not over yet. */
  readonly open: ReadonlyMap<string, string>;
  readonly uploads: readonly string[];
  /** What happened so far. */
  readonly history: readonly Entry[];
  /** Kills a gateway, and notes that it may not have written its last counts. */
  crash(gateway: ServiceUnderTest): Promise<void>;
  /** Stops a gateway in order, as a rolling update does. */
  stop(gateway: ServiceUnderTest): Promise<void>;
  /** Waits until so many more chats were answered to their end, by this gateway or by any. */
  answers(count: number, by?: ServiceUnderTest): Promise<void>;
  /** Waits until a run that was asked for after this call is over. */
  nextRun(): Promise<void>;
}

interface ObservedLine {
  readonly history: readonly Entry[];
  /**
   * Loads the line, does `faults`, and waits until everything has come to its end. All gateways are stopped then, so that their counts are
   * written. What happened in earlier calls is part of the history too.
   */
  underLoad(faults: (load: Load) => Promise<void>, options?: LoadOptions): Promise<{ stored: Stored }>;
  /** `underLoad`, and what the checker finds afterwards. */
  findings(faults: (load: Load) => Promise<void>, options?: LoadOptions): Promise<Finding[]>;
}

interface LoadOptions {
  /** false: clients only chat, as soon as there is an adapter. Default true: they also upload, train and move aliases. */
  commands?: boolean;
}

export function observe({
  services,
  nc,
  seed = Date.now() % 1_000_000,
  tell: alsoTell = () => {},
  adapters = ["anna", "boris", "carla"],
}: {
  services: Services;
  nc: Connection;
  seed?: number;
  tell?: Tell;
  adapters?: readonly string[];
}): ObservedLine {
  const history: Entry[] = [];
  const tell: Tell = (entry) => {
    history.push(entry);
    alsoTell(entry);
  };
  tell({ kind: "start", at: Date.now(), seed, tenant, base });
  const random = numbersFrom(seed);
  const oneOf = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)] as T;
  const served = new Set<string>();
  const uploads: string[] = [];
  const open = new Map<string, string>();
  let asked = 0;

  const underLoad: ObservedLine["underLoad"] = async (faults, { commands: withCommands = true } = {}) => {
    const gateways = services.all.filter(({ program }) => program === "gateway");
    await Promise.all(gateways.map((gateway) => gateway.spawn()));
    await Promise.all(gateways.map((gateway) => gateway.ready()));
    let faultsGo = true;
    let loadGoes = true;
    const client = createClient({ tell, gateway: () => oneOf(gateways), go: () => loadGoes });

    const chat = async (user: number): Promise<void> => {
      for (let n = 0; loadGoes; n++) {
        if (served.size > 0)
          await client.chat(oneOf([...served]), `Question ${n} of user ${user}?`, { stream: random() < 0.3, user: `user-${n % 20}` });
        await sleep(served.size > 0 ? 50 : 500);
      }
    };
    const train = async (): Promise<void> => {
      for (; faultsGo && (withCommands || served.size === 0); asked++) {
        if (open.size < 3) {
          const isNew = uploads.length < 2 || random() < 0.5;
          const file = isNew ? await client.upload(`rows-${seed}-${asked}.jsonl`, rows(asked)) : oneOf(uploads);
          if (file !== undefined && !uploads.includes(file)) uploads.push(file);
          const adapter = oneOf(adapters);
          const settings = {
            lora: { r: 4, lora_alpha: 8, target_modules: ["q_proj", "v_proj"] },
            training: { seed: asked },
            gate: "none",
            promote: random() < 0.5 || served.size === 0 ? "auto" : "manual",
            max_attempts: 20,
          };
          const run = file && (await client.run(`run-${seed}-${asked}`, adapter, file, settings));
          if (run) open.set(run, adapter);
        }
        await sleep(500 + random() * 4000);
      }
    };
    /** Forgets runs that are over, and lets the clients ask what they have made. */
    const follow = async (): Promise<void> => {
      while (loadGoes) {
        for (const [run, adapter] of open) {
          const phase = await client.phase(run);
          // Nothing is promoted where all runs so far said `manual`.
          if (phase === "served" && (await client.look(adapter))?.alias) served.add(adapter);
          if (phase === "served" || phase === "failed" || phase === "rejected" || phase === "cancelled") open.delete(run);
        }
        await sleep(500);
      }
    };
    const move = async (): Promise<void> => {
      while (faultsGo) {
        await sleep(1000 + random() * 5000);
        if (served.size === 0) continue;
        const adapter = oneOf([...served]);
        const view = await client.look(adapter);
        const versions = view?.versions.filter(({ status }) => status === "desired" || status === "retired") ?? [];
        const to = versions.length === 0 ? undefined : oneOf(versions);
        if (to === undefined) continue;
        const canary = { steps: [50], interval_s: 5, min_requests: 1, max_error_rate: 1, max_latency_ratio: 1000 };
        const kind = random();
        if (kind < 0.2) await client.move("rollback", adapter, {});
        else await client.move("promote", adapter, { version: to.version, ...(kind < 0.4 ? { canary } : {}) });
      }
    };
    /** Counts never fall, whoever is killed. */
    const watchUsage = async (): Promise<void> => {
      while (loadGoes) {
        await sleep(5000);
        const at = Date.now();
        for (const [key, counts] of await readUsage(nc).catch(() => [])) tell({ kind: "usage", at, key, rows: counts });
      }
    };

    const load: Load = {
      client,
      served,
      open,
      uploads,
      history,
      async crash(gateway) {
        tell({ kind: "ended", at: Date.now(), process: processOf(gateway), how: "crashed" });
        await gateway.kill();
      },
      async stop(gateway) {
        const code = await gateway.kill("SIGTERM");
        if (code !== 0) throw new Error(`${gateway.id} did not stop in order: ${code}`);
        tell({ kind: "ended", at: Date.now(), process: processOf(gateway), how: "stopped" });
      },
      async answers(count, by) {
        const from = history.length;
        const isOne = (entry: Entry): boolean =>
          entry.kind === "chat" && entry.outcome === "answered" && (by === undefined || entry.process === processOf(by));
        await eventually(`${count} answers${by ? ` by ${by.id}` : ""}`, settleMs, () =>
          history.slice(from).filter(isOne).length >= count ? true : undefined,
        );
      },
      async nextRun() {
        const before = new Set(open.keys());
        const seen = new Set<string>();
        await eventually("a new run is over", settleMs, () => {
          for (const run of open.keys()) if (!before.has(run)) seen.add(run);
          return [...seen].some((run) => !open.has(run)) ? true : undefined;
        }).catch(async (error: unknown) => {
          const runs = await Promise.all([...open.keys()].map((run) => client.describe(run)));
          const commands = history.filter((entry) => entry.kind === "upload" || entry.kind === "run").slice(-3);
          throw new Error(
            [String(error), ...runs, ...commands.map((entry) => JSON.stringify(entry)), await services.lastWords()].join("\n"),
            {
              cause: error,
            },
          );
        });
      },
    };
    const going = [chat(1), chat(2), chat(3), follow(), watchUsage()];
    const commands = withCommands ? [train(), move()] : [train()];
    let settlesUntil = 0;
    const settle = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
      await eventually(what, Math.max(1000, settlesUntil - performance.now()), async () => ((await holds()) ? true : undefined)).catch(
        (error: unknown) => {
          const { cause } = error as Error;
          tell({ kind: "stuck", at: Date.now(), what: `not so by itself: ${what}${cause instanceof Error ? ` (${cause.message})` : ""}` });
        },
      );
    };
    try {
      await eventually("an adapter answers", settleMs, () => (served.size > 0 ? true : undefined));
      await faults(load);
      // Everything is healed: what is left has to happen by itself.
      faultsGo = false;
      await Promise.all(commands);
      settlesUntil = performance.now() + settleMs;
      for (const service of services.all) await settle(`${service.id} is ready`, async () => (await service.readyz()).trim() === "ok");
      await settle("all runs are over", async () => open.size === 0);
      for (const adapter of served) {
        await settle(`no move of ${adapter} is under way`, async () => {
          const view = await client.look(adapter);
          return view !== undefined && !view.isMoving;
        });
      }
    } finally {
      faultsGo = false;
      loadGoes = false;
      await Promise.all([...going, ...commands]);
    }
    tell({ kind: "healed", at: Date.now() });
    for (const adapter of served) {
      for (const via of gateways) {
        await settle(
          `${adapter} answers by ${via.id}`,
          async () => (await client.chat(adapter, "At last?", { stream: false, via })).outcome === "answered",
        );
      }
    }
    for (const upload of uploads) await client.content(upload);
    for (const { id, endedByItself } of gateways) {
      for (const start of endedByItself) tell({ kind: "ended", at: Date.now(), process: `${id}#${start}`, how: "crashed" });
    }
    for (const gateway of gateways) {
      tell({
        kind: "ended",
        at: Date.now(),
        process: processOf(gateway),
        how: (await gateway.kill("SIGTERM")) === 0 ? "stopped" : "crashed",
      });
    }
    // Servers of which one has just come back may not all answer yet.
    return { stored: await eventually("what NATS holds can be read", settleMs, () => readStored(nc, tenant)) };
  };
  return {
    history,
    underLoad,
    async findings(faults, options) {
      const { stored } = await underLoad(faults, options);
      return checkHistory(history, stored);
    },
  };
}

const rows = (n: number): string =>
  Array.from(
    { length: 20 },
    (_, i) => `${JSON.stringify({ instruction: `Say ${n} and ${i}.`, output: `It is ${n * i}, of course.` })}\n`,
  ).join("");
