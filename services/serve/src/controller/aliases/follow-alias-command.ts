/** Commands that move the alias of an adapter, or begin or end its canary. */
import type { KvBucket } from "@loraline/bus";
import type { AdapterState, EventAddress, Problem, ReplicaState } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { keyOf, nameOf, publishMove } from "./adapter-events.ts";
import type { ServeServiceDeps } from "../service.ts";
import { type AliasCommand, decideAlias } from "./decide-alias.ts";

/** Follows a command that moves the alias: one compare-and-set, then its events. */
export async function followAliasCommand(
  at: EventAddress,
  command: AliasCommand,
  deps: ServeServiceDeps,
  adapters: KvBucket<AdapterState>,
  replicas: (of: AdapterState) => Iterable<ReplicaState>,
): Promise<void> {
  const { log, telemetry } = deps;
  await telemetry.span(
    "promote",
    { attributes: { "loraline.tenant": at.tenant, "loraline.adapter": at.id, "loraline.command": command.kind } },
    async () => {
      let rejected: Problem | undefined;
      let nothing: string | undefined;
      const state = await adapters.change(keyOf(at), (current) => {
        const decision = decideAlias(current, command, {
          name: nameOf(at),
          replicas: current === undefined ? [] : replicas(current),
          now: Date.now(),
        });
        rejected = decision.kind === "reject" ? decision.problem : undefined;
        nothing = decision.kind === "nothing" ? decision.why : undefined;
        return decision.kind === "move" ? decision.state : undefined;
      });
      if (rejected !== undefined) throw new PermanentError(rejected.code, rejected.message, { param: rejected.param });
      const moves = (state?.history ?? []).flatMap((move, index) => (move.command === command.seq ? [index] : []));
      if (state === undefined || moves.length === 0) {
        log.info({ adapter: nameOf(at), ...command, why: nothing }, "alias stays");
        return;
      }
      log.info({ adapter: nameOf(at), ...command, alias: state.alias }, "alias moved");
      for (const index of moves) await publishMove(state, index, deps);
    },
  );
}
