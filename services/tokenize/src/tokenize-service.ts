/** The worker: judges what is asked for and turns records into tokens. */
import type { Bus } from "@loraline/bus";
import { consumers, runRejected } from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import type { Telemetry } from "@loraline/runtime";
import { createBases } from "./load-base.ts";
import { onRunRequested } from "./on-run-requested.ts";

export interface TokenizeServiceDeps {
  bus: Bus;
  objects: Objects;
  telemetry: Telemetry;
  /** Directory of bases, one folder each, named like the base. */
  basesDir: string;
  /** Bytes of token data per shard, and about what is held in memory while one is written. */
  shardBytes?: number;
}

/** Starts consuming `run.requested`; disposing gives back what is not finished. */
export async function createTokenizeService(deps: TokenizeServiceDeps): Promise<AsyncDisposable> {
  const { bus, objects, telemetry, basesDir, shardBytes = 64 * 1024 * 1024 } = deps;
  return bus.consume({
    consumer: consumers.tokenizeRunRequested,
    handlers: { "run.requested.v1": onRunRequested({ bus, objects, telemetry, loadBase: createBases(basesDir), shardBytes }) },
    async onDeadLetter({ tenant, id, code, message, param }) {
      await bus.publish(runRejected, { tenant, id }, { code, message, param });
    },
  });
}
