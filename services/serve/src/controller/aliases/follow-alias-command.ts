/** Commands that move the alias of an adapter, or begin or end its canary. */
import type { KvBucket } from "@loraline/bus";
import type { AdapterState, EventAddress, Problem, ReplicaState } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { type AdapterEventDeps, keyOf, nameOf, publishLine, publishLinesAfter } from "./adapter-events.ts";
import { type AliasCommand, decideAlias } from "./decide-alias.ts";
import { lastLine } from "./history-lines.ts";

/** Follows a command that moves the alias: one compare-and-set, then its events. */
export async function followAliasCommand(
  at: EventAddress,
  command: AliasCommand,
  deps: AdapterEventDeps,
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
      let known = 0;
      const state = await adapters.change(keyOf(at), (current) => {
        known = current === undefined ? 0 : lastLine(current);
        const decision = decideAlias(current, command, {
          name: nameOf(at),
          replicas: current === undefined ? [] : replicas(current),
          now: Date.now(),
        });
        rejected = decision.kind === "reject" ? decision.problem : undefined;
        nothing = decision.kind === "nothing" ? decision.why : undefined;
        return decision.kind === "move" || decision.kind === "await" ? decision.state : undefined;
      });
      if (rejected !== undefined) throw new PermanentError(rejected.code, rejected.message, { param: rejected.param });
      if (state === undefined) return;
      const own = state.history.flatMap((line, index) => (line.command === command.seq ? [index] : []));
      const what =
        own.length > 0 ? "alias moved" : state.awaiting?.command === command.seq ? "version is loaded again first" : "alias stays";
      log.info({ adapter: nameOf(at), ...command, alias: state.alias, why: nothing }, what);
      // Delivered again, this command changes nothing any more, and its lines may not have been told.
      if (lastLine(state) === known) for (const index of own) await publishLine(state, index, deps);
      await publishLinesAfter(state, known, deps);
    },
  );
}
