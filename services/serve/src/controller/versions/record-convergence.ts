/** Records what became of a version: in KV `adapters`, then in events. */
import type { KvBucket } from "@loraline/bus";
import type { AdapterState } from "@loraline/contracts";
import {
  type AdapterEventDeps,
  movedWithProof,
  publishLine,
  publishLinesAfter,
  publishRefused,
  publishServed,
} from "../aliases/adapter-events.ts";
import { lastLine } from "../aliases/history-lines.ts";
import type { Convergence } from "./decide-convergence.ts";
import { applyRefused, applyServed } from "./decide-versions.ts";

export async function recordConvergence(
  key: string,
  decided: Convergence,
  deps: AdapterEventDeps,
  adapters: KvBucket<AdapterState>,
): Promise<void> {
  const { log } = deps;
  if (decided.kind === "refused") {
    const state = await adapters.change(key, (current) => current && changed(current, applyRefused(current, decided)));
    const version = state?.versions.find((known) => known.version === decided.version);
    if (state === undefined || version?.status !== "refused") return;
    log.warn({ adapter: key, version: decided.version, ...decided.problem }, "version refused: a replica cannot be proven to apply it");
    await publishRefused(state, version, version.reason ?? decided.problem, deps);
    return;
  }
  const now = new Date().toISOString();
  const before = (await adapters.get(key))?.value;
  const trace = before?.versions.find(({ version }) => version === decided.version)?.trace;
  await deps.telemetry.span(
    "promote",
    { parent: trace ?? undefined, attributes: { "loraline.version": decided.version } },
    async (span) => {
      let known = 0;
      const state = await adapters.change(key, (current) => {
        known = current === undefined ? 0 : lastLine(current);
        return current && changed(current, applyServed(current, decided, now));
      });
      const version = state?.versions.find((known) => known.version === decided.version);
      if (state === undefined || version === undefined || version.servedAt === null) return;
      span.setAttributes({ "loraline.tenant": state.tenant, "loraline.adapter": state.adapter, "loraline.alias": state.alias ?? 0 });
      log.info({ adapter: key, version: decided.version, alias: state.alias, replicas: decided.replicas }, "version is served");
      const move = movedWithProof(state, version);
      // The history may have got two lines: a version that moves the alias, or begins its canary, ends the canary of another.
      if (lastLine(state) > known) await publishLinesAfter(state, known, deps);
      else if (move !== undefined) await publishLine(state, move, deps);
      await publishServed(state, version, deps);
    },
  );
}

/** undefined tells `change` to leave the entry as it is. */
const changed = (before: AdapterState, after: AdapterState): AdapterState | undefined =>
  before === after || JSON.stringify(before) === JSON.stringify(after) ? undefined : after;
