/** What the replicas settled about a version, in KV `adapters` and in events. */
import type { KvBucket } from "@loraline/bus";
import type { AdapterState } from "@loraline/contracts";
import { movedWithProof, publishLine, publishLinesAfter, publishRefused, publishServed } from "../aliases/adapter-events.ts";
import { lastLine } from "../aliases/history-lines.ts";
import type { ServeServiceDeps } from "../service.ts";
import type { Convergence } from "./decide-convergence.ts";
import { applyRefused, applyServed } from "./decide-versions.ts";

/** Writes what the reports settled, then tells it. */
export async function settle(key: string, settled: Convergence, deps: ServeServiceDeps, adapters: KvBucket<AdapterState>): Promise<void> {
  const { log } = deps;
  if (settled.kind === "refused") {
    const state = await adapters.change(key, (current) => current && changed(current, applyRefused(current, settled)));
    const version = state?.versions.find((known) => known.version === settled.version);
    if (state === undefined || version?.status !== "refused") return;
    log.warn({ adapter: key, version: settled.version, ...settled.problem }, "version refused: a replica cannot be proven to apply it");
    await publishRefused(state, version, version.reason ?? settled.problem, deps);
    return;
  }
  const now = new Date().toISOString();
  const before = (await adapters.get(key))?.value;
  const trace = before?.versions.find(({ version }) => version === settled.version)?.trace;
  await deps.telemetry.span(
    "promote",
    { parent: trace ?? undefined, attributes: { "loraline.version": settled.version } },
    async (span) => {
      let known = 0;
      const state = await adapters.change(key, (current) => {
        known = current === undefined ? 0 : lastLine(current);
        return current && changed(current, applyServed(current, settled, now));
      });
      const version = state?.versions.find((known) => known.version === settled.version);
      if (state === undefined || version === undefined || version.servedAt === null) return;
      span.setAttributes({ "loraline.tenant": state.tenant, "loraline.adapter": state.adapter, "loraline.alias": state.alias ?? 0 });
      log.info({ adapter: key, version: settled.version, alias: state.alias, replicas: settled.replicas }, "version is served");
      const move = movedWithProof(state, version);
      // One line, or two: a version that moves the alias, or begins its canary, ends the canary of another.
      if (lastLine(state) > known) await publishLinesAfter(state, known, deps);
      else if (move !== undefined) await publishLine(state, move, deps);
      await publishServed(state, version, deps);
    },
  );
}

/** undefined tells `change` to leave the entry as it is. */
const changed = (before: AdapterState, after: AdapterState): AdapterState | undefined =>
  before === after || JSON.stringify(before) === JSON.stringify(after) ? undefined : after;
