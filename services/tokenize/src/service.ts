/** The worker: judges requested runs and turns their records into tokens. */
import { type Bus, tellWaiting, type WaitReason, watchQuotas } from "@loraline/bus";
import { buckets, consumers, type EventAddress, type QuotaSettings, runRejected, runWaiting } from "@loraline/contracts";
import type { Objects, StoreState } from "@loraline/objects";
import type { Telemetry } from "@loraline/runtime";
import { createBases, createEncodeThreads, tokenizeCode } from "@loraline/tokens";
import type { ChunkWorkDeps } from "./chunk-key.ts";
import { createChunkWindows } from "./chunk-windows.ts";
import { onChunkRequested } from "./on-chunk-requested.ts";
import { onRunRequested } from "./on-run-requested.ts";
import { needsNoTokens } from "./run-outcome.ts";

interface TokenizeServiceDeps {
  bus: Bus;
  objects: Objects & Partial<StoreState>;
  telemetry: Telemetry;
  /** Directory of bases, one folder each, named like the base. */
  basesDir: string;
  /** What the operator grants tenants. Default: every quota's own default. */
  quotas?: QuotaSettings;
  /** Bytes of token data per shard, and about what is held in memory while one is written. */
  shardBytes?: number;
  /** Threads that tokenize; default: as many as there are cores. */
  threads?: number;
  /** How often it is told how far tokenizing is. Default: every two seconds. */
  tellEveryMs?: number;
}

/** Starts consuming `run.requested` and `chunk.requested`; disposing gives back what is not finished. */
export async function createTokenizeService(deps: TokenizeServiceDeps): Promise<AsyncDisposable> {
  const { bus, objects, telemetry, basesDir, shardBytes = 64 * 1024 * 1024, threads: threadCount } = deps;
  await using starting = new AsyncDisposableStack();
  const stopping = new AbortController();
  starting.defer(() => stopping.abort());
  const quotas = await watchQuotas({ bus, settings: deps.quotas ?? {}, signal: stopping.signal });
  const threads = starting.use(createEncodeThreads(threadCount));
  const loadBase = createBases(basesDir);
  const work: ChunkWorkDeps = { bus, objects, threads, code: tokenizeCode, loadBase, windows: createChunkWindows() };
  // Loaded before the first run comes, which then finds the base in memory. Errors are ignored here: the run that needs the base meets them.
  for (const { value } of await (await bus.bucket(buckets.engines)).entries(">", { skipUnreadable: true }))
    loadBase(value.base.name).catch(() => undefined);
  const isAway = objects.problem && (() => objects.problem?.() !== undefined);
  const tell = async (at: EventAddress, reason: WaitReason | null): Promise<void> => {
    if (reason === null && (await needsNoTokens(bus, at))) return;
    await tellWaiting(bus, runWaiting, at, { stage: "tokenize", reason });
  };
  const chunks = await bus.consume({
    consumer: consumers.tokenizeChunkRequested,
    handlers: { "chunk.requested.v1": onChunkRequested(work) },
    isAway,
    onWait: ({ at, data }, reason) => tell({ tenant: at.tenant, id: data.run }, reason),
  });
  starting.use(chunks);
  const runs = await bus.consume({
    consumer: consumers.tokenizeRunRequested,
    handlers: { "run.requested.v1": onRunRequested({ ...work, telemetry, quotas, shardBytes, tellEveryMs: deps.tellEveryMs }) },
    isAway,
    onWait: ({ at }, reason) => tell(at, reason),
    async onDeadLetter({ tenant, id, code, message, param }) {
      await bus.publish(runRejected, { tenant, id }, { code, message, param });
    },
  });
  const running = starting.move();
  return {
    async [Symbol.asyncDispose]() {
      // Side by side: each may have to wait for a pull to end.
      await Promise.all([runs[Symbol.asyncDispose](), chunks[Symbol.asyncDispose]()]);
      await running.disposeAsync();
    },
  };
}
