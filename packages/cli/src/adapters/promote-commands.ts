/** `loraline promote` and `rollback`: which version the alias of an adapter points to. */
import { type AddCommands, decimal, decimals, examples, wholeNumber } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { moveAlias } from "./move-alias.ts";
import { listAdapters } from "./show-adapter.ts";
import { versionNamed } from "./version-named.ts";

interface CanaryFlags {
  canary: boolean;
  steps?: number[];
  interval?: number;
  minRequests?: number;
  maxErrorRate?: number;
  maxLatencyRatio?: number;
  maxLossIncrease?: number;
}

export const addPromoteCommands: AddCommands = (program, { connect, print, terminal }) => {
  program
    .command("promote")
    .description("move the alias of an adapter to a version, at once or step by step")
    .argument("<adapter>", "name of the adapter, with its version: pirate@2")
    .argument("[version]", "its version, when the name does not say it", wholeNumber(1))
    .option("--canary", "give it a growing share of the users, and take it back when it does worse", false)
    .option("--steps <list>", "with --canary: percent of the users, step by step (5,25,50)", decimals)
    .option("--interval <seconds>", "with --canary: shortest time of a step (60)", decimal)
    .option("--min-requests <n>", "with --canary: answers that a step takes at least (50)", wholeNumber(0))
    .option("--max-error-rate <share>", "with --canary: failed answers per answer above the promoted version's (0.02)", decimal)
    .option("--max-latency-ratio <times>", "with --canary: p95 of the first byte against the promoted version's (2)", decimal)
    .option("--max-loss-increase <loss>", "with --canary: held-out loss above the promoted version's (not asked)", decimal)
    .addHelpText(
      "after",
      examples(
        "loraline promote pirate@2",
        "loraline promote pirate@2 --canary",
        "loraline promote pirate@2 --canary --steps 5,25,50 --interval 60 --max-error-rate 0.01",
      ),
    )
    .action(async (name: string, given: number | undefined, { canary, ...flags }: CanaryFlags) => {
      const { adapter, version } = versionNamed(name, given, "promote");
      const { steps, interval, minRequests, maxErrorRate, maxLatencyRatio, maxLossIncrease } = flags;
      if (!canary && Object.keys(flags).length > 0) {
        throw new Failure(exitCodes.usage, "CANARY_MISSING", "settings of a canary need --canary.", { param: "--canary" });
      }
      const settings = {
        ...(steps === undefined ? {} : { steps }),
        ...(interval === undefined ? {} : { interval_s: interval }),
        ...(minRequests === undefined ? {} : { min_requests: minRequests }),
        ...(maxErrorRate === undefined ? {} : { max_error_rate: maxErrorRate }),
        ...(maxLatencyRatio === undefined ? {} : { max_latency_ratio: maxLatencyRatio }),
        ...(maxLossIncrease === undefined ? {} : { max_loss_increase: maxLossIncrease }),
      };
      const body = { version, ...(canary ? { canary: settings } : {}) };
      const api = await connect();
      const view = await moveAlias(api, adapter, () => api.promoteAdapter({ adapter, body }), terminal);
      print(view, () => listAdapters([view]));
    });

  program
    .command("rollback")
    .description("move the alias back, or end a canary")
    .argument("<adapter>", "name of the adapter")
    .option("--to <version>", "this version; without it: the one before, or, while a canary is under way, the promoted one", wholeNumber(1))
    .addHelpText("after", examples("loraline rollback pirate", "loraline rollback pirate --to 1"))
    .action(async (adapter: string, { to }: { to?: number }) => {
      const api = await connect();
      const body = to === undefined ? {} : { version: to };
      const view = await moveAlias(api, adapter, () => api.rollbackAdapter({ adapter, body }), terminal);
      print(view, () => listAdapters([view]));
    });
};
